// Package fosite_test checks package token against a second real authorization
// server: ory/fosite, in this process. It differs from oidc-provider in what it
// answers: token_type in lower case, expires_in rounded down. It is a module of
// its own so that fosite's dependencies stay out of the gateway's go.mod.
package fosite_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v3"
	"github.com/ory/fosite"
	"github.com/ory/fosite/compose"
	"github.com/ory/fosite/storage"

	"orthanc-dicomweb-oauth/token"
)

// Two clients of fosite's example store.
const (
	plainID, plainSecret = "my-client", "foobar"
	oddID, oddSecret     = "encoded:client", "encoded&password"
)

// server is fosite behind verified TLS on loopback.
type server struct {
	config   *fosite.Config
	store    *storage.MemoryStore
	strategy *compose.CommonStrategy
	provider fosite.OAuth2Provider
	ca       token.File // trusts it

	mu   sync.Mutex
	last exchange
}

// exchange is a token request and its answer, as they were on the wire.
type exchange struct {
	header http.Header
	form   url.Values
	status int
	answer struct {
		TokenType string `json:"token_type"`
		ExpiresIn int    `json:"expires_in"`
		Error     string `json:"error"`
	}
}

func serve(t *testing.T, lifespan time.Duration) *server {
	t.Helper()
	s := &server{store: storage.NewExampleStore()}
	s.store.BlacklistedJTIs = map[string]time.Time{} // the example leaves it nil, so that no assertion can be noted as used
	h := httptest.NewUnstartedServer(http.HandlerFunc(s.token))
	h.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.config = &fosite.Config{
		AccessTokenLifespan:                 lifespan,
		GlobalSecret:                        []byte(rand.Text() + rand.Text()),
		TokenURL:                            "https://" + h.Listener.Addr().String() + "/token",
		GrantTypeJWTBearerCanSkipClientAuth: true,
		HashCost:                            4, // bcrypt's least; the example's 10 takes a second under the race detector
	}
	hasher := s.config.GetSecretsHasher(t.Context()) // kept by config, which two requests at a time must not write
	for id, secret := range map[string]string{plainID: plainSecret, oddID: oddSecret} {
		client := s.store.Clients[id].(*fosite.DefaultClient)
		hash, err := hasher.Hash(t.Context(), []byte(secret))
		if err != nil {
			t.Fatal(err)
		}
		client.Secret, client.RotatedSecrets = hash, nil
	}
	s.strategy = &compose.CommonStrategy{CoreStrategy: compose.NewOAuth2HMACStrategy(s.config)}
	s.provider = compose.Compose(
		s.config, s.store, s.strategy,
		compose.OAuth2ClientCredentialsGrantFactory,
		compose.OAuth2RefreshTokenGrantFactory,
		compose.RFC7523AssertionGrantFactory,
		compose.OAuth2TokenIntrospectionFactory,
	)
	h.StartTLS()
	t.Cleanup(h.Close)
	s.ca = token.File(file(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})))
	return s
}

