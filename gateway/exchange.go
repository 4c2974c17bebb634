package gateway

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// exchange is one request and its answer, from the first look to the audit
// record.
type exchange struct {
	g         *Gateway
	snap      *snapshot
	w         *responseWriter
	in        *http.Request
	authority rules.Authority
	scheme    string
	rule      *rules.Rule   // nil: no rule names the host (unmatched = "pass")
	source    *token.Source // nil: no credential is put on
	body      *requestBody  // nil: the request has none
	ctx       context.Context
	cancel    context.CancelCauseFunc
	asking    atomic.Pointer[watchdog] // guards the upload of the newest attempt; nil without a body
	answering *watchdog                // guards the answer's body
	record    audit.Record
	began     time.Time
	target    string // the path as it goes out
	renew     bool   // the last 401 was worth another try
	silent    bool   // the requests inside the tunnel are recorded, not the CONNECT
	finished  bool   // the handler ran to its end
	entered   bool   // a stop waits for it
	released  bool   // it no longer needs the snapshot
}

// begin opens the exchange of a request.
func (g *Gateway) begin(w http.ResponseWriter, r *http.Request) *exchange {
	x := &exchange{g: g, snap: g.hold(), in: r, began: time.Now(), scheme: "https"}
	x.w = &responseWriter{ResponseWriter: w, x: x}
	x.record = audit.Record{
		Time: x.began.UTC(), RequestID: rand.Text()[:16], Client: clientHost(r.RemoteAddr), Method: methodName(r.Method),
	}
	return x
}

// hasBody reports whether a request may have a body.
func hasBody(r *http.Request) bool { return r.Body != nil && r.Body != http.NoBody }

// leftBehind reports whether a part of the request's body has not been read.
func (x *exchange) leftBehind() bool {
	return hasBody(x.in) && (x.body == nil || !x.body.atEOF.Load())
}

// leftoverTime is how long net/http may wait, after the answer, for the rest of
// a body that the answer did not need; without a limit it would wait for ever.
const leftoverTime = 2 * time.Second

// end writes the audit record. It runs also when the handler panics to cut the
// connection.
func (x *exchange) end() {
	switch cause := recover(); {
	case cause != nil:
		if cause != http.ErrAbortHandler { //nolint:errorlint // the very value, as net/http compares it
			x.g.log.Error("internal error, please report it", "panic", fmt.Sprintf("%T", cause), "stack", string(debug.Stack()), "request_id", x.record.RequestID)
		}
		defer panic(http.ErrAbortHandler)
	case !x.silent: // net/http writes the answer's last bytes when we have ended, and would wait for ever for its client
		_ = connOf(x.in.Context()).SetWriteDeadline(time.Now().Add(x.snap.config.Proxy.StallTimeout))
	}
	if x.leftBehind() && !x.silent { // behind a CONNECT comes a tunnel, no body
		connOf(x.in.Context()).endReads(time.Now().Add(leftoverTime))
	}
	if x.body != nil {
		connOf(x.in.Context()).bulk(false)
	}
	if upload := x.asking.Load(); upload != nil {
		upload.stop()
	}
	if x.entered {
		defer x.g.busy.leave() // last: the audit log may be closed after a stop
	}
	defer x.release()
	if x.answering != nil {
		x.answering.stop()
	}
	if x.cancel != nil {
		x.cancel(nil)
	}
	if x.silent {
		return
	}
	rec := &x.record
	rec.Duration = milliseconds(time.Since(x.began))
	if x.body != nil {
		rec.RequestBytes = x.body.bytes.Load()
	}
	if rec.Status == 0 {
		rec.Status, rec.ResponseBytes = x.w.status, x.w.bytes
	}
	if rec.Outcome == "" {
		rec.Outcome = audit.Forwarded
		if !x.finished {
			rec.Outcome = audit.Cut
		}
	}
	x.g.stats.observe(rec)
	x.g.tell(rec)
	x.g.audit.Write(*rec)
}

// setRule notes the rule that decides.
func (x *exchange) setRule(r *rules.Rule) {
	x.rule = r
	x.record.Rule, x.record.Profile = r.Name, r.Profile
}

