package gateway

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// code names a problem; users, dashboards and tests rely on the names.
type code string

const (
	noRule              code = "no_rule"
	ruleDenied          code = "rule_denied"
	clientNotAllowed    code = "client_not_allowed"
	methodNotAllowed    code = "method_not_allowed"
	proxyAuthRequired   code = "proxy_auth_required"
	authorityMismatch   code = "authority_mismatch"
	badRequest          code = "bad_request"
	tokenUnavailable    code = "token_unavailable"
	upstreamUnreachable code = "upstream_unreachable"
	upstreamTLS         code = "upstream_tls"
	addressRefused      code = "address_refused"
	upstreamProtocol    code = "upstream_protocol"
	redirectRefused     code = "redirect_refused"
	upstreamTimeout     code = "upstream_timeout"
	overloaded          code = "overloaded"
	draining            code = "draining"
)

// answers is the one place that says what each problem looks like.
var answers = map[code]struct {
	status int
	title  string
}{
	noRule:              {http.StatusForbidden, "no rule covers this URL"},
	ruleDenied:          {http.StatusForbidden, "a rule denies this URL"},
	clientNotAllowed:    {http.StatusForbidden, "this client may not use the gateway"},
	methodNotAllowed:    {http.StatusMethodNotAllowed, "the rule does not let this method through"},
	proxyAuthRequired:   {http.StatusProxyAuthRequired, "proxy credentials are missing or wrong"},
	authorityMismatch:   {http.StatusMisdirectedRequest, "CONNECT target, SNI and Host are not the same"},
	badRequest:          {http.StatusBadRequest, "the request is malformed"},
	tokenUnavailable:    {http.StatusServiceUnavailable, "there is no usable credential"},
	upstreamUnreachable: {http.StatusBadGateway, "the DICOMweb server cannot be reached"},
	upstreamTLS:         {http.StatusBadGateway, "the DICOMweb server's TLS cannot be trusted"},
	addressRefused:      {http.StatusBadGateway, "the DICOMweb server's address is not permitted"},
	upstreamProtocol:    {http.StatusBadGateway, "the DICOMweb server's answer is not HTTP as it should be"},
	redirectRefused:     {http.StatusBadGateway, "the DICOMweb server redirects where no rule leads"},
	upstreamTimeout:     {http.StatusGatewayTimeout, "the DICOMweb server took too long"},
	overloaded:          {http.StatusServiceUnavailable, "too many connections"},
	draining:            {http.StatusServiceUnavailable, "the gateway is stopping"},
}

// problem is an answer of the gateway's own.
type problem struct {
	code       code
	detail     string
	hint       string
	retryAfter time.Duration
}

// document is a problem on the wire (RFC 9457).
type document struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail,omitempty"`
	Code      code   `json:"code"`
	Rule      string `json:"rule,omitempty"`
	Profile   string `json:"profile,omitempty"`
	Hint      string `json:"hint,omitempty"`
	RequestID string `json:"request_id,omitempty"`
}

func (p problem) document() document {
	a := answers[p.code]
	return document{Type: "urn:orthanc-dicomweb-oauth:problem:" + string(p.code), Title: a.title, Status: a.status, Detail: p.detail, Code: p.code, Hint: p.hint}
}

// refuse answers with a problem, in the form that lets Orthanc see its status.
func (x *exchange) refuse(p problem) {
	doc := p.document()
	doc.RequestID = x.record.RequestID
	doc.Rule, doc.Profile = x.record.Rule, x.record.Profile
	x.record.Outcome, x.record.Reason = audit.Refused, string(p.code)
	x.record.Hint = p.hint
	if p.code != badRequest { // whose detail may quote what the client sent
		x.record.Detail = p.detail
	}
	x.g.stats.refused(string(p.code))
	h := x.w.Header()
	h.Set("X-Gateway-Error", string(p.code))
	switch p.code {
	case overloaded, draining, authorityMismatch, clientNotAllowed, proxyAuthRequired:
		h.Set("Connection", "close") // what follows on this connection would fare no better
	}
	if x.leftBehind() {
		h.Set("Connection", "close")
		_ = http.NewResponseController(x.w.ResponseWriter).EnableFullDuplex() // else the answer waits for the body
	}
	if doc.Status == http.StatusServiceUnavailable {
		seconds := max(1, int64((p.retryAfter+time.Second-1)/time.Second))
		h.Set("Retry-After", strconv.FormatInt(seconds, 10))
	}
	x.logRefusal(p)
	if acceptsMultipart(x.in) {
		// Orthanc parses the Content-Type of every WADO-RS answer before it looks
		// at the status, and then hides the status.
		h["Content-Type"] = nil
		h.Set("Content-Length", "0")
		x.w.WriteHeader(doc.Status)
		return
	}
	h.Set("Content-Type", "application/problem+json")
	body, _ := json.Marshal(doc) // strings and numbers only
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	x.w.WriteHeader(doc.Status)
	_, _ = x.w.Write(append(body, '\n'))
}

