//go:build e2e

package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
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
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// emptyAnswer is a DICOMweb server that finds nothing.
var emptyAnswer = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/dicom+json")
	_, _ = w.Write([]byte("[]"))
})

// query sends one QIDO-RS request through the gateway.
func (g *gateway) query(t *testing.T, u *upstream) error {
	t.Helper()
	_, err := get(g.client(t), u.server.url+"studies?PatientID=anyone")
	return err
}

// mustQuery is query for a gateway that should have a token.
func (g *gateway) mustQuery(t *testing.T, u *upstream) {
	t.Helper()
	if err := g.query(t, u); err != nil {
		t.Fatalf("QIDO-RS: %v; the profile's status is %+v", err, g.profile(t))
	}
}

// signingKey makes a private key file for an algorithm, and its public JWK.
func signingKey(t *testing.T, alg string) (path string, jwk map[string]string) {
	t.Helper()
	encoded := base64.RawURLEncoding.EncodeToString
	var key crypto.Signer
	jwk = map[string]string{"kid": "key-" + alg, "alg": alg, "use": "sig"}
	switch alg {
	case "RS384":
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		key = k
		jwk["kty"], jwk["n"], jwk["e"] = "RSA", encoded(k.N.Bytes()), encoded(big.NewInt(int64(k.E)).Bytes())
	case "ES384":
		k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		point, err := k.PublicKey.Bytes() // 4, x, y
		if err != nil {
			t.Fatal(err)
		}
		key = k
		jwk["kty"], jwk["crv"], jwk["x"], jwk["y"] = "EC", "P-384", encoded(point[1:49]), encoded(point[49:])
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), alg+".pem")
	writePEM(t, path, "PRIVATE KEY", der)
	return path, jwk
}

// clientCertificate makes an authority, and a certificate of it for a client of this name.
func clientCertificate(t *testing.T, name string) (caFile, certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	caFile, certFile, keyFile = filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	ca := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "Authority of the clients"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	caKey, leafKey := newKey(t), newKey(t)
	sign(t, certFile, leaf, sign(t, caFile, ca, ca, caKey, caKey), leafKey, caKey)
	der, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, keyFile, "PRIVATE KEY", der)
	return caFile, certFile, keyFile
}

// jwkSet writes a JWK Set.
func jwkSet(t *testing.T, keys ...map[string]string) (path, text string) {
	t.Helper()
	set, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(path, set, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, string(set)
}

// secretsIn returns the lines of a private key's file.
func secretsIn(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(strings.Split(strings.TrimSpace(string(text)), "\n"), func(line string) bool { return strings.HasPrefix(line, "-----") })
}

// Each way to authenticate, against a provider that verifies it, and a DICOMweb server that verifies the token.
func TestClientAuthenticationAtOIDCProvider(t *testing.T) {
	t.Parallel()
	rs384, rsJWK := signingKey(t, "RS384")
	es384, esJWK := signingKey(t, "ES384")
	jwks, _ := jwkSet(t, rsJWK, esJWK)
	ca, cert, key := clientCertificate(t, "gateway")
	pki := newPKI(t)
	p := startProvider(t, pki, 5*time.Minute, "--jwks", jwks, "--ca", ca)
	u := &upstream{pki: pki, provider: p, server: startServer(t, p, emptyAnswer)}
	var private []string
	for _, path := range []string{rs384, es384, key} {
		private = append(private, secretsIn(t, path)...)
	}

	const withSecret = "type = \"client_credentials\"\nclient_secret = \"${E2E_CLIENT_SECRET}\"\n"
	const withoutSecret = "type = \"client_credentials\"\n"
	byIssuer := fmt.Sprintf("issuer = %q\nresource = %q\n", p.issuer, resource)
	certificate := fmt.Sprintf("client_id = \"tls\"\nclient_auth = \"tls_client_auth\"\ncert_file = %q\nkey_file = %q\n", cert, key)
	for _, row := range []struct {
		name, profile string
		failure       []string // in the hint; empty: it works
		status        int
	}{
		{name: "client_secret_basic with odd characters in both", profile: withSecret + byIssuer + "client_id = \"odd: id/+&%41=\""},
		{name: "private_key_jwt RS384", profile: withoutSecret + byIssuer + fmt.Sprintf("client_id = \"RS384\"\nkey_file = %q\nkey_id = \"key-RS384\"\nkey_alg = \"RS384\"", rs384)},
		{name: "private_key_jwt ES384 for the issuer", profile: withoutSecret + byIssuer + fmt.Sprintf("client_id = \"ES384\"\nkey_file = %q\nkey_id = \"key-ES384\"\nassertion_audience = \"issuer\"", es384)},
		{name: "private_key_jwt with another client's key", profile: withoutSecret + byIssuer + fmt.Sprintf("client_id = \"ES384\"\nkey_file = %q\nkey_id = \"key-RS384\"", rs384), failure: []string{"key_file", "key_id", "key_alg"}, status: 503},
		{name: "private_key_jwt for another audience", profile: withoutSecret + byIssuer + fmt.Sprintf("client_id = \"ES384\"\nkey_file = %q\nassertion_audience = \"https://other.example.test\"", es384), failure: []string{"assertion_audience"}, status: 503},
		{name: "tls_client_auth at the alias, with a bound token", profile: withoutSecret + byIssuer + certificate + "bound_token = true"},
		{name: "a bound token without its certificate", profile: withoutSecret + byIssuer + certificate, status: 401},
		{name: "a resource that the provider does not know", profile: withSecret + fmt.Sprintf("client_id = \"basic\"\nissuer = %q\nresource = \"https://other.example.test\"", p.issuer), failure: []string{"resource"}, status: 503},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			g := startGatewayWith(t, u, row.profile, clientSecret, private...)
			if row.status == 0 {
				g.waitReady(t)
				g.mustQuery(t, u)
				return
			}
			err := g.query(t, u)
			if answer, ok := errors.AsType[statusError](err); !ok || answer.status != row.status {
				t.Errorf("QIDO-RS: got %v, want status %d", err, row.status)
			}
			if status := g.profile(t); !containsAll(status.LastError.Hint, row.failure) {
				t.Errorf("got %+v in the status API, want a hint that names %q", status, row.failure)
			}
		})
	}
}

