package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
)

func contextWithPatience() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

// corporate is a proxy that leads each CONNECT where the test says, and plain
// requests nowhere: it only notes them.
type corporate struct {
	addr string

	mu    sync.Mutex
	heads []string
}

func newCorporate(t *testing.T, to func(authority string) string) *corporate {
	t.Helper()
	p := &corporate{}
	p.addr = newRaw(t, nil, func(c net.Conn, br *bufio.Reader) { p.serve(c, br, to) }).authority()
	return p
}

func (p *corporate) serve(c net.Conn, br *bufio.Reader, to func(authority string) string) {
	r, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	p.mu.Lock()
	p.heads = append(p.heads, r.Method+" "+r.RequestURI+" "+r.Header.Get("Proxy-Authorization"))
	p.mu.Unlock()
	if r.Method != http.MethodConnect {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclear")
		return
	}
	target := to(r.RequestURI)
	if target == "" {
		_, _ = io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
		return
	}
	up, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer up.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX-Of: proxy\r\n\r\n")
	go func() { _, _ = io.Copy(up, br); _ = up.(*net.TCPConn).CloseWrite() }()
	_, _ = io.Copy(c, up)
}

func (p *corporate) seen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.heads, "\n")
}

// echo answers with what it gets, until the client's end, then says goodbye.
func echo(t *testing.T) net.Listener {
	t.Helper()
	ln := listen(t)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
				_, _ = io.WriteString(c, "goodbye")
			}()
		}
	}()
	return ln
}

// passRule is a rule that tunnels whole.
func passRule(name, authority string) string {
	return fmt.Sprintf("[[rule]]\nname = %q\nurl = \"https://%s/\"\naction = \"pass\"\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n", name, authority)
}

func TestPassTunnelTouchesNoByte(t *testing.T) {
	t.Parallel()
	authority := echo(t).Addr().String()
	h := newHarness(t, setup{more: passRule("through", authority)})
	c := connect(t, h.addr, authority)
	sent := make([]byte, 1<<20)
	_, _ = rand.Read(sent)
	go func() {
		_, _ = c.Write(sent)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, append(sent, "goodbye"...)) {
		t.Errorf("got %d bytes back, want the %d sent and the goodbye", len(got), len(sent))
	}
	ctx, cancel := contextWithPatience()
	defer cancel()
	_ = h.stop(ctx)
	if want := `"rule":"through","status":200,"request_bytes":1048576,"response_bytes":1048583`; !strings.Contains(h.audit.String(), want) {
		t.Errorf("audit lacks %s:\n%s", want, h.audit)
	}
}

func TestPassTunnelShowsTheServersOwnCertificate(t *testing.T) {
	t.Parallel()
	other := newDouble(t, nil)
	h := newHarness(t, setup{more: passRule("through", other.authority())})
	c := secure(t, h.addr, other.authority(), "", testPKI().pool())
	talk(c, "GET /own HTTP/1.1\r\nHost: "+other.authority()+"\r\nAuthorization: Basic b3du\r\nVia: kept\r\n\r\n").want(t, 200)
	if r := other.last(t); r.header.Get("Authorization") != "Basic b3du" || r.header.Get("Via") != "kept" {
		t.Errorf("got %v, want the client's own headers", r.header)
	}
	early := &early{Conn: dial(t, h.addr), prefix: []byte("CONNECT " + other.authority() + " HTTP/1.1\r\nHost: x\r\n\r\n")}
	inside := tls.Client(early, &tls.Config{RootCAs: testPKI().pool(), ServerName: "localhost"})
	if err := inside.HandshakeContext(t.Context()); err != nil {
		t.Errorf("early bytes: %v", err)
	}
}

func TestUnmatchedPassTunnelsThroughTheCorporateProxy(t *testing.T) {
	t.Parallel()
	ln := echo(t)
	corp := newCorporate(t, func(string) string { return ln.Addr().String() })
	h := newHarness(t, setup{proxy: fmt.Sprintf("unmatched = \"pass\"\nupstream_proxy = \"http://u:%%70w@%s\"", corp.addr)})
	c := connect(t, h.addr, "Unknown.TEST.:8443")
	_, _ = io.WriteString(c, "hello")
	_ = c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "hellogoodbye" {
		t.Errorf("got %q %v", got, err)
	}
	if want := "CONNECT unknown.test:8443 Basic dTpwdw=="; !strings.Contains(corp.seen(), want) {
		t.Errorf("the corporate proxy saw %q, want %q", corp.seen(), want)
	}
}

