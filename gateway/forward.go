package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
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

// smallBody is the size of the buffers for bodies that are not large.
const smallBody = 16 << 10

var copyBuffers = sync.Pool{New: func() any { return new([smallBody]byte) }}

// overrides are headers by which some servers let a client name another method
// or path than those that the rule was asked about.
var overrides = [...]string{
	"X-Http-Method", "X-Http-Method-Override", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url",
}

// hopByHop reports whether a header is for one connection only (RFC 9110
// section 7.6.1), or one that the gateway alone may write.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length":
		return true
	}
	return false
}

// nominated returns the headers that Connection names, in canonical form.
func nominated(h http.Header) []string {
	var names []string
	for _, value := range h["Connection"] {
		for name := range strings.SplitSeq(value, ",") {
			names = append(names, http.CanonicalHeaderKey(strings.Trim(name, " \t")))
		}
	}
	return names
}

// request makes the upstream's request out of the client's, still without a
// credential: what is hop-by-hop is gone before one is put on, so that no client
// can nominate it.
func (x *exchange) request() *http.Request {
	h := make(http.Header, len(x.in.Header)+4)
	for name, values := range x.in.Header {
		if !hopByHop(name) && !x.withheld(name) {
			h[name] = values
		}
	}
	for _, name := range nominated(x.in.Header) {
		delete(h, name)
	}
	if x.rule != nil {
		for name, value := range x.rule.Headers {
			h.Set(name, value.Reveal())
		}
	}
	out := &http.Request{Method: x.in.Method, URL: x.rawURL(), Header: h, Host: x.authority.HostHeader(x.defaultPort())}
	if x.body != nil {
		out.ContentLength = x.in.ContentLength
	}
	return out
}

// withheld reports whether a client's header does not go out.
func (x *exchange) withheld(name string) bool {
	switch name {
	case "Forwarded", "Via": // Azure builds URLs from these, and from those below
		return true
	case "Expect": // answered here
		return true
	case "Authorization":
		return x.source != nil
	}
	if name[0] == 'X' || name[0] == 'x' {
		plain := strings.ReplaceAll(strings.ToLower(name), "_", "-")
		return strings.HasPrefix(plain, "x-forwarded-") || x.source != nil && slices.Contains(overrides[:], name)
	}
	return false
}

func (x *exchange) defaultPort() uint16 {
	if x.scheme == "http" {
		return 80
	}
	return 443
}

// forward sends the request and passes the answer on.
func (x *exchange) forward() {
	resp, err := x.roundTrip()
	if err == nil {
		defer resp.Body.Close()
		err = x.modify(resp)
	}
	if err != nil {
		x.failed(err)
		return
	}
	x.pass(resp)
}