// loud reports whether the log tells of a problem at each request: what Orthanc
// will not show.
func (c code) loud() bool {
	switch c {
	case upstreamUnreachable, upstreamTLS, addressRefused, upstreamProtocol, upstreamTimeout, redirectRefused, overloaded:
		return true
	}
	return false
}

// logRefusal writes a loud problem.
func (x *exchange) logRefusal(p problem) {
	if p.code.loud() {
		x.g.log.Warn("request not forwarded", "code", p.code, "title", answers[p.code].title, "rule", x.record.Rule, "authority", x.record.Authority,
			"detail", p.detail, "hint", p.hint, "request_id", x.record.RequestID)
	}
}

// rawProblem is a whole answer for where there is no [http.ResponseWriter].
func rawProblem(p problem, requestID string) []byte {
	doc := p.document()
	doc.RequestID = requestID
	body, _ := json.Marshal(doc)
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\nContent-Type: application/problem+json\r\nX-Gateway-Error: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n",
		doc.Status, http.StatusText(doc.Status), p.code, len(body)+1, body)
	return b.Bytes()
}

// malformed is the answer to a request that net/http itself refuses.
func (g *Gateway) malformed(c *clientConn) []byte {
	g.stats.refused(string(badRequest))
	rec := audit.Record{
		Time: time.Now().UTC(), RequestID: rand.Text()[:16], Client: clientHost(c.RemoteAddr().String()),
		Status: http.StatusBadRequest, Outcome: audit.Refused, Reason: string(badRequest),
	}
	if c.tunnel != nil {
		c.tunnel.requests.Add(1)
		rec.Authority, rec.ProxyUser = c.tunnel.authority.String(), c.tunnel.user
	}
	g.log.Debug("malformed request refused", "client", rec.Client, "authority", rec.Authority, "request_id", rec.RequestID)
	g.audit.Write(rec)
	return rawProblem(problem{code: badRequest, detail: "the request line, a header or the framing breaks RFC 9112"}, rec.RequestID)
}

// acceptsMultipart recognises WADO-RS as Orthanc asks for it.
func acceptsMultipart(r *http.Request) bool {
	for _, accept := range r.Header["Accept"] {
		if strings.Contains(strings.ToLower(accept), "multipart/related") {
			return true
		}
	}
	return false
}

// classify turns an error on the way to the upstream into a problem. Errors of
// net/http may carry URLs and the upstream's bytes, so that their text is not
// used where it is not known.
func classify(err error) problem {
	if p, ok := errors.AsType[*refusal](err); ok {
		return p.problem
	}
	if a, ok := errors.AsType[*addressError](err); ok {
		return problem{code: addressRefused, detail: a.Error(), hint: "if that is right, list its network in the rule's allow_networks"}
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		detail := "DNS knows no address for " + dns.Name
		if dns.IsTimeout {
			detail = "DNS did not answer for " + dns.Name
		}
		return problem{code: upstreamUnreachable, detail: detail, hint: "check the host in the rule's url, and this machine's DNS"}
	}
	if p, ok := classifyTLS(err); ok {
		return p
	}
	if corporate, ok := errors.AsType[errCorporateProxy](err); ok {
		return problem{code: upstreamUnreachable, detail: corporate.Error(), hint: "check upstream_proxy under [proxy]"}
	}
	op, isOp := errors.AsType[*net.OpError](err)
	if _, ok := errors.AsType[errToProxy](err); ok {
		return problem{code: upstreamUnreachable, detail: "upstream_proxy was not reached", hint: "check upstream_proxy under [proxy]"}
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return problem{code: upstreamTimeout, detail: "no answer in time", hint: "see response_timeout under [proxy], and the DICOMweb server's own log"}
	}
	if isOp && op.Op == "dial" {
		return problem{code: upstreamUnreachable, detail: "the connection was not accepted: " + op.Err.Error(), hint: "check host and port in the rule's url, and firewalls"}
	}
	if errors.Is(err, errStale) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || connectionReset(err) {
		return problem{code: upstreamProtocol, detail: "the connection was closed before an answer came"}
	}
	return problem{code: upstreamProtocol, detail: "the answer could not be read"}
}

