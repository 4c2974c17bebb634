package token_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"log/slog"
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
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

const (
	azureTenant    = "11111111-2222-3333-4444-555555555555"
	azureClient    = "66666666-7777-8888-9999-000000000000"
	azureScope     = "https://dicom.healthcareapis.azure.com/.default"
	federatedToken = "federated-token-of-the-pod"
)

// entra is Microsoft Entra on loopback, asked by the SDK's own code: a discovery
// document, and whatever the test says at the token endpoint.
func entra(t *testing.T, answer http.HandlerFunc) *endpoint {
	t.Helper()
	return serve(t, entraHandler(answer))
}

func entraHandler(answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/" + azureTenant + "/v2.0/.well-known/openid-configuration":
			answers(200, nil, entraDocument("https://"+r.Host, "https://"+r.Host))(w, r)
		case "/" + azureTenant + "/oauth2/v2.0/token":
			answer(w, r)
		default:
			http.Error(w, "the SDK asked for "+r.URL.Path, http.StatusTeapot)
		}
	}
}

func entraDocument(issuer, endpoints string) string {
	return fmt.Sprintf(`{"issuer":"%[1]s/%[3]s/v2.0","authorization_endpoint":"%[2]s/%[3]s/oauth2/v2.0/authorize","token_endpoint":"%[2]s/%[3]s/oauth2/v2.0/token","x":"%[4]s"}`,
		issuer, endpoints, azureTenant, planted)
}

// numbered answers each request with a token of its own.
func numbered() http.HandlerFunc {
	var n atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) {
		answers(200, nil, fmt.Sprintf(`{"access_token":"%s-%d","token_type":"Bearer","expires_in":3599,"ext_expires_in":3599}`, accessToken, n.Add(1)))(w, r)
	}
}

// posts are the token requests that the server has received.
func (e *endpoint) posts() []received {
	var posts []received
	for _, r := range e.requests() {
		if r.Method == http.MethodPost {
			posts = append(posts, r)
		}
	}
	return posts
}

func (e *endpoint) azureSecret() *token.AzureClientSecret {
	c := &token.AzureClientSecret{TenantID: azureTenant, ClientID: azureClient, ClientSecret: token.SecretValue(token.NewSecret(clientSecret))}
	c.AuthorityHost, c.CAFile, c.Scopes = e.URL, e.ca, []string{azureScope}
	return c
}

func (e *endpoint) azureCertificate(t *testing.T) *token.AzureClientCertificate {
	t.Helper()
	cert, key := azureKeyPair(t, azureRSAKey(t))
	c := &token.AzureClientCertificate{TenantID: azureTenant, ClientID: azureClient, CertFile: cert, KeyFile: token.PrivateFile(key)}
	c.AuthorityHost, c.CAFile, c.Scopes = e.URL, e.ca, []string{azureScope}
	return c
}

func (e *endpoint) azureWorkload(t *testing.T) *token.AzureWorkloadIdentity {
	t.Helper()
	c := &token.AzureWorkloadIdentity{TenantID: azureTenant, ClientID: azureClient, TokenFile: file(t, []byte(federatedToken))}
	c.AuthorityHost, c.CAFile, c.Scopes = e.URL, e.ca, []string{azureScope}
	return c
}

// azureTypes are the types that ask Entra.
func (e *endpoint) azureTypes(t *testing.T) map[string]token.Settings {
	t.Helper()
	return map[string]token.Settings{
		"azure_client_secret":      e.azureSecret(),
		"azure_client_certificate": e.azureCertificate(t),
		"azure_workload_identity":  e.azureWorkload(t),
	}
}

func azureRSAKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func azureECKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// azureKeyPair writes a key and a self-signed certificate for it.
func azureKeyPair(t *testing.T, key crypto.Signer) (cert, private token.File) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gateway"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(50, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return file(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		file(t, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

