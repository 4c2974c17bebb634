package gateway

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/elazarl/goproxy"

	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/rules"
)

// established is the whole answer to an accepted CONNECT. Orthanc reads headers
// of this answer as if the upstream had sent them, so there are none.
const established = "HTTP/1.1 200 Connection established\r\n\r\n"

// serveFront handles what arrives on the proxy's own port.
func (g *Gateway) serveFront(w http.ResponseWriter, r *http.Request) {
	c := connOf(r.Context())
	c.handling.Store(true)
	x := g.begin(w, r)
	defer x.end()
	if !x.snap.auth.admits(r.RemoteAddr) {
		x.refuse(problem{code: clientNotAllowed, hint: "add the client's network to allow_clients under [proxy]"})
		return
	}
	user, ok := x.snap.auth.user(r.Context(), r.Header)
	if !ok {
		w.Header().Set("Proxy-Authenticate", `Basic realm="orthanc-dicomweb-oauth", charset="UTF-8"`)
		x.refuse(problem{code: proxyAuthRequired, hint: "write user and password into Orthanc's HttpProxy: http://user:pass@host:port, special characters percent-encoded"})
		return
	}
	x.record.ProxyUser = user
	switch {
	case r.Method == http.MethodConnect:
		x.connect(c.overloaded)
	case c.overloaded:
		x.refuse(problem{code: overloaded})
	case r.URL.Scheme == "http" && r.URL.Host != "":
		x.plain()
	case r.URL.IsAbs():
		x.refuse(problem{code: badRequest, detail: "https:// must come by CONNECT"})
	default:
		x.refuse(problem{code: badRequest, detail: "this is a forward proxy, not a web server", hint: "use it as HttpProxy; status and metrics are on the [admin] listener"})
	}
}

// connect decides about a CONNECT: end its TLS here, tunnel it, or refuse it.
func (x *exchange) connect(overload bool) {
	g := x.g
	a, err := rules.ParseAuthority(x.in.RequestURI, 0)
	if err != nil {
		x.refuse(problem{code: badRequest, detail: "CONNECT target: " + err.Error()})
		return
	}
	x.authority = a
	x.record.Authority = a.String()
	site := x.snap.config.Table.Site("https", a)
	if site != nil && site.Terminated() {
		x.terminate(overload)
		return
	}
	if overload {
		x.refuse(problem{code: overloaded})
		return
	}
	if site == nil {
		if x.snap.config.Proxy.Unmatched == "pass" && x.snap.config.Table.Site("http", a) == nil { // no way around http:// rules
			x.tunnel()
			return
		}
		hint := "add a [[rule]] for https://" + a.HostHeader(443) + "/, or keep the host away from the proxy with NO_PROXY"
		g.log.Warn("CONNECT refused: no rule names this host; Orthanc shows only a failed connection",
			"code", noRule, "authority", a.String(), "client", x.record.Client, "hint", hint)
		x.refuse(problem{code: noRule, hint: hint})
		return
	}
	x.setRule(site.Whole())
	switch {
	case x.rule.Decision() == rules.Pass:
		if x.rule.Action == rules.Inject {
			g.log.Info("report: a credential would be injected", "rule", x.rule.Name, "authority", a.String())
		}
		x.tunnel()
	case g.CA().Covers(a.Host()):
		x.terminate(overload) // so that Orthanc sees the status
	default:
		g.log.Warn("CONNECT refused by rule; Orthanc shows only a failed connection",
			"code", ruleDenied, "rule", x.rule.Name, "authority", a.String(), "client", x.record.Client)
		x.refuse(problem{code: ruleDenied})
	}
}

// terminate hands the connection to the inner server, through goproxy.
func (x *exchange) terminate(overload bool) {
	x.silent = true // the requests inside are what is recorded
	ctx := context.WithValue(x.in.Context(), dispatchKey{}, func(client net.Conn) {
		t := &tunnel{authority: x.authority, client: x.record.Client, user: x.record.ProxyUser, overloaded: overload}
		x.g.handshake(x.in.Context(), client, t, x.snap.config.Proxy.HeaderTimeout)
	})
	x.g.connect.ServeHTTP(&hijackWriter{x.w}, x.in.WithContext(ctx))
}

type dispatchKey struct{}

// dispatch is goproxy's CONNECT handler. Every decision has been made before;
// what is left is to take the raw connection.
func (g *Gateway) dispatch(host string, ctx *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) {
	take, ok := ctx.Req.Context().Value(dispatchKey{}).(func(net.Conn))
	if !ok {
		return &goproxy.ConnectAction{Action: goproxy.ConnectReject}, host
	}
	return &goproxy.ConnectAction{
		Action: goproxy.ConnectHijack,
		Hijack: func(_ *http.Request, client net.Conn, _ *goproxy.ProxyCtx) { take(client) },
	}, host
}

