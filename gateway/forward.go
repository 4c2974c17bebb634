package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"

	"orthanc-dicomweb-oauth/gateway/audit"
)

// errStalled is why a transfer was ended whose body stopped moving.
var errStalled = errors.New("transfer stalled")

// copyBuffer is the size of the buffers between upstream and client.
const copyBuffer = 64 << 10

// newForward returns the one ReverseProxy of the gateway. It strips hop-by-hop
// headers before Rewrite, so that no client can nominate the credential, which
// is put on later, in RoundTrip.
func (g *Gateway) newForward() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite:        func(p *httputil.ProxyRequest) { exchangeOf(p.In.Context()).rewrite(p.Out) },
		Transport:      roundTripper(func(r *http.Request) (*http.Response, error) { return exchangeOf(r.Context()).roundTrip(r) }),
		ModifyResponse: func(r *http.Response) error { return exchangeOf(r.Request.Context()).modify(r) },
		ErrorHandler:   func(_ http.ResponseWriter, r *http.Request, err error) { exchangeOf(r.Context()).failed(err) },
		FlushInterval:  -1, // what has arrived is passed on
		BufferPool:     &buffers{},
		ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // the audit record tells of a cut answer
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements [http.RoundTripper].
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// buffers pools copy buffers.
type buffers struct{ pool sync.Pool }

// Get implements [httputil.BufferPool].
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[copyBuffer]byte); ok {
		return p[:]
	}
	return make([]byte, copyBuffer)
}

// Put implements [httputil.BufferPool].
func (b *buffers) Put(p []byte) { b.pool.Put((*[copyBuffer]byte)(p)) }

// rewrite makes the upstream's request out of the client's, still without a
// credential. ReverseProxy has stripped hop-by-hop and X-Forwarded-* headers.
func (x *exchange) rewrite(out *http.Request) {
	out.URL = x.rawURL()
	out.Host = x.authority.HostHeader(map[string]uint16{"https": 443, "http": 80}[x.scheme])
	out.Trailer = nil
	h := out.Header
	for name := range h {
		if strings.HasPrefix(name, "X-Forwarded-") {
			delete(h, name)
		}
	}
	// Azure builds URLs from the first three. Expect is answered here, at once.
	for _, name := range []string{"Forwarded", "Via", "Expect", "Te", "Upgrade", "Connection"} {
		delete(h, name)
	}
	if x.source != nil {
		delete(h, "Authorization")
	}
	if x.rule != nil {
		for name, value := range x.rule.Headers {
			h.Set(name, value.Reveal())
		}
	}
	if x.body == nil {
		out.Body, out.ContentLength = nil, 0
	}
}

// roundTrip sends the request, with its credential if the rule injects one. A
// 401 renews the credential and sends the request again where its body allows.
func (x *exchange) roundTrip(out *http.Request) (*http.Response, error) {
	resp, err := x.attempt(out)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || x.source == nil {
		return resp, err
	}
	if again := x.afterRejection(out, resp); again != nil {
		return x.attempt(again)
	}
	return resp, nil
}

// attempt is one request to the upstream.
func (x *exchange) attempt(out *http.Request) (*http.Response, error) {
	if x.body != nil {
		body, ok := x.body.attempt()
		if !ok {
			return nil, &refusal{problem{code: upstreamProtocol, detail: "the request could not be sent again"}}
		}
		out.Body = body
		out.GetBody = func() (io.ReadCloser, error) {
			if body, ok := x.body.attempt(); ok {
				return body, nil
			}
			return nil, errDetached
		}
	}
	generation := uint64(0)
	if x.source != nil {
		t, err := x.source.Token(out.Context())
		if err == nil {
			err = t.Apply(out)
		}
		if err != nil {
			if ctxErr := context.Cause(out.Context()); ctxErr != nil {
				return nil, ctxErr
			}
			return nil, &refusal{unavailable(x.snap.config.Profiles[x.rule.Profile], err)}
		}
		generation = t.Generation()
		x.record.TokenAge = t.Age().Seconds()
	}
	x.record.Attempts++
	resp, err := x.snap.upstream(x.rule).transport.RoundTrip(out.WithContext(bare{out.Context()}))
	if err != nil {
		return nil, err
	}
	x.record.UpstreamStatus = resp.StatusCode
	if resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body.Close()
		return nil, &refusal{problem{code: upstreamProtocol, detail: "the server switches protocols, which nobody asked for"}}
	}
	if x.source != nil {
		if resp.StatusCode == http.StatusUnauthorized {
			x.renew = x.source.Reject(generation)
		} else {
			x.source.Accept()
		}
	}
	// A copy, because Transport adds the trailers to its own response at the end
	// of the body, and trailers break Orthanc's WADO-RS client.
	passed := *resp
	passed.Trailer = nil
	passed.Request = out
	return &passed, nil
}

