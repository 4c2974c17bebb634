package token

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxAnswer bounds a provider's answer; real ones stay below 20 KiB.
	maxAnswer = 256 << 10
	// maxLifetime bounds expires_in: a token that claims more is renewed daily all the same.
	maxLifetime = 24 * time.Hour
	// maxDescription bounds the provider's text in our log.
	maxDescription = 200
)

// newClient returns the HTTP client of the token plane: verified TLS, no
// redirect ever followed (a 307 would re-post the client secret elsewhere), no
// proxy from the environment, bounded and checked answers.
func newClient(env Env, ca File) (*http.Client, error) {
	base := &trusting{ca: ca, Transport: &http.Transport{
		DialContext:            env.Dial,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    10 * time.Second,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConnsPerHost:    1,
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
	}}
	if err := base.renew(); err != nil {
		return nil, fmt.Errorf("read ca_file: %w", err)
	}
	if env.Proxy != nil {
		base.Proxy = func(r *http.Request) (*url.URL, error) {
			if loopback(r.URL.Hostname()) {
				return nil, nil // the proxy's loopback is not ours
			}
			return env.Proxy, nil
		}
		base.OnProxyConnectResponse = func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			return &Error{
				Class: Transient, Code: "provider_unreachable", Status: resp.StatusCode,
				Hint: "upstream_proxy under [proxy] does not let the request through; check its user and password, and what it permits",
			}
		}
	}
	if env.Kept != nil {
		env.Kept(base.CloseIdleConnections)
	}
	return &http.Client{
		Transport:     &guard{base: base},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// trusting is a transport that trusts what its CA file says now, so that the file
// can be replaced. A file that cannot be read, or holds no certificate, changes
// nothing.
type trusting struct {
	ca File // empty: the system roots

	mu  sync.Mutex
	pem []byte // of ca, as it was last
	*http.Transport
}

// RoundTrip implements [http.RoundTripper].
func (t *trusting) RoundTrip(req *http.Request) (*http.Response, error) {
	_ = t.renew() // the config's reload tells what is wrong with the file
	t.mu.Lock()
	now := t.Transport
	t.mu.Unlock()
	return now.RoundTrip(req)
}

// CloseIdleConnections closes the connections that no request uses.
func (t *trusting) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Transport.CloseIdleConnections()
}

// renew takes the file up if it is another one.
func (t *trusting) renew() error {
	if t.ca == "" {
		return nil
	}
	pem, err := os.ReadFile(string(t.ca))
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if bytes.Equal(pem, t.pem) {
		return nil
	}
	pool, err := t.ca.parse(pem)
	if err != nil {
		return err
	}
	next := t.Clone() // one in use must not be changed
	next.TLSClientConfig.RootCAs = pool
	t.Transport.CloseIdleConnections()
	t.pem, t.Transport = pem, next
	return nil
}

// guard stands between a token endpoint and the library that asks it. Every
// answer that is not a sound success becomes an [*Error] here, so that no
// library gets to put a body, a URL or a token into an error text.
type guard struct {
	base http.RoundTripper
	// answer checks the body of a success and returns what the library gets to
	// read. Nil stands for JSON, and for a POST an OAuth token answer.
	answer func(resp *http.Response, body []byte) ([]byte, error)
}

