package certs_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/certs"
)

func open(t testing.TB, dir string, names *certs.Names) *certs.CA {
	t.Helper()
	ca, err := certs.Open(dir, names)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, path string, content []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, content, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func certificate(t testing.TB, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("no PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// hosts are the names of most tests.
var hosts = &certs.Names{Hosts: []string{"dicom.example.org"}}

func TestFirstStartMakesACA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "ca")
	ca := open(t, dir, hosts)
	if runtime.GOOS != "windows" {
		for path, want := range map[string]fs.FileMode{dir: 0o711 | fs.ModeDir, dir + "/ca-key.pem": 0o600, dir + "/ca.pem": 0o644, dir + "/bundle.pem": 0o644} {
			if info, err := os.Stat(path); err != nil || info.Mode() != want {
				t.Errorf("%s: got %v, %v, want mode %v", path, info.Mode(), err, want)
			}
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
		t.Errorf("got %v, %v in the folder, want three files", entries, err)
	}
	cert := certificate(t, read(t, dir+"/ca.pem"))
	if !cert.Equal(ca.Certificate()) || !cert.Equal(certificate(t, read(t, ca.BundlePath()))) {
		t.Error("ca.pem, bundle.pem and Certificate are not the same certificate")
	}
	sum := sha256.Sum256(cert.Raw)
	if got := ca.Fingerprint(); got != hex.EncodeToString(sum[:]) {
		t.Errorf("fingerprint: got %s", got)
	}
	if ca.BundlePath() != filepath.Join(dir, "bundle.pem") {
		t.Errorf("bundle: got %s", ca.BundlePath())
	}
	if !cert.IsCA || !cert.MaxPathLenZero || cert.MaxPathLen != 0 || cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("got CA %v, path length %d, key usage %b", cert.IsCA, cert.MaxPathLen, cert.KeyUsage)
	}
	if key, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("got a key of type %T, want P-256", cert.PublicKey)
	}
	if now := time.Now(); cert.NotBefore.After(now.Add(-23*time.Hour)) || cert.NotAfter.Before(now.AddDate(9, 11, 0)) {
		t.Errorf("valid from %v to %v, want from yesterday for ten years", cert.NotBefore, cert.NotAfter)
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		t.Errorf("not self-signed: %v", err)
	}
	other := open(t, filepath.Join(t.TempDir(), "ca"), hosts)
	if other.Certificate().Subject.CommonName == cert.Subject.CommonName || other.Fingerprint() == ca.Fingerprint() {
		t.Error("two CAs have the same name, so that a trust store cannot tell them apart")
	}
}

func TestSecondStartChangesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	first := open(t, dir, hosts)
	before := map[string][]byte{}
	for _, name := range []string{"ca.pem", "ca-key.pem", "bundle.pem"} {
		before[name] = read(t, filepath.Join(dir, name))
	}
	// Other names make no other CA.
	second := open(t, dir, &certs.Names{Hosts: []string{"other.example.org"}})
	if first.Fingerprint() != second.Fingerprint() {
		t.Error("the second start has another CA")
	}
	for name, content := range before {
		if !bytes.Equal(content, read(t, filepath.Join(dir, name))) {
			t.Errorf("%s has changed", name)
		}
	}
}

func TestFindMakesAndChangesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	if ca, err := certs.Find(dir); ca != nil || err != nil {
		t.Errorf("got %v, %v where there is no CA", ca, err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the folder was made")
	}
	made := open(t, dir, hosts)
	if err := os.Remove(made.BundlePath()); err != nil {
		t.Fatal(err)
	}
	if ca, err := certs.Find(dir); err != nil || ca.Fingerprint() != made.Fingerprint() {
		t.Errorf("got %v, %v, want the CA that was made", ca, err)
	}
	if _, err := os.Stat(made.BundlePath()); err == nil {
		t.Error("the bundle was written")
	}
}

func TestManyFirstStartsAtOnceMakeOneCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	var wg sync.WaitGroup
	var mu sync.Mutex
	prints := map[string]bool{}
	for range 8 {
		wg.Go(func() {
			ca, err := certs.Open(dir, hosts)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			prints[ca.Fingerprint()] = true
		})
	}
	wg.Wait()
	prints[open(t, dir, hosts).Fingerprint()] = true
	if len(prints) != 1 {
		t.Errorf("%d different CAs, want one", len(prints))
	}
}

