package gateway_test

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/elazarl/goproxy"
)

// http1 is a request in a script.
type http1 = http.Request

// goproxysOwnLoop is the proxy that one would write with goproxy in ten lines: TLS
// interception by ConnectMitm, the credential by OnRequest.
func goproxysOwnLoop(t *testing.T) *arena {
	t.Helper()
	a := &arena{roots: testPKI().pool(), good: newDouble(t, nil), evil: newDouble(t, nil)}
	proxy := goproxy.NewProxyHttpServer()
	proxy.Logger = silent{}
	proxy.Tr = &http.Transport{TLSClientConfig: clientTLS(testPKI().pool()), DisableKeepAlives: true}
	leaf := testPKI().leaf(time.Now().Add(time.Hour), "localhost")
	mitm := &goproxy.ConnectAction{
		Action:    goproxy.ConnectMitm,
		TLSConfig: func(string, *goproxy.ProxyCtx) (*tls.Config, error) { return serverTLS(leaf), nil },
	}
	proxy.OnRequest().HandleConnectFunc(func(host string, _ *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) { return mitm, host })
	proxy.OnRequest().DoFunc(func(r *http.Request, _ *goproxy.ProxyCtx) (*http.Request, *http.Response) {
		r.Header.Set("Authorization", "Bearer the-token-of-the-reference")
		return r, nil
	})
	server := httptest.NewUnstartedServer(proxy)
	server.Config.ReadHeaderTimeout = headTimeout
	server.Start()
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	a.addr = server.Listener.Addr().String()
	return a
}

type silent struct{}

func (silent) Printf(string, ...any) {}

// The checks of TestAbuseInsideTheTunnel can fail: goproxy's own loop does not
// pass the rows that are known to break it.
func TestAbuseChecksCatchGoproxysOwnLoop(t *testing.T) {
	t.Parallel()
	a := goproxysOwnLoop(t)
	for _, row := range abuses {
		t.Run(row.name, func(t *testing.T) {
			if wrong := a.violations(t, row); row.goproxy != "" && !slices.Contains(wrong, row.goproxy) {
				t.Errorf("the checks found %q, want among them %q", wrong, row.goproxy)
			}
		})
	}
}

// saysServerIsDown reports whether a client learns by an HTTP status that there
// is no server.
func (a *arena) saysServerIsDown(t *testing.T, authority string) bool {
	t.Helper()
	return talk(secure(t, a.addr, authority, "", a.roots), "GET / HTTP/1.1\r\nHost: "+authority+"\r\n\r\n").status == 502
}

func TestServerThatIsDownIsSaidToBe(t *testing.T) {
	t.Parallel()
	down := "localhost:" + closed(t)
	h := newHarness(t, setup{url: "https://" + down + "/"})
	if !(&arena{addr: h.addr, roots: h.roots()}).saysServerIsDown(t, down) {
		t.Error("got no 502")
	}
	if goproxysOwnLoop(t).saysServerIsDown(t, down) {
		t.Error("the check does not catch goproxy's own loop")
	}
}

// headTimeout is header_timeout where a test waits for its end.
const headTimeout = 400 * time.Millisecond

// slowHead reports whether the proxy ends a tunnel whose client stops in the
// middle of a request line.
func (a *arena) slowHead(t *testing.T) bool {
	t.Helper()
	c := secure(t, a.addr, a.good.authority(), "", a.roots)
	_ = c.SetDeadline(time.Now().Add(4 * headTimeout))
	return !errors.Is(talk(c, "GET / HT").err, os.ErrDeadlineExceeded)
}

// noHello reports whether the proxy ends a tunnel whose client says nothing.
func (a *arena) noHello(t *testing.T) bool {
	t.Helper()
	c := connect(t, a.addr, a.good.authority())
	_ = c.SetDeadline(time.Now().Add(4 * headTimeout))
	return !errors.Is(talk(c, "").err, os.ErrDeadlineExceeded)
}

func TestSilentClientsAreLetGo(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{proxy: `header_timeout = "400ms"`})
	a := &arena{h.addr, h.roots(), h.up, nil}
	reference := goproxysOwnLoop(t)
	for name, check := range map[string]func(*arena) bool{
		"half a request line": func(a *arena) bool { return a.slowHead(t) },
		"no ClientHello":      func(a *arena) bool { return a.noHello(t) },
	} {
		if !check(a) {
			t.Errorf("%s: the connection is kept", name)
		}
		if check(reference) {
			t.Errorf("%s: the check does not catch goproxy's own loop", name)
		}
	}
}
