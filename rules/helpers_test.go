package rules

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// variables is the environment of the tests' configs.
func variables(name string) (string, bool) {
	value, ok := map[string]string{
		"SECRET": "s3cr3t",
		"EMPTY":  "",
		"DOLLAR": "a${SECRET}$$b",
		"HOST":   "dicom.example.org",
	}[name]
	return value, ok
}

// anyVariable sets every variable, those for a URL to one.
func anyVariable(name string) (string, bool) {
	if strings.HasSuffix(name, "_URL") {
		return "https://dicom.example.org/dicom-web/", true
	}
	return "x", true
}

// writeConfig writes gateway.toml into a folder of its own, as chmod 600 would leave it.
func writeConfig(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gateway.toml")
	write(t, path, text, 0o600)
	return path
}

func write(t testing.TB, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}

// load loads a config that has no problem.
func load(t testing.TB, text string) *Config {
	t.Helper()
	c, err := Load(writeConfig(t, text), variables)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// azure is the profile that the rules of the tests name.
const azure = `
[profile.azure]
type           = "client_credentials"
token_endpoint = "https://login.example.org/token"
client_id      = "orthanc"
client_secret  = "${SECRET}"
`

// minimal is a config with nothing but what is needed.
const minimal = `
[[rule]]
name    = "azure"
url     = "https://dicom.example.org/dicom-web/"
profile = "azure"
` + azure

// newPair returns a self-signed certificate and its key as PEM.
func newPair(t testing.TB) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return selfSigned(t, private), pkcs8(t, private)
}

// selfSigned returns a PEM certificate of a key.
func selfSigned(t testing.TB, private crypto.Signer) string {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// pkcs8 returns a key in PEM.
func pkcs8(t testing.TB, private crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}