// folder writes a CA folder whose certificate is changed by f.
func folder(t testing.TB, f func(*x509.Certificate)) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	f(template)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir+"/ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
	write(t, dir+"/ca-key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600)
	return dir
}

func TestBrokenFolderIsRefusedWithAHint(t *testing.T) {
	const again = "restore the folder from a backup, or move it away to get a new CA"
	made := func(f func(t *testing.T, dir string)) func(*testing.T) string {
		return func(t *testing.T) string {
			dir := filepath.Join(t.TempDir(), "ca")
			open(t, dir, hosts)
			f(t, dir)
			return dir
		}
	}
	remove := func(name string) func(*testing.T) string {
		return made(func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		})
	}
	replace := func(name, content string) func(*testing.T) string {
		return made(func(t *testing.T, dir string) { write(t, filepath.Join(dir, name), []byte(content), 0o600) })
	}
	mode := func(mode fs.FileMode) func(*testing.T) string {
		return made(func(t *testing.T, dir string) {
			if runtime.GOOS == "windows" {
				t.Skip("Windows has no such modes")
			}
			if err := os.Chmod(dir+"/ca-key.pem", mode); err != nil {
				t.Fatal(err)
			}
		})
	}
	changed := func(f func(*x509.Certificate)) func(*testing.T) string {
		return func(t *testing.T) string { return folder(t, f) }
	}
	for name, row := range map[string]struct {
		folder     func(*testing.T) string
		what, hint string
	}{
		"no certificate":        {remove("ca.pem"), "ca-key.pem is there, but ca.pem is missing", "restore ca.pem, or move the folder away to get a new CA"},
		"no key":                {remove("ca-key.pem"), "ca.pem is there, but ca-key.pem is missing", "restore ca-key.pem, or move the folder away to get a new CA"},
		"key for all":           {mode(0o644), "ca-key.pem can be read by other users (mode 0644)", "chmod 600 "},
		"key for the group":     {mode(0o640), "ca-key.pem can be read by other users (mode 0640)", "chmod 600 "},
		"key that others write": {mode(0o602), "ca-key.pem can be read by other users (mode 0602)", "chmod 600 "},
		"empty certificate":     {replace("ca.pem", ""), "failed to find any PEM data", again},
		"broken certificate":    {replace("ca.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "malformed certificate", again},
		"empty key":             {replace("ca-key.pem", ""), "failed to find any PEM data", again},
		"broken key":            {replace("ca-key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "failed to parse private key", again},
		"key of another CA": {made(func(t *testing.T, dir string) {
			write(t, dir+"/ca-key.pem", read(t, folder(t, func(*x509.Certificate) {})+"/ca-key.pem"), 0o600)
		}), "private key does not match public key", again},
		"ended": {changed(func(c *x509.Certificate) {
			c.NotAfter = time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC)
			c.NotBefore = c.NotAfter.AddDate(-1, 0, 0)
		}), "the CA ended on 2020-01-02", "run ca rotate, then ca activate"},
		"not begun": {changed(func(c *x509.Certificate) {
			c.NotBefore = time.Date(2999, 1, 2, 0, 0, 0, 0, time.UTC)
			c.NotAfter = c.NotBefore.AddDate(1, 0, 0)
		}), "the CA begins on 2999-01-02", "check this machine's clock"},
		"no CA":                {changed(func(c *x509.Certificate) { c.IsCA = false }), "ca.pem is not a CA certificate", again},
		"CA that may not sign": {changed(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), "ca.pem is not a CA certificate", again},
		"folder that is a file": {func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "file")
			write(t, path, nil, 0o600)
			return filepath.Join(path, "ca")
		}, "not a directory", ""},
		"certificate is a folder": {made(func(t *testing.T, dir string) {
			if err := errors.Join(os.Remove(dir+"/ca.pem"), os.Mkdir(dir+"/ca.pem", 0o700)); err != nil {
				t.Fatal(err)
			}
		}), "is a directory", again},
	} {
		t.Run(name, func(t *testing.T) {
			dir := row.folder(t)
			before := list(t, dir)
			ca, err := certs.Open(dir, hosts)
			refusal, ok := errors.AsType[*certs.FolderError](err)
			if !ok || ca != nil {
				t.Fatalf("got %v, %v, want a FolderError", ca, err)
			}
			if refusal.Dir != dir || !strings.Contains(refusal.What, row.what) || !strings.Contains(refusal.Hint, row.hint) || refusal.Hint == "" {
				t.Errorf("got %v (%s), want %q (%s)", refusal, refusal.Hint, row.what, row.hint)
			}
			if !strings.Contains(err.Error(), dir) {
				t.Errorf("%v does not name the folder", err)
			}
			if after := list(t, dir); after != before {
				t.Errorf("the folder has changed: got\n%s\nwas\n%s", after, before)
			}
		})
	}
}

