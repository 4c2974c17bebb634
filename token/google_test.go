package token_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

const (
	googleEmail    = "gateway@project.iam.gserviceaccount.test"
	googleScope    = "https://www.googleapis.com/auth/cloud-healthcare"
	platformScope  = "https://www.googleapis.com/auth/cloud-platform"
	googleRefresh  = "1//refresh-token-of-the-user"
	googleSubject  = "subject-token-of-the-workload"
	googleUserID   = "client-id.apps.test"
	stsToken       = "federated-token-of-the-sts"
	googleAudience = "//iam.googleapis.test/projects/1/locations/global/workloadIdentityPools/p/providers/q"
)

// googleKey is the key of a service account, and its PEM.
type googleKey struct {
	*rsa.PrivateKey
	pem string
}

func newGoogleKey() googleKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	return googleKey{key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}
}

var firstGoogleKey, secondGoogleKey = sync.OnceValue(newGoogleKey), sync.OnceValue(newGoogleKey)

// parts are pieces of the key that nobody must see.
func (k googleKey) parts() []string {
	lines := strings.Split(k.pem, "\n")
	return []string{lines[1], lines[len(lines)/2], "BEGIN PRIVATE KEY"}
}

// googleJSON writes a credentials file.
func googleJSON(t *testing.T, content map[string]any) token.PrivateFile {
	t.Helper()
	b, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	return token.PrivateFile(file(t, b))
}

func serviceAccount(key googleKey, tokenURI string) map[string]any {
	return map[string]any{
		"type": "service_account", "project_id": "project", "private_key_id": "key-1", "private_key": key.pem,
		"client_email": googleEmail, "client_id": "1", "auth_uri": "https://accounts.google.test/auth", "token_uri": tokenURI,
	}
}

func authorizedUser(tokenURI string) map[string]any {
	return map[string]any{
		"type": "authorized_user", "client_id": googleUserID, "client_secret": clientSecret, "refresh_token": googleRefresh, "token_uri": tokenURI,
	}
}

func externalAccount(tokenURL, impersonation string, source map[string]any) map[string]any {
	m := map[string]any{
		"type": "external_account", "audience": googleAudience, "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
		"token_url": tokenURL, "credential_source": source,
	}
	if impersonation != "" {
		m["service_account_impersonation_url"] = impersonation
	}
	return m
}

// googleSettings are the settings of a type as NewSettings makes them, with change.
func googleSettings[S any](t *testing.T, typ string, change func(*S)) token.Settings {
	t.Helper()
	s, ok := token.NewSettings(typ).(any).(*S)
	if !ok {
		t.Fatalf("%s: settings are a %T", typ, token.NewSettings(typ))
	}
	change(s)
	return any(s).(token.Settings)
}

// googleFamily is a type in one of its forms, with a double of its provider. The
// request that brings the access token goes to the handler.
type googleFamily struct {
	name  string
	start func(t *testing.T, h http.HandlerFunc) (s token.Settings, requests func() int)
	good  func(access string) string // the answer that brings an access token; nil: OAuth's
}

func (f googleFamily) answer(access string) string {
	if f.good != nil {
		return f.good(access)
	}
	return strings.Replace(goodAnswer, accessToken, access, 1)
}

func counting(h http.HandlerFunc) (http.HandlerFunc, func() int) {
	var n atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) { n.Add(1); h(w, r) }, func() int { return int(n.Load()) }
}

