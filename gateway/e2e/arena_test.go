//go:build e2e

package e2e

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	// ownCredential is what the gateway puts on requests in an arena, clientCredential what a client brings itself. Neither
	// may be in anything that the gateway shows.
	ownCredential    = "planted-Own-0x5ec"
	clientCredential = "planted-Client-0x5ec"

	// patience bounds each wait of an arena; no test that passes comes near it.
	patience = 10 * time.Second
)

// arenaTOML takes the proxy's port, more keys of [proxy], the admin listener's port, and the rules and other tables.
const arenaTOML = `
[proxy]
listen = "127.0.0.1:%d"
%s
[admin]
listen = "127.0.0.1:%d"
[log]
level = "debug"
%s
[profile.main]
type  = "static_bearer"
token = "${E2E_CLIENT_SECRET}"
`

// arena is the built gateway between raw clients and servers of the test's own. Its credential is there from the start,
// so that there is no provider whose state could matter.
type arena struct {
	*gateway

	addr  string // of the proxy
	roots *x509.CertPool
}

// inject is a rule for a server of the test's own, with more keys.
func (p *pki) inject(name, url, more string) string {
	return fmt.Sprintf("[[rule]]\nname = %q\nurl = %q\nprofile = \"main\"\nca_file = %q\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n%s\n",
		name, url, p.caFile, more)
}

// startArena starts a gateway with these keys of [proxy] and these tables, and waits until it answers.
func startArena(t *testing.T, proxyKeys, tables string) *arena {
	t.Helper()
	return startArenaAt(t, freePorts(t, 2), proxyKeys, tables)
}

// startArenaAt is startArena for a test that must know the ports of proxy and admin listener before.
func startArenaAt(t *testing.T, ports []int, proxyKeys, tables string) *arena {
	t.Helper()
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	dir := t.TempDir()
	a := &arena{addr: fmt.Sprintf("127.0.0.1:%d", ports[0]), roots: x509.NewCertPool(), gateway: &gateway{
		bundle: filepath.Join(dir, "ca", "bundle.pem"),
		admin:  fmt.Sprintf("http://127.0.0.1:%d", ports[1]),
		config: filepath.Join(dir, "gateway.toml"),
		secret: ownCredential,
	}}
	a.proxy = "http://" + a.addr
	if err := os.WriteFile(a.config, fmt.Appendf(nil, arenaTOML, ports[0], proxyKeys, ports[1], tables), 0o600); err != nil {
		t.Fatal(err)
	}
	a.start(t)
	a.waitReady(t)
	bundle, err := os.ReadFile(a.bundle)
	if err != nil {
		t.Fatal(err)
	}
	a.roots.AppendCertsFromPEM(bundle)
	t.Cleanup(func() {
		shown := a.pages()
		a.process.terminate(t)
		shown += a.process.output(t) + contents(t, dir)
		for _, secret := range []string{ownCredential, clientCredential} {
			if before, _, found := strings.Cut(shown, secret); found {
				t.Errorf("the gateway has shown %s, after %q", secret, tail(before, 200))
			}
		}
	})
	return a
}

// dial opens a TCP connection to the proxy.
func (a *arena) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", a.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// connect opens a CONNECT tunnel, which the gateway must accept with a bare 200.
func (a *arena) connect(t *testing.T, authority string) *net.TCPConn {
	t.Helper()
	c := a.dial(t)
	_, _ = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", authority, authority)
	head := readHead(t, c)
	if !strings.HasPrefix(head, "HTTP/1.1 200 ") || strings.Count(head, "\r\n") != 2 {
		t.Fatalf("CONNECT %s: got %q, want a bare 200", authority, head)
	}
	return c
}

// readHead reads to the end of an HTTP head and not a byte further.
func readHead(t *testing.T, c net.Conn) string {
	t.Helper()
	var head []byte
	for one := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); head = append(head, one[0]) {
		if _, err := io.ReadFull(c, one); err != nil {
			t.Fatalf("read a head: %v, after %q", err, head)
		}
	}
	return string(head)
}

// tunnel opens a CONNECT tunnel and TLS in it. The server name is the authority's host, and is verified, unless another
// one is given: a client that attacks does not verify.
func (a *arena) tunnel(t *testing.T, authority string, sni ...string) *tls.Conn {
	t.Helper()
	return a.secure(t, a.connect(t, authority), authority, sni...)
}

// secure is tunnel for a tunnel that is there.
func (a *arena) secure(t *testing.T, c net.Conn, authority string, sni ...string) *tls.Conn {
	t.Helper()
	host, _, _ := net.SplitHostPort(authority)
	conf := &tls.Config{RootCAs: a.roots, ServerName: strings.TrimSuffix(host, ".")}
	if len(sni) > 0 {
		conf.ServerName, conf.InsecureSkipVerify = sni[0], true
	}
	secure := tls.Client(c, conf)
	if err := secure.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("TLS in a tunnel to %s: %v", authority, err)
	}
	return secure
}

// reply is what came back for one request; err is how its body ended, if not well.
type reply struct {
	status int
	header http.Header
	body   string
	err    error
}

// talk writes bytes and reads one answer. What cannot be written is what the other side did not want to read.
func talk(c net.Conn, text string) reply {
	go func() { _, _ = io.WriteString(c, text) }()
	method, _, _ := strings.Cut(text, " ")
	return nextReply(bufio.NewReader(c), method)
}

// nextReply reads the answer to a request with this method.
func nextReply(r *bufio.Reader, method string) reply {
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		return reply{err: err}
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close() // it is read
	return reply{resp.StatusCode, resp.Header, string(body), err}
}

// code is the gateway's own error code; empty for an answer of the upstream's.
func (r reply) code() string { return r.header.Get("X-Gateway-Error") }

// is says what is wrong with r as an answer with this status and error code; "" if nothing is.
func (r reply) is(status int, code string) string {
	if r.err != nil || r.status != status || r.code() != code {
		return fmt.Sprintf("got %d %q %v %s, want %d %q", r.status, r.code(), r.err, r.body, status, code)
	}
	return ""
}

// detail is the reason that a problem document gives.
func (r reply) detail(t *testing.T) string {
	t.Helper()
	var document struct{ Detail string }
	if err := json.Unmarshal([]byte(r.body), &document); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
	return document.Detail
}