// list is the content of a folder, to see whether it changes.
func list(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err.Error()
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		content, _ := os.ReadFile(filepath.Join(dir, e.Name()))
		sum := sha256.Sum256(content)
		b.WriteString(e.Name() + " " + info.Mode().String() + " " + hex.EncodeToString(sum[:4]) + "\n")
	}
	return b.String()
}

func TestKeyThatIsNotECDSAIsRefused(t *testing.T) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir+"/ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
	write(t, dir+"/ca-key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600)
	if _, err := certs.Open(dir, nil); err == nil || !strings.Contains(err.Error(), "ca-key.pem is not an ECDSA key") {
		t.Errorf("got %v", err)
	}
}

func TestBundleIsKeptWhenItCarriesTheCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	ca := open(t, dir, hosts)
	own := read(t, ca.BundlePath())
	other := read(t, open(t, filepath.Join(t.TempDir(), "ca"), hosts).BundlePath())
	with := append(append([]byte("# the hospital's own roots\n"), other...), own...)
	for name, row := range map[string]struct{ before, after []byte }{
		"with other certificates": {with, with},
		"of another CA":           {other, own},
		"empty":                   {nil, own},
		"cut":                     {own[:len(own)/2], own},
	} {
		t.Run(name, func(t *testing.T) {
			write(t, ca.BundlePath(), row.before, 0o600)
			open(t, dir, hosts)
			if got := read(t, ca.BundlePath()); !bytes.Equal(got, row.after) {
				t.Errorf("got\n%s\nwant\n%s", got, row.after)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		if err := os.Remove(ca.BundlePath()); err != nil {
			t.Fatal(err)
		}
		open(t, dir, hosts)
		if got := read(t, ca.BundlePath()); !bytes.Equal(got, own) {
			t.Errorf("got\n%s\nwant\n%s", got, own)
		}
	})
}

// Orthanc may read the bundle at any moment: whoever has the old file open reads it to its end, and nothing lies about.
func TestBundleIsReplacedInOneStep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	ca := open(t, dir, hosts)
	old := []byte(strings.Repeat("old ", 1000))
	write(t, ca.BundlePath(), old, 0o600)
	reader, err := os.Open(ca.BundlePath())
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	open(t, dir, hosts)
	if got, err := io.ReadAll(reader); err != nil || !bytes.Equal(got, old) {
		t.Errorf("who had the bundle open reads %d bytes, %v, want the %d old ones", len(got), err, len(old))
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
		t.Errorf("got %v, %v in the folder, want three files", entries, err)
	}
}

func TestBundleThatCannotBeWrittenIsAProblemOfTheFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	ca := open(t, dir, hosts)
	if err := errors.Join(os.Remove(ca.BundlePath()), os.Mkdir(ca.BundlePath(), 0o700)); err != nil {
		t.Fatal(err)
	}
	_, err := certs.Open(dir, hosts)
	if folder, ok := errors.AsType[*certs.FolderError](err); !ok || !strings.Contains(folder.What, "write bundle.pem") {
		t.Errorf("got %v, want a FolderError on bundle.pem", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
		t.Errorf("got %v, %v in the folder, want no leftover", entries, err)
	}
}

func addresses(list ...string) []netip.Addr {
	var ips []netip.Addr
	for _, s := range list {
		ips = append(ips, netip.MustParseAddr(s))
	}
	return ips
}