// Each acquisition gives a new token: after an upstream's 401 the SDK's own
// cache would give the same one again.
func TestAzureEntraGivesANewTokenEachTime(t *testing.T) {
	e := entra(t, numbered())
	for name, settings := range e.azureTypes(t) {
		t.Run(name, func(t *testing.T) {
			before := len(e.requests())
			a := build(t, settings)
			wantHidden(t, a, clientSecret, federatedToken)
			var got [2]token.Token
			for i := range got {
				began := time.Now()
				var err error
				if got[i], err = a.Acquire(t.Context()); err != nil {
					t.Fatalf("Acquire: %v", err)
				}
				if !strings.HasPrefix(got[i].Value.Reveal(), accessToken) {
					t.Errorf("token %q", got[i].Value.Reveal())
				}
				life := 3599 * time.Second
				if got[i].Expires.Before(began.Add(life-time.Second)) || got[i].Expires.After(time.Now().Add(life)) {
					t.Errorf("expires in %v, want 3599 s", time.Until(got[i].Expires))
				}
				wantHidden(t, got[i], accessToken)
			}
			if got[0].Value.Reveal() == got[1].Value.Reveal() {
				t.Error("the second acquisition gave the first one's token")
			}
			var methods []string
			for _, r := range e.requests()[before:] {
				methods = append(methods, r.Method)
				if r.Method != http.MethodPost {
					continue
				}
				want := url.Values{"grant_type": {"client_credentials"}, "client_id": {azureClient}}
				form := url.Values{}
				for name := range want {
					form[name] = r.Form[name]
				}
				if diff := cmp.Diff(want, form); diff != "" {
					t.Errorf("form (-want +got):\n%s", diff)
				}
				if !strings.Contains(" "+r.Form.Get("scope")+" ", " "+azureScope+" ") {
					t.Errorf("scope %q, want %s", r.Form.Get("scope"), azureScope)
				}
				if r.Form.Has("claims") {
					t.Errorf("claims %q went out", r.Form.Get("claims"))
				}
				if r.Header.Get("User-Agent") != "" && strings.Contains(r.Header.Get("User-Agent"), "azsdk") {
					t.Errorf("telemetry went out: %s", r.Header.Get("User-Agent"))
				}
			}
			if diff := cmp.Diff([]string{"GET", "POST", "GET", "POST"}, methods); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAzureSecretFileIsReadAtEachAcquisition(t *testing.T) {
	e := entra(t, numbered())
	path := string(file(t, []byte("first\n")))
	c := e.azureSecret()
	c.ClientSecret = token.SecretFile(path)
	a := build(t, c)
	for _, content := range []string{"first\n", "second"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Acquire(t.Context()); err != nil {
			t.Fatalf("Acquire: %v", err)
		}
	}
	var sent []string
	for _, r := range e.posts() {
		sent = append(sent, r.Form.Get("client_secret"))
	}
	if diff := cmp.Diff([]string{"first", "second"}, sent); diff != "" {
		t.Errorf("secrets (-want +got):\n%s", diff)
	}
	_ = os.Remove(path)
	if got := failure(t.Context(), t, a); got.Class != token.Transient || got.Code != "secret_unreadable" || got.Key != "client_secret" {
		t.Errorf("missing file: %+v", got)
	}
}

// The assertion is checked as Entra does it: PS256 by the registered key,
// x5t#S256, audience, issuer, subject, a short life, an id of its own.
func TestAzureCertificateSignsAnAssertionPerAcquisition(t *testing.T) {
	e := entra(t, numbered())
	c := e.azureCertificate(t)
	a := build(t, c)
	seen := map[string]bool{}
	for range 2 {
		if _, err := a.Acquire(t.Context()); err != nil {
			t.Fatalf("Acquire: %v", err)
		}
		text, err := os.ReadFile(string(c.CertFile))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		sent := e.posts()[len(e.posts())-1].Form
		if got := sent.Get("client_assertion_type"); got != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
			t.Errorf("client_assertion_type %q", got)
		}
		parsed, err := jwt.Parse(sent.Get("client_assertion"), func(*jwt.Token) (any, error) { return cert.PublicKey, nil },
			jwt.WithValidMethods([]string{"PS256"}), jwt.WithIssuer(azureClient), jwt.WithSubject(azureClient),
			jwt.WithAudience(e.URL+"/"+azureTenant+"/oauth2/v2.0/token"), jwt.WithExpirationRequired())
		if err != nil {
			t.Fatalf("assertion: %v", err)
		}
		sum := sha256.Sum256(cert.Raw)
		if got := parsed.Header["x5t#S256"]; got != base64.StdEncoding.EncodeToString(sum[:]) && got != base64.RawURLEncoding.EncodeToString(sum[:]) {
			t.Errorf("x5t#S256 %v is not the certificate's", got)
		}
		claims := parsed.Claims.(jwt.MapClaims)
		if exp, err := claims.GetExpirationTime(); err != nil || time.Until(exp.Time) > 10*time.Minute {
			t.Errorf("expires at %v, want within 10 minutes", exp)
		}
		id, _ := claims["jti"].(string)
		if id == "" || seen[id] {
			t.Errorf("jti %q is empty, or was used before", id)
		}
		seen[id] = true
		// Rotation: the next acquisition takes the new pair.
		cert2, key2 := azureKeyPair(t, azureRSAKey(t))
		for old, fresh := range map[string]token.File{string(c.CertFile): cert2, string(c.KeyFile): key2} {
			if err := os.Rename(string(fresh), old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(string(c.KeyFile), []byte(planted), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := failure(t.Context(), t, a); got.Class != token.Transient || got.Code != "secret_unreadable" || got.Key != "cert_file" {
		t.Errorf("a file that is no key: %+v", got)
	}
}

func TestAzureWorkloadIdentityTakesThePodsVariables(t *testing.T) {
	e := entra(t, numbered())
	path := string(file(t, []byte(federatedToken+"-1\n")))
	t.Setenv("AZURE_TENANT_ID", azureTenant)
	t.Setenv("AZURE_CLIENT_ID", azureClient)
	t.Setenv("AZURE_FEDERATED_TOKEN_FILE", path)
	t.Setenv("AZURE_AUTHORITY_HOST", e.URL+"/")
	var c token.AzureWorkloadIdentity
	c.CAFile, c.Scopes = e.ca, []string{azureScope}
	if got := azureProblems(&c); got != nil {
		t.Errorf("Check: %v", got)
	}
	a := build(t, &c)
	for _, content := range []string{federatedToken + "-1\n", federatedToken + "-2"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Acquire(t.Context()); err != nil {
			t.Fatalf("Acquire: %v", err)
		}
	}
	var sent []string
	for _, r := range e.posts() {
		sent = append(sent, r.Form.Get("client_id")+" "+r.Form.Get("client_assertion"))
	}
	if diff := cmp.Diff([]string{azureClient + " " + federatedToken + "-1", azureClient + " " + federatedToken + "-2"}, sent); diff != "" {
		t.Errorf("assertions (-want +got):\n%s", diff)
	}
	_ = os.Remove(path)
	if got := failure(t.Context(), t, a); got.Class != token.Transient || got.Code != "secret_unreadable" || got.Key != "token_file" {
		t.Errorf("missing file: %+v", got)
	}
}

// The profile's keys win over the variables, and the other types do not know them.
func TestAzureVariablesAreForWorkloadIdentityOnly(t *testing.T) {
	t.Setenv("AZURE_AUTHORITY_HOST", "https://wrong.test/")
	t.Setenv("AZURE_TENANT_ID", "wrong")
	t.Setenv("AZURE_CLIENT_ID", "wrong")
	t.Setenv("AZURE_CLIENT_SECRET", "wrong")
	t.Setenv("AZURE_FEDERATED_TOKEN_FILE", "/wrong")
	e := entra(t, numbered())
	for name, settings := range e.azureTypes(t) {
		if _, err := build(t, settings).Acquire(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := &token.AzureClientSecret{TenantID: azureTenant, ClientID: azureClient, ClientSecret: token.SecretValue(token.NewSecret(clientSecret))}
	var dialled string
	a, err := c.Acquirer(token.Env{Dial: func(_ context.Context, _, address string) (net.Conn, error) {
		dialled = address
		return nil, os.ErrPermission
	}})
	if err != nil {
		t.Fatal(err)
	}
	failure(t.Context(), t, a)
	if want := "login.microsoftonline.com:443"; dialled != want {
		t.Errorf("dialled %s, want %s", dialled, want)
	}
}

func TestAzureCloudsHaveTheirOwnAuthority(t *testing.T) {
	for cloud, want := range map[string]string{
		"":       "login.microsoftonline.com:443",
		"public": "login.microsoftonline.com:443",
		"usgov":  "login.microsoftonline.us:443",
		"china":  "login.chinacloudapi.cn:443",
	} {
		c := &token.AzureClientSecret{TenantID: azureTenant, ClientID: azureClient, ClientSecret: token.SecretValue(token.NewSecret(clientSecret))}
		c.Cloud, c.Scopes = cloud, []string{azureScope}
		var dialled []string
		a, err := c.Acquirer(token.Env{Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			dialled = append(dialled, address)
			return nil, os.ErrPermission
		}})
		if err != nil {
			t.Fatal(err)
		}
		if len(dialled) != 0 {
			t.Errorf("cloud %q: dialled before the first acquisition", cloud)
		}
		failure(t.Context(), t, a)
		// The authority alone: no instance discovery at login.microsoftonline.com.
		if diff := cmp.Diff([]string{want}, dialled); diff != "" {
			t.Errorf("cloud %q (-want +got):\n%s", cloud, diff)
		}
	}
}

func TestAzureEntraIsAskedThroughTheProxy(t *testing.T) {
	c := &token.AzureClientSecret{TenantID: azureTenant, ClientID: azureClient, ClientSecret: token.SecretValue(token.NewSecret(clientSecret))}
	var dialled string
	a, err := c.Acquirer(token.Env{
		Proxy: &url.URL{Scheme: "http", Host: "proxy.test:8080"},
		Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			dialled = address
			return nil, os.ErrPermission
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	failure(t.Context(), t, a)
	if dialled != "proxy.test:8080" {
		t.Errorf("dialled %q, want the proxy", dialled)
	}
}

// The SDKs alone hold up every caller while Entra answers 503 (28 s were
// measured). Here the whole way runs on the SDK's own code, over TLS, in
// synthetic time: no request waits, and each attempt is one request.
func TestAzureRequestsDoNotWaitWhileEntraAnswers503(t *testing.T) {
	cert, key := azureKeyPair(t, azureRSAKey(t))
	assertion := file(t, []byte(federatedToken))
	for name, make := range map[string]func(*token.Azure) token.Settings{
		"azure_client_secret": func(a *token.Azure) token.Settings {
			return &token.AzureClientSecret{Azure: *a, TenantID: azureTenant, ClientID: azureClient, ClientSecret: token.SecretValue(token.NewSecret(clientSecret))}
		},
		"azure_client_certificate": func(a *token.Azure) token.Settings {
			return &token.AzureClientCertificate{Azure: *a, TenantID: azureTenant, ClientID: azureClient, CertFile: cert, KeyFile: token.PrivateFile(key)}
		},
		"azure_workload_identity": func(a *token.Azure) token.Settings {
			return &token.AzureWorkloadIdentity{Azure: *a, TenantID: azureTenant, ClientID: azureClient, TokenFile: assertion}
		},
		"azure_managed_identity": func(a *token.Azure) token.Settings {
			a.CAFile, a.AuthorityHost = "", ""
			return &token.AzureManagedIdentity{Azure: *a, IdentityClientID: "one-of-503"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var ill atomic.Bool
				var tokens, refused atomic.Int64
				answer := func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(2 * time.Second)
					if ill.Load() {
						refused.Add(1)
						w.WriteHeader(http.StatusServiceUnavailable)
						return
					}
					answers(200, nil, fmt.Sprintf(`{"access_token":"token-%d","token_type":"Bearer","expires_in":600}`, tokens.Add(1)))(w, r)
				}
				pipe := newPipe()
				srv := httptest.NewUnstartedServer(entraHandler(answer))
				settings := token.Azure{AuthorityHost: "https://127.0.0.1"}
				if name == "azure_managed_identity" {
					srv.Config.Handler = http.HandlerFunc(answer)
				}
				_ = srv.Listener.Close()
				srv.Listener = pipe
				if name == "azure_managed_identity" {
					srv.Start()
				} else {
					srv.StartTLS()
					settings.CAFile = file(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
				}
				defer srv.Close()
				settings.Scopes = []string{azureScope}
				a, err := make(&settings).Acquirer(token.Env{Dial: pipe.dial})
				if err != nil {
					t.Fatal(err)
				}
				s := token.NewSource(a, token.DefaultLifecycle(), slog.New(slog.DiscardHandler))
				defer s.Close()
				if _, err := s.Token(t.Context()); err != nil {
					t.Fatalf("first token: %v", err)
				}
				ill.Store(true)
				time.Sleep(5*time.Minute + 5*time.Second) // the renewal is due now
				began := time.Now()
				for time.Since(began) < time.Minute {
					if got := atOnce(t, s).Value.Reveal(); got != "token-1" {
						t.Fatalf("token %s, want token-1", got)
					}
					time.Sleep(100 * time.Millisecond)
				}
				if n := refused.Load(); n < 2 || n > 30 {
					t.Errorf("%d token requests were refused, want a few", n)
				}
				if st := s.Status(); st.State != token.Stale || st.Failures != uint64(refused.Load()) {
					t.Errorf("%v with %d failures, want stale, and one failure for each of %d refusals", st.State, st.Failures, refused.Load())
				}
				ill.Store(false)
				time.Sleep(2 * time.Minute)
				if got := atOnce(t, s).Value.Reveal(); got != "token-2" {
					t.Errorf("token %s after recovery, want token-2", got)
				}
			})
		})
	}
}

// pipe is a listener whose connections are in memory, as synctest needs them.
type pipe struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipe() *pipe { return &pipe{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipe) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipe) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443} }

func (p *pipe) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