// RoundTrip implements [http.RoundTripper].
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Accept", "application/json") // GitHub and others answer with a form otherwise
	resp, err := g.base.RoundTrip(req)
	if err != nil {
		return nil, networkError(err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	resp.Body.Close()
	switch {
	case err != nil:
		return nil, networkError(err)
	case req.Context().Err() != nil: // what was read may be less than all
		return nil, networkError(req.Context().Err())
	case len(body) > maxAnswer:
		return nil, oddAnswer(resp, fmt.Sprintf("the answer is larger than %d bytes", maxAnswer))
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return nil, oddAnswer(resp, "the provider answers with a redirect, which is never followed; give its final URL")
	case resp.StatusCode != http.StatusOK:
		return nil, refusal(resp, body)
	case g.answer != nil:
		body, err = g.answer(resp, body)
	case !json.Valid(body):
		return nil, oddAnswer(resp, notJSON)
	case req.Method == http.MethodPost:
		body, err = tokenAnswer(resp, body)
	}
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	return resp, nil
}

const notJSON = "the answer is not JSON; a captive portal or TLS-inspecting proxy may stand before the provider"

// lifetimeKey is the name under which tokenAnswer hands expires_in on, since
// x/oauth2 refuses the whole token for spellings that providers do use, such as
// 3600.0.
const lifetimeKey = "lifetime"

// tokenAnswer checks a token endpoint's success (RFC 6749 section 5.1) and
// returns it in a form that x/oauth2 reads whatever its Content-Type was.
func tokenAnswer(resp *http.Response, body []byte) ([]byte, error) {
	var answer map[string]any
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, oddAnswer(resp, "the answer is JSON, but not an object")
	}
	if answer["error"] != nil {
		return nil, refusal(resp, body)
	}
	if value, _ := answer["access_token"].(string); value == "" {
		return nil, oddAnswer(resp, "the answer has no access_token; check token_endpoint")
	} else if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil, oddAnswer(resp, "the access_token has characters that no bearer token may have (RFC 6750)")
	}
	if typ, _ := answer["token_type"].(string); !strings.EqualFold(typ, "bearer") {
		e := oddAnswer(resp, "the token is not a bearer token (token_type); turn DPoP or proof of possession off for this client")
		e.Class = Permanent
		return nil, e
	}
	checked := map[string]any{lifetimeKey: answer["expires_in"]}
	for _, name := range []string{"access_token", "token_type", "refresh_token", "scope"} {
		if s, ok := answer[name].(string); ok { // nothing else, and in this spelling only: encoding/json ignores case
			checked[name] = s
		}
	}
	resp.Header.Set("Content-Type", "application/json")
	return json.Marshal(checked)
}

// oddAnswer is an answer that no token server should give.
func oddAnswer(resp *http.Response, hint string) *Error {
	return &Error{Class: Transient, Code: "provider_answer", Status: resp.StatusCode, Hint: hint, RetryAfter: retryAfter(resp)}
}

// refusal rebuilds an error answer (RFC 6749 section 5.2) from its code. The
// provider's own words stay out: they may echo what was sent.
func refusal(resp *http.Response, body []byte) *Error {
	var answer struct {
		Code        string `json:"error"`
		Description string `json:"error_description"`
	}
	_ = json.Unmarshal(body, &answer) // anything else has no code
	e := &Error{Class: Transient, Status: resp.StatusCode, Code: "provider_answer", RetryAfter: retryAfter(resp)}
	if known, ok := refusals[answer.Code]; ok {
		e.Code, e.Class, e.Key, e.Hint = answer.Code, known.class, known.key, known.hint
	}
	switch {
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusServiceUnavailable && e.RetryAfter > 0:
		e.Class, e.Hint = Throttled, "the provider asks to wait"
	case resp.StatusCode >= 500, resp.StatusCode == http.StatusRequestTimeout, resp.StatusCode == http.StatusTooEarly:
		e.Class, e.Key = Transient, ""
		e.Hint = "the provider has a problem of its own"
	case e.Hint != "":
	case resp.StatusCode == http.StatusUnauthorized:
		e.Class, e.Key, e.Hint = Permanent, "client_secret", refusals["invalid_client"].hint
	default:
		e.Class, e.Key, e.Hint = Permanent, "token_endpoint", "check token_endpoint: this does not look like the answer of an OAuth 2.0 token endpoint"
	}
	if ahead, known := clockAhead(resp); known && ahead.Abs() > tellSkew {
		e.Skew = ahead
	}
	explainAADSTS(e, resp, answer.Description)
	switch e.Key { // the table is for the azure types; others name the tenant in the URL, and have no such file
	case "tenant_id":
		e.Key = "token_endpoint"
	case "token_file":
		e.Key = ""
	}
	return e
}

