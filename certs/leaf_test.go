package certs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/certs"
)

func mint(t testing.TB, ca *certs.CA, host string) *tls.Certificate {
	t.Helper()
	leaf, err := ca.Leaf(host)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestLeaf(t *testing.T) {
	ca := open(t, filepath.Join(t.TempDir(), "ca"), nil)
	for host, want := range map[string]struct {
		names []string
		ips   []net.IP
	}{
		"dicom.example.org": {names: []string{"dicom.example.org"}},
		"192.0.2.1":         {ips: []net.IP{net.IPv4(192, 0, 2, 1).To4()}},
		"2001:db8::1":       {ips: []net.IP{net.ParseIP("2001:db8::1")}},
	} {
		t.Run(host, func(t *testing.T) {
			leaf := mint(t, ca, host)
			cert := leaf.Leaf
			if diff := cmp.Diff(want.names, cert.DNSNames); diff != "" {
				t.Errorf("DNS names (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want.ips, cert.IPAddresses); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
			if got := cert.Subject.String(); got != "" {
				t.Errorf("subject: got %q, want none, the SAN names the host", got)
			}
			if cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature || len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
				t.Errorf("got CA %v, key usage %b, extended %v", cert.IsCA, cert.KeyUsage, cert.ExtKeyUsage)
			}
			if key, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() || !key.Equal(leaf.PrivateKey.(*ecdsa.PrivateKey).Public()) {
				t.Errorf("got a key of type %T, want P-256, that of the private key", cert.PublicKey)
			}
			if bits := cert.SerialNumber.BitLen(); bits < 64 {
				t.Errorf("serial number of %d bits", bits)
			}
			if len(leaf.Certificate) != 1 {
				t.Errorf("%d certificates in the chain, want the leaf only", len(leaf.Certificate))
			}
			if from, to := time.Until(cert.NotBefore), time.Until(cert.NotAfter); from > -24*time.Hour || from < -24*time.Hour-time.Minute || to > 24*time.Hour || to < 24*time.Hour-time.Minute {
				t.Errorf("valid from %v to %v, want 24 hours back and 24 hours on", from, to)
			}
			if err := cert.CheckSignatureFrom(ca.Certificate()); err != nil {
				t.Error(err)
			}
			if again := mint(t, ca, host); again != leaf {
				t.Error("minted anew for the same host")
			}
		})
	}
	if a, b := mint(t, ca, "a.test"), mint(t, ca, "b.test"); a.Leaf.SerialNumber.Cmp(b.Leaf.SerialNumber) == 0 || a.PrivateKey.(*ecdsa.PrivateKey).Equal(b.PrivateKey) {
		t.Error("two hosts share a serial number or a key")
	}
}

func TestConcurrentCallersShareOneLeaf(t *testing.T) {
	ca := open(t, filepath.Join(t.TempDir(), "ca"), nil)
	var wg sync.WaitGroup
	var mu sync.Mutex
	serials := map[string]map[string]bool{}
	start := make(chan struct{})
	for i := range 60 {
		wg.Go(func() {
			host := fmt.Sprintf("host%d.test", i%3)
			<-start
			leaf, err := ca.Leaf(host)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if serials[host] == nil {
				serials[host] = map[string]bool{}
			}
			serials[host][leaf.Leaf.SerialNumber.String()] = true
		})
	}
	close(start)
	wg.Wait()
	for host, distinct := range serials {
		if len(distinct) != 1 {
			t.Errorf("%s: %d leaves, want 1", host, len(distinct))
		}
	}
	if len(serials) != 3 {
		t.Errorf("%d hosts, want 3", len(serials))
	}
}

func TestLeafIsRenewedBeforeItsEnd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	synctest.Test(t, func(t *testing.T) {
		ca := open(t, dir, hosts)
		first := mint(t, ca, "dicom.example.org")
		time.Sleep(17 * time.Hour)
		if mint(t, ca, "dicom.example.org") != first {
			t.Error("renewed after 17 hours, want the same until 18")
		}
		time.Sleep(time.Hour + time.Second)
		var wg sync.WaitGroup
		var mu sync.Mutex
		renewed := map[*tls.Certificate]bool{}
		for range 20 {
			wg.Go(func() {
				leaf, err := ca.Leaf("dicom.example.org")
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				renewed[leaf] = true
			})
		}
		wg.Wait()
		if len(renewed) != 1 || renewed[first] {
			t.Errorf("after 18 hours: %d leaves, the old one among them: %v; want a new one", len(renewed), renewed[first])
		}
		// For a year, every leaf that is handed out lives for hours yet.
		for range 365 * 24 / 5 {
			time.Sleep(5 * time.Hour)
			leaf := mint(t, ca, "dicom.example.org").Leaf
			if left := time.Until(leaf.NotAfter); left <= 5*time.Hour || time.Now().Before(leaf.NotBefore) {
				t.Fatalf("a leaf with %v left", left)
			}
		}
	})
}

func TestLeafNeverOutlivesTheCA(t *testing.T) {
	for _, left := range []time.Duration{30 * time.Hour, 23 * time.Hour, 7 * time.Hour, time.Hour, time.Minute} {
		dir := folder(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(left) })
		ca := open(t, dir, nil)
		for range 3 {
			leaf := mint(t, ca, "dicom.example.org").Leaf
			if leaf.NotAfter.After(ca.Certificate().NotAfter) {
				t.Errorf("CA with %v left: the leaf ends %v later", left, leaf.NotAfter.Sub(ca.Certificate().NotAfter))
			}
			if time.Until(leaf.NotAfter) < min(left, 24*time.Hour)-time.Minute {
				t.Errorf("CA with %v left: the leaf has only %v", left, time.Until(leaf.NotAfter))
			}
			if err := verify(ca, leaf, "dicom.example.org"); err != nil {
				t.Errorf("CA with %v left: %v", left, err)
			}
		}
	}
}

func TestTLSWithALeaf(t *testing.T) {
	ca := open(t, filepath.Join(t.TempDir(), "ca"), hosts)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(read(t, ca.BundlePath())) {
		t.Fatal("no certificate in the bundle")
	}
	var asked atomic.Value // the server presents a leaf for whatever name it is asked for
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return ca.Leaf(asked.Load().(string)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).HandshakeContext(t.Context())
			conn.Close()
		}
	})
	for name, want := range map[string]bool{"dicom.example.org": true, "other.example.org": false} {
		asked.Store(name)
		conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: roots, ServerName: name})
		if (err == nil) != want {
			t.Errorf("%s: got %v, want accepted: %v", name, err, want)
		}
		if err == nil {
			conn.Close()
		}
	}
	ln.Close()
	served.Wait()
}

func BenchmarkLeafMint(b *testing.B) {
	ca := open(b, filepath.Join(b.TempDir(), "ca"), nil)
	n := 0
	for b.Loop() {
		n++
		mint(b, ca, fmt.Sprintf("host%d.test", n))
	}
}

func BenchmarkLeafCacheHit(b *testing.B) {
	ca := open(b, filepath.Join(b.TempDir(), "ca"), nil)
	mint(b, ca, "dicom.example.org")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mint(b, ca, "dicom.example.org")
		}
	})
}
