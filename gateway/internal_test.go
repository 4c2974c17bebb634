package gateway

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

func TestAddressPolicy(t *testing.T) {
	for _, row := range []struct {
		address string
		allow   string // "": nothing
		ok      bool
	}{
		{"93.184.216.34", "", true},
		{"10.1.2.3", "", true},
		{"192.168.1.1", "", true},
		{"100.64.0.1", "", true},
		{"2606:2800:220:1::1", "", true},
		{"fd12::1", "", true},
		{"127.0.0.1", "", false},
		{"127.99.0.1", "", false},
		{"::1", "", false},
		{"::ffff:127.0.0.1", "", false},
		{"64:ff9b::7f00:1", "", false},
		{"0.0.0.0", "", false},
		{"::", "", false},
		{"169.254.1.1", "", false},
		{"fe80::1", "", false},
		{"fe80::1%eth0", "", false},
		{"169.254.169.254", "", false},
		{"::ffff:169.254.169.254", "", false},
		{"64:ff9b::a9fe:a9fe", "", false},
		{"fd00:ec2::254", "", false},
		{"168.63.129.16", "", false},
		{"100.100.100.200", "", false},
		{"224.0.0.1", "", false},
		{"ff02::1", "", false},
		{"255.255.255.255", "", false},
		{"127.0.0.1", "127.0.0.0/8", true},
		{"::ffff:127.0.0.1", "127.0.0.0/8", true},
		{"64:ff9b::7f00:1", "127.0.0.0/8", true},
		{"::1", "127.0.0.0/8", false},
		{"169.254.169.254", "127.0.0.0/8", false},
		{"169.254.169.254", "169.254.169.254/32", true},
		{"169.254.1.1", "169.254.169.254/32", false},
		{"fe80::1%eth0", "fe80::/10", true},
		{"168.63.129.16", "168.63.129.16/32", true},
	} {
		p := &addressPolicy{}
		if row.allow != "" {
			p.allow = []netip.Prefix{netip.MustParsePrefix(row.allow)}
		}
		if err := p.check(netip.MustParseAddr(row.address)); (err == nil) != row.ok {
			t.Errorf("%s with allow_networks %q: got %v, want ok %v", row.address, row.allow, err, row.ok)
		}
	}
}

// The token plane may dial loopback, where a provider may well be, but a cloud's
// metadata service for those types only that ask it.
func TestTokenPlaneReachesMetadataForManagedIdentitiesOnly(t *testing.T) {
	p := &addressPolicy{metadataOnly: true}
	for _, address := range []string{"127.0.0.1", "::1", "10.1.2.3", "169.254.1.1"} {
		if err := p.check(netip.MustParseAddr(address)); err != nil {
			t.Errorf("%s: %v, want it permitted", address, err)
		}
	}
	for _, address := range []string{"169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "168.63.129.16"} {
		if p.check(netip.MustParseAddr(address)) == nil {
			t.Errorf("%s is permitted", address)
		}
	}
	for _, typ := range token.Types() {
		m, ok := token.NewSettings(typ).(token.MetadataUser)
		want := typ == "azure_managed_identity" || typ == "google_metadata" || typ == "aws_sigv4"
		if asks := ok && m.AsksMetadata(); asks != want {
			t.Errorf("%s may ask the metadata service: %v, want %v", typ, asks, want)
		}
	}
}

func TestOwnAddresses(t *testing.T) {
	own := &ownAddresses{}
	own.add(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 3128})
	own.add(&net.TCPAddr{IP: net.IPv6unspecified, Port: 3129})
	own.add(&net.UnixAddr{Name: "x"})
	for address, ok := range map[string]bool{
		"127.0.0.1:3128":     false,
		"127.0.0.1:443":      true,
		"127.0.0.2:3128":     true,
		"127.0.0.1:3129":     false,
		"127.0.0.2:3129":     false,
		"[::1]:3129":         false,
		"0.0.0.0:3129":       false,
		"93.184.216.34:3129": true,
	} {
		if err := own.check(netip.MustParseAddrPort(address)); (err == nil) != ok {
			t.Errorf("%s: got %v, want ok %v", address, err, ok)
		}
	}
	dial := own.guard(nil)
	if _, err := dial(t.Context(), "tcp", "[::ffff:127.0.0.1]:3128"); err == nil {
		t.Error("an own listener was dialled by its mapped address")
	}
}

// A dialler to 0.0.0.0 reaches the own loopback listener on Linux.
func TestOwnListenerIsNotReachedByTheUnspecifiedAddress(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	own := &ownAddresses{}
	own.add(ln.Addr())
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	for _, host := range []string{"127.0.0.1", "0.0.0.0", "localhost", "[::ffff:127.0.0.1]", "[::]"} {
		if c, err := own.guard(nil)(t.Context(), "tcp", host+":"+port); err == nil {
			c.Close()
			t.Errorf("dialling %s reached the own listener", host)
		}
	}
}

