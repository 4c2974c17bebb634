package gateway_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/gateway/demo"
)

// slow is a double with one upload and one download that wait for the test.
type slow struct {
	*double
	begun, goOn chan struct{}
}

func newSlow(t *testing.T) *slow {
	t.Helper()
	s := &slow{begun: make(chan struct{}, 8), goOn: make(chan struct{})}
	s.double = newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			_, _ = io.ReadFull(r.Body, make([]byte, 1))
			s.begun <- struct{}{}
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "%d %v", n+1, err)
			return
		}
		_, _ = io.WriteString(w, "first ")
		_ = http.NewResponseController(w).Flush()
		s.begun <- struct{}{}
		select {
		case <-s.goOn:
		case <-r.Context().Done():
			return
		}
		_, _ = io.WriteString(w, "last")
	})
	return s
}

// running is a harness with an upload, a download and a tunnel under way.
type running struct {
	*harness
	upload, download, tunnel net.Conn
}

func newRunning(t *testing.T) (*running, *slow) {
	t.Helper()
	up := newSlow(t)
	through := echo(t).Addr().String()
	h := newHarness(t, setup{up: up.double, more: passRule("through", through)})
	r := &running{harness: h}
	r.upload = secure(t, h.addr, h.authority(), "", h.roots())
	fmt.Fprintf(r.upload, "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", h.authority())
	<-up.begun
	r.download = secure(t, h.addr, h.authority(), "", h.roots())
	fmt.Fprintf(r.download, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", h.authority())
	<-up.begun
	r.tunnel = connect(t, h.addr, through)
	_, _ = io.WriteString(r.tunnel, "hi")
	if _, err := io.ReadFull(r.tunnel, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	return r, up
}

func TestStopLetsRunningTransfersEnd(t *testing.T) {
	t.Parallel()
	r, up := newRunning(t)
	idle := secure(t, r.addr, r.authority(), "", r.roots())
	ctx, cancel := contextWithPatience()
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop(ctx) }()
	eventually(t, "it drains", r.gw.Draining)

	// New requests are told, in old tunnels and in new ones.
	head := "GET / HTTP/1.1\r\nHost: " + r.authority() + "\r\n\r\n"
	talk(idle, head).problem(t, 503, "draining")
	talk(secure(t, r.addr, r.authority(), "", r.roots()), head).problem(t, 503, "draining")
	select {
	case err := <-stopped:
		t.Fatalf("stopped with transfers under way: %v", err)
	default:
	}

	_, _ = io.WriteString(r.upload, "4\r\nbcde\r\n0\r\n\r\n")
	if a := read(r.upload).want(t, 200); a.body != "5 <nil>" {
		t.Errorf("upload: got %q", a.body)
	}
	close(up.goOn)
	if a := read(r.download).want(t, 200); a.body != "first last" {
		t.Errorf("download: got %q", a.body)
	}
	_ = r.tunnel.(*net.TCPConn).CloseWrite()
	if text, err := io.ReadAll(r.tunnel); string(text) != "goodbye" {
		t.Errorf("tunnel: got %q %v", text, err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("got %v, want a clean stop", err)
	}
	var d net.Dialer
	if c, err := d.DialContext(t.Context(), "tcp", r.addr); err == nil {
		c.Close()
		t.Error("the proxy still listens")
	}
	// Every transfer is in the audit, though its log is closed right after.
	for _, want := range []string{`"method":"POST"`, `"status":200,"upstream_status":200`, `"outcome":"tunnelled"`, `"reason":"draining"`} {
		if !strings.Contains(r.audit.String(), want) {
			t.Errorf("audit lacks %s:\n%s", want, r.audit)
		}
	}
}

func TestEndOfDrainTimeoutCutsEverything(t *testing.T) {
	t.Parallel()
	r, _ := newRunning(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	reason := errors.New("drain timeout")
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop(ctx) }()
	eventually(t, "it drains", r.gw.Draining)
	cancel(reason)
	if err := <-stopped; !errors.Is(err, reason) {
		t.Errorf("got %v, want %v", err, reason)
	}
	for name, c := range map[string]net.Conn{"upload": r.upload, "download": r.download} {
		if a := read(c); a.err == nil {
			t.Errorf("%s: got a whole answer %d %q", name, a.status, a.body)
		}
	}
	if text, err := io.ReadAll(r.tunnel); err == nil && string(text) == "goodbye" {
		t.Error("the tunnel ended by itself")
	}
	// What was cut is in the audit, though its log is closed right after.
	for _, want := range []string{`"method":"POST"`, `"method":"GET"`, `"method":"CONNECT"`} {
		if !strings.Contains(r.audit.String(), want) {
			t.Errorf("audit lacks %s:\n%s", want, r.audit)
		}
	}
}

func TestStopWithNothingUnderWayIsQuick(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	h.get("/").want(t, 200)
	idle := secure(t, h.addr, h.authority(), "", h.roots())
	ctx, cancel := contextWithPatience()
	defer cancel()
	if err := h.stop(ctx); err != nil {
		t.Error(err)
	}
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("an idle tunnel is kept")
	}
}

// A tunnel whose client has not said its ClientHello yet carries no transfer
// that is worth waiting for.
func TestStopEndsHandshakesUnderWay(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	c := connect(t, h.addr, h.authority())
	ctx, cancel := contextWithPatience()
	defer cancel()
	if err := h.stop(ctx); err != nil {
		t.Error(err)
	}
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is kept after the stop")
	}
}

// Nothing that ran for a gateway runs on after its end. Not parallel: goroutines
// are counted.
func TestStopLeavesNoGoroutine(t *testing.T) {
	idp := demo.NewIdentityProvider(demo.ProviderOptions{})
	idp.Close()
	eventually(t, "the other tests' goroutines have ended", settled())
	before := runtime.NumGoroutine()
	t.Run("use", func(t *testing.T) {
		r, _ := newRunning(t)
		r.get("/x/../y").problem(t, 400, "bad_request")
		half := dial(t, r.addr)
		_, _ = io.WriteString(half, "CONNECT ")
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = r.stop(ctx)
	})
	var now int
	eventuallyOr(func() bool { now = runtime.NumGoroutine(); return now <= before }, func() {
		stacks := make([]byte, 1<<20)
		t.Errorf("got %d goroutines, want %d:\n%s", now, before, stacks[:runtime.Stack(stacks, true)])
	})
}

// settled reports whether the number of goroutines has not changed for a while.
func settled() func() bool {
	last, same := 0, 0
	return func() bool {
		if n := runtime.NumGoroutine(); n != last {
			last, same = n, 0
		}
		same++
		return same > 50
	}
}

// eventuallyOr is eventually for things that end well within a second.
func eventuallyOr(so func() bool, orElse func()) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.After(2 * time.Second)
	for !so() {
		select {
		case <-tick.C:
		case <-end:
			orElse()
			return
		}
	}
}

func TestClientThatLeavesEndsTheUpstreamsWork(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{})
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(ended)
	})})
	c := secure(t, h.addr, h.authority(), "", h.roots())
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", h.authority())
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	c.Close()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the server works on for nobody")
	}
}