// maxRejection is how much of a 401's body is kept, in case it has to be passed on.
const maxRejection = 64 << 10

// afterRejection returns the request to send after a 401, or nil if resp, which
// it may have replaced the body of, is the answer.
func (x *exchange) afterRejection(out *http.Request, resp *http.Response) *http.Request {
	if !x.renew || x.body != nil && !x.body.replayable() {
		return nil
	}
	kept, err := io.ReadAll(io.LimitReader(resp.Body, maxRejection))
	resp.Body.Close()
	if err != nil {
		kept = nil
	}
	resp.Body = io.NopCloser(bytes.NewReader(kept))
	resp.ContentLength = int64(len(kept))
	resp.Header.Set("Content-Length", strconv.Itoa(len(kept)))
	if x.body != nil {
		if _, ok := x.body.attempt(); !ok { // takes the body away from the first attempt
			return nil
		}
	}
	if _, err := x.source.Token(out.Context()); err != nil {
		return nil
	}
	return out
}

// bare hides a context's values: ReverseProxy's trace would pass 1xx answers on
// to Orthanc, and lift Transport's limit on their number.
type bare struct{ context.Context }

// Value implements [context.Context].
func (bare) Value(any) any { return nil }

// modify makes the upstream's answer one that Orthanc understands.
func (x *exchange) modify(resp *http.Response) error {
	h := resp.Header
	delete(h, "Trailer")
	delete(h, "X-Gateway-Error")
	delete(h, "X-Gateway-Upstream-Status")
	if err := x.checkRedirect(resp); err != nil {
		return err
	}
	if shown := knownStatus(resp.StatusCode); shown != resp.StatusCode {
		h.Set("X-Gateway-Upstream-Status", strconv.Itoa(resp.StatusCode))
		resp.StatusCode = shown
	}
	if resp.StatusCode >= 400 && acceptsMultipart(x.in) {
		x.g.stats.stripped.Add(1)
		x.g.log.Info("error body of a WADO-RS answer dropped, so that Orthanc logs the status",
			"status", x.record.UpstreamStatus, "rule", x.record.Rule, "request_id", x.record.RequestID)
		resp.Body.Close()
		resp.Body = http.NoBody
		resp.ContentLength = 0
		h["Content-Type"] = nil
		delete(h, "Content-Encoding")
		delete(h, "Transfer-Encoding")
		h.Set("Content-Length", "0")
	}
	x.answering.start()
	return nil
}

// checkRedirect lets a redirect pass only where the client's next request would
// meet a rule. The gateway itself follows none.
func (x *exchange) checkRedirect(resp *http.Response) error {
	if resp.StatusCode < 300 || resp.StatusCode > 399 || resp.Header.Get("Location") == "" {
		return nil
	}
	no := func(detail string) error {
		return &refusal{problem{code: redirectRefused, detail: detail, hint: "add a rule for the target if it is right, or correct the rule's url"}}
	}
	if x.body != nil {
		return no("a request with a body cannot be redirected")
	}
	from := *x.in.URL
	from.Scheme, from.Host = x.scheme, x.authority.String()
	to, err := from.Parse(resp.Header.Get("Location"))
	if err != nil {
		return no("the Location header is not a URL")
	}
	if !covered(x.snap.config.Table, to) {
		return no("no inject or pass rule covers the target")
	}
	if !x.g.hops.follow(x.record.Client, from.String(), to.String(), x.began) {
		return no("the chain of redirects is longer than " + strconv.Itoa(maxHops))
	}
	return nil
}

// failed answers when there is no upstream answer to pass on.
func (x *exchange) failed(err error) {
	switch cause := context.Cause(x.in.Context()); {
	case cause != nil: // of the server's own context: the client has gone
		x.record.Outcome, x.record.Status = audit.ClientGone, 499
		panic(http.ErrAbortHandler)
	case errors.Is(err, errStalled) || errors.Is(err, context.Canceled):
		if x.body != nil && x.body.inRead.Load() {
			x.record.Outcome, x.record.Status, x.record.Reason = audit.Cut, 499, "client_stalled"
			panic(http.ErrAbortHandler)
		}
		x.refuse(problem{code: upstreamTimeout, detail: "the server took no byte of the request for stall_timeout"})
	default:
		x.refuse(classify(err))
	}
}

// knownStatus maps a status that Orthanc does not know to one that it does
// (Enumerations.h of Orthanc); unknown ones reach its users as "Parameter out of
// range".
func knownStatus(status int) int {
	switch {
	case status < 400:
		return status
	case status == http.StatusTooManyRequests:
		return http.StatusServiceUnavailable
	case status >= 400 && status <= 417, status >= 422 && status <= 424, status == 426,
		status >= 500 && status <= 505, status == 507:
		return status
	case status < 499:
		return http.StatusBadRequest
	}
	return http.StatusBadGateway
}
