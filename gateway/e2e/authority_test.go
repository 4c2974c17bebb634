//go:build e2e

package e2e

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// corporate is a forward proxy behind the gateway. It stands in for DNS: it leads each name to where the test says.
type corporate struct {
	addr string
	to   func(authority string) string // "": refused

	mu    sync.Mutex
	asked []string
}

func startCorporate(t *testing.T, to func(authority string) string) *corporate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &corporate{addr: l.Addr().String(), to: to}
	var running sync.WaitGroup
	t.Cleanup(running.Wait)
	t.Cleanup(func() { _ = l.Close() })
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { p.serve(c) })
		}
	})
	return p
}

func (p *corporate) serve(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	p.mu.Lock()
	p.asked = append(p.asked, r.Method+" "+r.RequestURI)
	p.mu.Unlock()
	target := p.to(r.RequestURI)
	up, err := net.Dial("tcp", target)
	if target == "" || err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		return
	}
	defer up.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		_, _ = io.Copy(up, c)
		_ = up.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(c, up)
}

// seen returns what the proxy was asked for.
func (p *corporate) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

// confusion is a request whose names disagree. {good} is the rule's server, {evil} another that can be reached and is
// trusted.
type confusion struct {
	name, raw string
	sni       string // "": as it should be
	status    int
	code      string
}

// two is the good server, another one that no rule names, and an arena between them and the client.
func two(t *testing.T) (a *arena, good, evil *recorder) {
	t.Helper()
	p := newPKI(t)
	good, evil = startRecorder(t, p, nil), startRecorder(t, p, nil)
	return startArena(t, "", p.inject("archive", good.url(), "")), good, evil
}

// playAll plays each row in a tunnel of its own to the good server. The other one is never dialled, and the good one
// gets a request for each 200 only.
func playAll(t *testing.T, rows []confusion) {
	t.Helper()
	a, good, evil := two(t)
	want := 0
	for _, row := range rows {
		var sni []string
		if row.sni != "" {
			sni = []string{row.sni}
		}
		raw := strings.NewReplacer("{good}", good.authority, "{evil}", evil.authority).Replace(row.raw)
		if wrong := talk(a.tunnel(t, good.authority, sni...), raw).is(row.status, row.code); wrong != "" {
			t.Errorf("%s: %s", row.name, wrong)
		}
		if row.status == http.StatusOK {
			want++
		}
		if n := len(good.seen()); n != want {
			t.Errorf("%s: %d requests have reached the server, want %d", row.name, n, want)
			want = n
		}
	}
	if n := evil.dialled(); n > 0 {
		t.Errorf("the other server was dialled %d times", n)
	}
	for _, r := range good.seen() {
		if host := r.values("Host"); !slices.Equal(host, []string{good.authority}) || r.sni != "localhost" {
			t.Errorf("the server was called %q, by TLS %q", host, r.sni)
		}
	}
	good.wantOurs(t)
}

