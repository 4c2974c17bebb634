package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/token"
)

// Why a transfer was ended whose body stopped moving.
var (
	errStalled       = errors.New("transfer stalled")
	errClientStalled = errors.New("client stopped sending")
)

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

// overrides are headers by which some servers let a client name another method
// or path than those that the rule was asked about.
var overrides = [...]string{
	"X-Http-Method", "X-Http-Method-Override", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url",
}

// rewrite makes the upstream's request out of the client's, still without a
// credential. ReverseProxy has stripped hop-by-hop and X-Forwarded-* headers.
func (x *exchange) rewrite(out *http.Request) {
	out.URL = x.rawURL()
	out.Host = x.authority.HostHeader(map[string]uint16{"https": 443, "http": 80}[x.scheme])
	out.Trailer = nil
	h := out.Header
	for name := range h {
		if strings.HasPrefix(strings.ReplaceAll(strings.ToLower(name), "_", "-"), "x-forwarded-") {
			delete(h, name)
		}
	}
	// Azure builds URLs from the first three. Expect is answered here, at once.
	for _, name := range []string{"Forwarded", "Via", "Expect", "Te", "Upgrade", "Connection"} {
		delete(h, name)
	}
	if x.source != nil {
		for _, name := range overrides {
			delete(h, name)
		}
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
	resp, generation, err := x.attempt(out)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || x.source == nil {
		return resp, err
	}
	again := x.canRepeat(resp, generation)
	x.snap.upstream(x.rule).refused()
	if again {
		resp.Body.Close()
		resp, _, err = x.attempt(out)
	}
	return resp, err
}

// attempt is one request to the upstream. It returns the generation of the
// token that went with it.
func (x *exchange) attempt(out *http.Request) (*http.Response, uint64, error) {
	up := x.snap.upstream(x.rule)
	if err := up.permits(x.authority); err != nil {
		return nil, 0, err
	}
	req := out.WithContext(bare{out.Context()})
	req.Header = out.Header.Clone() // an earlier attempt may still read its own
	if x.body != nil {
		body, ok := x.body.attempt()
		if !ok {
			return nil, 0, &refusal{problem{code: upstreamProtocol, detail: "the request could not be sent again"}}
		}
		req.Body = body
		req.GetBody = func() (io.ReadCloser, error) {
			body, ok := x.body.attempt()
			if !ok {
				return nil, errLost
			}
			x.watchUpload()
			return body, nil
		}
	}
	generation := uint64(0)
	if x.source != nil {
		t, err := x.source.Token(out.Context())
		if err != nil {
			return nil, 0, x.noCredential(err)
		}
		generation = t.Generation()
		x.record.TokenAge = t.Age().Seconds()
		if err := x.putOn(t, req); err != nil {
			return nil, 0, x.noCredential(err)
		}
	}
	x.record.Attempts++
	if x.body != nil {
		upload := x.watchUpload()
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
			WroteRequest: func(httptrace.WroteRequestInfo) { upload.stop() },
		}))
		if _, named := req.Header["Idempotency-Key"]; !named {
			// Every DICOMweb transaction may be sent twice. With this entry, which does
			// not go out, Transport sends it again, if the body is there from its first
			// byte, when a kept connection turns out to be closed.
			req.Header["Idempotency-Key"] = nil
		}
	}
	resp, err := up.transport.RoundTrip(req)
	if err != nil {
		return nil, 0, err
	}
	x.record.UpstreamStatus = resp.StatusCode
	if resp.StatusCode < 200 || resp.StatusCode > 999 {
		resp.Body.Close()
		return nil, 0, &refusal{problem{code: upstreamProtocol, detail: "the server answers with a status that ends no request"}}
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
	return &passed, generation, nil
}

// putOn puts the credential on a request. One that signs may read the whole body
// for it, and send a copy.
func (x *exchange) putOn(t *token.Token, req *http.Request) error {
	if x.body == nil {
		return t.Apply(req)
	}
	x.watchUpload()
	body := req.Body
	if err := t.Apply(req); err != nil {
		return err
	}
	if req.Body != body && req.Body != http.NoBody {
		req.Body = &watchedBody{req.Body, x}
		if again := req.GetBody; again != nil {
			req.GetBody = func() (io.ReadCloser, error) {
				copied, err := again()
				return &watchedBody{copied, x}, err
			}
		}
	}
	return nil
}

// watchedBody tells the watchdogs that a copy of the body moves.
type watchedBody struct {
	io.ReadCloser
	x *exchange
}

// Read implements [io.Reader].
func (b *watchedBody) Read(p []byte) (int, error) {
	b.x.moved()
	return b.ReadCloser.Read(p)
}