// behindCorporate is a harness whose server is good.test on its default port, as
// servers mostly are; a corporate proxy stands in for DNS.
func behindCorporate(t *testing.T, up *double, s setup) *harness {
	t.Helper()
	corp := newCorporate(t, func(authority string) string {
		if authority == "good.test:443" {
			return up.server.Listener.Addr().String()
		}
		return authority // the provider
	})
	s.up, s.url, s.proxy = up, "https://good.test/", s.proxy+fmt.Sprintf("\nupstream_proxy = \"http://%s\"", corp.addr)
	h := newHarness(t, s)
	up.url = "https://good.test"
	return h
}

// TLS is verified end to end, Host has no port, in whatever way the client
// names it.
func TestServerOnItsDefaultPortBehindTheCorporateProxy(t *testing.T) {
	t.Parallel()
	h := behindCorporate(t, newDouble(t, nil), setup{})
	for _, host := range []string{"good.test", "good.test:443", "GOOD.test."} {
		c := secure(t, h.addr, "good.test:443", "", h.roots())
		talk(c, "GET /studies HTTP/1.1\r\nHost: "+host+"\r\n\r\n").want(t, 200)
		if r := h.up.last(t); r.host != "good.test" || r.sni != "good.test" || r.header.Get("Authorization") == "" {
			t.Errorf("Host %s: got host %q, sni %q, credential %v", host, r.host, r.sni, r.header.Get("Authorization") != "")
		}
	}
	h.get("/").want(t, 200)
}