// connectionReset reports whether the other side has torn the connection down.
// The numbers are Windows' own, WSAECONNABORTED and WSAECONNRESET.
func connectionReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, syscall.Errno(10053)) || errors.Is(err, syscall.Errno(10054))
}

func classifyTLS(err error) (problem, bool) {
	p := problem{code: upstreamTLS}
	if verify, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		p.detail, p.hint = certificateReason(verify)
		p.hint = "nothing was sent; " + p.hint
		return p, true
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" { // how crypto/tls names the other side's alert
		p.detail, p.hint = "the server refused the handshake: "+op.Err.Error(), "it may demand a client certificate (client_cert, client_key) or another TLS version"
		return p, true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		p.detail, p.hint = "the server does not speak TLS on this port", "check the port in the rule's url"
		return p, true
	}
	if strings.HasPrefix(err.Error(), "tls: ") || strings.HasPrefix(err.Error(), "remote error: tls: ") {
		p.detail = strings.TrimPrefix(err.Error(), "remote error: ")
		return p, true
	}
	return p, false
}

// certificateReason says what is wrong with a server's certificate, and what to
// change.
func certificateReason(verify *tls.CertificateVerificationError) (detail, hint string) {
	const (
		renew   = "whoever runs the server must renew its certificate"
		trustIt = "if the server has a private CA, name it in the rule's ca_file"
	)
	err := verify.Err
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if invalid.Reason == x509.Expired {
			if time.Now().Before(invalid.Cert.NotBefore) {
				return "the certificate is not yet valid", "set this machine's clock, or wait: it begins on " + invalid.Cert.NotBefore.UTC().Format(time.DateOnly)
			}
			return "the certificate expired on " + invalid.Cert.NotAfter.UTC().Format(time.DateOnly), renew
		}
		return "the certificate is not valid for a server", renew
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the certificate is for another name", "compare the host in the rule's url with the names in the certificate"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok || len(verify.UnverifiedCertificates) == 0 {
		return "the certificate was not accepted", trustIt
	}
	chain := verify.UnverifiedCertificates
	leaf, last := chain[0], chain[len(chain)-1]
	switch {
	case leaf.SignatureAlgorithm == x509.SHA1WithRSA || leaf.SignatureAlgorithm == x509.ECDSAWithSHA1:
		return "the certificate is signed with SHA-1, which is broken", renew
	case bytes.Equal(leaf.RawIssuer, leaf.RawSubject):
		return "the certificate is signed by itself", trustIt
	case bytes.Equal(last.RawIssuer, last.RawSubject):
		return "the certificate is signed by an unknown authority", trustIt
	}
	return "an intermediate certificate is missing, or the authority is unknown", trustIt
}

// refusal is a problem as an error.
type refusal struct{ problem problem }

// Error implements error.
func (r *refusal) Error() string { return string(r.problem.code) }

// unavailable is the problem for a request whose credential cannot be had.
func unavailable(profile *rules.Profile, err error) problem {
	p := problem{code: tokenUnavailable, detail: fmt.Sprintf("profile %q has no usable credential", profile.Name)}
	if u, ok := errors.AsType[*token.Unavailable](err); ok {
		p.retryAfter = u.RetryAfter
	}
	if cause, ok := errors.AsType[*token.Error](err); ok {
		p.detail += ": " + cause.Code
		p.hint = cause.Hint
		if cause.Key != "" {
			p.hint += fmt.Sprintf(" (profile.%s.%s)", profile.Name, cause.Key)
		}
	}
	return p
}
