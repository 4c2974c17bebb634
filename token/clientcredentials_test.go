package token_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

const oddName = `basic:odd id/+&=%?"äöü`

func TestTokenRequestOnTheWire(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(*token.ClientCredentials)
		login  string // decoded from Authorization
		form   url.Values
	}{
		{
			name:   "basic, when nothing is said",
			change: func(*token.ClientCredentials) {},
			login:  "client:" + clientSecret,
			form:   url.Values{"grant_type": {"client_credentials"}},
		},
		{
			// RFC 6749 section 2.3.1: both are form-encoded before Base64.
			name: "basic with odd characters",
			change: func(c *token.ClientCredentials) {
				c.ClientAuth, c.ClientID, c.ClientSecret = "client_secret_basic", `basic:odd id/+&`, token.SecretValue(token.NewSecret(`p:w +%&/"`))
			},
			login: `basic%3Aodd+id%2F%2B%26:p%3Aw+%2B%25%26%2F%22`,
			form:  url.Values{"grant_type": {"client_credentials"}},
		},
		{
			name: "post with odd characters",
			change: func(c *token.ClientCredentials) {
				c.ClientAuth, c.ClientID, c.ClientSecret = "client_secret_post", oddName, token.SecretValue(token.NewSecret(oddName))
			},
			form: url.Values{"grant_type": {"client_credentials"}, "client_id": {oddName}, "client_secret": {oddName}},
		},
		{
			name: "scopes, audience, resources and params",
			change: func(c *token.ClientCredentials) {
				c.Scopes = []string{"https://dicom.test/.default", "b c"}
				c.Audience = "https://api.test/?a=b&c"
				c.Resource = token.Strings{"https://one.test", "https://two.test/a b"}
				c.Params = map[string]string{"organization": "org & co", "x": ""}
			},
			login: "client:" + clientSecret,
			form: url.Values{
				"grant_type": {"client_credentials"}, "scope": {"https://dicom.test/.default b c"}, "audience": {"https://api.test/?a=b&c"},
				"resource": {"https://one.test", "https://two.test/a b"}, "organization": {"org & co"}, "x": {""},
			},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := serve(t, answers(200, nil, goodAnswer))
			c := e.settings()
			row.change(c)
			if got := acquire(t, c).Value.Reveal(); got != accessToken {
				t.Errorf("token %q, want %q", got, accessToken)
			}
			requests := e.requests()
			if len(requests) != 1 {
				t.Fatalf("%d requests, want 1", len(requests))
			}
			header := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
			if row.login != "" {
				header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(row.login)))
			}
			got := requests[0]
			for _, name := range []string{"User-Agent", "Accept", "Accept-Encoding", "Content-Length"} {
				got.Header.Del(name)
			}
			if diff := cmp.Diff(received{Method: "POST", Path: "/token", Header: header, Form: row.form}, got); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMain sets a proxy before anything can read the environment, which
// net/http does once.
func TestMain(m *testing.M) {
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
		_ = os.Setenv(name, "http://proxy.test:9")
	}
	m.Run()
}

