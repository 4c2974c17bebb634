package gateway_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

// front sends bytes to the proxy's own port and reads one answer.
func (h *harness) front(text string) answer {
	h.t.Helper()
	c := dial(h.t, h.addr)
	defer c.Close()
	return talk(c, text)
}

// connectTo is a CONNECT whose answer is what is looked at.
func (h *harness) connectTo(authority string, header ...string) answer {
	h.t.Helper()
	return h.front("CONNECT " + authority + " HTTP/1.1\r\nHost: " + authority + "\r\n" + strings.Join(append(header, ""), "\r\n") + "\r\n")
}

func TestConnectToUnknownHostIsRefusedLoudly(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	p := h.connectTo("unknown.test:443").problem(t, 403, "no_rule")
	if !strings.Contains(p.Hint, "https://unknown.test/") || p.Rule != "" {
		t.Errorf("got hint %q for rule %q", p.Hint, p.Rule)
	}
	for _, want := range []string{`"level":"WARN"`, `"code":"no_rule"`, `"authority":"unknown.test:443"`} {
		if !strings.Contains(h.log.String(), want) {
			t.Errorf("log lacks %s:\n%s", want, h.log)
		}
	}
	if got := h.gw.Status().Refused["no_rule"]; got != 1 {
		t.Errorf("got %d refusals, want 1", got)
	}
}

func TestPathThatNoRuleCoversOnARulesHost(t *testing.T) {
	t.Parallel()
	up := newDouble(t, nil)
	h := newHarness(t, setup{up: up, url: up.url + "/dicom-web/", proxy: `unmatched = "pass"`})
	h.get("/dicom-web/studies").want(t, 200)
	h.get("/dicom-web").want(t, 200)
	for _, path := range []string{"/", "/dicom-webx/studies", "/DICOM-WEB/studies"} {
		h.get(path).problem(t, 403, "no_rule")
	}
	if got := len(up.all()); got != 2 {
		t.Errorf("got %d requests at the server, want 2", got)
	}
}

func TestDenyRules(t *testing.T) {
	t.Parallel()
	up := newDouble(t, nil)
	h := newHarness(t, setup{up: up, more: fmt.Sprintf(`
[[rule]]
name = "no-admin"
url = "%s/admin/"
action = "deny"
[[rule]]
name = "never"
url = "https://never.test/"
action = "deny"
`, up.url)})
	if p := h.get("/admin/x").problem(t, 403, "rule_denied"); p.Rule != "no-admin" {
		t.Errorf("got rule %q", p.Rule)
	}
	if p := h.connectTo("never.test:443").problem(t, 403, "rule_denied"); p.Rule != "never" {
		t.Errorf("got rule %q", p.Rule)
	}
	if !strings.Contains(h.log.String(), `"code":"rule_denied","rule":"never","authority":"never.test:443"`) {
		t.Errorf("the refused CONNECT is not logged:\n%s", h.log)
	}
	if len(up.all()) != 0 {
		t.Error("a denied request was forwarded")
	}
}

func TestPassRuleInsideATerminatedHostKeepsTheClientsAuthorization(t *testing.T) {
	t.Parallel()
	up := newDouble(t, nil)
	h := newHarness(t, setup{up: up, more: fmt.Sprintf(`
[[rule]]
name = "open"
url = "%s/open/"
action = "pass"
ca_file = "up.pem"
allow_networks = ["127.0.0.0/8", "::1/128"]
`, up.url)})
	h.get("/open/x", "Authorization: Basic b3duOm93bg==").want(t, 200)
	if got := up.last(t).header["Authorization"]; len(got) != 1 || got[0] != "Basic b3duOm93bg==" {
		t.Errorf("got %q, want the client's own", got)
	}
	h.get("/open/x").want(t, 200)
	if got := up.last(t).header["Authorization"]; got != nil {
		t.Errorf("got %q on a pass rule, want none", got)
	}
}

func TestReportModePassesAndSaysSo(t *testing.T) {
	t.Parallel()
	up := newDouble(t, nil)
	h := newHarness(t, setup{up: up, more: fmt.Sprintf(`
[[rule]]
name = "trial"
url = "%s/trial/"
profile = "main"
mode = "report"
ca_file = "up.pem"
allow_networks = ["127.0.0.0/8", "::1/128"]
`, up.url)})
	h.get("/trial/x").want(t, 200)
	if got := up.last(t).header.Get("Authorization"); got != "" {
		t.Errorf("report mode sent %q", got)
	}
	if !strings.Contains(h.log.String(), "report: a credential would be injected") {
		t.Error("report mode does not report")
	}
}