func TestAttackA01AuthorityConfusion(t *testing.T) {
	t.Parallel()
	const tail = " HTTP/1.1\r\nHost: {good}\r\n\r\n"
	const headersThatName = "GET / HTTP/1.1\r\nHost: {good}\r\nX-Forwarded-Host: {evil}\r\nForwarded: host={evil}\r\n" +
		"X-Host: {evil}\r\nX-Original-URL: https://{evil}/\r\n"
	playAll(t, []confusion{
		{"Host is another", "GET / HTTP/1.1\r\nHost: {evil}\r\n\r\n", "", 421, "authority_mismatch"},
		{"Host is another port", "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "", 421, "authority_mismatch"},
		{"Host is another name of the same machine", "GET / HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n", "", 421, "authority_mismatch"},
		{"absolute target of another", "GET https://{evil}/" + tail, "", 421, "authority_mismatch"},
		{"absolute target of another port", "GET https://localhost/" + tail, "", 421, "authority_mismatch"},
		{"absolute target in clear", "GET http://{good}/" + tail, "", 421, "authority_mismatch"},
		{"absolute target of another scheme", "GET ws://{good}/" + tail, "", 421, "authority_mismatch"},
		{"absolute target with the other's name before", "GET https://{evil}@{good}/" + tail, "", 400, "bad_request"},
		{"absolute target with the other's name behind", "GET https://{good}@{evil}/" + tail, "", 400, "bad_request"},
		{"absolute target of the server", "GET https://{good}/" + tail, "", 200, ""},
		{"absolute target of the server, another Host", "GET https://{good}/ HTTP/1.1\r\nHost: {evil}\r\n\r\n", "", 200, ""}, // RFC 9112 section 3.2.2: Host counts no more
		{"SNI is another", "GET /" + tail, "evil.test", 421, "authority_mismatch"},
		{"SNI is below", "GET /" + tail, "a.localhost", 421, "authority_mismatch"},
		{"CONNECT in the tunnel", "CONNECT {evil} HTTP/1.1\r\nHost: {evil}\r\n\r\n", "", 421, "authority_mismatch"},
		{"CONNECT in the tunnel to the server", "CONNECT {good} HTTP/1.1\r\nHost: {good}\r\n\r\n", "", 400, "bad_request"},
		{"two Hosts", "GET / HTTP/1.1\r\nHost: {good}\r\nHost: {evil}\r\n\r\n", "", 400, "bad_request"},
		{"headers that name another", headersThatName + "\r\n", "", 200, ""},
		{"path that looks like an authority", "GET //{evil}/" + tail, "", 200, ""},
	})
}

func TestAttackA02MalformedHost(t *testing.T) {
	t.Parallel()
	var rows []confusion
	for _, host := range []string{
		"", "{good}@{evil}", "{evil}@{good}", "{evil}/{good}", "{good}/", "{evil}#{good}", "{good}#{evil}", "{good}?{evil}",
		"{good} {evil}", "{good}\t{evil}",
		"{good},{evil}", "{good}\\{evil}", "{good}%00{evil}", "{good};{evil}", "{good}:80", "https://{good}", "[{good}]", "[::1",
		"::1", "localhost:", "localhost:0", "localhost:99999",
		"localhost:+443", "local host:443", ".localhost:443", "localhost..:443", "a..b:443", "*:443", "*.test:443",
	} {
		rows = append(rows, confusion{fmt.Sprintf("Host %q", host), "GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n", "", 400, "bad_request"})
	}
	playAll(t, rows)
}

// However a client spells the host, it is one and the same: for the rule, in the leaf, at the corporate proxy, in TLS
// and Host at the server, and in what the gateway writes.
func TestAttackA03SpellingsOfOneHost(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorderWith(t, &tls.Config{Certificates: []tls.Certificate{p.leaf(t, func(c *x509.Certificate) {
		c.DNSNames = []string{"good.test", "xn--bcher-kva.test"}
	})}}, nil)
	far := startCorporate(t, func(authority string) string {
		if authority == "good.test:443" || authority == "xn--bcher-kva.test:8443" {
			return strings.Replace(s.authority, "localhost", "127.0.0.1", 1)
		}
		return ""
	})
	a := startArena(t, fmt.Sprintf("upstream_proxy = \"http://%s\"", far.addr),
		p.inject("good", "https://good.test/", "")+p.inject("idn", "https://bücher.test:8443/", ""))
	for _, row := range []struct{ connect, sni, host, canonical string }{
		{"good.test:443", "good.test", "good.test", "good.test"},
		{"GOOD.Test:443", "GOOD.TEST", "Good.Test:443", "good.test"},
		{"good.test.:443", "good.test", "good.test.", "good.test"},
		{"good.test:0443", "good.test", "good.test.:443", "good.test"},
		{"good.test:443", "", "good.test", "good.test"},
		{"xn--bcher-kva.test:8443", "xn--bcher-kva.test", "xn--bcher-kva.test:8443", "xn--bcher-kva.test:8443"},
		{"XN--BCHER-KVA.test.:8443", "xn--bcher-kva.test", "Xn--Bcher-Kva.Test.:8443", "xn--bcher-kva.test:8443"},
	} {
		c := a.tunnel(t, row.connect, row.sni)
		host, _, _ := strings.Cut(row.canonical, ":")
		if names := c.ConnectionState().PeerCertificates[0].DNSNames; !slices.Equal(names, []string{host}) {
			t.Errorf("%+v: got a leaf for %q", row, names)
		}
		if wrong := talk(c, "GET / HTTP/1.1\r\nHost: "+row.host+"\r\n\r\n").is(200, ""); wrong != "" {
			t.Fatalf("%+v: %s", row, wrong)
		}
		seen := s.seen()
		if last := seen[len(seen)-1]; last.sni != host || !slices.Equal(last.values("Host"), []string{row.canonical}) {
			t.Errorf("%+v: the server was called %q, by TLS %q", row, last.values("Host"), last.sni)
		}
	}
	for _, other := range []string{
		"good.test:80", "good.test:8443", "xn--bcher-kva.test:443", "g\u043e\u043ed.test:443", "good.test.evil.test:443",
		"a.good.test:443", "good-test:443",
	} {
		c := a.dial(t)
		if got := talk(c, "CONNECT "+other+" HTTP/1.1\r\nHost: good.test:443\r\n\r\n"); got.status != 403 && got.status != 400 {
			t.Errorf("CONNECT %s: got %d, want a refusal", other, got.status)
		}
	}
	for _, asked := range far.seen() {
		if asked != "CONNECT good.test:443" && asked != "CONNECT xn--bcher-kva.test:8443" {
			t.Errorf("the corporate proxy was asked for %q", asked)
		}
	}
	s.wantOurs(t)
	a.process.terminate(t)
	if log := a.process.output(t); strings.Contains(log, `"authority":"GOOD`) || !strings.Contains(log, `"authority":"good.test:443"`) {
		t.Error("the log has another spelling than the one")
	}
}

// Nothing is injected into what is not TLS all the way, and a tunnel carries TLS only.
func TestAttackA05CleartextAndDowngrade(t *testing.T) {
	t.Parallel()
	a, good, _ := two(t)
	host := good.authority
	request := "GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	if wrong := talk(a.connect(t, host), request).is(400, "bad_request"); wrong != "" {
		t.Errorf("clear text in the tunnel: %s", wrong)
	}
	if wrong := talk(a.dial(t), "GET http://"+host+"/ HTTP/1.1\r\nHost: "+host+"\r\n\r\n").is(403, "no_rule"); wrong != "" {
		t.Errorf("clear text without a tunnel: %s", wrong)
	}
	if wrong := talk(a.dial(t), "GET https://"+host+"/ HTTP/1.1\r\nHost: "+host+"\r\n\r\n").is(400, "bad_request"); wrong != "" {
		t.Errorf("https without a tunnel: %s", wrong)
	}
	if wrong := talk(a.dial(t), request).is(400, "bad_request"); wrong != "" {
		t.Errorf("a request to the proxy itself: %s", wrong)
	}
	// A ClientHello that begins in clear: what follows is no TLS either.
	c := a.connect(t, host)
	if got := talk(c, "\x16\x03\x01\x00\x05GET / HTTP/1.1\r\n\r\n"); got.status == 200 {
		t.Errorf("half a ClientHello: got %d", got.status)
	}
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		old := tls.Client(a.connect(t, host), &tls.Config{RootCAs: a.roots, ServerName: "localhost", MinVersion: tls.VersionTLS10, MaxVersion: version})
		if err := old.HandshakeContext(t.Context()); err == nil {
			t.Errorf("a client with %s was taken", tls.VersionName(version))
		}
	}
	// A client that offers h2 as well gets HTTP/1.1.
	both := tls.Client(a.connect(t, host), &tls.Config{RootCAs: a.roots, ServerName: "localhost", NextProtos: []string{"h2", "http/1.1"}})
	if wrong := talk(both, request).is(200, ""); wrong != "" || both.ConnectionState().NegotiatedProtocol != "http/1.1" {
		t.Errorf("with h2 on offer: %s, protocol %q", wrong, both.ConnectionState().NegotiatedProtocol)
	}
	if n := len(good.seen()); n != 1 {
		t.Errorf("%d requests have reached the server, want one", n)
	}
	good.wantOurs(t)
}