var googleFamilies = []googleFamily{
	{name: "service account", start: func(t *testing.T, h http.HandlerFunc) (token.Settings, func() int) {
		h, n := counting(h)
		e := serve(t, h)
		return googleSettings(t, "google_service_account", func(g *token.GoogleServiceAccount) {
			g.CAFile, g.CredentialsFile = e.ca, googleJSON(t, serviceAccount(firstGoogleKey(), e.URL+"/token"))
		}), n
	}},
	{name: "authorized user", start: func(t *testing.T, h http.HandlerFunc) (token.Settings, func() int) {
		h, n := counting(h)
		e := serve(t, h)
		return googleSettings(t, "google_authorized_user", func(g *token.GoogleAuthorizedUser) {
			g.CAFile, g.CredentialsFile = e.ca, googleJSON(t, authorizedUser(e.URL+"/token"))
		}), n
	}},
	{name: "external account", start: func(t *testing.T, h http.HandlerFunc) (token.Settings, func() int) {
		h, n := counting(h)
		e := serve(t, h)
		source := map[string]any{"file": string(file(t, []byte(googleSubject)))}
		return googleSettings(t, "google_external_account", func(g *token.GoogleExternalAccount) {
			g.CAFile, g.CredentialsFile = e.ca, googleJSON(t, externalAccount(e.URL+"/sts", "", source))
		}), n
	}},
	{
		name: "external account with impersonation",
		start: func(t *testing.T, h http.HandlerFunc) (token.Settings, func() int) {
			h, n := counting(h)
			mux := http.NewServeMux()
			mux.HandleFunc("/sts", answers(200, nil, stsAnswer))
			mux.HandleFunc("/impersonate", h)
			e := serve(t, mux.ServeHTTP)
			source := map[string]any{"file": string(file(t, []byte(googleSubject)))}
			return googleSettings(t, "google_external_account", func(g *token.GoogleExternalAccount) {
				g.CAFile, g.CredentialsFile = e.ca, googleJSON(t, externalAccount(e.URL+"/sts", e.URL+"/impersonate", source))
			}), n
		},
		good: func(access string) string {
			return fmt.Sprintf(`{"accessToken":%q,"expireTime":%q}`, access, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
		},
	},
	{name: "metadata", start: func(t *testing.T, h http.HandlerFunc) (token.Settings, func() int) {
		h, n := counting(h)
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		t.Setenv("GCE_METADATA_HOST", s.Listener.Addr().String())
		return googleSettings(t, "google_metadata", func(*token.GoogleMetadata) {}), n
	}},
}

const stsAnswer = `{"access_token":"` + stsToken + `","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","token_type":"Bearer","expires_in":3599}`

// googleKeys are the keys of all Google types that an error may name.
var googleKeys = map[string]bool{
	"": true, "type": true, "credentials_file": true, "client_secret": true, "refresh_token": true, "scopes": true, "ca_file": true, "service_account": true,
}

// spy keeps what an acquirer says.
type spy struct {
	token.Acquirer
	err error
}

func (s *spy) Acquire(ctx context.Context) (token.Token, error) {
	t, err := s.Acquirer.Acquire(ctx)
	s.err = err
	return t, err
}

// googleFailure is failure, with Google's secrets, and keys that the types have.
func googleFailure(ctx context.Context, t *testing.T, a token.Acquirer, secrets ...string) token.Error {
	t.Helper()
	s := &spy{Acquirer: a}
	got := failure(ctx, t, s)
	secrets = append(secrets, firstGoogleKey().parts()...)
	secrets = append(secrets, googleRefresh, url.QueryEscape(googleRefresh), googleSubject, stsToken)
	for e := s.err; e != nil; e = errors.Unwrap(e) {
		wantHidden(t, e, secrets...)
	}
	if !googleKeys[got.Key] || strings.Contains(got.Hint, "token_endpoint") || got.Hint == "" {
		t.Errorf("key %q, hint %q: want those of a Google type", got.Key, got.Hint)
	}
	return got
}

func TestGoogleEachAcquireFetchesANewToken(t *testing.T) {
	for _, f := range googleFamilies {
		t.Run(f.name, func(t *testing.T) {
			var n atomic.Int64
			s, requests := f.start(t, func(w http.ResponseWriter, r *http.Request) {
				answers(200, nil, f.answer(fmt.Sprintf("token-%d", n.Add(1))))(w, r)
			})
			a := build(t, s)
			for i := 1; i <= 3; i++ {
				before := time.Now()
				got, err := a.Acquire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if want := fmt.Sprintf("token-%d", i); got.Value.Reveal() != want {
					t.Errorf("acquisition %d brought %q, want %q", i, got.Value.Reveal(), want)
				}
				if life := got.Expires.Sub(before); life < 3595*time.Second || life > time.Hour+time.Second {
					t.Errorf("life %v, want about an hour", life)
				}
				if got.Warning != "" {
					t.Errorf("warning %q", got.Warning)
				}
			}
			if requests() != 3 {
				t.Errorf("%d requests, want 3", requests())
			}
		})
	}
}

func TestGoogleLifeAsProvidersSpellIt(t *testing.T) {
	const none = -1
	for _, f := range googleFamilies {
		if f.good != nil {
			continue // says an expireTime
		}
		for _, row := range []struct {
			member string
			want   time.Duration
			bad    bool
		}{
			{member: ``, want: none},
			{member: `,"expires_in":null`, want: none},
			{member: `,"expires_in":0`, want: none},
			{member: `,"expires_in":1800`, want: 30 * time.Minute},
			{member: `,"expires_in":"3600"`, want: time.Hour},
			{member: `,"expires_in":3600.0`, want: time.Hour},
			{member: `,"expires_in":99999999999`, want: 24 * time.Hour},
			{member: `,"expires_in":-1`, bad: true},
			{member: `,"expires_in":"` + planted + `"`, bad: true},
		} {
			t.Run(f.name+row.member, func(t *testing.T) {
				s, _ := f.start(t, answers(200, nil, `{"access_token":"`+accessToken+`","token_type":"Bearer"`+row.member+`}`))
				if row.bad {
					want := token.Error{Class: token.Transient, Code: "provider_answer", Hint: "the provider's expires_in is not a life that a token can have"}
					if diff := cmp.Diff(want, googleFailure(t.Context(), t, build(t, s))); diff != "" {
						t.Errorf("error (-want +got):\n%s", diff)
					}
					return
				}
				before := time.Now()
				got := acquire(t, s)
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
}

func TestGoogleOddAnswersAreErrorsThatShowNothing(t *testing.T) {
	const permanent, transient, throttled = token.Permanent, token.Transient, token.Throttled
	in := func(v string) http.Header { return http.Header{"Retry-After": {v}} }
	odd := "provider_answer"
	for _, f := range googleFamilies {
		for _, row := range []struct {
			name   string
			status int
			header http.Header
			body   string
			want   token.Error // but for Key and Hint
		}{
			{name: "empty", status: 200, want: token.Error{Class: transient, Code: odd}},
			{name: "HTML", status: 200, body: "<html>" + planted, want: token.Error{Class: transient, Code: odd}},
			{name: "truncated", status: 200, body: f.answer(accessToken)[:60], want: token.Error{Class: transient, Code: odd}},
			{name: "2 MiB", status: 200, body: `{"a":"` + strings.Repeat(planted, 2<<20/len(planted)) + `"}`, want: token.Error{Class: transient, Code: odd}},
			{name: "an array", status: 200, body: `["` + planted + `"]`, want: token.Error{Class: transient, Code: odd}},
			{name: "no token", status: 200, body: `{"id_token":"` + accessToken + `","token_type":"Bearer"}`, want: token.Error{Class: transient, Code: odd}},
			{name: "CR and LF in the token", status: 200, body: f.answer(accessToken + "\r\nX-Evil: 1"), want: token.Error{Class: transient, Code: odd}},
			{name: "a redirect", status: 307, header: http.Header{"Location": {"/" + planted}}, body: planted, want: token.Error{Class: transient, Code: odd}},
			{name: "503 with a wait", status: 503, header: in("30"), body: planted, want: token.Error{Class: throttled, Code: odd, RetryAfter: 30 * time.Second}},
			{name: "503", status: 503, body: planted, want: token.Error{Class: transient, Code: odd}},
			{name: "429 with a wait", status: 429, header: in("120"), body: planted, want: token.Error{Class: throttled, Code: odd, RetryAfter: 2 * time.Minute}},
			{name: "500", status: 500, body: planted, want: token.Error{Class: transient, Code: odd}},
			{name: "400 with no code", status: 400, body: planted, want: token.Error{Class: permanent, Code: odd}},
			{name: "401 with no code", status: 401, body: planted, want: token.Error{Class: permanent, Code: odd}},
			{name: "403 as Google's APIs say it", status: 403, body: `{"error":{"code":403,"message":"` + planted + `","status":"PERMISSION_DENIED"}}`, want: token.Error{Class: permanent, Code: odd}},
			{name: "404", status: 404, body: "<h1>" + planted, want: token.Error{Class: permanent, Code: odd}},
			{name: "invalid_grant", status: 400, body: `{"error":"invalid_grant","error_description":"` + planted + `"}`, want: token.Error{Class: permanent, Code: "invalid_grant"}},
			{name: "invalid_scope", status: 400, body: `{"error":"invalid_scope","error_description":"` + planted + `"}`, want: token.Error{Class: permanent, Code: "invalid_scope"}},
		} {
			t.Run(f.name+", "+row.name, func(t *testing.T) {
				s, requests := f.start(t, answers(row.status, row.header, row.body))
				got := googleFailure(t.Context(), t, build(t, s))
				if row.status != 200 && row.want.Class == permanent && got.Key == "" {
					t.Errorf("%+v names no key", got)
				}
				row.want.Status, row.want.Key, row.want.Hint = row.status, got.Key, got.Hint
				if diff := cmp.Diff(row.want, got); diff != "" {
					t.Errorf("error (-want +got):\n%s", diff)
				}
				if requests() != 1 {
					t.Errorf("%d requests, want 1: no retries below the source", requests())
				}
			})
		}
	}
}

// Whatever was sent comes back in the answer, and still nothing of it is shown.
func TestGoogleEchoOfTheRequestIsNotShown(t *testing.T) {
	for _, f := range googleFamilies {
		for _, status := range []int{200, 400, 403, 500} {
			t.Run(fmt.Sprint(f.name, " ", status), func(t *testing.T) {
				s, _ := f.start(t, func(w http.ResponseWriter, r *http.Request) {
					w.WriteHeader(status)
					_, _ = fmt.Fprint(w, r.Header.Get("Authorization"), clientSecret, googleRefresh, googleSubject, firstGoogleKey().pem, planted)
				})
				googleFailure(t.Context(), t, build(t, s))
			})
		}
	}
}

func TestGoogleDeadProviderIsTransient(t *testing.T) {
	for _, f := range googleFamilies {
		t.Run(f.name, func(t *testing.T) {
			s, _ := f.start(t, answers(200, nil, f.answer(accessToken)))
			a, err := s.Acquirer(token.Env{Dial: func(context.Context, string, string) (net.Conn, error) {
				return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", os.ErrDeadlineExceeded)}
			}})
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			got := googleFailure(t.Context(), t, a)
			if got.Class != token.Transient || !strings.HasPrefix(got.Code, "provider_") || got.Key == "" {
				t.Errorf("%+v, want a transient error that names a key", got)
			}
			if d := time.Since(began); d > time.Second {
				t.Errorf("it took %v, want no retries", d)
			}
		})
	}
}

func TestGoogleUntrustedCertificateNamesCAFile(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	s := googleSettings(t, "google_service_account", func(g *token.GoogleServiceAccount) {
		g.CredentialsFile = googleJSON(t, serviceAccount(firstGoogleKey(), e.URL+"/token"))
	})
	got := googleFailure(t.Context(), t, build(t, s))
	if got.Code != "provider_tls" || got.Key != "ca_file" || !strings.Contains(got.Hint, "token_uri in credentials_file") {
		t.Errorf("%+v, want provider_tls that names ca_file", got)
	}
}

func TestGoogleCancelledAcquireReturnsAtOnce(t *testing.T) {
	for _, f := range googleFamilies {
		t.Run(f.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s, _ := f.start(t, func(_ http.ResponseWriter, r *http.Request) {
				cancel()
				<-r.Context().Done()
			})
			began := time.Now()
			if got := googleFailure(ctx, t, build(t, s)); got.Class != token.Transient {
				t.Errorf("%+v, want a transient error", got)
			}
			if d := time.Since(began); d > 2*time.Second {
				t.Errorf("Acquire returned after %v", d)
			}
		})
	}
}

func TestGoogleSlowProviderIsATimeout(t *testing.T) {
	for _, f := range googleFamilies {
		t.Run(f.name, func(t *testing.T) {
			s, requests := f.start(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if got := googleFailure(ctx, t, build(t, s)); got.Class != token.Transient || got.Code != "provider_timeout" || got.Key == "" {
				t.Errorf("%+v, want provider_timeout", got)
			}
			if requests() != 1 {
				t.Errorf("%d requests, want 1", requests())
			}
		})
	}
}

// A cancelled acquisition must not poison the next one: token sources are bound
// to the context they are made with.
func TestGoogleAcquireAfterACancelledOne(t *testing.T) {
	for _, f := range googleFamilies {
		t.Run(f.name, func(t *testing.T) {
			s, _ := f.start(t, answers(200, nil, f.answer(accessToken)))
			a := build(t, s)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			googleFailure(ctx, t, a)
			if _, err := a.Acquire(t.Context()); err != nil {
				t.Errorf("Acquire: %v", err)
			}
		})
	}
}

func TestGoogleSourceLogShowsNothingOfTheExchange(t *testing.T) {
	secrets := append(firstGoogleKey().parts(), clientSecret, accessToken, planted, googleRefresh, googleSubject, stsToken)
	for _, f := range googleFamilies {
		for name, answer := range map[string]http.HandlerFunc{
			"success": answers(200, nil, f.answer(accessToken)),
			"refusal": answers(400, nil, `{"error":"invalid_grant","error_description":"`+planted+clientSecret+`"}`),
		} {
			t.Run(f.name+", "+name, func(t *testing.T) {
				settings, _ := f.start(t, answer)
				var log bytes.Buffer
				s := token.NewSource(build(t, settings), token.DefaultLifecycle(), slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
				_, err := s.Token(t.Context())
				s.Close()
				wantHidden(t, log.String(), secrets...)
				wantHidden(t, err, secrets...)
				wantHidden(t, s.Status(), secrets...)
				wantHidden(t, s, secrets...)
				wantHidden(t, settings, secrets...)
				if log.Len() == 0 {
					t.Error("nothing was logged")
				}
			})
		}
	}
}

// verifyAssertion checks the signature of a JWT and returns its claims.
func verifyAssertion(t *testing.T, assertion string, key googleKey, options ...jwt.ParserOption) jwt.MapClaims {
	t.Helper()
	options = append(options, jwt.WithValidMethods([]string{"RS256"}), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithIssuer(googleEmail), jwt.WithStrictDecoding())
	claims := jwt.MapClaims{}
	parsed, err := jwt.ParseWithClaims(assertion, claims, func(*jwt.Token) (any, error) { return key.Public(), nil }, options...)
	if err != nil {
		t.Fatalf("assertion: %v", err)
	}
	if parsed.Header["kid"] != "key-1" || parsed.Header["typ"] != "JWT" {
		t.Errorf("header %v, want kid key-1 and typ JWT", parsed.Header)
	}
	iat, _ := claims.GetIssuedAt()
	exp, _ := claims.GetExpirationTime()
	if life := exp.Sub(iat.Time); life <= 0 || life > time.Hour {
		t.Errorf("the assertion lives %v, want at most an hour", life)
	}
	if claims["scope"] != googleScope {
		t.Errorf("scope %v, want %v", claims["scope"], googleScope)
	}
	return claims
}

func TestGoogleServiceAccountSignsAnAssertion(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	s := googleSettings(t, "google_service_account", func(g *token.GoogleServiceAccount) {
		g.CAFile, g.CredentialsFile = e.ca, googleJSON(t, serviceAccount(firstGoogleKey(), e.URL+"/token"))
	})
	acquire(t, s)
	got := e.requests()[0]
	assertion := got.Form.Get("assertion")
	got.Form.Del("assertion")
	want := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}}
	if diff := cmp.Diff(want, got.Form); diff != "" || got.Method != "POST" || got.Path != "/token" || got.Query != "" || got.Header.Get("Authorization") != "" {
		t.Errorf("%s %s (-want +got):\n%s", got.Method, got.Path, diff)
	}
	claims := verifyAssertion(t, assertion, firstGoogleKey(), jwt.WithAudience(e.URL+"/token"))
	if claims["sub"] != nil {
		t.Errorf("sub %v, want none: it would ask for domain-wide delegation", claims["sub"])
	}
}

func TestGoogleCredentialsFileIsReadAtEachAcquisition(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	path := googleJSON(t, serviceAccount(firstGoogleKey(), e.URL+"/token"))
	a := build(t, googleSettings(t, "google_service_account", func(g *token.GoogleServiceAccount) { g.CAFile, g.CredentialsFile = e.ca, path }))
	for _, key := range []googleKey{firstGoogleKey(), secondGoogleKey()} {
		b, _ := json.Marshal(serviceAccount(key, e.URL+"/token"))
		if err := os.WriteFile(string(path), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		requests := e.requests()
		verifyAssertion(t, requests[len(requests)-1].Form.Get("assertion"), key)
	}
	// In the midst of a rotation, or worse.
	whole, _ := json.Marshal(serviceAccount(firstGoogleKey(), e.URL+"/token"))
	insecure, _ := json.Marshal(serviceAccount(firstGoogleKey(), "http://login.test/token"))
	user, _ := json.Marshal(authorizedUser(e.URL + "/token"))
	for name, content := range map[string][]byte{"half": whole[:len(whole)/2], "empty": nil, "in clear": insecure, "of another type": user} {
		if err := os.WriteFile(string(path), content, 0o600); err != nil {
			t.Fatal(err)
		}
		got := googleFailure(t.Context(), t, a)
		if got.Class != token.Transient || got.Code != "secret_unreadable" || got.Key != "credentials_file" {
			t.Errorf("%s: %+v, want secret_unreadable", name, got)
		}
	}
	if n := len(e.requests()); n != 2 {
		t.Errorf("%d requests, want none with a bad file", n-2)
	}
}

func TestGoogleSelfSignedJWTAsksNobody(t *testing.T) {
	for _, tokenURI := range []string{"https://oauth2.googleapis.com/token", ""} {
		s := googleSettings(t, "google_service_account", func(g *token.GoogleServiceAccount) {
			g.SelfSignedJWT, g.CredentialsFile = true, googleJSON(t, serviceAccount(firstGoogleKey(), tokenURI))
		})
		a, err := s.Acquirer(token.Env{Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			t.Errorf("dialled %s", address)
			return nil, os.ErrPermission
		}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := a.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		claims := verifyAssertion(t, got.Value.Reveal(), firstGoogleKey(), jwt.WithSubject(googleEmail))
		exp, _ := claims.GetExpirationTime()
		if !got.Expires.Equal(exp.Time) {
			t.Errorf("expires %v, want the JWT's exp %v", got.Expires, exp)
		}
		if life := time.Until(got.Expires); life < 59*time.Minute || life > time.Hour {
			t.Errorf("lives %v, want about an hour", life)
		}
		wantHidden(t, got, append(firstGoogleKey().parts(), got.Value.Reveal())...)
	}
}

// A clock that is wrong is named, with how far; it heals by itself when set.
func TestGoogleRefusedAssertionTellsClockSkewFromADeletedKey(t *testing.T) {
	for _, row := range []struct {
		name  string
		date  time.Duration // the provider's clock against ours
		class token.Class
		says  string
	}{
		{name: "clocks agree", class: token.Permanent, says: "clock skew, or the key or its service account was deleted"},
		{name: "ours is behind", date: 10 * time.Minute, class: token.Transient, says: "behind the provider's"},
		{name: "ours is ahead", date: -10 * time.Minute, class: token.Transient, says: "ahead of the provider's"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, _ := googleFamilies[0].start(t, func(w http.ResponseWriter, r *http.Request) {
				date := http.Header{"Date": {time.Now().Add(row.date).UTC().Format(http.TimeFormat)}}
				answers(400, date, `{"error":"invalid_grant","error_description":"`+planted+`"}`)(w, r)
			})
			got := googleFailure(t.Context(), t, build(t, s))
			if got.Class != row.class || got.Code != "invalid_grant" || got.Key != "credentials_file" || !strings.Contains(got.Hint, row.says) {
				t.Errorf("%+v, want %v with %q", got, row.class, row.says)
			}
		})
	}
}

func TestGoogleAuthorizedUserSendsTheRefreshToken(t *testing.T) {
	want := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {googleRefresh}, "client_id": {googleUserID}, "client_secret": {clientSecret}}
	check := func(t *testing.T, got received) {
		t.Helper()
		if diff := cmp.Diff(want, got.Form); diff != "" || got.Method != "POST" || got.Path != "/token" || got.Query != "" || got.Header.Get("Authorization") != "" {
			t.Errorf("%s %s?%s (-want +got):\n%s", got.Method, got.Path, got.Query, diff)
		}
	}
	t.Run("from a file", func(t *testing.T) {
		e := serve(t, answers(200, nil, goodAnswer))
		acquire(t, googleSettings(t, "google_authorized_user", func(g *token.GoogleAuthorizedUser) {
			g.CAFile, g.CredentialsFile = e.ca, googleJSON(t, authorizedUser(e.URL+"/token"))
		}))
		check(t, e.requests()[0])
	})
	t.Run("from keys, at Google's own endpoint", func(t *testing.T) {
		e, dial := serveGoogle(t, answers(200, nil, goodAnswer))
		secret := string(file(t, []byte("old\n")))
		s := googleSettings(t, "google_authorized_user", func(g *token.GoogleAuthorizedUser) {
			g.CAFile, g.ClientID, g.ClientSecret, g.RefreshToken = e.ca, googleUserID, token.SecretFile(secret), token.SecretValue(token.NewSecret(googleRefresh))
		})
		a, err := s.Acquirer(token.Env{Dial: dial})
		if err != nil {
			t.Fatal(err)
		}
		_ = os.WriteFile(secret, []byte(clientSecret+"\n"), 0o600)
		if _, err := a.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		check(t, e.requests()[0])
		_ = os.Remove(secret)
		if got := googleFailure(t.Context(), t, a); got.Code != "secret_unreadable" || got.Key != "client_secret" {
			t.Errorf("%+v, want secret_unreadable", got)
		}
	})
}

func TestGoogleRefusedUserNamesTheKey(t *testing.T) {
	for _, row := range []struct{ code, fileKey, key, says string }{
		{"invalid_grant", "credentials_file", "refresh_token", "refresh_token expired or revoked"},
		{"invalid_client", "credentials_file", "client_secret", "check client_id and client_secret"},
		{"unauthorized_client", "credentials_file", "client_secret", "go together"},
		{"invalid_scope", "credentials_file", "refresh_token", "consent"},
	} {
		answer := answers(400, nil, `{"error":"`+row.code+`","error_description":"`+planted+`"}`)
		s, _ := googleFamilies[1].start(t, answer)
		if got := googleFailure(t.Context(), t, build(t, s)); got.Class != token.Permanent || got.Key != row.fileKey || !strings.Contains(got.Hint, row.says) {
			t.Errorf("%s: %+v, want %q with %q", row.code, got, row.fileKey, row.says)
		}
		e, dial := serveGoogle(t, answer)
		s = googleSettings(t, "google_authorized_user", func(g *token.GoogleAuthorizedUser) {
			g.CAFile, g.ClientID = e.ca, googleUserID
			g.ClientSecret, g.RefreshToken = token.SecretValue(token.NewSecret(clientSecret)), token.SecretValue(token.NewSecret(googleRefresh))
		})
		a, err := s.Acquirer(token.Env{Dial: dial})
		if err != nil {
			t.Fatal(err)
		}
		if got := googleFailure(t.Context(), t, a); got.Class != token.Permanent || got.Key != row.key || !strings.Contains(got.Hint, row.says) {
			t.Errorf("%s: %+v, want %q with %q", row.code, got, row.key, row.says)
		}
	}
}

// The scope cloud-platform is what gcloud asks users for; it covers all others.
func TestGoogleUserWithoutTheScopeIsWarned(t *testing.T) {
	for _, row := range []struct {
		granted string
		warned  bool
	}{
		{granted: googleScope},
		{granted: "openid " + platformScope},
		{granted: "openid email", warned: true},
	} {
		s, _ := googleFamilies[1].start(t, answers(200, nil, `{"access_token":"`+accessToken+`","token_type":"Bearer","expires_in":3599,"scope":"`+row.granted+`"}`))
		if got := acquire(t, s).Warning; (got != "") != row.warned {
			t.Errorf("granted %s: warning %q", row.granted, got)
		}
	}
}

// serveGoogle is a server with the name of Google's token endpoint, and the way
// to it.
func serveGoogle(t *testing.T, h http.HandlerFunc) (*endpoint, func(context.Context, string, string) (net.Conn, error)) {
	t.Helper()
	const host = "oauth2.googleapis.com"
	e := serve(t, h)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	key := firstGoogleKey()
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	e.ca = file(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	e.TLS.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key.PrivateKey}}
	return e, func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != host+":443" {
			t.Errorf("dialled %s, want %s", address, host)
		}
		return new(net.Dialer).DialContext(ctx, network, e.Listener.Addr().String())
	}
}

func with(m map[string]any, key string, value any) map[string]any {
	m = maps.Clone(m)
	m[key] = value
	return m
}