// The environment's proxy may be this very gateway, and the secret is not for it.
func TestProxyOfTheEnvironmentIsNotUsed(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	c := e.settings()
	c.TokenEndpoint = "https://example.com/token" // no proxy is ever used for loopback
	a, err := c.Acquirer(token.Env{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != "example.com:443" {
			t.Errorf("dialled %q, want the provider", address)
		}
		return new(net.Dialer).DialContext(ctx, network, e.Listener.Addr().String())
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Acquire(t.Context()); err != nil {
		t.Errorf("Acquire: %v", err)
	}
}

func TestConfiguredProxyIsUsed(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	dialled := ""
	c := e.settings()
	c.TokenEndpoint = "https://example.com/token"
	a, err := c.Acquirer(token.Env{
		Proxy: &url.URL{Scheme: "http", Host: "proxy.test:8080"},
		Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			dialled = address
			return nil, &net.OpError{Op: "dial", Err: os.ErrPermission}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := failure(t.Context(), t, a); got.Code != "provider_unreachable" || dialled != "proxy.test:8080" {
		t.Errorf("dialled %q, %+v, want the proxy", dialled, got)
	}
}

func TestLifeOfTheTokenAsProvidersSpellIt(t *testing.T) {
	const none = -1 // the default lifetime is the source's business
	for _, row := range []struct {
		name, member string
		want         time.Duration
		bad          bool
	}{
		{name: "missing", member: ``, want: none},
		{name: "null", member: `,"expires_in":null`, want: none},
		{name: "zero", member: `,"expires_in":0`, want: none},
		{name: "an empty string", member: `,"expires_in":""`, want: none},
		{name: "a number", member: `,"expires_in":3600`, want: time.Hour},
		{name: "a string", member: `,"expires_in":"3599"`, want: 3599 * time.Second},
		{name: "a number with fraction", member: `,"expires_in":3600.0`, want: time.Hour},
		{name: "a string with fraction", member: `,"expires_in":"3600.0"`, want: time.Hour},
		{name: "a true fraction", member: `,"expires_in":1.5`, want: 1500 * time.Millisecond},
		{name: "an exponent", member: `,"expires_in":3.6e3`, want: time.Hour},
		{name: "huge", member: `,"expires_in":99999999999999`, want: 24 * time.Hour},
		{name: "beyond int64", member: `,"expires_in":1e300`, want: 24 * time.Hour},
		{name: "negative", member: `,"expires_in":-1`, bad: true},
		{name: "a negative string", member: `,"expires_in":"-3600"`, bad: true},
		{name: "NaN", member: `,"expires_in":"NaN"`, bad: true},
		{name: "words", member: `,"expires_in":"` + planted + `"`, bad: true},
		{name: "a date", member: `,"expires_in":"2026-11-23T12:00:00Z"`, bad: true},
		{name: "an object", member: `,"expires_in":{"a":"` + planted + `"}`, bad: true},
		{name: "an array", member: `,"expires_in":[3600]`, bad: true},
		{name: "a truth value", member: `,"expires_in":true`, bad: true},
		{name: "our own name for it does not count", member: `,"expires_in":60,"lifetime":3600`, want: time.Minute},
		{name: "nor alone", member: `,"lifetime":3600`, want: none},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := serve(t, answers(200, nil, `{"access_token":"`+accessToken+`","token_type":"Bearer"`+row.member+`}`))
			if row.bad {
				want := token.Error{Class: token.Transient, Code: "provider_answer", Hint: "the provider's expires_in is not a life that a token can have"}
				if diff := cmp.Diff(want, failure(t.Context(), t, build(t, e.settings()))); diff != "" {
					t.Errorf("error (-want +got):\n%s", diff)
				}
				return
			}
			before := time.Now()
			got := acquire(t, e.settings())
			after := time.Now()
			switch {
			case row.want == none && !got.Expires.IsZero():
				t.Errorf("expires at %v, want no expiry", got.Expires)
			case row.want != none && (got.Expires.Before(before.Add(row.want)) || got.Expires.After(after.Add(row.want))):
				t.Errorf("life is %v, want %v", got.Expires.Sub(before), row.want)
			}
		})
	}
}

// The time that the request took is part of the life.
func TestLifeIsCountedFromBeforeTheRequestWasSent(t *testing.T) {
	var arrived time.Time
	e := serve(t, func(w http.ResponseWriter, r *http.Request) {
		arrived = time.Now()
		answers(200, nil, goodAnswer)(w, r)
	})
	if got := acquire(t, e.settings()); !got.Expires.Before(arrived.Add(time.Hour)) {
		t.Errorf("expires %v after the request arrived, want less than an hour", got.Expires.Sub(arrived))
	}
}

func TestScopesThatWereNotGrantedAreAWarning(t *testing.T) {
	for _, row := range []struct{ granted, want string }{
		{granted: ``},
		{granted: `,"scope":"b a c"`},
		{granted: `,"scope":"a"`, want: "the provider did not grant b; check scopes and what the client is allowed"},
		{granted: `,"scope":""`, want: "the provider did not grant a b; check scopes and what the client is allowed"},
		{granted: `,"scope":["a"]`},
	} {
		e := serve(t, answers(200, nil, `{"access_token":"x","token_type":"Bearer"`+row.granted+`}`))
		c := e.settings()
		c.Scopes = []string{"a", "b"}
		if got := acquire(t, c).Warning; got != row.want {
			t.Errorf("granted %s: warning %q, want %q", row.granted, got, row.want)
		}
	}
}

func TestSecretFileIsReadAtEachAttempt(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	path := string(file(t, []byte("first\n")))
	c := e.settings()
	c.ClientAuth, c.ClientSecret = "client_secret_post", token.SecretFile(path)
	a := build(t, c)
	for _, content := range []string{"first\n", "second", "third\r\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Acquire(t.Context()); err != nil {
			t.Fatalf("Acquire: %v", err)
		}
	}
	var sent []string
	for _, r := range e.requests() {
		sent = append(sent, r.Form.Get("client_secret"))
	}
	if diff := cmp.Diff([]string{"first", "second", "third"}, sent); diff != "" {
		t.Errorf("secrets (-want +got):\n%s", diff)
	}

	// Gone or empty in the midst of a rotation: an error that will pass, and nothing is sent.
	for name, spoil := range map[string]func() error{
		"empty":   func() error { return os.WriteFile(path, []byte("\n"), 0o600) },
		"missing": func() error { return os.Remove(path) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		got := failure(t.Context(), t, a)
		if got.Class != token.Transient || got.Code != "secret_unreadable" || got.Key != "client_secret" || !strings.Contains(got.Hint, "client_secret_file") {
			t.Errorf("%s file: %+v, want secret_unreadable that names client_secret_file", name, got)
		}
		_ = os.WriteFile(path, nil, 0o600)
	}
	if n := len(e.requests()); n != 3 {
		t.Errorf("%d requests, want none without a secret", n-3)
	}
}

func TestUntrustedCertificateNamesCAFile(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	c := e.settings()
	c.CAFile = ""
	got := failure(t.Context(), t, build(t, c))
	if got.Class != token.Transient || got.Code != "provider_tls" || got.Key != "ca_file" || !strings.Contains(got.Hint, "check ca_file") || got.Description == "" {
		t.Errorf("%+v, want provider_tls that names ca_file", got)
	}
	c = e.settings() // a certificate for another host
	c.TokenEndpoint = strings.Replace(c.TokenEndpoint, "127.0.0.1", "localhost", 1)
	if got := failure(t.Context(), t, build(t, c)); got.Code != "provider_tls" || got.Key != "ca_file" {
		t.Errorf("%+v, want provider_tls that names ca_file", got)
	}
	if n := len(e.requests()); n != 0 {
		t.Errorf("%d requests reached a server that is not trusted", n)
	}
}

func TestReplacedCAFileIsTrustedAtTheNextCall(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	good, err := os.ReadFile(string(e.ca))
	if err != nil {
		t.Fatal(err)
	}
	unrelated := certificate(t, p256Key(), "other")
	overwrite(t, e.ca, unrelated)
	a := build(t, e.settings())
	if got := failure(t.Context(), t, a); got.Code != "provider_tls" {
		t.Fatalf("%+v from a server that is not trusted yet", got)
	}
	for _, content := range [][]byte{good, good[:len(good)/2], nil} { // what is broken changes nothing
		overwrite(t, e.ca, content)
		if _, err := a.Acquire(t.Context()); err != nil {
			t.Errorf("with %d of the file's %d bytes: %v", len(content), len(good), err)
		}
	}
	overwrite(t, e.ca, unrelated)
	if got := failure(t.Context(), t, a); got.Code != "provider_tls" {
		t.Errorf("%+v after the server's CA has gone, want provider_tls, on a kept connection too", got)
	}
}

// A server that ends the handshake with an alert has a TLS problem, not one of
// network or DNS: here it wants a client certificate.
func TestAlertOfTheProviderIsATLSError(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	e.TLS.ClientAuth = tls.RequireAnyClientCert
	got := failure(t.Context(), t, build(t, e.settings()))
	if got.Code != "provider_tls" {
		t.Errorf("%+v, want provider_tls", got)
	}
}

func TestUnreachableProviderIsTransient(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	for _, row := range []struct {
		name, endpoint string
		dial           func(context.Context, string, string) (net.Conn, error)
		description    string
	}{
		{name: "connection refused", endpoint: "https://" + address + "/token", description: "connect: connection refused"},
		{name: "no such host", endpoint: "https://login.test/token", description: "no address for login.test", dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "login.test", IsNotFound: true}}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := &token.ClientCredentials{OAuthClient: token.OAuthClient{TokenEndpoint: row.endpoint, ClientID: "client", ClientSecret: token.SecretValue(token.NewSecret(clientSecret))}}
			a, err := c.Acquirer(token.Env{Dial: row.dial})
			if err != nil {
				t.Fatal(err)
			}
			want := token.Error{
				Class: token.Transient, Code: "provider_unreachable", Description: row.description,
				Key: "token_endpoint", Hint: "check token_endpoint, the network and DNS",
			}
			if diff := cmp.Diff(want, failure(t.Context(), t, a)); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSlowProviderIsATimeout(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"before the header": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"within the body": func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprint(w, `{"access_token":"`+accessToken)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			panic(http.ErrAbortHandler) // else the server would end the body in good order
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := serve(t, handler)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			got := failure(ctx, t, build(t, e.settings()))
			if got.Class != token.Transient || got.Code != "provider_timeout" || !strings.Contains(got.Hint, "request_timeout") {
				t.Errorf("%+v, want provider_timeout that names request_timeout", got)
			}
		})
	}
}

// The whole way, over real TLS: what a source logs of a refusal shows neither
// what was sent nor what was received.
func TestSourceLogShowsNothingOfTheExchange(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"success": answers(200, nil, goodAnswer),
		"refusal": answers(401, nil, `{"error":"invalid_client","error_description":"`+planted+" "+clientSecret+`"}`),
	} {
		t.Run(name, func(t *testing.T) {
			e := serve(t, answer)
			var log bytes.Buffer
			s := token.NewSource(build(t, e.settings()), token.DefaultLifecycle(), slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
			_, err := s.Token(t.Context())
			s.Close()
			wantHidden(t, log.String(), clientSecret, accessToken, planted)
			wantHidden(t, err, clientSecret, accessToken, planted)
			wantHidden(t, s.Status(), clientSecret, accessToken, planted)
			wantHidden(t, s, clientSecret, accessToken, planted)
			if log.Len() == 0 {
				t.Error("nothing was logged")
			}
		})
	}
}