// refusals says what the error codes of RFC 6749 section 5.2 (and RFC 8707)
// mean for whoever wrote the profile.
var refusals = map[string]struct {
	class Class
	key   string
	hint  string
}{
	"invalid_client":          {Permanent, "client_secret", "the provider refused the client; check client_id and client_secret, which may be wrong or expired, and client_auth if the provider wants the secret sent another way"},
	"invalid_scope":           {Permanent, "scopes", "check scopes: the provider does not know one of them, or does not grant it to this client"},
	"invalid_target":          {Permanent, "resource", "check resource and audience: the provider does not know the target"},
	"invalid_grant":           {Permanent, "", "the provider refused the grant; it is used up, expired or revoked"},
	"invalid_request":         {Permanent, "", "the provider misses or dislikes a parameter; check scopes, audience, resource and params"},
	"unauthorized_client":     {Permanent, "client_id", "check client_id: the provider does not allow it the client credentials grant; enable service accounts (machine to machine) for it"},
	"unsupported_grant_type":  {Permanent, "token_endpoint", "check token_endpoint: the provider does not offer this grant there"},
	"access_denied":           {Permanent, "client_id", "check client_id: the provider denies access to it"},
	"temporarily_unavailable": {Transient, "", "the provider says that it is temporarily unavailable"},
	"slow_down":               {Throttled, "", "the provider asks to wait"},
	"server_error":            {Transient, "", "the provider has a problem of its own"},
}

// networkError classifies an attempt that brought no answer.
func networkError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	e := &Error{Class: Transient, Code: "provider_unreachable", Key: "token_endpoint", Hint: "check token_endpoint, the network and DNS"}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		e.Description = "no address for " + printable(dns.Name)
		return e
	}
	if verify, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		e.Code, e.Key = "provider_tls", "ca_file"
		e.Hint = "the provider's certificate is not trusted; check ca_file and token_endpoint, and whether a TLS-inspecting proxy is in between"
		e.Description = printable(verify.Err.Error())
		return e
	}
	op, isOp := errors.AsType[*net.OpError](err)
	if isOp && op.Op == "remote error" { // how crypto/tls names the other side's alert
		e.Code, e.Hint = "provider_tls", "the provider refused the TLS handshake; it may want a client certificate or another TLS version"
		e.Description = printable(op.Err.Error())
		return e
	}
	if isOp && op.Op == "proxyconnect" { // how net/http names a failure to reach its proxy
		e.Key, e.Hint = "", "upstream_proxy under [proxy] was not reached; check it"
		return e
	}
	var timeout interface{ Timeout() bool }
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		e.Code, e.Hint = "provider_timeout", "the provider did not answer within request_timeout"
		return e
	}
	if isOp {
		e.Description = printable(op.Err.Error())
	}
	return e
}

// retryAfter reads Retry-After (RFC 9110 section 10.2.3), seconds or date.
func retryAfter(resp *http.Response) time.Duration {
	v := resp.Header.Get("Retry-After")
	if v != "" && strings.Trim(v, "0123456789") == "" {
		s, err := strconv.Atoi(v)
		if most := int(maxRetryAfter / time.Second); err != nil || s > most {
			s = most
		}
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// printable makes foreign text safe for one log line.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxDescription {
		s = s[:maxDescription] + "…"
	}
	return s
}

// expiresIn reads the life of a token in all the ways that providers write it:
// a number, a string, with or without fraction. Absent, empty or null is 0,
// "not said"; ok is false for a life that is over or makes no sense.
func expiresIn(raw any) (life time.Duration, ok bool) {
	var seconds float64
	switch v := raw.(type) {
	case nil:
		return 0, true
	case float64:
		seconds = v
	case string:
		if v == "" {
			return 0, true
		}
		var err error
		if seconds, err = strconv.ParseFloat(v, 64); err != nil {
			return 0, false
		}
	default:
		return 0, false
	}
	if math.IsNaN(seconds) || seconds < 0 {
		return 0, false
	}
	if seconds == 0 {
		return 0, true
	}
	return time.Duration(min(seconds, maxLifetime.Seconds()) * float64(time.Second)), true
}
