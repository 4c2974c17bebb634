package token_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // x5t is a SHA-1 thumbprint
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// asserting makes a profile use private_key_jwt.
func asserting(c *token.ClientCredentials, key token.PrivateFile) *token.ClientCredentials {
	c.ClientAuth, c.ClientSecret, c.KeyFile = "private_key_jwt", token.SecretSource{}, key
	return c
}

// verified returns an assertion after its signature was found good, and its
// times as a strict provider wants them.
func verified(t *testing.T, assertion, alg string, public crypto.PublicKey) (jwt.MapClaims, map[string]any) {
	t.Helper()
	claims := jwt.MapClaims{}
	got, err := jwt.ParseWithClaims(assertion, claims, func(*jwt.Token) (any, error) { return public, nil },
		jwt.WithValidMethods([]string{alg}), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithStrictDecoding())
	if err != nil {
		t.Fatalf("the assertion is not valid: %v", err)
	}
	exp, _ := claims["exp"].(float64)
	iat, _ := claims["iat"].(float64)
	if life := exp - iat; life <= 0 || life > 300 || exp > float64(time.Now().Add(5*time.Minute).Unix()) {
		t.Errorf("the assertion lives %v s, want up to 300", life)
	}
	return claims, got.Header
}

func TestAssertionOnTheWire(t *testing.T) {
	sec1 := func(key crypto.Signer) []byte {
		der, err := x509.MarshalECPrivateKey(key.(*ecdsa.PrivateKey))
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	}
	// As openssl ecparam writes it: the curve's name comes first.
	parameters := []byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n")
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey().(*rsa.PrivateKey))})
	for _, row := range []struct {
		name, alg, want string
		key             crypto.Signer
		pem             []byte
	}{
		{name: "RSA means RS256", want: "RS256", key: rsaKey(), pem: pkcs8(t, rsaKey())},
		{name: "RS256 from PKCS 1", alg: "RS256", want: "RS256", key: rsaKey(), pem: pkcs1},
		{name: "RS384, SMART", alg: "RS384", want: "RS384", key: rsaKey(), pem: pkcs8(t, rsaKey())},
		{name: "PS256, Entra", alg: "PS256", want: "PS256", key: rsaKey(), pem: pkcs8(t, rsaKey())},
		{name: "P-256 means ES256", want: "ES256", key: p256Key(), pem: pkcs8(t, p256Key())},
		{name: "ES256 with parameters before it", alg: "ES256", want: "ES256", key: p256Key(), pem: append(parameters, sec1(p256Key())...)},
		{name: "P-384 means ES384", want: "ES384", key: p384Key(), pem: sec1(p384Key())},
		{name: "ES384, SMART", alg: "ES384", want: "ES384", key: p384Key(), pem: pkcs8(t, p384Key())},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := serve(t, answers(200, nil, goodAnswer))
			certPEM := certificate(t, row.key, "gateway")
			c := asserting(e.settings(), token.PrivateFile(file(t, row.pem)))
			c.KeyID, c.KeyAlg, c.CertFile, c.Scopes = "key-1", row.alg, file(t, certPEM), []string{"dicom"}
			acquire(t, c)

			got := e.requests()[0]
			if login := got.Header.Values("Authorization"); login != nil {
				t.Errorf("Authorization %q beside the assertion", login)
			}
			assertion := got.Form.Get("client_assertion")
			got.Form.Del("client_assertion")
			want := url.Values{"grant_type": {"client_credentials"}, "client_id": {"client"}, "scope": {"dicom"}, "client_assertion_type": {assertionType}}
			if diff := cmp.Diff(want, got.Form); diff != "" {
				t.Errorf("form (-want +got):\n%s", diff)
			}

			claims, header := verified(t, assertion, row.want, row.key.Public())
			block, _ := pem.Decode(certPEM)
			one, two := sha1.Sum(block.Bytes), sha256.Sum256(block.Bytes)
			wantHeader := map[string]any{
				"alg": row.want, "typ": "JWT", "kid": "key-1",
				"x5t": base64.RawURLEncoding.EncodeToString(one[:]), "x5t#S256": base64.RawURLEncoding.EncodeToString(two[:]),
			}
			if diff := cmp.Diff(wantHeader, header); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			if claims["iss"] != "client" || claims["sub"] != "client" || claims["aud"] != e.URL+"/token" || claims["jti"] == "" {
				t.Errorf("claims %v, want iss and sub client, aud the token endpoint, and a jti", claims)
			}
		})
	}
}

func TestAssertionNamesNoKeyThatWasNotConfigured(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	c := e.settings() // key_file alone means private_key_jwt
	c.ClientSecret, c.KeyFile = token.SecretSource{}, keyFile(t, p256Key())
	acquire(t, c)
	_, header := verified(t, e.requests()[0].Form.Get("client_assertion"), "ES256", p256Key().Public())
	if diff := cmp.Diff(map[string]any{"alg": "ES256", "typ": "JWT"}, header); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
}