// No header makes the credential go, come twice, or be the client's; and what is meant for the next hop ends there.
func TestAttackA07HopByHopTricks(t *testing.T) {
	t.Parallel()
	a, good, _ := two(t)
	const client = "Authorization: Bearer " + clientCredential + "\r\n"
	for _, lines := range []string{
		client, client + "authorization: Basic " + clientCredential + "\r\n", "AUTHORIZATION: " + clientCredential + "\r\n", "Authorization: Bearer a\r\n " + clientCredential + "\r\n",
		"Connection: authorization\r\n", "Connection: close, Authorization\r\n" + client, "Connection: AUTHORIZATION\r\nConnection: x-a\r\nX-A: 1\r\n",
		"Connection: host\r\n", "Connection: keep-alive, authorization, host, content-length\r\n" + client, "Connection: \"authorization\"\r\n",
		"Proxy-Authorization: Basic " + clientCredential + "\r\n", "Proxy-Authenticate: Basic " + clientCredential + "\r\n",
		"Proxy-Connection: authorization\r\n",
		"Keep-Alive: authorization\r\n", "Upgrade: authorization\r\nConnection: upgrade\r\n", "TE: authorization\r\n", "Trailer: Authorization\r\n",
	} {
		before := len(good.seen())
		if wrong := talk(a.tunnel(t, good.authority), "GET / HTTP/1.1\r\nHost: "+good.authority+"\r\n"+lines+"\r\n").is(200, ""); wrong != "" {
			t.Errorf("%q: %s", lines, wrong)
		}
		for _, r := range good.seen()[before:] {
			for _, name := range []string{
				"Connection", "Proxy-Authorization", "Proxy-Authenticate", "Proxy-Connection", "Keep-Alive", "Upgrade", "TE",
				"Trailer", "X-A",
			} {
				if got := r.values(name); got != nil {
					t.Errorf("%q: %s %q has reached the server", lines, name, got)
				}
			}
		}
	}
	good.wantOurs(t)
}

// TRACE would send the credential back; OPTIONS needs none. Neither is in the list of methods, and so neither leaves.
func TestAttackA09TraceAndOptions(t *testing.T) {
	t.Parallel()
	overrides := func(method string) string {
		return "X-HTTP-Method-Override: " + method + "\r\nX-Method-Override: " + method + "\r\nX-HTTP-Method: " + method + "\r\n"
	}
	var rows []confusion
	for _, method := range []string{"TRACE", "OPTIONS", "TRACK", "PATCH", "trace", "DEBUG", "PROPFIND", "get"} {
		rows = append(rows,
			confusion{method, method + " / HTTP/1.1\r\nHost: {good}\r\nMax-Forwards: 0\r\n\r\n", "", 405, "method_not_allowed"},
			confusion{method + " by override", "POST / HTTP/1.1\r\nHost: {good}\r\n" + overrides(method) + "Content-Length: 0\r\n\r\n", "", 200, ""})
	}
	rows = append(rows, confusion{"OPTIONS of all", "OPTIONS * HTTP/1.1\r\nHost: {good}\r\n\r\n", "", 400, "bad_request"})
	playAll(t, rows)
}