// serveInner handles a request inside terminated TLS.
func (g *Gateway) serveInner(w http.ResponseWriter, r *http.Request) {
	c := connOf(r.Context())
	c.handling.Store(true)
	c.tunnel.requests.Add(1)
	x := g.begin(w, r)
	defer x.end()
	x.record.ProxyUser = c.tunnel.user
	x.authority = c.tunnel.authority
	x.record.Authority = x.authority.String()
	if !x.snap.auth.keeps(c.tunnel) {
		x.refuse(problem{code: clientNotAllowed, hint: "allow_clients or username under [proxy] has changed since this CONNECT"})
		return
	}
	if c.overloaded {
		x.refuse(problem{code: overloaded, hint: "see max_connections under [proxy]"})
		return
	}
	if !r.ProtoAtLeast(1, 1) {
		x.refuse(problem{code: badRequest, detail: "inside a tunnel only HTTP/1.1 can show where an answer was cut"})
		return
	}
	if p, bad := x.misdirected(c.tunnel); bad {
		x.refuse(p)
		return
	}
	x.serve()
}

// misdirected compares every name of the target with the tunnel's one authority.
func (x *exchange) misdirected(t *tunnel) (problem, bool) {
	if !t.sniMatches() {
		return problem{code: authorityMismatch, detail: "the TLS server name is not the CONNECT target"}, true
	}
	port := uint16(443)
	if x.in.URL.Scheme == "http" {
		port = 80
	}
	host, err := t.authority, error(nil)
	if x.in.Host != host.HostHeader(port) { // else there is nothing to find out
		host, err = rules.ParseAuthority(x.in.Host, port)
	}
	if err != nil || x.in.URL.User != nil || x.in.URL.Scheme == "https" && x.in.URL.Host == "" {
		return problem{code: badRequest, detail: "the Host header or the request target is not a host"}, true
	}
	if host != t.authority || x.in.URL.Scheme != "" && x.in.URL.Scheme != "https" {
		return problem{code: authorityMismatch, detail: "the request is for another host than its CONNECT"}, true
	}
	return problem{}, false
}

// plain handles an absolute-form http:// request, which is forwarded only where
// a rule with action pass, or unmatched = "pass", says so; never with a
// credential.
func (x *exchange) plain() {
	x.scheme = "http"
	if !x.in.ProtoAtLeast(1, 1) {
		x.refuse(problem{code: badRequest, detail: "only HTTP/1.1 can show where an answer was cut"})
		return
	}
	a, err := rules.ParseAuthority(x.in.Host, 80)
	if err != nil || x.in.URL.User != nil {
		x.refuse(problem{code: badRequest, detail: "the URL's host is not a host"})
		return
	}
	x.authority = a
	x.record.Authority = a.String()
	x.serve()
}

// serve finds the rule and carries out what it decides.
func (x *exchange) serve() {
	path, ok := rawPath(x.in)
	if !ok {
		x.refuse(problem{code: badRequest, detail: "the request target is not a path"})
		return
	}
	site := x.snap.config.Table.Site(x.scheme, x.authority)
	if site == nil {
		if x.scheme == "http" && x.snap.config.Proxy.Unmatched == "pass" {
			x.send(path)
			return
		}
		x.refuse(problem{code: noRule, hint: "add a [[rule]] for this host"})
		return
	}
	rule, err := site.Match(path)
	switch {
	case err != nil:
		x.refuse(problem{code: badRequest, detail: err.Error()})
		return
	case rule == nil:
		x.refuse(problem{code: noRule, detail: "the host has rules, but none covers this path", hint: "compare the url of the rules with the Url in DicomWeb.Servers"})
		return
	}
	x.setRule(rule)
	prefix := rule.Prefix()
	x.record.Route = audit.Route(prefix, path)
	x.record.Transaction = audit.Transaction(x.in.Method, strings.TrimPrefix(x.record.Route, prefix))
	x.record.StudyHash = audit.StudyHash(x.snap.auditKey, prefix, path)
	switch {
	case rule.Decision() == rules.Deny:
		x.refuse(problem{code: ruleDenied})
	case !rule.Allows(x.in.Method):
		x.w.Header().Set("Allow", strings.Join(rule.Methods, ", "))
		x.refuse(problem{code: methodNotAllowed, hint: "see methods of rule " + rule.Name})
	case rule.Decision() == rules.Inject:
		x.source = x.snap.sources[rule.Profile]
		x.send(path)
	default:
		if rule.Action == rules.Inject {
			x.g.log.Info("report: a credential would be injected", "rule", rule.Name, "authority", x.record.Authority)
		}
		x.send(path)
	}
}