func TestEstablishedIsABare200(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	for _, version := range []string{"HTTP/1.1", "HTTP/1.0"} {
		c := dial(t, h.addr)
		fmt.Fprintf(c, "CONNECT %s %s\r\nHost: %s\r\n\r\n", h.authority(), version, h.authority())
		head := readHead(t, c)
		if line, rest, _ := strings.Cut(head, "\r\n"); !strings.HasPrefix(line, "HTTP/1.1 200 ") || rest != "\r\n" {
			t.Errorf("got %q to %s, want a status line only", head, version)
		}
		c = handshake(t, c, h)
		talk(c, "GET / HTTP/1.1\r\nHost: "+h.authority()+"\r\n\r\n").want(t, 200)
	}
}

// handshake does the client's part of TLS in an open tunnel.
func handshake(t *testing.T, c net.Conn, h *harness) net.Conn {
	t.Helper()
	conf := clientTLS(h.roots())
	conf.ServerName = "localhost"
	inside := tls.Client(c, conf)
	if err := inside.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return inside
}

// early holds the first write back and sends it together with the CONNECT.
type early struct {
	net.Conn
	prefix []byte
	answer io.Reader
}

func (c *early) Write(p []byte) (int, error) {
	prefix := c.prefix
	c.prefix = nil
	if _, err := c.Conn.Write(append(prefix, p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *early) Read(p []byte) (int, error) {
	if c.answer == nil {
		var head []byte
		for one := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); head = append(head, one[0]) {
			if _, err := io.ReadFull(c.Conn, one); err != nil {
				return 0, err
			}
		}
		c.answer = c.Conn
	}
	return c.answer.Read(p)
}

func TestClientHelloInTheSameWriteAsConnect(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	c := &early{Conn: dial(t, h.addr), prefix: []byte("CONNECT " + h.authority() + " HTTP/1.1\r\nHost: x\r\n\r\n")}
	talk(handshake(t, c, h), "GET / HTTP/1.1\r\nHost: "+h.authority()+"\r\n\r\n").want(t, 200)
}

// A CONNECT has no body, whatever it announces. Its tunnel is as good as any.
func TestTunnelOfAConnectThatAnnouncesABodyStaysOpen(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	c := &early{Conn: dial(t, h.addr), prefix: []byte("CONNECT " + h.authority() + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")}
	inside := handshake(t, c, h)
	const request = "GET / HTTP/1.1\r\nHost: %s\r\n\r\n"
	talk(inside, fmt.Sprintf(request, h.authority())).want(t, 200)
	_ = c.SetReadDeadline(time.Now().Add(2200 * time.Millisecond)) // longer than the rest of a body is waited for
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %d bytes, %v from an idle tunnel, want nothing", n, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	talk(inside, fmt.Sprintf(request, h.authority())).want(t, 200)
}

func TestMalformedRequestsToTheFront(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{proxy: `unmatched = "pass"`})
	for _, line := range []string{
		"CONNECT localhost HTTP/1.1",
		"CONNECT localhost: HTTP/1.1",
		"CONNECT localhost:0 HTTP/1.1",
		"CONNECT localhost:99999 HTTP/1.1",
		"CONNECT user@localhost:443 HTTP/1.1",
		"CONNECT https://localhost:443 HTTP/1.1",
		"CONNECT /path HTTP/1.1",
		"CONNECT 2130706433:443 HTTP/1.1",
		"CONNECT 0x7f.1:443 HTTP/1.1",
		"CONNECT 127.1:443 HTTP/1.1",
		"CONNECT ::1:443 HTTP/1.1",
		"CONNECT [::1:443 HTTP/1.1",
		"CONNECT [fe80::1%25lo]:443 HTTP/1.1",
		"CONNECT a..b:443 HTTP/1.1",
		"GET https://localhost/ HTTP/1.1",
		"GET http://user:pass@localhost/ HTTP/1.1",
		"GET ftp://localhost/ HTTP/1.1",
		"GET / HTTP/1.1",
		"GET /dicomweb-oauth/status HTTP/1.1",
		"OPTIONS * HTTP/1.1",
		"nonsense",
	} {
		a := h.front(line + "\r\nHost: localhost\r\n\r\n")
		if _, complaint := a.asProblem(400, "bad_request"); complaint != "" {
			t.Errorf("%s: %s", line, complaint)
		}
	}
	h.front("GET http://localhost/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").problem(t, 400, "bad_request")
	if len(h.up.all()) != 0 {
		t.Error("something was forwarded")
	}
}

func TestPlainHTTP(t *testing.T) {
	t.Parallel()
	clear := newDoubleWith(t, nil, nil)
	h := newHarness(t, setup{more: fmt.Sprintf(`
[[rule]]
name = "clear"
url = "%s/"
action = "pass"
methods = ["GET"]
allow_networks = ["127.0.0.0/8", "::1/128"]
[[rule]]
name = "closed"
url = "http://closed.test/"
action = "deny"
`, clear.url)})
	get := func(method, target string) answer {
		a, err := h.try(method, target, nil, "X-Forwarded-For: 10.0.0.1", "Authorization: Basic b3du")
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	get("GET", clear.url+"/a%2Fb?x=|").want(t, 200)
	if r := clear.last(t); r.target != "/a%2Fb?x=|" || r.host != clear.authority() || r.header.Get("X-Forwarded-For") != "" || r.header.Get("Authorization") != "Basic b3du" {
		t.Errorf("got %+v", r)
	}
	get("PUT", clear.url+"/").problem(t, 405, "method_not_allowed")
	get("GET", clear.url+"/a/%2e%2e/b").problem(t, 400, "bad_request")
	get("GET", "http://unknown.test/").problem(t, 403, "no_rule")
	get("GET", "http://closed.test/").problem(t, 403, "rule_denied")
	get("GET", "http://"+h.authority()+"/").problem(t, 403, "no_rule") // the inject rule is for https
	if len(h.up.all()) != 0 {
		t.Error("an https server was called in clear")
	}
}

func TestProxyAuthentication(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{proxy: "username = \"orthanc\"\npassword = \"proxy-password-4711\""})
	missing := h.connectTo(h.authority())
	missing.problem(t, 407, "proxy_auth_required")
	if got := missing.header.Get("Proxy-Authenticate"); !strings.HasPrefix(got, "Basic realm=") {
		t.Errorf("got Proxy-Authenticate %q", got)
	}
	for name, value := range map[string]string{
		"wrong password": "Basic b3J0aGFuYzpndWVzcw==", // orthanc:guess
		"wrong scheme":   "Bearer proxy-password-4711",
		"no base64":      "Basic !!!",
		"nothing":        "Basic ",
	} {
		if _, complaint := h.connectTo(h.authority(), "Proxy-Authorization: "+value).asProblem(407, "proxy_auth_required"); complaint != "" {
			t.Errorf("%s: %s", name, complaint)
		}
	}
	h.front("GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n").problem(t, 407, "proxy_auth_required")
	if len(h.up.all()) != 0 {
		t.Error("somebody got through")
	}
	h.client = h.newClient(url.UserPassword("orthanc", "proxy-password-4711"))
	h.get("/studies").want(t, 200)
	if got := h.up.last(t).header.Get("Proxy-Authorization"); got != "" {
		t.Error("the proxy password reached the server")
	}
	ctx, cancel := contextWithPatience()
	defer cancel()
	if err := h.stop(ctx); err != nil {
		t.Error(err)
	}
	if !strings.Contains(h.audit.String(), `"proxy_user":"orthanc"`) {
		t.Errorf("the audit does not name the user:\n%s", h.audit)
	}
	for _, secret := range []string{"proxy-password-4711", "guess", "b3J0aGFuYzpndWVzcw"} {
		if strings.Contains(h.log.String()+h.audit.String(), secret) {
			t.Errorf("%s is logged", secret)
		}
	}
}

func TestClientsFromOtherNetworksAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{proxy: `allow_clients = ["10.99.0.0/16", "fd00::/8"]`})
	h.connectTo(h.authority()).problem(t, 403, "client_not_allowed")
	h.connectTo("unknown.test:443").problem(t, 403, "client_not_allowed")
	h.front("GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n").problem(t, 403, "client_not_allowed")
	newHarness(t, setup{proxy: `allow_clients = ["127.0.0.0/8"]`}).get("/").want(t, 200)
}