// token is the token endpoint as fosite's documentation has it. What goes over
// the wire is kept.
func (s *server) token(w http.ResponseWriter, r *http.Request) {
	answer := httptest.NewRecorder()
	ctx := r.Context()
	request, err := s.provider.NewAccessRequest(ctx, r, new(fosite.DefaultSession))
	if err == nil {
		for _, scope := range request.GetRequestedScopes() {
			request.GrantScope(scope)
		}
		var response fosite.AccessResponder
		if response, err = s.provider.NewAccessResponse(ctx, request); err == nil {
			s.provider.WriteAccessResponse(ctx, answer, request, response)
		}
	}
	if err != nil {
		s.provider.WriteAccessError(ctx, answer, request, err)
	}

	last := exchange{header: r.Header.Clone(), form: r.PostForm, status: answer.Code}
	_ = json.Unmarshal(answer.Body.Bytes(), &last.answer)
	s.mu.Lock()
	s.last = last
	s.mu.Unlock()

	maps.Copy(w.Header(), answer.Header())
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

// wire returns the last exchange.
func (s *server) wire() exchange {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// introspect returns nil if fosite says that an access token is active.
func (s *server) introspect(ctx context.Context, value token.Secret, scopes ...string) error {
	use, _, err := s.provider.IntrospectToken(ctx, value.Reveal(), fosite.AccessToken, new(fosite.DefaultSession), scopes...)
	if err == nil && use != fosite.AccessToken {
		return errors.New("introspected as " + string(use))
	}
	return err
}

// client are the keys of a profile for the server.
func (s *server) client(id, secret string, scopes ...string) token.OAuthClient {
	c := token.OAuthClient{TokenEndpoint: s.config.TokenURL, ClientID: id, ClientSecret: token.SecretValue(token.NewSecret(secret))}
	c.CAFile, c.Scopes = s.ca, scopes
	return c
}

// refreshToken returns a new refresh token of a client.
func (s *server) refreshToken(t *testing.T, id string) token.SecretSource {
	t.Helper()
	client, err := s.store.GetClient(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	request := fosite.NewRequest()
	request.Client, request.Session = client, new(fosite.DefaultSession)
	request.GrantScope("offline")
	value, signature, err := s.strategy.GenerateRefreshToken(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.store.CreateRefreshTokenSession(t.Context(), signature, "", request); err != nil {
		t.Fatal(err)
	}
	return token.SecretValue(token.NewSecret(value))
}

// jwtBearer is a profile whose key fosite knows for the scope "photos".
func (s *server) jwtBearer(t *testing.T) *token.JWTBearer {
	t.Helper()
	const issuer, keyID = "gateway", "key-1"
	path, public := key(t)
	s.store.IssuerPublicKeys[issuer] = storage.IssuerPublicKeys{Issuer: issuer, KeysBySub: map[string]storage.SubjectPublicKeys{
		issuer: {Subject: issuer, Keys: map[string]storage.PublicKeyScopes{keyID: {
			Key:    &jose.JSONWebKey{Key: public, KeyID: keyID, Algorithm: "ES256", Use: "sig"},
			Scopes: []string{"photos"},
		}}},
	}}
	c := &token.JWTBearer{
		TokenEndpoint: s.config.TokenURL, AssertionIssuer: issuer,
		AssertionKey: token.AssertionKey{KeyFile: path, KeyID: keyID},
	}
	c.CAFile, c.Scopes = s.ca, []string{"photos"}
	return c
}

// key writes a new private key to a file.
func key(t *testing.T) (token.PrivateFile, *ecdsa.PublicKey) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return token.PrivateFile(file(t, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))), &private.PublicKey
}

func file(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func build(t *testing.T, c token.Settings) token.Acquirer {
	t.Helper()
	c.Check(func(key, problem, remedy string) { t.Errorf("%s %s; %s", key, problem, remedy) })
	a, err := c.Acquirer(token.Env{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// acquire makes one attempt, whose token must be active at fosite.
func (s *server) acquire(t *testing.T, a token.Acquirer, scopes ...string) token.Token {
	t.Helper()
	got, err := a.Acquire(t.Context())
	if err != nil {
		t.Fatalf("Acquire: %v, after fosite's %d %q", err, s.wire().status, s.wire().answer.Error)
	}
	if err := s.introspect(t.Context(), got.Value, scopes...); err != nil {
		t.Errorf("fosite does not know the token that it gave: %v", err)
	}
	if got.Warning != "" {
		t.Errorf("warning %q, want none", got.Warning)
	}
	return got
}

func TestFositeTakesTheSecret(t *testing.T) {
	s := serve(t, time.Hour)
	for _, row := range []struct{ name, id, secret, auth string }{
		{"by basic", plainID, plainSecret, "client_secret_basic"},
		{"by basic where the profile does not say", plainID, plainSecret, ""},
		{"by basic, with characters that must be form-encoded", oddID, oddSecret, "client_secret_basic"},
		{"by post", plainID, plainSecret, "client_secret_post"},
		{"by post, with characters that must be form-encoded", oddID, oddSecret, "client_secret_post"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := &token.ClientCredentials{OAuthClient: s.client(row.id, row.secret, "photos", "fosite")}
			c.ClientAuth = row.auth
			got := s.acquire(t, build(t, c), "photos", "fosite")

			wire := s.wire()
			id, secret := wire.form.Get("client_id"), wire.form.Get("client_secret")
			wantID, wantSecret := row.id, row.secret
			if row.auth != "client_secret_post" { // RFC 6749 section 2.3.1
				wantID, wantSecret = url.QueryEscape(row.id), url.QueryEscape(row.secret)
				id, secret, _ = (&http.Request{Header: wire.header}).BasicAuth()
				if wire.form.Has("client_secret") {
					t.Error("the secret is in the body too")
				}
			} else if wire.header.Get("Authorization") != "" {
				t.Error("the secret is in a header too")
			}
			if id != wantID || secret != wantSecret {
				t.Errorf("client %q with secret %q on the wire, want %q with %q", id, secret, wantID, wantSecret)
			}

			if wire.answer.TokenType != "bearer" {
				t.Errorf("fosite answers token_type %q; the test is about one in lower case", wire.answer.TokenType)
			}
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			if err := got.Apply(r); err != nil {
				t.Fatal(err)
			}
			if auth := r.Header.Get("Authorization"); auth != "Bearer "+got.Value.Reveal() {
				t.Error("Authorization is not Bearer and the token")
			}
		})
	}
}

// fosite rounds expires_in down: a token of one hour says 3599.
func TestFositeExpiresInIsHonoured(t *testing.T) {
	for _, lifespan := range []time.Duration{10 * time.Second, time.Hour} {
		s := serve(t, lifespan)
		a := build(t, &token.ClientCredentials{OAuthClient: s.client(plainID, plainSecret)})
		before := time.Now()
		got := s.acquire(t, a)
		after := time.Now()
		said := time.Duration(s.wire().answer.ExpiresIn) * time.Second
		if said <= 0 || said > lifespan {
			t.Errorf("fosite says expires_in %v for a lifespan of %v", said, lifespan)
		}
		if earliest, latest := before.Add(said), after.Add(said); got.Expires.Before(earliest) || got.Expires.After(latest) {
			t.Errorf("the token expires at %v, want between %v and %v", got.Expires, earliest, latest)
		}
	}
}

func TestFositeRefusalNamesTheKey(t *testing.T) {
	s := serve(t, time.Hour)
	const wrong = "wrong&s3cr3t"
	credentials := func(id, secret, auth string, scopes ...string) token.Settings {
		c := &token.ClientCredentials{OAuthClient: s.client(id, secret, scopes...)}
		c.ClientAuth = auth
		return c
	}
	foreignKey := s.jwtBearer(t)
	foreignKey.KeyFile, _ = key(t)
	foreignScope := s.jwtBearer(t)
	foreignScope.Scopes = []string{"fosite"}
	noSuchRefreshToken := &token.RefreshToken{
		OAuthClient:  s.client(plainID, plainSecret),
		RefreshToken: token.SecretValue(token.NewSecret(wrong)),
	}
	for _, row := range []struct {
		name      string
		settings  token.Settings
		code, key string
		status    int
	}{
		{"wrong secret by basic", credentials(plainID, wrong, ""), "invalid_client", "client_secret", 401},
		{"wrong secret by post", credentials(plainID, wrong, "client_secret_post"), "invalid_client", "client_secret", 401},
		{"wrong secret of the odd client", credentials(oddID, wrong, ""), "invalid_client", "client_secret", 401},
		{"unknown client", credentials("nobody", wrong, ""), "invalid_client", "client_secret", 401},
		{"scope that the client may not have", credentials(plainID, plainSecret, "", "photos", "dicom"), "invalid_scope", "scopes", 400},
		{"scope that the key may not have", foreignScope, "invalid_scope", "scopes", 400},
		{"assertion by a key that fosite does not know", foreignKey, "invalid_grant", "key_file", 400},
		{"refresh token that fosite has not given", noSuchRefreshToken, "invalid_grant", "refresh_token", 400},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := build(t, row.settings).Acquire(t.Context())
			e, ok := errors.AsType[*token.Error](err)
			if !ok {
				t.Fatalf("Acquire: %T %v, want *token.Error", err, err)
			}
			if !got.Value.Empty() {
				t.Error("a token beside the error")
			}
			if e.Class != token.Permanent || e.Code != row.code || e.Key != row.key || e.Status != row.status {
				t.Errorf("got %v %s, key %q, status %d, want permanent %s, key %q, status %d",
					e.Class, e.Code, e.Key, e.Status, row.code, row.key, row.status)
			}
			for _, secret := range []string{wrong, url.QueryEscape(wrong), plainSecret} {
				if strings.Contains(err.Error()+e.Hint+e.Description, secret) {
					t.Errorf("the error shows a secret: %v", err)
				}
			}
		})
	}
}

// The control of every other test: fosite does not call just anything active.
func TestFositeIntrospectionRefusesWhatItHasNotGiven(t *testing.T) {
	s := serve(t, time.Hour)
	got := s.acquire(t, build(t, &token.ClientCredentials{OAuthClient: s.client(plainID, plainSecret)}))
	if s.introspect(t.Context(), token.NewSecret(got.Value.Reveal()+"x")) == nil {
		t.Error("a token that fosite has not given is active")
	}
	if s.introspect(t.Context(), got.Value, "photos") == nil {
		t.Error("the token is active for a scope that nobody asked for")
	}
}

func TestFositeRotatesTheRefreshToken(t *testing.T) {
	s := serve(t, time.Hour)
	c := &token.RefreshToken{OAuthClient: s.client(oddID, oddSecret), RefreshToken: s.refreshToken(t, oddID), Rotation: "memory"}
	a := build(t, c)
	seen := map[string]bool{}
	for range 3 {
		s.acquire(t, a)
		seen[s.wire().form.Get("refresh_token")] = true
	}
	if len(seen) != 3 {
		t.Errorf("%d refresh tokens sent in 3 attempts, want a new one each time", len(seen))
	}

	_, err := build(t, c).Acquire(t.Context()) // as after a restart: the configured one is used up
	if e, ok := errors.AsType[*token.Error](err); !ok || e.Class != token.Permanent || e.Code != "invalid_grant" || e.Key != "refresh_token" {
		t.Errorf("a refresh token that is used up: %v, want a permanent invalid_grant, key refresh_token", err)
	}
}

// fosite takes the id of an assertion (jti) once.
func TestFositeTakesJWTBearerAssertions(t *testing.T) {
	s := serve(t, time.Hour)
	a := build(t, s.jwtBearer(t))
	for range 2 {
		s.acquire(t, a, "photos")
	}
}

// Whoever asks while tokens live 3 s (which fosite calls 2) gets one each time,
// and it is active.
func TestSourceStaysFreshAcrossFositesLifespans(t *testing.T) {
	s := serve(t, 3*time.Second)
	a := build(t, &token.ClientCredentials{OAuthClient: s.client(oddID, oddSecret, "photos")})
	source := token.NewSource(a, token.DefaultLifecycle(), slog.New(slog.DiscardHandler))
	defer source.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	ask := func() *token.Token {
		got, err := source.Token(ctx)
		if err != nil {
			t.Errorf("Token: %v", err)
			return nil
		}
		if err := s.introspect(ctx, got.Value, "photos"); err != nil && time.Now().Before(got.Expires) {
			t.Errorf("generation %d is not active before its end: %v", got.Generation(), err)
		}
		return got
	}
	first := ask()
	if first == nil {
		t.FailNow()
	}

	over := make(chan struct{}) // closed when fosite says that the first token has ended
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			ticker := time.NewTicker(10 * time.Millisecond)
			defer ticker.Stop()
			for ask() != nil {
				select {
				case <-over:
					return
				case <-ticker.C:
				}
			}
		})
	}
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for ctx.Err() == nil && s.introspect(ctx, first.Value) == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	close(over)
	callers.Wait()
	if ctx.Err() != nil {
		t.Fatal("the first token has not ended within a minute")
	}

	last := ask()
	if last == nil {
		t.FailNow()
	}
	if last.Generation() < 3 {
		t.Errorf("generation %d after the end of the first token, want at least 3", last.Generation())
	}
	// One acquisition may be under way, more would be a stampede.
	if st := source.Status(); st.State != token.Fresh || st.Failures != 0 || st.Acquisitions > last.Generation()+1 {
		t.Errorf("%s after %d calls, %d failed, at generation %d; want fresh, one call per generation, none failed",
			st.State, st.Acquisitions, st.Failures, last.Generation())
	}
}