// Providers disagree about the audience (facts: Auth0 wants its tenant's URL with the slash).
func TestAudienceOfTheAssertion(t *testing.T) {
	for _, row := range []struct {
		setting, want string // URL stands for the server's
		byIssuer      bool
	}{
		{setting: "", want: "URL/token"},
		{setting: "token_endpoint", want: "URL/token"},
		{setting: "", want: "URL/here/token", byIssuer: true},
		{setting: "token_endpoint", want: "URL/here/token", byIssuer: true},
		{setting: "issuer", want: "URL", byIssuer: true},
		{setting: "https://tenant.auth0.test/", want: "https://tenant.auth0.test/"},
		{setting: "https://tenant.auth0.test/", want: "https://tenant.auth0.test/", byIssuer: true},
	} {
		e, c := issuer(t, map[string]string{openIDPath: document(""), "/here/token": goodAnswer, "/token": goodAnswer})
		if !row.byIssuer {
			c.TokenEndpoint, c.Issuer = e.URL+"/token", ""
		}
		asserting(c, keyFile(t, p256Key())).AssertionAudience = row.setting
		acquire(t, c)
		requests := e.requests()
		claims, _ := verified(t, requests[len(requests)-1].Form.Get("client_assertion"), "ES256", p256Key().Public())
		if want := strings.Replace(row.want, "URL", e.URL, 1); claims["aud"] != want {
			t.Errorf("assertion_audience %q, by issuer %v: aud %q, want %q", row.setting, row.byIssuer, claims["aud"], want)
		}
	}
}

// Providers take each assertion once: a retry within one acquisition needs a new
// one as much as the next acquisition does.
func TestEachAttemptHasAnAssertionOfItsOwn(t *testing.T) {
	t.Parallel() // a retry waits up to half a second
	e := serve(t, func() http.HandlerFunc {
		n := 0
		return func(w http.ResponseWriter, r *http.Request) {
			if n++; n == 1 {
				answers(503, nil, "")(w, r)
				return
			}
			answers(200, nil, goodAnswer)(w, r)
		}
	}())
	c := asserting(e.settings(), keyFile(t, p256Key()))
	a := build(t, c)
	s := token.NewSource(a, token.DefaultLifecycle(), slog.New(slog.DiscardHandler))
	defer s.Close()
	if _, err := s.Token(t.Context()); err != nil {
		t.Fatalf("Token: %v", err)
	}
	if st := s.Status(); st.Acquisitions != 2 || st.Failures != 1 {
		t.Fatalf("%d attempts, %d failed, want 2 and 1", st.Acquisitions, st.Failures)
	}
	if _, err := a.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range e.requests() {
		claims, _ := verified(t, r.Form.Get("client_assertion"), "ES256", p256Key().Public())
		jti, _ := claims["jti"].(string)
		if len(jti) < 20 || seen[jti] {
			t.Errorf("jti %q is short or came before", jti)
		}
		seen[jti] = true
	}
	if len(seen) != 3 {
		t.Errorf("%d assertions, want 3", len(seen))
	}
}

func TestSigningKeyIsReadAtEachAttempt(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	c := asserting(e.settings(), keyFile(t, rsaKey()))
	a := build(t, c)
	keys := []crypto.Signer{rsaKey(), otherRSA()}
	for _, key := range keys {
		overwrite(t, c.KeyFile, pkcs8(t, key))
		if _, err := a.Acquire(t.Context()); err != nil {
			t.Fatalf("Acquire: %v", err)
		}
	}
	for i, r := range e.requests() {
		verified(t, r.Form.Get("client_assertion"), "RS256", keys[i].Public())
	}

	// In the midst of a rotation: an error that will pass, and nothing is sent.
	whole := pkcs8(t, rsaKey())
	for _, row := range []struct {
		name  string
		spoil func()
	}{
		{"half a file", func() { overwrite(t, c.KeyFile, whole[:len(whole)/2]) }},
		{"an empty file", func() { overwrite(t, c.KeyFile, nil) }},
		{"a key that cannot be read", func() {
			overwrite(t, c.KeyFile, []byte(strings.Replace(string(whole), "PRIVATE", "RSA PRIVATE", 2)))
		}},
		{"no file", func() { _ = os.Remove(string(c.KeyFile)) }},
	} {
		row.spoil()
		got := failure(t.Context(), t, a)
		if got.Class != token.Transient || got.Code != "secret_unreadable" || got.Key != "key_file" || !strings.Contains(got.Hint, "key_file") {
			t.Errorf("%s: %+v, want secret_unreadable that names key_file", row.name, got)
		}
		wantHidden(t, &got, keyText(whole)...)
	}
	overwrite(t, c.KeyFile, whole)
	c.ClientAuth, c.CertFile = "private_key_jwt", "/no/such/cert"
	if got := failure(t.Context(), t, a); got.Class != token.Transient || got.Key != "cert_file" || !strings.Contains(got.Hint, "cert_file") {
		t.Errorf("%+v, want secret_unreadable that names cert_file", got)
	}
	if n := len(e.requests()); n != len(keys) {
		t.Errorf("%d requests without a good key", n-len(keys))
	}
}