// noCredential is the error of a request that got no credential.
func (x *exchange) noCredential(err error) error {
	if x.ctx.Err() != nil || x.body != nil && x.body.failure() != nil {
		return err // stalled, or the client's own fault
	}
	return &refusal{unavailable(x.snap.config.Profiles[x.rule.Profile], err)}
}

// maxRejection is how much of a 401's body is kept, in case it has to be passed on.
const maxRejection = 64 << 10

// canRepeat reports whether the request can be sent again after a 401 with
// another token than that of the given generation. If not, resp is the answer;
// its body may have been read ahead, and reads as it came.
func (x *exchange) canRepeat(resp *http.Response, generation uint64) bool {
	if !x.renew || x.body != nil && !x.body.replayable() {
		return false
	}
	x.answering.start()
	kept, err := io.ReadAll(io.LimitReader(resp.Body, maxRejection+1))
	x.answering.stop() // a new token may take longer than a body may stand still
	rest := resp.Body
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(kept), rest), rest}
	if err != nil || len(kept) > maxRejection {
		return false // passed on as it comes, cut where it is cut
	}
	if x.body != nil {
		if _, ok := x.body.attempt(); !ok { // takes the body away from the first attempt
			return false
		}
	}
	t, err := x.source.Token(x.ctx)
	return err == nil && t.Generation() != generation
}

// bare hides a context's values: ReverseProxy's trace would pass 1xx answers on
// to Orthanc, and lift Transport's limit on their number.
type bare struct{ context.Context }

// Value implements [context.Context].
func (bare) Value(any) any { return nil }

// modify makes the upstream's answer one that Orthanc understands.
func (x *exchange) modify(resp *http.Response) error {
	if upload := x.asking.Load(); upload != nil {
		upload.stop() // from here on the answer shows whether something moves
		if x.leftBehind() {
			x.w.Header().Set("Connection", "close") // the rest of the body may never come
		}
	}
	h := resp.Header
	if _, ok := h["Content-Type"]; !ok {
		x.w.Header()["Content-Type"] = nil // net/http would guess one
	}
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
	from := &url.URL{Scheme: x.scheme, Host: x.authority.String(), Path: x.in.URL.Path, RawPath: x.in.URL.RawPath, RawQuery: x.in.URL.RawQuery}
	locations := resp.Header["Location"]
	to, err := from.Parse(locations[0])
	if err != nil || len(locations) > 1 || strings.Contains(locations[0], `\`) {
		return no("the Location header is not a URL")
	}
	target, ok := covered(x.snap.config.Table, to)
	if !ok {
		return no("no inject or pass rule covers the target")
	}
	if !x.g.hops.follow(x.record.Client, from.String(), target, x.began) {
		return no("the chain of redirects is longer than " + strconv.Itoa(maxHops))
	}
	return nil
}

// failed answers when there is no upstream answer to pass on.
func (x *exchange) failed(err error) {
	var fromClient error
	if x.body != nil {
		fromClient = x.body.failure()
	}
	switch cause := context.Cause(x.ctx); {
	case errors.Is(cause, errClientStalled):
		x.record.Outcome, x.record.Status, x.record.Reason = audit.Cut, statusClientGone, "client_stalled"
		panic(http.ErrAbortHandler)
	case errors.Is(cause, errStalled):
		x.w.Header().Set("Connection", "close")
		x.refuse(problem{code: upstreamTimeout, detail: "the server took no byte of the request for stall_timeout"})
	case x.in.Context().Err() != nil || errors.Is(fromClient, io.ErrUnexpectedEOF):
		x.record.Outcome, x.record.Status = audit.ClientGone, statusClientGone
		panic(http.ErrAbortHandler)
	case fromClient != nil:
		x.refuse(problem{code: badRequest, detail: "the body's framing breaks RFC 9112"})
	default:
		x.refuse(classify(err))
	}
}

// statusClientGone stands in the audit log where there was nobody to answer.
const statusClientGone = 499

// knownStatus maps a status that Orthanc does not know to one that it does
// (Enumerations.h of Orthanc); unknown ones reach its users as "Parameter out of
// range".
func knownStatus(status int) int {
	switch {
	case status < 400:
		return status
	case status == http.StatusTooManyRequests:
		return http.StatusServiceUnavailable
	case status == http.StatusProxyAuthRequired: // would look like the gateway's own
		return http.StatusBadGateway
	case status >= 400 && status <= 417, status >= 422 && status <= 424, status == 426,
		status >= 500 && status <= 505, status == 507:
		return status
	case status < 499:
		return http.StatusBadRequest
	}
	return http.StatusBadGateway
}