// Beyond max_connections a client is told so inside its tunnel, and the others
// go on.
func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{proxy: "max_connections = 1\nunmatched = \"pass\""})
	first := secure(t, h.addr, h.authority(), "", h.roots())
	head := "GET / HTTP/1.1\r\nHost: " + h.authority() + "\r\n\r\n"
	talk(first, head).want(t, 200)
	second := secure(t, h.addr, h.authority(), "", h.roots())
	talk(second, head).problem(t, 503, "overloaded")
	h.connectTo("unknown.test:443").problem(t, 503, "overloaded")
	h.front("GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n").problem(t, 503, "overloaded")
	talk(first, head).want(t, 200)
	first.Close()
	second.Close()
	eventually(t, "no connection is left", func() bool { return h.gw.Status().Connections == 0 })
	h.get("/").want(t, 200)

	// Far beyond it connections end at once, so that a flood costs nothing.
	var held []net.Conn
	for range 40 {
		held = append(held, dial(t, h.addr))
	}
	last := held[len(held)-1]
	_ = last.SetDeadline(time.Now().Add(patience))
	if _, err := last.Read(make([]byte, 1)); err == nil {
		t.Error("the 41st connection is served")
	}
}

func TestRequestsShareOneTunnel(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	c := secure(t, h.addr, h.authority(), "", h.roots())
	br := bufio.NewReader(c)
	for i := range 3 {
		fmt.Fprintf(c, "GET /%d HTTP/1.1\r\nHost: %s\r\n\r\n", i, h.authority())
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		readAnswer(resp).want(t, 200)
	}
	for _, r := range h.up.all() {
		if r.remote != h.up.last(t).remote {
			t.Error("the connection to the server was not kept")
		}
	}
}
