package token_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

// Keys to sign with, made once: RSA keys take long to make.
var (
	rsaKey   = sync.OnceValue(func() crypto.Signer { return made(rsa.GenerateKey(rand.Reader, 2048)) })
	otherRSA = sync.OnceValue(func() crypto.Signer { return made(rsa.GenerateKey(rand.Reader, 2048)) })
	p256Key  = sync.OnceValue(func() crypto.Signer { return made(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	p384Key  = sync.OnceValue(func() crypto.Signer { return made(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
)

func made[K crypto.Signer](key K, err error) crypto.Signer {
	if err != nil {
		panic(err)
	}
	return key
}

// pkcs8 is a private key as openssl writes it today.
func pkcs8(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func keyFile(t *testing.T, key crypto.Signer) token.PrivateFile {
	t.Helper()
	return token.PrivateFile(file(t, pkcs8(t, key)))
}

// certificate is a self-signed one for the key, in PEM.
func certificate(t *testing.T, key crypto.Signer, name string) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// overwrite puts other content into a file.
func overwrite[F ~string](t *testing.T, path F, content []byte) {
	t.Helper()
	if err := os.WriteFile(string(path), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// keyText are parts of a private key's file that must never be seen.
func keyText(content []byte) []string {
	var lines []string
	for line := range strings.Lines(string(content)) {
		if line = strings.TrimSpace(line); len(line) > 20 && !strings.HasPrefix(line, "-----") {
			lines = append(lines, line)
		}
	}
	return lines
}

// holder is a token server that wants a client certificate, and knows what it
// was shown.
type holder struct {
	*endpoint

	mu    sync.Mutex
	shown []string // common names, one per token request
}

func certificateServer(t *testing.T, bodies map[string]string) *holder {
	t.Helper()
	h := &holder{}
	h.endpoint = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			h.mu.Lock()
			h.shown = append(h.shown, r.TLS.PeerCertificates[0].Subject.CommonName)
			h.mu.Unlock()
		}
		body, ok := bodies[r.URL.Path]
		if !ok {
			body = goodAnswer
		}
		answers(200, nil, strings.ReplaceAll(body, "ISSUER", h.URL))(w, r)
	})
	h.TLS.ClientAuth = tls.RequireAnyClientCert
	return h
}

func (h *holder) names() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.shown)
}

// settings are a profile with the certificate of the given name.
func (h *holder) settings(t *testing.T, name string) *token.ClientCredentials {
	t.Helper()
	c := h.endpoint.settings()
	c.ClientAuth, c.ClientSecret = "tls_client_auth", token.SecretSource{}
	c.CertFile, c.KeyFile = token.File(file(t, certificate(t, p256Key(), name))), keyFile(t, p256Key())
	return c
}

// RFC 8705 section 2: the certificate speaks for itself, and client_id says whose it is.
func TestTLSClientAuthShowsTheCertificate(t *testing.T) {
	h := certificateServer(t, nil)
	c := h.settings(t, "gateway")
	c.Scopes = []string{"dicom"}
	acquire(t, c)
	if diff := cmp.Diff([]string{"gateway"}, h.names()); diff != "" {
		t.Errorf("certificates (-want +got):\n%s", diff)
	}
	got := h.requests()[0]
	if diff := cmp.Diff(url.Values{"grant_type": {"client_credentials"}, "client_id": {"client"}, "scope": {"dicom"}}, got.Form); diff != "" {
		t.Errorf("form (-want +got):\n%s", diff)
	}
	if login := got.Header.Values("Authorization"); login != nil {
		t.Errorf("Authorization %q beside the certificate", login)
	}
}

// RFC 8705 section 5: the endpoint that asks for certificates may be another.
func TestTLSClientAuthUsesTheAliasOfTheTokenEndpoint(t *testing.T) {
	const document = `{"issuer":"ISSUER","token_endpoint":"ISSUER/plain","mtls_endpoint_aliases":{"token_endpoint":"ISSUER/mtls"}}`
	for _, row := range []struct{ auth, want string }{
		{auth: "tls_client_auth", want: "/mtls"},
		{auth: "client_secret_basic", want: "/plain"},
	} {
		t.Run(row.auth, func(t *testing.T) {
			h := certificateServer(t, map[string]string{openIDPath: document})
			c := h.settings(t, "gateway")
			if row.auth != "tls_client_auth" {
				h.TLS.ClientAuth = tls.NoClientCert
				h.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					h.mu.Lock()
					h.shown = append(h.shown, r.URL.Path)
					h.mu.Unlock()
					answers(200, nil, map[bool]string{true: strings.ReplaceAll(document, "ISSUER", h.URL), false: goodAnswer}[r.Method == http.MethodGet])(w, r)
				})
				c = h.endpoint.settings()
				c.ClientAuth = row.auth
			}
			c.TokenEndpoint, c.Issuer = "", h.URL
			acquire(t, c)
			var asked string
			if row.auth == "tls_client_auth" {
				asked = h.requests()[1].Path
			} else {
				asked = h.names()[1]
			}
			if asked != row.want {
				t.Errorf("asked %s for the token, want %s", asked, row.want)
			}
		})
	}
}

// A certificate that is renewed on disk is shown at the very next attempt,
// whatever connections are still open.
func TestReplacedClientCertificateIsShownAtTheNextAttempt(t *testing.T) {
	h := certificateServer(t, nil)
	c := h.settings(t, "old")
	a := build(t, c)
	for i, name := range []string{"old", "new", "newer"} {
		if i > 0 {
			key := []crypto.Signer{p384Key(), rsaKey()}[i-1]
			overwrite(t, c.CertFile, certificate(t, key, name))
			overwrite(t, c.KeyFile, pkcs8(t, key))
		}
		if _, err := a.Acquire(t.Context()); err != nil {
			t.Fatalf("Acquire with the certificate %q: %v", name, err)
		}
	}
	if diff := cmp.Diff([]string{"old", "new", "newer"}, h.names()); diff != "" {
		t.Errorf("certificates (-want +got):\n%s", diff)
	}
}

func TestClientCertificateThatCannotBeReadNamesItsKeys(t *testing.T) {
	h := certificateServer(t, nil)
	for name, spoil := range map[string]func(*token.ClientCredentials) error{
		"no certificate file": func(c *token.ClientCredentials) error { return os.Remove(string(c.CertFile)) },
		"no key file":         func(c *token.ClientCredentials) error { return os.Remove(string(c.KeyFile)) },
		"half written key":    func(c *token.ClientCredentials) error { return os.Truncate(string(c.KeyFile), 60) },
		"another key":         func(c *token.ClientCredentials) error { overwrite(t, c.KeyFile, pkcs8(t, rsaKey())); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			c := h.settings(t, "gateway")
			a := build(t, c)
			if err := spoil(c); err != nil {
				t.Fatal(err)
			}
			got := failure(t.Context(), t, a)
			if got.Class != token.Transient || got.Code != "secret_unreadable" || got.Key != "cert_file" || !strings.Contains(got.Hint, "key_file") {
				t.Errorf("%+v, want secret_unreadable that names cert_file and key_file", got)
			}
			wantHidden(t, &got, keyText(pkcs8(t, p256Key()))...)
		})
	}
	if n := len(h.requests()); n != 0 {
		t.Errorf("%d requests without a certificate", n)
	}
}

func TestBoundCertificateIsToldOnlyWhenTokensAreBound(t *testing.T) {
	for _, bound := range []bool{true, false} {
		c := &token.ClientCredentials{OAuthClient: token.OAuthClient{CertFile: "c.pem", BoundToken: bound}}
		c.KeyFile = "k.pem"
		cert, key, got := c.BoundCertificate()
		if got != bound || cert != "c.pem" || key != "k.pem" {
			t.Errorf("BoundCertificate is %q, %q, %v, want c.pem, k.pem, %v", cert, key, got, bound)
		}
	}
}

// reported returns what Check finds, as "key: problem". Each finding must say
// what to do, and show no secret.
func reported(t *testing.T, c token.Settings) []string {
	t.Helper()
	var got []string
	c.Check(func(key, problem, remedy string) {
		got = append(got, key+": "+problem)
		if remedy == "" {
			t.Errorf("%s: no remedy", key)
		}
		if strings.Contains(problem+remedy, clientSecret) {
			t.Errorf("%s shows the secret: %s, %s", key, problem, remedy)
		}
	})
	slices.Sort(got)
	return got
}

func TestCheckNamesEachMistakeOfClientAuthentication(t *testing.T) {
	rsaPEM := pkcs8(t, rsaKey())
	rsaFile, p256, p384 := keyFile(t, rsaKey()), keyFile(t, p256Key()), keyFile(t, p384Key())
	certFile := file(t, certificate(t, rsaKey(), "gateway"))
	junk := file(t, []byte("no PEM"))
	p521 := keyFile(t, made(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)))
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	edFile := keyFile(t, ed)
	encrypted := file(t, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"))
	damaged := file(t, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	rsaFromCert := file(t, append(certificate(t, rsaKey(), "first"), rsaPEM...))
	secret := token.SecretValue(token.NewSecret(clientSecret))
	type c = token.ClientCredentials

	for _, row := range []struct {
		name   string
		change func(*c)
		want   []string
	}{
		{name: "none, key_file alone means private_key_jwt", change: func(c *c) { c.KeyFile = rsaFile }},
		{name: "none, all keys of private_key_jwt", change: func(c *c) {
			c.ClientAuth, c.KeyFile, c.KeyID, c.KeyAlg, c.AssertionAudience, c.CertFile = "private_key_jwt", rsaFile, "k1", "PS256", "https://login.test/", certFile
		}},
		{name: "none, RS384", change: func(c *c) { c.KeyFile, c.KeyAlg = rsaFile, "RS384" }},
		{name: "none, ES256", change: func(c *c) { c.KeyFile, c.KeyAlg = p256, "ES256" }},
		{name: "none, ES384", change: func(c *c) { c.KeyFile, c.KeyAlg = p384, "ES384" }},
		{name: "none, a key behind a certificate", change: func(c *c) { c.KeyFile = token.PrivateFile(rsaFromCert) }},
		{name: "none, tls_client_auth", change: func(c *c) {
			c.ClientAuth, c.KeyFile, c.CertFile, c.BoundToken = "tls_client_auth", rsaFile, certFile, true
		}},
		{name: "none, the issuer is the audience", change: func(c *c) {
			c.KeyFile, c.AssertionAudience, c.TokenEndpoint, c.Issuer = rsaFile, "issuer", "", "https://login.test"
		}},

		{name: "two ways: key_file and client_secret", change: func(c *c) { c.KeyFile, c.ClientSecret = rsaFile, secret }, want: []string{`client_secret: has no meaning for client_auth "private_key_jwt"`}},
		{name: "two ways: tls_client_auth and client_secret", change: func(c *c) {
			c.ClientAuth, c.KeyFile, c.CertFile, c.ClientSecret = "tls_client_auth", rsaFile, certFile, secret
		}, want: []string{`client_secret: has no meaning for client_auth "tls_client_auth"`}},
		{
			name: "two ways: cert_file without client_auth", change: func(c *c) { c.KeyFile, c.CertFile = rsaFile, certFile },
			want: []string{"client_auth: is missing: cert_file may serve tls_client_auth or private_key_jwt"},
		},
		{name: "two ways: basic and key_file", change: func(c *c) {
			c.ClientAuth, c.ClientSecret, c.KeyFile = "client_secret_basic", secret, rsaFile
		}, want: []string{`key_file: has no meaning for client_auth "client_secret_basic"`}},
		{name: "post and all the others' keys", change: func(c *c) {
			c.ClientAuth, c.ClientSecret, c.KeyFile, c.KeyID, c.KeyAlg, c.AssertionAudience, c.CertFile, c.BoundToken = "client_secret_post", secret, rsaFile, "k", "RS256", "issuer", certFile, true
		}, want: []string{
			`assertion_audience: has no meaning for client_auth "client_secret_post"`, `bound_token: has no meaning for client_auth "client_secret_post"`,
			`cert_file: has no meaning for client_auth "client_secret_post"`, `key_alg: has no meaning for client_auth "client_secret_post"`,
			`key_file: has no meaning for client_auth "client_secret_post"`, `key_id: has no meaning for client_auth "client_secret_post"`,
		}},
		{name: "key_id with a secret and no client_auth", change: func(c *c) { c.ClientSecret, c.KeyID = secret, "k" }, want: []string{`key_id: has no meaning for client_auth "client_secret_basic"`}},
		{name: "bound_token with private_key_jwt", change: func(c *c) { c.KeyFile, c.BoundToken = rsaFile, true }, want: []string{`bound_token: has no meaning for client_auth "private_key_jwt"`}},
		{name: "key_alg with tls_client_auth", change: func(c *c) {
			c.ClientAuth, c.KeyFile, c.CertFile, c.KeyAlg = "tls_client_auth", rsaFile, certFile, "RS256"
		}, want: []string{`key_alg: has no meaning for client_auth "tls_client_auth"`}},
		{name: "a client_auth that is not supported", change: func(c *c) { c.ClientAuth, c.ClientSecret = "client_secret_jwt", secret }, want: []string{`client_auth: "client_secret_jwt" is not supported`}},
		{name: "private_key_jwt without a key", change: func(c *c) { c.ClientAuth = "private_key_jwt" }, want: []string{"key_file: is missing"}},
		{name: "no such key file", change: func(c *c) { c.KeyFile = "/no/such/key" }, want: []string{"key_file: open /no/such/key: no such file or directory"}},
		{name: "a key file that is no key", change: func(c *c) { c.KeyFile = token.PrivateFile(junk) }, want: []string{"key_file: " + string(junk) + ": no PEM private key in it"}},
		{name: "a certificate for a key", change: func(c *c) { c.KeyFile = token.PrivateFile(certFile) }, want: []string{"key_file: " + string(certFile) + ": no PEM private key in it"}},
		{
			name: "an encrypted key", change: func(c *c) { c.KeyFile = token.PrivateFile(encrypted) },
			want: []string{"key_file: " + string(encrypted) + ": the private key is encrypted; give it unencrypted, readable for the gateway's user alone"},
		},
		{name: "a damaged key", change: func(c *c) { c.KeyFile = token.PrivateFile(damaged) }, want: []string{"key_file: " + string(damaged) + ": the private key cannot be read"}},
		{name: "a P-521 key", change: func(c *c) { c.KeyFile = p521 }, want: []string{"key_file: " + string(p521) + ": neither an RSA key nor an EC key on P-256 or P-384"}},
		{name: "an Ed25519 key", change: func(c *c) { c.KeyFile = edFile }, want: []string{"key_file: " + string(edFile) + ": neither an RSA key nor an EC key on P-256 or P-384"}},
		{name: "an EC algorithm for an RSA key", change: func(c *c) { c.KeyFile, c.KeyAlg = rsaFile, "ES256" }, want: []string{`key_alg: "ES256" does not fit the key`}},
		{name: "the algorithm of another curve", change: func(c *c) { c.KeyFile, c.KeyAlg = p256, "ES384" }, want: []string{`key_alg: "ES384" does not fit the key`}},
		{name: "none as algorithm", change: func(c *c) { c.KeyFile, c.KeyAlg = rsaFile, "none" }, want: []string{`key_alg: "none" does not fit the key`}},
		{name: "a symmetric algorithm", change: func(c *c) { c.KeyFile, c.KeyAlg = rsaFile, "HS256" }, want: []string{`key_alg: "HS256" does not fit the key`}},
		{name: "the issuer as audience, and no issuer", change: func(c *c) { c.KeyFile, c.AssertionAudience = rsaFile, "issuer" }, want: []string{"assertion_audience: there is no issuer"}},
		{
			name: "an audience that is nothing", change: func(c *c) { c.KeyFile, c.AssertionAudience = rsaFile, "login" },
			want: []string{`assertion_audience: "login" is not token_endpoint, issuer or a URL`},
		},
		{name: "no such certificate for x5t", change: func(c *c) {
			c.ClientAuth, c.KeyFile, c.CertFile = "private_key_jwt", rsaFile, "/no/such/cert"
		}, want: []string{"cert_file: open /no/such/cert: no such file or directory"}},
		{name: "no certificate for x5t", change: func(c *c) {
			c.ClientAuth, c.KeyFile, c.CertFile = "private_key_jwt", rsaFile, junk
		}, want: []string{"cert_file: no PEM certificate in " + string(junk)}},
		{name: "tls_client_auth without files", change: func(c *c) { c.ClientAuth = "tls_client_auth" }, want: []string{"cert_file: open : no such file or directory"}},
		{name: "the certificate of another key", change: func(c *c) {
			c.ClientAuth, c.KeyFile, c.CertFile = "tls_client_auth", p256, certFile
		}, want: []string{"cert_file: tls: private key type does not match public key type"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := &c{OAuthClient: token.OAuthClient{TokenEndpoint: "https://login.test/token", ClientID: "client"}}
			row.change(c)
			got := reported(t, c)
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			wantHidden(t, got, keyText(rsaPEM)...)
		})
	}
}

// full returns a profile of each type that asks a token endpoint, and of
// client_credentials each way to authenticate, all good, with its secrets.
func full(t *testing.T, e *endpoint) (profiles map[string]token.Settings, secrets []string) {
	t.Helper()
	signing := pkcs8(t, rsaKey())
	certPEM := certificate(t, rsaKey(), "gateway")
	secrets = append(keyText(signing), clientSecret, url.QueryEscape(clientSecret), base64.StdEncoding.EncodeToString([]byte("client:"+clientSecret)), refresh0, subjectToken, accessToken, planted)
	oauth := func(auth string) token.OAuthClient {
		c := e.settings().OAuthClient
		c.ClientAuth = auth
		if auth == "private_key_jwt" || auth == "tls_client_auth" {
			c.ClientSecret, c.KeyFile = token.SecretSource{}, token.PrivateFile(file(t, signing))
		}
		if auth == "tls_client_auth" {
			c.CertFile = file(t, certPEM)
		}
		return c
	}
	bearer := &token.JWTBearer{TokenEndpoint: e.URL + "/token", AssertionIssuer: "client"}
	bearer.CAFile, bearer.KeyFile = e.ca, token.PrivateFile(file(t, signing))
	profiles = map[string]token.Settings{
		"refresh_token":  &token.RefreshToken{OAuthClient: oauth(""), RefreshToken: token.SecretValue(token.NewSecret(refresh0))},
		"token_exchange": &token.Exchange{OAuthClient: oauth(""), SubjectToken: token.SecretFile(string(file(t, []byte(subjectToken))))},
		"jwt_bearer":     bearer,
	}
	for _, auth := range []string{"client_secret_basic", "client_secret_post", "private_key_jwt", "tls_client_auth"} {
		profiles["client_credentials by "+auth] = &token.ClientCredentials{OAuthClient: oauth(auth)}
		profiles["refresh_token by "+auth] = &token.RefreshToken{OAuthClient: oauth(auth), RefreshToken: token.SecretValue(token.NewSecret(refresh0))}
	}
	return profiles, secrets
}

// tomlKeys are the keys that a profile type knows.
func tomlKeys(typ reflect.Type, known map[string]bool) {
	for f := range typ.Fields() {
		if name := f.Tag.Get("toml"); name != "" {
			known[name] = true
		} else if f.Anonymous {
			tomlKeys(f.Type, known)
		}
	}
}

// Whatever a provider refuses: the key to look at, and each key in the hint, is
// one that this profile has or can have, and never a secret that it does not use.
func TestHintNamesKeysThatTheProfileHas(t *testing.T) {
	all := map[string]bool{}
	for _, typ := range []any{token.ClientCredentials{}, token.RefreshToken{}, token.JWTBearer{}, token.Exchange{}} {
		tomlKeys(reflect.TypeOf(typ), all)
	}
	word := regexp.MustCompile(`[a-z]+(_[a-z]+)+`)
	for _, code := range []string{
		"invalid_client", "invalid_grant", "invalid_scope", "invalid_target", "invalid_request", "unauthorized_client",
		"unsupported_grant_type", "access_denied", "",
	} {
		for _, status := range []int{400, 401, 403} {
			e := serve(t, answers(status, nil, `{"error":"`+code+`","error_description":"`+planted+`"}`))
			profiles, secrets := full(t, e)
			for name, c := range profiles {
				got := failure(t.Context(), t, build(t, c))
				wantHidden(t, &got, secrets...)
				known := map[string]bool{}
				tomlKeys(reflect.TypeOf(c).Elem(), known)
				auth := strings.TrimPrefix(name[strings.LastIndex(name, " ")+1:], "by ")
				if auth == "private_key_jwt" || auth == "tls_client_auth" {
					delete(known, "client_secret")
				}
				if got.Hint == "" {
					t.Errorf("%s, %d %s: no hint", name, status, code)
				}
				if got.Key != "" && !known[got.Key] {
					t.Errorf("%s, %d %s: names the key %q, which this profile does not have", name, status, code, got.Key)
				}
				for _, key := range word.FindAllString(got.Hint, -1) {
					if all[key] && !known[key] {
						t.Errorf("%s, %d %s: the hint names %q, which this profile does not have: %s", name, status, code, key, got.Hint)
					}
				}
			}
		}
	}
}

func TestRefusedClientNamesWhatProvesIt(t *testing.T) {
	want := map[string][]string{ // the key, and what the hint must name
		"client_credentials by client_secret_basic": {"client_secret", "client_id", "client_secret", "client_auth"},
		"client_credentials by client_secret_post":  {"client_secret", "client_id", "client_secret", "client_auth"},
		"client_credentials by private_key_jwt":     {"key_file", "client_id", "key_file", "key_id", "key_alg", "assertion_audience"},
		"client_credentials by tls_client_auth":     {"cert_file", "client_id", "cert_file"},
		"refresh_token":                             {"client_secret", "client_id", "client_secret"},
		"token_exchange":                            {"client_secret", "client_id", "client_secret"},
		"jwt_bearer":                                {"key_file", "assertion_issuer", "key_file", "key_id"},
	}
	// Keycloak answers a wrong secret or assertion with 401 unauthorized_client.
	for _, code := range []string{"invalid_client", "unauthorized_client"} {
		e := serve(t, answers(401, nil, `{"error":"`+code+`"}`))
		profiles, _ := full(t, e)
		for name, keys := range want {
			got := failure(t.Context(), t, build(t, profiles[name]))
			if got.Class != token.Permanent || got.Code != code || got.Key != keys[0] {
				t.Errorf("%s: %+v, want the permanent %s for %s", name, got, code, keys[0])
			}
			for _, key := range keys[1:] {
				if !strings.Contains(got.Hint, key) {
					t.Errorf("%s, %s: the hint does not name %s: %s", name, code, key, got.Hint)
				}
			}
		}
	}
}

func TestRefusedGrantNamesIt(t *testing.T) {
	e := serve(t, answers(400, nil, `{"error":"invalid_grant"}`))
	profiles, _ := full(t, e)
	for name, key := range map[string]string{"refresh_token": "refresh_token", "token_exchange": "subject_token", "jwt_bearer": "key_file"} {
		got := failure(t.Context(), t, build(t, profiles[name]))
		if got.Class != token.Permanent || got.Code != "invalid_grant" || got.Key != key || !strings.Contains(got.Hint, key) {
			t.Errorf("%s: %+v, want the permanent invalid_grant for %s", name, got, key)
		}
	}
}

// The provider sends back all that it got, in each member that could reach a
// log. Nothing of it, and no file's content, may be seen afterwards.
func TestNothingOfTheExchangeIsShownByAnyType(t *testing.T) {
	for _, status := range []int{200, 400, 401, 429, 500} {
		var e *endpoint
		e = serve(t, func(w http.ResponseWriter, r *http.Request) {
			sent := e.requests()
			last := sent[len(sent)-1]
			echo := url.QueryEscape(fmt.Sprint(last.Form, last.Header)) + planted
			raw := last.Form.Encode() + strings.Join(last.Header.Values("Authorization"), "") + planted
			answers(status, http.Header{"Retry-After": {"9"}, "X-Echo": {echo}},
				fmt.Sprintf(`{"error":"invalid_client","error_description":%q,"error_uri":%q,"access_token":%q}`, raw, echo, accessToken))(w, r)
		})
		profiles, secrets := full(t, e)
		for name, c := range profiles {
			before := len(e.requests())
			var log bytes.Buffer
			life := token.DefaultLifecycle()
			life.MaxAttempts = 1 // no waits
			s := token.NewSource(build(t, c), life, slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
			_, err := s.Token(t.Context())
			s.Close()
			hidden := slices.Clone(secrets)
			for _, r := range e.requests()[before:] {
				for _, name := range []string{"assertion", "client_assertion"} {
					if a := r.Form.Get(name); a != "" {
						hidden = append(hidden, a, a[strings.LastIndex(a, ".")+1:])
					}
				}
			}
			if err == nil || log.Len() == 0 {
				t.Errorf("%s, %d: error %v and %d bytes of log, want both", name, status, err, log.Len())
			}
			wantHidden(t, err, hidden...)
			wantHidden(t, log.String(), hidden...)
			wantHidden(t, s.Status(), hidden...)
			wantHidden(t, c, hidden...)
		}
	}
}

func TestParamsCannotReplaceWhatTheGrantSends(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	profiles, _ := full(t, e)
	for name, reserved := range map[string][]string{
		"refresh_token":  {"refresh_token", "grant_type", "client_assertion", "scope"},
		"token_exchange": {"subject_token", "subject_token_type", "requested_token_type", "grant_type"},
		"jwt_bearer":     {"assertion", "grant_type", "scope"},
	} {
		for _, param := range reserved {
			c := profiles[name]
			switch c := c.(type) {
			case *token.RefreshToken:
				c.Params = map[string]string{param: "x"}
			case *token.Exchange:
				c.Params = map[string]string{param: "x"}
			case *token.JWTBearer:
				c.Params = map[string]string{param: "x"}
			}
			if diff := cmp.Diff([]string{"params." + param + ": is set by the gateway itself"}, reported(t, c)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
	}
}

// oauthClient is a sound client with a secret, for what asks nobody.
func oauthClient() token.OAuthClient {
	return token.OAuthClient{TokenEndpoint: "https://login.test/token", ClientID: "client", ClientSecret: token.SecretValue(token.NewSecret(clientSecret))}
}