// seedRefresh returns a new refresh token for the provider's client refresh.
func (p *provider) seedRefresh(t *testing.T) string {
	t.Helper()
	token, err := get(p.pki.client(), p.issuer+"/test/seed-refresh")
	if err != nil {
		t.Fatal(err)
	}
	return string(token)
}

// The provider replaces the refresh token at each use, and takes each one once. With write-back the gateway goes on after
// a restart; with memory it is locked out, and says what to do.
func TestRefreshTokenRotationAtOIDCProvider(t *testing.T) {
	t.Parallel()
	pki := newPKI(t)
	p := startProvider(t, pki, shortLifetime)
	u := &upstream{pki: pki, provider: p, server: startServer(t, p, emptyAnswer)}
	for _, rotation := range []string{"write-back", "memory"} {
		t.Run(rotation, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "refresh-token")
			first := p.seedRefresh(t)
			write(t, path, first)
			profile := fmt.Sprintf("type = \"refresh_token\"\nclient_secret = \"${E2E_CLIENT_SECRET}\"\nclient_id = \"refresh\"\nissuer = %q\nresource = %q\nrefresh_token_file = %q\nrotation = %q", p.issuer, resource, path, rotation)
			g := startGatewayWith(t, u, profile, clientSecret, first)
			g.waitReady(t)
			g.mustQuery(t, u)
			begin := g.profile(t).ExpiresAt
			eventually(t, shortLifetime, func() error { // with the new refresh token
				g.mustQuery(t, u)
				if !g.profile(t).ExpiresAt.After(begin) {
					return errors.New("not renewed")
				}
				return nil
			})
			kept, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if replaced := strings.TrimSpace(string(kept)) != first; replaced != (rotation == "write-back") {
				t.Errorf("the file was replaced: %v", replaced)
			}

			g.process.terminate(t)
			g.start(t)
			if rotation == "write-back" {
				g.waitReady(t)
				g.mustQuery(t, u)
			} else {
				if err := g.query(t, u); err == nil {
					t.Fatal("a used refresh token has worked again")
				}
				if status := g.profile(t); status.LastError.Code != "invalid_grant" || !strings.Contains(status.LastError.Hint, "refresh_token") {
					t.Errorf("got %+v in the status API, want invalid_grant and refresh_token named", status)
				}
				write(t, path, p.seedRefresh(t)) // the remedy, without a restart
				eventually(t, 20*time.Second, func() error { return g.query(t, u) })
			}
			now, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if output := g.process.output(t); strings.Contains(output, strings.TrimSpace(string(kept))) || strings.Contains(output, strings.TrimSpace(string(now))) {
				t.Error("the gateway has logged a refresh token")
			}
		})
	}
}

// write puts a secret into a file in one step, as a careful operator does.
func write(t *testing.T, path, secret string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}