func TestPlainHTTPThroughTheCorporateProxyIsAbsolute(t *testing.T) {
	t.Parallel()
	corp := newCorporate(t, func(string) string { return "" })
	h := newHarness(t, setup{proxy: fmt.Sprintf("unmatched = \"pass\"\nupstream_proxy = \"http://%s\"", corp.addr)})
	a, err := h.try("GET", "http://unknown.test/a%2Fb?q=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	a.want(t, 200)
	if want := "GET http://unknown.test/a%2Fb?q=1"; !strings.Contains(strings.ReplaceAll(corp.seen(), ".test:80/", ".test/"), want) {
		t.Errorf("the corporate proxy saw %q, want %q", corp.seen(), want)
	}
}

func TestCorporateProxyThatRefuses(t *testing.T) {
	t.Parallel()
	corp := newCorporate(t, func(string) string { return "" })
	h := newHarness(t, setup{proxy: fmt.Sprintf("unmatched = \"pass\"\nupstream_proxy = \"http://%s\"", corp.addr)})
	if p := h.connectTo("unknown.test:443").problem(t, 502, "upstream_unreachable"); !strings.Contains(p.Hint, "upstream_proxy") {
		t.Errorf("got hint %q", p.Hint)
	}
}

func TestCorporateProxyWhoseAnswerHasNoEnd(t *testing.T) {
	t.Parallel()
	proxy := newRaw(t, nil, func(c net.Conn, _ *bufio.Reader) {
		_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		for line := "X-More: " + strings.Repeat("x", 1000) + "\r\n"; err == nil; {
			_, err = io.WriteString(c, line)
		}
	})
	h := newHarness(t, setup{proxy: fmt.Sprintf("unmatched = \"pass\"\nupstream_proxy = \"http://%s\"", proxy.authority())})
	p := h.connectTo("unknown.test:443").problem(t, 502, "upstream_unreachable")
	if !strings.Contains(p.Detail, "upstream_proxy") || !strings.Contains(p.Detail, "too large") {
		t.Errorf("got detail %q", p.Detail)
	}
}

func TestTunnelToAServerThatIsDown(t *testing.T) {
	t.Parallel()
	ln := listen(t)
	authority := ln.Addr().String()
	ln.Close()
	h := newHarness(t, setup{more: passRule("through", authority)})
	h.connectTo(authority).problem(t, 502, "upstream_unreachable")
}

// The listeners of the gateway itself are never dialled, not even where a rule
// permits the address.
func TestOwnListenersAreNeverDialled(t *testing.T) {
	t.Parallel()
	own, admin := listen(t), listen(t)
	_, port, _ := net.SplitHostPort(admin.Addr().String())
	h := newHarness(t, setup{ln: own, url: "https://localhost:" + port + "/", more: passRule("self", own.Addr().String())})
	h.gw.Protect(admin.Addr())
	if p := h.connectTo(own.Addr().String()).problem(t, 502, "address_refused"); !strings.Contains(p.Detail, "a listener of this gateway") {
		t.Errorf("got %q", p.Detail)
	}
	a, err := h.try("GET", "https://localhost:"+port+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := a.problem(t, 502, "address_refused"); p.Rule != "dicom" {
		t.Errorf("got rule %q", p.Rule)
	}
}

func TestLoopbackNeedsAllowNetworks(t *testing.T) {
	t.Parallel()
	hidden := newDouble(t, nil)
	h := newHarness(t, setup{
		proxy: `unmatched = "pass"`,
		more:  fmt.Sprintf("[[rule]]\nname = \"bare\"\nurl = \"%s/\"\nprofile = \"main\"\nca_file = \"up.pem\"\n", hidden.url),
	})
	a, err := h.try("GET", hidden.url+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	a.problem(t, 502, "address_refused")
	for _, authority := range []string{h.authority(), "169.254.169.254:80", "[fd00:ec2::254]:80", "[::ffff:127.0.0.1]:443", "[::]:443", "0.0.0.0:443"} {
		if authority == h.authority() {
			continue // a rule's host, terminated
		}
		if _, complaint := h.connectTo(authority).asProblem(502, "address_refused"); complaint != "" {
			t.Errorf("%s: %s", authority, complaint)
		}
	}
	plain, err := h.try("GET", "http://169.254.169.254/latest/meta-data/", nil)
	if err != nil {
		t.Fatal(err)
	}
	plain.problem(t, 502, "address_refused")
	if hidden.connections() != 0 {
		t.Error("a refused address was dialled")
	}
}

// leaver leaves where it would have to read.
type leaver struct {
	net.Conn

	leave func(*net.TCPConn) error
}

func (l leaver) Read([]byte) (int, error) {
	return 0, errors.Join(io.ErrClosedPipe, l.leave(l.Conn.(*net.TCPConn)))
}

// reset ends a connection as a program does that has not read what came.
func reset(c *net.TCPConn) error { return errors.Join(c.SetLinger(0), c.Close()) }

// A client that does not trust our CA is named, since Orthanc never says why.
func TestClientThatRefusesOurCertificateIsNamed(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	c := tls.Client(connect(t, h.addr, h.authority()), &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"})
	if err := c.HandshakeContext(t.Context()); err == nil {
		t.Fatal("our CA was trusted")
	}
	eventually(t, "the alert is counted", func() bool { return h.gw.Status().Untrusted == 1 })
	// Some clients check after the handshake, and leave.
	secure(t, h.addr, h.authority(), "", h.roots()).Close()
	eventually(t, "the silent end is counted", func() bool { return h.gw.Status().Untrusted == 2 })
	// Orthanc leaves in mid-handshake if it cannot read HttpsCACertificates: libcurl before or after its ClientHello.
	connect(t, h.addr, h.authority()).Close()
	eventually(t, "the early end is counted", func() bool { return h.gw.Status().Untrusted == 3 })
	for i, leave := range []func(*net.TCPConn) error{(*net.TCPConn).CloseWrite, reset} {
		c := leaver{connect(t, h.addr, h.authority()), leave}
		if err := tls.Client(c, &tls.Config{ServerName: "localhost"}).HandshakeContext(t.Context()); err == nil {
			t.Fatal("the handshake was ended")
		}
		eventually(t, "the end in mid-handshake is counted", func() bool { return h.gw.Status().Untrusted == int64(4+i) })
	}
	for _, want := range []string{"Orthanc does not trust this CA: set HttpsCACertificates to ", h.ca.BundlePath()} {
		if strings.Count(h.log.String(), want) != 5 {
			t.Errorf("log does not say five times %q:\n%s", want, h.log)
		}
	}
	// A client that used its connection is no suspect.
	good := secure(t, h.addr, h.authority(), "", h.roots())
	talk(good, "GET / HTTP/1.1\r\nHost: "+h.authority()+"\r\n\r\n").want(t, 200)
	good.Close()
	eventually(t, "no connection is left", func() bool { return h.gw.Status().Connections == 0 })
	if n := h.gw.Status().Untrusted; n != 5 {
		t.Errorf("got %d clients that do not trust us, want 5", n)
	}
}