// hijackWriter gives goproxy's hijack the bytes that net/http read beyond the
// CONNECT head, which goproxy would drop: a client may send its ClientHello in
// the same write.
type hijackWriter struct{ http.ResponseWriter }

// Hijack implements [http.Hijacker].
func (h *hijackWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	ahead, err := rw.Peek(rw.Reader.Buffered())
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return replayConn(c, ahead), rw, nil
}

// handshake ends the client's TLS and passes the connection on.
func (g *Gateway) handshake(ctx context.Context, client net.Conn, t *tunnel, timeout time.Duration) {
	defer context.AfterFunc(g.busy.ended, func() { client.Close() })()
	_ = client.SetDeadline(time.Now().Add(timeout))
	if _, err := io.WriteString(client, established); err != nil {
		client.Close()
		return
	}
	leaf, err := g.CA().Leaf(t.authority.Host())
	if err != nil {
		g.log.Error("leaf certificate not made", "authority", t.authority.String(), "err", err)
		client.Close()
		return
	}
	heard := &lastBytes{Conn: client}
	low := &bulkConn{Conn: heard}
	conn := tls.Server(low, &tls.Config{
		Certificates:           []tls.Certificate{*leaf},
		MinVersion:             tls.VersionTLS12,
		NextProtos:             []string{"http/1.1"},
		SessionTicketsDisabled: true, // Orthanc never resumes: making tickets is wasted work
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		g.handshakeFailed(client, heard, t, err)
		client.Close()
		return
	}
	_ = client.SetDeadline(time.Time{})
	t.sni = conn.ConnectionState().ServerName
	g.handoff.put(&clientConn{Conn: &secureConn{Conn: conn, low: low}, low: low, tunnel: t, overloaded: t.overloaded, onMalformed: g.malformed})
}

func (g *Gateway) handshakeFailed(client net.Conn, heard *lastBytes, t *tunnel, err error) {
	if alert, ok := heard.alert(); ok {
		g.certificateRefused(t, alert)
		return
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" && strings.Contains(op.Err.Error(), "certificate") {
		g.certificateRefused(t, op.Err.Error()) // an alert that came encrypted
		return
	}
	if left(err) { // libcurl reads the file before or after its ClientHello, and sends no alert
		g.certificateRefused(t, "it ended the connection in the TLS handshake, as when it cannot read its file of trusted CAs")
		return
	}
	if _, plain := errors.AsType[tls.RecordHeaderError](err); plain {
		g.stats.refused(string(badRequest))
		id := rand.Text()[:16]
		g.log.Warn("client does not speak TLS inside its CONNECT tunnel", "code", badRequest, "authority", t.authority.String(), "client", t.client, "request_id", id)
		_, _ = client.Write(rawProblem(problem{code: badRequest, detail: "this tunnel carries TLS only; nothing is sent in clear"}, id))
		return
	}
	g.log.Debug("TLS handshake with client failed", "authority", t.authority.String(), "client", t.client, "err", err)
}

// left reports whether a handshake failed because the client ended the connection.
// One that has not read our answer by then resets it.
func left(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return errors.Is(err, io.EOF) || ok && (op.Op == "read" || op.Op == "write") && !op.Timeout() && !errors.Is(err, net.ErrClosed)
}

// certificateRefused says what to change when a client does not trust our CA,
// since Orthanc itself never says why.
func (g *Gateway) certificateRefused(t *tunnel, how string) {
	g.log.Error("Orthanc does not trust this CA: set HttpsCACertificates to ca_bundle",
		"ca_bundle", g.CA().BundlePath(), "authority", t.authority.String(), "client", t.client, "reason", how)
	g.stats.untrusted.Add(1)
}

// lastBytes remembers the end of what was read. A client that refuses our
// certificate sends its alert in clear even under TLS 1.3, where Go reports no
// more than a bad record.
type lastBytes struct {
	net.Conn
	tail [7]byte
}

// Read implements [net.Conn].
func (c *lastBytes) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if keep := len(c.tail); n >= keep {
		copy(c.tail[:], p[n-keep:n])
	} else {
		copy(c.tail[:], c.tail[n:])
		copy(c.tail[keep-n:], p[:n])
	}
	return n, err
}

// alert names a fatal TLS alert about our certificate (RFC 8446 section 6.2) if
// that was the last thing heard.
func (c *lastBytes) alert() (string, bool) {
	if c.tail[0] != 21 || c.tail[1] != 3 || c.tail[3] != 0 || c.tail[4] != 2 || c.tail[5] != 2 {
		return "", false
	}
	switch c.tail[6] {
	case 42, 43, 46:
		return fmt.Sprintf("TLS alert %d: certificate not accepted", c.tail[6]), true
	case 45:
		return "TLS alert 45: certificate expired or not yet valid; compare the clocks", true
	case 48:
		return "TLS alert 48: unknown CA", true
	}
	return "", false
}

