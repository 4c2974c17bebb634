//go:build e2e

package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// keycloakHome is where setup.sh installs Keycloak.
const keycloakHome = ".keycloak-26.7.3"

// keycloak is a Keycloak with the realm of keycloak/realm.json, its database in a folder of its own. As a provider it keeps
// its port and, other than oidc-provider, its signing keys when it is started again.
type keycloak struct {
	provider
	origin       string
	env          []string
	jwtKey       string // the private key of the client signed-jwt (ES384)
	certificate  string // of the client signed-certificate (RSA)
	certKey      string
	adminAccount url.Values
}

// startKeycloak starts Keycloak and waits until it answers, which takes its 20 s.
func startKeycloak(t *testing.T) *keycloak {
	t.Helper()
	java := program(t, "java")
	installed(t, keycloakHome+"/prepared")
	install, err := filepath.Abs(keycloakHome)
	if err != nil {
		t.Fatal(err)
	}
	home, port := t.TempDir(), freePorts(t, 1)[0]
	for _, part := range []string{"lib", "conf", "providers", "themes"} {
		if err := os.Symlink(filepath.Join(install, part), filepath.Join(home, part)); err != nil {
			t.Fatal(err)
		}
	}
	k := &keycloak{origin: fmt.Sprintf("https://localhost:%d", port)}
	k.pki, k.issuer = newPKI(t), k.origin+"/realms/imaging"
	k.jwks = k.issuer + "/protocol/openid-connect/certs"
	k.writeRealm(t, filepath.Join(home, "data", "import"))
	k.adminAccount = url.Values{"grant_type": {"password"}, "client_id": {"admin-cli"}, "username": {"admin"}, "password": {"of-this-test"}}
	k.env = []string{"KC_BOOTSTRAP_ADMIN_USERNAME=admin", "KC_BOOTSTRAP_ADMIN_PASSWORD=of-this-test"}
	// What bin/kc.sh runs, without the shell, which would outlive a killed test; the small compiler and the simple
	// garbage collector leave more of the machine to the other tests.
	k.argv = []string{java, "-Xmx512m", "-XX:MaxMetaspaceSize=256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"}
	for _, opened := range []string{"java.util", "java.util.concurrent", "java.security", "java.lang"} {
		k.argv = append(k.argv, "--add-opens=java.base/"+opened+"=ALL-UNNAMED")
	}
	k.argv = append(
		k.argv, "-Dkc.home.dir="+home, "-Djboss.server.config.dir="+home+"/conf",
		"-Djava.util.logging.manager=org.jboss.logmanager.LogManager", "-Dpicocli.disable.closures=true",
		"-Djava.util.concurrent.ForkJoinPool.common.threadFactory=io.quarkus.bootstrap.forkjoin.QuarkusForkJoinWorkerThreadFactory",
		"-cp", home+"/lib/quarkus-run.jar", "io.quarkus.bootstrap.runner.QuarkusEntryPoint",
		"start", "--optimized", "--import-realm", "--cache=local", "--http-enabled=false", "--http-host=127.0.0.1",
		fmt.Sprintf("--https-port=%d", port), "--hostname="+k.origin,
		"--https-certificate-file="+k.pki.certFile, "--https-certificate-key-file="+k.pki.keyFile,
	)
	k.start(t)
	return k
}

// start starts Keycloak, for the first time or again.
func (k *keycloak) start(t *testing.T) {
	t.Helper()
	k.process = start(t, "Keycloak", k.env, k.argv...)
	k.process.within(t, 3*time.Minute, func() error {
		_, err := get(k.pki.client(), k.jwks)
		return err
	})
}