// send forwards the request.
func (x *exchange) send(path string) {
	if !x.g.busy.enter() {
		x.refuse(problem{code: draining})
		return
	}
	x.entered = true
	ctx, cancel := context.WithCancelCause(x.in.Context())
	x.ctx, x.cancel = ctx, cancel
	proxy := x.snap.config.Proxy
	control := http.NewResponseController(x.w.ResponseWriter)
	x.answering = newWatchdog(proxy.StallTimeout, func() {
		cancel(errStalled)
		past := time.Unix(1, 0)
		_ = control.SetReadDeadline(past)
		_ = control.SetWriteDeadline(past)
	})
	if hasBody(x.in) {
		// Else net/http would read from the body itself when the answer begins,
		// while it is still on its way to the upstream: the upload would lose a part.
		_ = control.EnableFullDuplex()
		conn := connOf(x.in.Context())
		x.body = &requestBody{src: x.in.Body, moved: x.moved, ahead: conn.ahead}
		if n := x.in.ContentLength; n < 0 || n > bulkSize/2 {
			conn.bulk(true)
		}
	}
	x.target = path
	x.forward()
	x.finished = true
}

// watchUpload starts to watch the upload of a new attempt, instead of that of
// an earlier one.
func (x *exchange) watchUpload() *watchdog {
	if earlier := x.asking.Load(); earlier != nil {
		earlier.stop()
	}
	upload := newWatchdog(x.snap.config.Proxy.StallTimeout, func() {
		if !x.body.inRead.Load() {
			x.cancel(errStalled)
			return
		}
		x.cancel(errClientStalled)
		_ = http.NewResponseController(x.w.ResponseWriter).SetReadDeadline(time.Unix(1, 0)) // wakes whoever waits for the client
	})
	x.asking.Store(upload)
	upload.start()
	return upload
}

// moved notes that a byte of the request's body came from the client.
func (x *exchange) moved() {
	if upload := x.asking.Load(); upload != nil {
		upload.touch()
	}
	x.answering.touch() // an answer may wait for the rest of the upload
}

// rawPath returns the path of the request line as the client wrote it, since
// net/url would decode and encode it again. Not a path: "*", an authority, what
// has a fragment, and what begins with two slashes and cannot be written by
// net/url without a change.
func rawPath(r *http.Request) (string, bool) {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	if r.URL.Scheme != "" {
		_, rest, ok := strings.Cut(path, "://")
		if !ok {
			return "", false
		}
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			path = rest[i:]
		} else {
			path = "/"
		}
	}
	if strings.HasPrefix(path, "//") && r.URL.EscapedPath() != path {
		return "", false
	}
	return path, strings.HasPrefix(path, "/") && !strings.Contains(path, "#")
}

// rawURL returns the URL under which path and query go out byte for byte.
func (x *exchange) rawURL() *url.URL {
	u := &url.URL{Scheme: x.scheme, Host: x.authority.String(), RawQuery: x.in.URL.RawQuery, ForceQuery: x.in.URL.ForceQuery}
	if strings.HasPrefix(x.target, "//") {
		u.Path, u.RawPath = x.in.URL.Path, x.in.URL.RawPath // Opaque would read it as an authority
	} else {
		u.Opaque = x.target
	}
	return u
}

// clientHost returns the address of a client without its port.
func clientHost(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	return host
}

// methodName keeps what a client calls its method out of logs and metrics
// unless it is one.
func methodName(m string) string {
	switch m {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE":
		return m
	}
	return "OTHER"
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// responseWriter counts what goes to the client and tells the watchdog.
type responseWriter struct {
	http.ResponseWriter
	x      *exchange
	status int
	bytes  int64
}

// WriteHeader implements [http.ResponseWriter].
func (w *responseWriter) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
		w.x.record.FirstByte = milliseconds(time.Since(w.x.began))
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (w *responseWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	if w.x.answering != nil {
		w.x.answering.touch()
	}
	return n, err
}

// Unwrap lets [http.ResponseController] reach the connection.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