// pass streams the answer to the client. An answer that breaks off is cut for
// the client too.
func (x *exchange) pass(resp *http.Response) {
	h := x.w.Header()
	maps.Copy(h, resp.Header)
	x.w.WriteHeader(resp.StatusCode)
	var buf []byte
	if n := resp.ContentLength; n >= 0 && n <= smallBody {
		small := copyBuffers.Get().(*[smallBody]byte)
		defer copyBuffers.Put(small)
		buf = small[:]
	} else {
		large := bulkBuffers.Get().(*[bulkRoom]byte)
		defer bulkBuffers.Put(large)
		buf = large[:bulkSize]
	}
	client := connOf(x.in.Context())
	control := http.NewResponseController(x.w.ResponseWriter)
	for {
		n, err := fill(resp.Body, buf)
		if n > 0 {
			client.cork()
			_, writeErr := x.w.Write(buf[:n])
			if err == nil && writeErr == nil {
				writeErr = control.Flush() // what follows may take its time
			}
			if uncorkErr := client.uncork(); writeErr == nil {
				writeErr = uncorkErr
			}
			if writeErr != nil {
				panic(http.ErrAbortHandler)
			}
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

// fill reads what has arrived, as far as p has room; it waits for the first byte only.
func fill(body io.Reader, p []byte) (int, error) {
	n, err := body.Read(p)
	more, ok := body.(interface{ ahead() bool })
	for ok && err == nil && n < len(p) && more.ahead() {
		var m int
		m, err = body.Read(p[n:])
		n += m
	}
	return n, err
}

// roundTrip sends the request, with its credential if the rule injects one. A
// 401 renews the credential and sends the request again where its body allows.
func (x *exchange) roundTrip() (*http.Response, error) {
	resp, t, err := x.attempt()
	if err != nil || resp.StatusCode != http.StatusUnauthorized || x.source == nil {
		return resp, err
	}
	again := x.canRepeat(resp, t)
	x.snap.upstream(x.rule).refused(x.place())
	if again {
		resp.Body.Close()
		resp, _, err = x.attempt()
	}
	return resp, err
}

func (x *exchange) place() place { return place{x.scheme, x.authority} }

// attempt is one request to the upstream. It returns the token that went with it.
func (x *exchange) attempt() (*http.Response, *token.Token, error) {
	req := x.request()
	if x.body != nil {
		req = req.WithContext(x.ctx) // whoever signs it may read all of it
		body, ok := x.body.attempt()
		if !ok {
			return nil, nil, &refusal{problem{code: upstreamProtocol, detail: "the request could not be sent again"}}
		}
		req.Body = body
	}
	var t *token.Token
	if x.source != nil {
		var err error
		t, err = x.source.Token(x.ctx)
		if err != nil {
			return nil, nil, x.noCredential(err)
		}
		x.record.TokenAge = t.Age().Seconds()
		if err := x.putOn(t, req); err != nil {
			return nil, nil, x.noCredential(err)
		}
	}
	x.record.Attempts++
	resp, err := x.exchangeWith(x.snap.upstream(x.rule), req, t)
	if err != nil {
		return nil, nil, err
	}
	x.record.UpstreamStatus = resp.StatusCode
	if resp.StatusCode < 200 || resp.StatusCode > 999 {
		resp.Body.Close()
		return nil, nil, &refusal{problem{code: upstreamProtocol, detail: "the server answers with a status that ends no request"}}
	}
	if x.source != nil {
		if resp.StatusCode == http.StatusUnauthorized {
			x.renew = x.source.Reject(t.Generation())
		} else {
			x.source.Accept()
			x.snap.upstream(x.rule).accept(x.place(), t)
		}
	}
	return resp, t, nil
}

// exchangeWith sends the request on a kept connection or a new one. When a kept
// one turns out to be closed, the request is sent again on a new one, if its
// body is still there from its first byte: every DICOMweb transaction may be
// sent twice, and Orthanc never does.
func (x *exchange) exchangeWith(up *upstream, req *http.Request, t *token.Token) (*http.Response, error) {
	for fresh := false; ; fresh = true {
		c, err := up.take(x.ctx, x.place(), fresh)
		if err != nil {
			return nil, err
		}
		var g *gate
		wrote := func() {}
		if x.body != nil {
			g = x.gate(up, req, t)
			wrote = x.watchUpload().stop
		}
		resp, err := c.send(x.ctx, req, g, wrote)
		if err == nil && g != nil && g.timedOut.Load() && !g.continued {
			up.neverContinues(x.place())
		}
		if err == nil && resp.StatusCode == http.StatusExpectationFailed && g != nil {
			up.neverContinues(x.place())
			if x.rewind(req) {
				resp.Body.Close()
				continue
			}
		}
		if !errors.Is(err, errStale) || fresh || !x.repeatable() || !x.rewind(req) {
			return resp, err
		}
	}
}

// repeatable reports whether the request may be carried out twice. Without a
// credential of ours it may be any request of Orthanc's, not only DICOMweb
// (RFC 9110 section 9.2.2).
func (x *exchange) repeatable() bool {
	return x.source != nil || x.in.Method != http.MethodPost && x.in.Method != http.MethodPatch
}

// rewind gives the request its body once more, from the first byte, if it has one.
func (x *exchange) rewind(req *http.Request) bool {
	if x.body == nil {
		return true
	}
	if x.body.failure() != nil {
		return false
	}
	if req.GetBody != nil { // a copy, made to be signed
		body, err := req.GetBody()
		req.Body = body
		return err == nil
	}
	body, ok := x.body.attempt()
	req.Body = body
	return ok
}

// gate returns what holds back an upload that cannot be kept whole, until the
// server has seen the credential; nil if nothing need be held back. Nothing goes
// out before the server asks for it, or has had its time to; if the credential was
// accepted there lately, the part that is kept may go ahead, which costs no time.
func (x *exchange) gate(up *upstream, req *http.Request, t *token.Token) *gate {
	if x.source == nil || req.GetBody != nil || req.ContentLength >= 0 && req.ContentLength <= replayWindow || x.body.whole() {
		return nil
	}
	ask, wait := up.expectation(x.place(), t)
	switch {
	case !ask:
		return nil
	case !wait:
		return newGate(replayWindow)
	}
	if strings.EqualFold(x.in.Header.Get("Expect"), "100-continue") {
		x.w.WriteHeader(http.StatusContinue) // the client need not wait as well
	}
	return newGate(0)
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
		again := req.GetBody
		req.GetBody = func() (io.ReadCloser, error) {
			copied, err := again()
			return &watchedBody{copied, x}, err
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
// another token than the one that was refused. If not, resp is the answer;
// its body may have been read ahead, and reads as it came.
func (x *exchange) canRepeat(resp *http.Response, refused *token.Token) bool {
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
	return err == nil && t.Generation() != refused.Generation()
}

// modify makes the upstream's answer one that Orthanc understands.
func (x *exchange) modify(resp *http.Response) error {
	if upload := x.asking.Load(); upload != nil {
		upload.stop() // from here on the answer shows whether something moves
		if x.leftBehind() {
			x.w.Header().Set("Connection", "close") // the rest of the body may never come
		}
	}
	h := resp.Header
	for _, name := range nominated(h) {
		delete(h, name)
	}
	for name := range h {
		if hopByHop(name) && name != "Content-Length" {
			delete(h, name)
		}
	}
	if _, ok := h["Content-Type"]; !ok {
		x.w.Header()["Content-Type"] = nil // net/http would guess one
	}
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