// writeRealm puts the realm where Keycloak imports it from, with the secrets and keys of this run.
func (k *keycloak) writeRealm(t *testing.T, dir string) {
	t.Helper()
	var jwk map[string]string
	k.jwtKey, jwk = signingKey(t, "ES384")
	_, jwks := jwkSet(t, jwk)
	k.certificate, k.certKey = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gateway"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, certErr := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	pkcs8, keyErr := x509.MarshalPKCS8PrivateKey(key)
	text, readErr := os.ReadFile("keycloak/realm.json")
	if err := errors.Join(certErr, keyErr, readErr, os.MkdirAll(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	writePEM(t, k.certificate, "CERTIFICATE", der)
	writePEM(t, k.certKey, "PRIVATE KEY", pkcs8)
	for name, value := range map[string]string{
		`"@SECRET@"`: clientSecret, `"@JWKS@"`: jwks, `"@CERTIFICATE@"`: base64.StdEncoding.EncodeToString(der),
	} {
		quoted, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte(name), quoted)
	}
	if err := os.WriteFile(filepath.Join(dir, "imaging-realm.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// change makes one call of Keycloak's administration API about a client, whose representation goes through edit.
func (k *keycloak) change(t *testing.T, clientID string, edit func(client map[string]any)) {
	t.Helper()
	var login struct {
		AccessToken string `json:"access_token"`
	}
	var clients []map[string]any
	call := func(method, path, contentType, body string, result any) {
		t.Helper()
		req, err := http.NewRequest(method, k.origin+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if contentType != "" { // Keycloak answers an empty one with 500
			req.Header.Set("Content-Type", contentType)
		}
		if login.AccessToken != "" {
			req.Header.Set("Authorization", "Bearer "+login.AccessToken)
		}
		answer, err := do(k.pki.client(), req)
		if status, ok := errors.AsType[statusError](err); ok && status.status == http.StatusNoContent {
			err = nil
		}
		if err == nil && result != nil {
			err = json.Unmarshal(answer, result)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	call(http.MethodPost, "/realms/master/protocol/openid-connect/token", "application/x-www-form-urlencoded", k.adminAccount.Encode(), &login)
	call(http.MethodGet, "/admin/realms/imaging/clients?clientId="+clientID, "", "", &clients)
	if len(clients) != 1 {
		t.Fatalf("%d clients %q in Keycloak", len(clients), clientID)
	}
	edit(clients[0])
	body, err := json.Marshal(clients[0])
	if err != nil {
		t.Fatal(err)
	}
	call(http.MethodPut, "/admin/realms/imaging/clients/"+clients[0]["id"].(string), "application/json", string(body), nil)
}

// secretClient is the profile of a client that has the secret of the environment.
func (k *keycloak) secretClient(clientID, more string) string {
	return fmt.Sprintf("type = \"client_credentials\"\nissuer = %q\nclient_id = %q\nclient_secret = \"${E2E_CLIENT_SECRET}\"\n%s", k.issuer, clientID, more)
}

// behind is a protected server that takes this Keycloak's tokens.
func (k *keycloak) behind(t *testing.T, inner http.Handler) *upstream {
	t.Helper()
	return &upstream{pki: k.pki, provider: &k.provider, server: startServer(t, &k.provider, inner)}
}

// tokens returns how many different tokens have reached the server.
func (s *server) tokens() int {
	different := make(map[string]struct{})
	for _, r := range s.seen() {
		different[strings.Join(r.authorization, " ")] = struct{}{}
	}
	return len(different)
}

// One Keycloak serves all, since its start takes as long as the rest.
func TestKeycloak(t *testing.T) {
	t.Parallel()
	started := time.Now()
	k := startKeycloak(t)
	t.Logf("Keycloak was ready after %v", time.Since(started).Round(time.Second))
	t.Run("clients", func(t *testing.T) {
		t.Run("authentication and lifetime", func(t *testing.T) { t.Parallel(); testKeycloakClients(t, k) })
		t.Run("Orthanc", func(t *testing.T) { t.Parallel(); testKeycloakOrthanc(t, k) })
		t.Run("20 s tokens", func(t *testing.T) { t.Parallel(); testKeycloakShortTokens(t, k) })
		t.Run("secret rotated under load", func(t *testing.T) { t.Parallel(); testKeycloakRotatedSecret(t, k) })
		t.Run("client disabled", func(t *testing.T) { t.Parallel(); testKeycloakDisabledClient(t, k) })
	})
	t.Run("stopped and started", func(t *testing.T) { testKeycloakStopped(t, k) })
}

func testKeycloakClients(t *testing.T, k *keycloak) {
	u := k.behind(t, emptyAnswer)
	private := append(secretsIn(t, k.jwtKey), secretsIn(t, k.certKey)...)
	const signed = "type = \"client_credentials\"\nissuer = %q\nclient_id = %q\nclient_auth = \"private_key_jwt\"\nkey_file = %q\n"
	for _, row := range []struct {
		name, profile string
		life          time.Duration
		hint          []string // empty: it works
	}{
		{name: "client_secret_basic, 60 s", profile: k.secretClient("secret-60", `client_auth = "client_secret_basic"`), life: time.Minute},
		{name: "client_secret_post, 300 s", profile: k.secretClient("secret-300", `client_auth = "client_secret_post"`), life: 5 * time.Minute},
		{name: "discovery alone, 300 s", profile: k.secretClient("secret-300", ""), life: 5 * time.Minute},
		{name: "signed JWT ES384 by JWKS", profile: fmt.Sprintf(signed, k.issuer, "signed-jwt", k.jwtKey) + "key_id = \"key-ES384\"", life: time.Minute},
		{name: "signed JWT RS256 by certificate", profile: fmt.Sprintf(signed, k.issuer, "signed-certificate", k.certKey) + fmt.Sprintf("cert_file = %q", k.certificate), life: time.Minute},
		{name: "signed JWT for the issuer", profile: fmt.Sprintf(signed, k.issuer, "signed-certificate", k.certKey) + `assertion_audience = "issuer"`, life: time.Minute},
		{name: "signed JWT with another client's key", profile: fmt.Sprintf(signed, k.issuer, "signed-jwt", k.certKey), hint: []string{"client_id", "key_file"}},
		{name: "wrong secret", profile: strings.Replace(k.secretClient("secret-60", ""), "E2E_CLIENT_SECRET}", "E2E_CLIENT_SECRET}x", 1), hint: []string{"client_id", "client_secret"}},
		{name: "unknown client", profile: k.secretClient("nobody", ""), hint: []string{"client_id", "client_secret"}},
		{name: "another issuer", profile: strings.Replace(k.secretClient("secret-60", ""), "/realms/imaging", "/realms/imaging/", 1), hint: []string{"issuer"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			g := startGatewayWith(t, u, row.profile, clientSecret, private...)
			if row.hint == nil {
				g.waitReady(t)
				g.mustQuery(t, u)
				left := time.Until(g.profile(t).ExpiresAt)
				if left > row.life || left < row.life-15*time.Second {
					t.Errorf("the token lives %v more, want %v at first", left, row.life)
				}
				return
			}
			err := g.query(t, u)
			if answer, ok := errors.AsType[statusError](err); !ok || answer.status != http.StatusServiceUnavailable {
				t.Errorf("QIDO-RS: got %v, want status 503", err)
			}
			if status := g.profile(t); !containsAll(status.LastError.Hint, row.hint) {
				t.Errorf("got %+v in the status API, want a hint that names %q", status, row.hint)
			}
		})
	}
}

// The whole chain of the product, with the provider that it names first.
func testKeycloakOrthanc(t *testing.T, k *keycloak) {
	archive := startOrthanc(t, "Orthanc-archive", nil)
	u := k.behind(t, forward(t, archive))
	archive.ready(t)
	g := startGatewayWith(t, u, k.secretClient("secret-60", ""), clientSecret)
	g.waitReady(t)
	o := startClient(t, u, g, g.bundle)
	roundTrip(t, o, archive, daikonFiles(t))
	findAndDelete(t, o)
	u.server.wantOnlyAdmitted(t)
}

func testKeycloakShortTokens(t *testing.T, k *keycloak) {
	u := k.behind(t, emptyAnswer)
	g := startGatewayWith(t, u, k.secretClient("secret-20", ""), clientSecret)
	g.waitReady(t)
	repeatUntil(time.Now().Add(30*time.Second), func() { g.mustQuery(t, u) })
	u.server.wantOnlyAdmitted(t)
	if n := u.server.tokens(); n < 2 || n > 6 {
		t.Errorf("%d different tokens in 30 s, with a lifetime of 20 s; want 2 to 6", n)
	}
}

// The administrator makes a new secret while requests go on. The gateway finds its secret refused at the next refresh, and
// goes on with the token that it has; then the new secret comes into the file, and the gateway uses it without a restart.
func testKeycloakRotatedSecret(t *testing.T, k *keycloak) {
	const newSecret = "the-second-" + clientSecret
	u := k.behind(t, emptyAnswer)
	file := filepath.Join(t.TempDir(), "client-secret")
	write(t, file, clientSecret)
	profile := strings.Replace(k.secretClient("rotated", ""), `client_secret = "${E2E_CLIENT_SECRET}"`, fmt.Sprintf("client_secret_file = %q", file), 1)
	g := startGatewayWith(t, u, profile, clientSecret, "the-second-"+clientSecretPart)
	g.waitReady(t)
	g.mustQuery(t, u)
	k.change(t, "rotated", func(client map[string]any) { client["secret"] = newSecret })

	var refused, renewed bool
	begin := g.profile(t).ExpiresAt
	repeatUntil(begin.Add(12*time.Second), func() {
		g.mustQuery(t, u)
		status := g.profile(t)
		if !refused && status.State == "stale" {
			refused = true
			if !containsAll(status.LastError.Hint, []string{"client_id", "client_secret"}) {
				t.Errorf("got %+v in the status API, want client_id and client_secret named", status)
			}
			write(t, file, newSecret)
		}
		renewed = renewed || refused && status.State == "fresh"
	})
	if !refused || !renewed {
		t.Errorf("the old secret was refused: %v; the new one brought a token: %v; want both", refused, renewed)
	}
	u.server.wantOnlyAdmitted(t)
}

func testKeycloakDisabledClient(t *testing.T, k *keycloak) {
	u := k.behind(t, emptyAnswer)
	k.change(t, "disabled-later", func(client map[string]any) { client["enabled"] = false })
	g := startGatewayWith(t, u, k.secretClient("disabled-later", ""), clientSecret)
	if err := g.query(t, u); err == nil {
		t.Error("a disabled client got a token")
	}
	status := g.profile(t)
	if status.State != "unavailable" || !containsAll(status.LastError.Hint, []string{"client_id", "client_secret"}) {
		t.Errorf("got %+v in the status API, want the state unavailable, and client_id and client_secret named", status)
	}
	if err := g.warned(t, profileName, "client_id", "client_secret"); err != nil {
		t.Error(err)
	}
	k.change(t, "disabled-later", func(client map[string]any) { client["enabled"] = true })
	eventually(t, 20*time.Second, func() error { return g.query(t, u) })
	u.server.wantOnlyAdmitted(t)
}

func testKeycloakStopped(t *testing.T, k *keycloak) {
	u := k.behind(t, emptyAnswer)
	g := startGatewayWith(t, u, k.secretClient("stopped", ""), clientSecret)
	g.waitReady(t)
	g.mustQuery(t, u)
	k.process.terminate(t)
	const life = 10 * time.Second
	n := repeatUntil(g.profile(t).ExpiresAt.Add(-life/10-time.Second/2), func() { g.mustQuery(t, u) })
	t.Logf("%d requests without Keycloak", n)
	eventually(t, life, func() error {
		if g.query(t, u) == nil {
			return errors.New("the token is still usable")
		}
		return nil
	})
	k.start(t)
	eventually(t, 20*time.Second, func() error { return g.query(t, u) })
	u.server.wantOnlyAdmitted(t)
}
