package token_test

import (
	"crypto"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

func bearerProfile(t *testing.T, e *endpoint) *token.JWTBearer {
	t.Helper()
	c := &token.JWTBearer{TokenEndpoint: e.URL + "/token", AssertionIssuer: "service@project.test"}
	c.CAFile, c.KeyFile = e.ca, keyFile(t, rsaKey())
	return c
}

func TestJWTBearerRequestOnTheWire(t *testing.T) {
	for _, row := range []struct {
		name          string
		change        func(*token.JWTBearer)
		alg           string
		key           crypto.Signer
		sub, aud, kid string // URL stands for the server's
		form          url.Values
	}{
		{name: "what is not said", change: func(*token.JWTBearer) {}, alg: "RS256", key: rsaKey(), sub: "service@project.test", aud: "URL/token", form: url.Values{}},
		{name: "all keys", change: func(c *token.JWTBearer) {
			c.KeyFile, c.KeyID, c.KeyAlg = keyFile(t, p384Key()), "key-1", "ES384"
			c.AssertionSubject, c.AssertionAudience = "user@hospital.test", "https://login.test/"
			c.Scopes, c.Params = []string{"a", "b"}, map[string]string{"resource": "https://dicom.test"}
		}, alg: "ES384", key: p384Key(), sub: "user@hospital.test", aud: "https://login.test/", kid: "key-1", form: url.Values{"scope": {"a b"}, "resource": {"https://dicom.test"}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := serve(t, answers(200, nil, goodAnswer))
			c := bearerProfile(t, e)
			row.change(c)
			acquire(t, c)
			got := e.requests()[0]
			if login := got.Header.Values("Authorization"); login != nil {
				t.Errorf("Authorization %q, want none", login)
			}
			claims, header := verified(t, got.Form.Get("assertion"), row.alg, row.key.Public())
			if claims["iss"] != "service@project.test" || claims["sub"] != row.sub || claims["aud"] != strings.Replace(row.aud, "URL", e.URL, 1) || claims["jti"] == "" {
				t.Errorf("claims %v, want sub %q and aud %q", claims, row.sub, row.aud)
			}
			if kid, _ := header["kid"].(string); kid != row.kid {
				t.Errorf("kid %q, want %q", kid, row.kid)
			}
			got.Form.Del("assertion")
			row.form.Set("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
			if diff := cmp.Diff(row.form, got.Form); diff != "" {
				t.Errorf("form (-want +got):\n%s", diff)
			}
		})
	}
}

func TestJWTBearerSignsAnewWithTheKeyAsItIs(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	c := bearerProfile(t, e)
	a := build(t, c)
	seen := map[any]bool{}
	keys := []crypto.Signer{rsaKey(), rsaKey(), otherRSA()}
	for i, key := range keys {
		overwrite(t, c.KeyFile, pkcs8(t, key))
		if _, err := a.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		claims, _ := verified(t, e.requests()[i].Form.Get("assertion"), "RS256", key.Public())
		seen[claims["jti"]] = true
	}
	if len(seen) != len(keys) {
		t.Errorf("%d different jti in %d assertions", len(seen), len(keys))
	}
	overwrite(t, c.KeyFile, []byte("no key"))
	if got := failure(t.Context(), t, a); got.Class != token.Transient || got.Code != "secret_unreadable" || got.Key != "key_file" {
		t.Errorf("%+v, want secret_unreadable that names key_file", got)
	}
}

func TestCheckNamesEachMistakeOfJWTBearer(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(*token.JWTBearer)
		want   []string
	}{
		{name: "none", change: func(*token.JWTBearer) {}},
		{name: "no endpoint", change: func(c *token.JWTBearer) { c.TokenEndpoint = "" }, want: []string{"token_endpoint: is missing"}},
		{name: "http", change: func(c *token.JWTBearer) { c.TokenEndpoint = "http://login.test" }, want: []string{"token_endpoint: http:// would send the secret in clear"}},
		{name: "no issuer", change: func(c *token.JWTBearer) { c.AssertionIssuer = "" }, want: []string{"assertion_issuer: is missing"}},
		{name: "no key", change: func(c *token.JWTBearer) { c.KeyFile = "" }, want: []string{"key_file: is missing"}},
		{name: "no such key", change: func(c *token.JWTBearer) { c.KeyFile = "/no/such/key" }, want: []string{"key_file: open /no/such/key: no such file or directory"}},
		{name: "another algorithm", change: func(c *token.JWTBearer) { c.KeyAlg = "ES256" }, want: []string{`key_alg: "ES256" does not fit the key`}},
		{name: "no such CA", change: func(c *token.JWTBearer) { c.CAFile = "/no/such/ca" }, want: []string{"ca_file: open /no/such/ca: no such file or directory"}},
		{
			name: "all empty", change: func(c *token.JWTBearer) { *c = token.JWTBearer{} },
			want: []string{"assertion_issuer: is missing", "key_file: is missing", "token_endpoint: is missing"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := &token.JWTBearer{TokenEndpoint: "https://login.test/token", AssertionIssuer: "i"}
			c.KeyFile = keyFile(t, rsaKey())
			row.change(c)
			if diff := cmp.Diff(row.want, reported(t, c)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}