// tunnel connects the client to the authority and copies bytes both ways,
// looking at none.
func (x *exchange) tunnel() {
	if !x.g.busy.enter() {
		x.refuse(problem{code: draining})
		return
	}
	x.entered = true
	up, err := x.snap.upstream(x.rule).tunnel(x.in.Context(), x.authority)
	if err != nil {
		x.refuse(classify(err))
		return
	}
	defer up.Close()
	x.release() // a tunnel may last for days, and needs no more than its two ends
	ctx := context.WithValue(x.in.Context(), dispatchKey{}, func(client net.Conn) {
		defer client.Close()
		if _, err := io.WriteString(client, established); err != nil {
			return
		}
		x.record.Status, x.record.Outcome = http.StatusOK, audit.Tunnelled
		x.record.RequestBytes, x.record.ResponseBytes = x.g.relay(client, up, x.snap.config.Proxy.ResponseTimeout)
	})
	x.g.connect.ServeHTTP(&hijackWriter{x.w}, x.in.WithContext(ctx))
}

// errCorporateProxy is an upstream_proxy that does not open a tunnel.
type errCorporateProxy struct{ status int }

// Error implements error.
func (e errCorporateProxy) Error() string {
	return fmt.Sprintf("upstream_proxy answered CONNECT with status %d", e.status)
}

// basicAuth is the Proxy-Authorization for a proxy whose URL names a user.
func basicAuth(proxy *url.URL) string {
	password, _ := proxy.User.Password()
	r := &http.Request{Header: http.Header{}}
	r.SetBasicAuth(proxy.User.Username(), password)
	return r.Header.Get("Authorization")
}

// connectThrough asks a corporate proxy, over c, for a tunnel to the authority.
func connectThrough(ctx context.Context, c net.Conn, proxy *url.URL, a rules.Authority, timeout time.Duration) (net.Conn, error) {
	defer context.AfterFunc(ctx, func() { c.Close() })()
	_ = c.SetDeadline(time.Now().Add(timeout))
	defer c.SetDeadline(time.Time{}) //nolint:errcheck // a connection that cannot take it fails at its next use
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: a.String()}, Host: a.String(), Header: http.Header{}}
	if proxy.User != nil {
		req.Header.Set("Proxy-Authorization", basicAuth(proxy))
	}
	if err := req.Write(c); err != nil {
		return nil, err
	}
	limited := &io.LimitedReader{R: c, N: maxHeader}
	br := bufio.NewReader(limited)
	resp, err := http.ReadResponse(br, req) //nolint:bodyclose // what follows the head is the tunnel
	if err != nil && limited.N == 0 {
		return nil, &refusal{problem{code: upstreamUnreachable, detail: "the answer of upstream_proxy to CONNECT is too large", hint: "check upstream_proxy under [proxy]"}}
	}
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errCorporateProxy{resp.StatusCode}
	}
	ahead, err := br.Peek(br.Buffered())
	if err != nil {
		return nil, err
	}
	return replayConn(c, ahead), nil
}

// relay copies both ways until both ends are done, nothing has moved for idle,
// or the gateway is cut.
func (g *Gateway) relay(client, up net.Conn, idle time.Duration) (sent, received int64) {
	closeBoth := sync.OnceFunc(func() { client.Close(); up.Close() })
	watch := newWatchdog(idle, closeBoth)
	watch.start()
	defer watch.stop()
	defer context.AfterFunc(g.busy.ended, closeBoth)()
	var back sync.WaitGroup
	back.Go(func() { received = pump(client, up, watch) })
	sent = pump(up, client, watch)
	back.Wait()
	return sent, received
}

// pump copies until src ends, then passes the end on.
func pump(dst, src net.Conn, watch *watchdog) int64 {
	n, _ := io.Copy(&touching{dst, watch}, src)
	if half, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	} else {
		dst.Close()
	}
	return n
}

// touching tells the watchdog of each write.
type touching struct {
	io.Writer
	watch *watchdog
}

// Write implements [io.Writer].
func (t *touching) Write(p []byte) (int, error) {
	n, err := t.Writer.Write(p)
	t.watch.touch()
	return n, err
}

// sniMatches reports whether the name in the ClientHello is the tunnel's host;
// clients send none for IP addresses.
func (t *tunnel) sniMatches() bool {
	if t.sni == "" || t.sni == t.authority.Host() {
		return true
	}
	a, err := rules.ParseAuthority(strings.TrimSuffix(t.sni, "."), t.authority.Port())
	return err == nil && a == t.authority
}