// Every status becomes one of Orthanc's enumeration.
func TestEveryStatusIsKnownToOrthanc(t *testing.T) {
	known := []int{
		400, 401, 402, 403, 404, 405, 406, 408, // 407 too, but that would be the gateway's own
		409, 410, 411, 412, 413, 414, 415, 416, 417, 422, 423, 424, 426,
		500, 501, 502, 503, 504, 505, 507,
	}
	for status := 100; status < 1000; status++ {
		shown := knownStatus(status)
		if status < 400 && shown != status || status >= 400 && !slices.Contains(known, shown) {
			t.Errorf("%d becomes %d", status, shown)
		}
		if slices.Contains(known, status) && shown != status {
			t.Errorf("%d, which Orthanc knows, becomes %d", status, shown)
		}
	}
	for code, a := range answers {
		if a.status != 421 && a.status != 407 && knownStatus(a.status) != a.status || a.title == "" {
			t.Errorf("%s has status %d, title %q", code, a.status, a.title)
		}
	}
}

func TestWrongPasswordsAreHeldBackAndTheRightOneIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := rules.Default().Proxy
		p.Username = "orthanc"
		p.Password = token.SecretValue(token.NewSecret("password"))
		var places atomic.Int64
		a, err := newProxyAuth(p, &places)
		if err != nil {
			t.Fatal(err)
		}
		try := func(ctx context.Context, credential string) (time.Duration, bool) {
			began := time.Now()
			h := http.Header{}
			if credential != "" {
				h.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(credential)))
			}
			_, ok := a.user(ctx, h)
			return time.Since(began), ok
		}
		if d, ok := try(t.Context(), ""); ok || d != 0 {
			t.Errorf("no credentials: got %v after %v, want a refusal at once", ok, d)
		}
		var all sync.WaitGroup
		var mu sync.Mutex
		var waits []time.Duration
		for range 100 {
			all.Go(func() {
				d, ok := try(t.Context(), "orthanc:guess")
				mu.Lock()
				defer mu.Unlock()
				if waits = append(waits, d); ok {
					t.Error("a guess was let in")
				}
			})
		}
		synctest.Wait()
		if d, ok := try(t.Context(), "orthanc:password"); !ok || d != 0 {
			t.Errorf("the right password: got %v after %v, want in at once", ok, d)
		}
		gone, leave := context.WithCancel(t.Context())
		leave()
		if d, _ := try(gone, "orthanc:guess"); d != 0 {
			t.Errorf("a client that has left is held for %v", d)
		}
		all.Wait()
		slices.Sort(waits)
		if waits[0] < 50*time.Millisecond || waits[99] > 6*time.Second || waits[9]-waits[0] < 500*time.Millisecond {
			t.Errorf("100 guesses at once waited %v … %v", waits[0], waits[99])
		}
	})
}

func TestWatchdogFiresOnlyWhenNothingMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fired atomic.Int64
		w := newWatchdog(time.Minute, func() { fired.Add(1) })
		time.Sleep(time.Hour) // of the bubble's clock
		w.start()
		for range 100 {
			time.Sleep(59 * time.Second)
			w.touch()
		}
		if fired.Load() != 0 {
			t.Error("it fired though something moved")
		}
		w.stop()
		time.Sleep(time.Hour)
		w.start()
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if fired.Load() != 0 {
			t.Error("it fired too early after a pause")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := fired.Load(); n != 1 {
			t.Errorf("it fired %d times, want once", n)
		}
	})
}

func TestBodyIsSentAgainFromItsFirstByteOrNotAtAll(t *testing.T) {
	for size, again := range map[int]bool{0: true, 10: true, replayWindow: true, replayWindow + 1: false} {
		text := strings.Repeat("a", size)
		b := &requestBody{src: strings.NewReader(text), moved: func() {}}
		first, ok := b.attempt()
		if !ok {
			t.Fatal("no first attempt")
		}
		if got, err := io.ReadAll(first); err != nil || string(got) != text {
			t.Errorf("%d bytes: got %d, %v", size, len(got), err)
		}
		second, ok := b.attempt()
		if ok != again || b.replayable() != again {
			t.Errorf("%d bytes: another attempt is possible: %v, want %v", size, ok, again)
		}
		if !ok {
			continue
		}
		if _, err := first.Read(make([]byte, 1)); !errors.Is(err, errDetached) {
			t.Errorf("the first attempt reads on: %v", err)
		}
		if got, err := io.ReadAll(second); err != nil || string(got) != text {
			t.Errorf("%d bytes: got %d again, %v", size, len(got), err)
		}
	}
}
