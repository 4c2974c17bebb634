// Package certs is the local certificate authority: it makes the CA on first
// start, keeps its folder, and mints the leaf certificates under which the
// gateway speaks as the hosts of its rules. It decides nothing about which
// hosts these are. A [CA] is safe for concurrent use.
package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// The files of a CA folder.
const (
	certFile   = "ca.pem"
	keyFile    = "ca-key.pem"
	bundleFile = "bundle.pem"
)

const (
	caLife = 10 * 365 * 24 * time.Hour
	// backdate makes new certificates valid for clients whose clock is slow.
	backdate = 24 * time.Hour
)

// Names are the hosts that a CA may sign for.
type Names struct {
	// Hosts are exact DNS names; by X.509's nature the names below them are
	// permitted too (RFC 5280 section 4.2.1.10).
	Hosts []string
	// Parents are domains of wildcard rules: names below them, not themselves.
	Parents []string
	// IPs are addresses that rules name.
	IPs []netip.Addr
}

// CA is a loaded certificate authority.
type CA struct {
	dir    string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	leaves leaves
}

// FolderError is a CA folder that cannot be used as it is.
type FolderError struct {
	Dir  string
	What string
	Hint string
}

// Error implements error.
func (e *FolderError) Error() string { return fmt.Sprintf("CA folder %q: %s", e.Dir, e.What) }

// Open loads the CA in dir, or makes one there if there is none yet. A new CA
// is constrained to names; nil means that it may sign for any host. Nothing
// that exists is ever overwritten. What is wrong with the folder comes back as
// a [*FolderError].
func Open(dir string, names *Names) (*CA, error) {
	_, certErr := os.Stat(filepath.Join(dir, certFile))
	_, keyErr := os.Stat(filepath.Join(dir, keyFile))
	switch {
	case errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist):
		if err := create(dir, names); err != nil {
			return nil, err
		}
	case errors.Is(certErr, fs.ErrNotExist):
		return nil, &FolderError{dir, keyFile + " is there, but " + certFile + " is missing", "restore " + certFile + ", or move the folder away to get a new CA"}
	case errors.Is(keyErr, fs.ErrNotExist):
		return nil, &FolderError{dir, certFile + " is there, but " + keyFile + " is missing", "restore " + keyFile + ", or move the folder away to get a new CA"}
	}
	ca, err := load(dir)
	if err != nil {
		return nil, err
	}
	return ca, ca.ensureBundle()
}

// Certificate returns the CA's certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Fingerprint returns the SHA-256 of the certificate in hexadecimal.
func (ca *CA) Fingerprint() string {
	sum := sha256.Sum256(ca.cert.Raw)
	return hex.EncodeToString(sum[:])
}

// BundlePath returns the file that clients are to trust.
func (ca *CA) BundlePath() string { return filepath.Join(ca.dir, bundleFile) }

// Covers reports whether clients will accept this CA's leaves for a host: a
// DNS name or an IP address.
func (ca *CA) Covers(host string) bool {
	leaf := leafTemplate(host, time.Now())
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca.cert, &ca.key.PublicKey, ca.key)
	if err != nil {
		return false
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return false
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: verifyName(host)})
	return err == nil
}

// verifyName writes a host as [x509.VerifyOptions] wants it.
func verifyName(host string) string {
	if ip, err := netip.ParseAddr(host); err == nil {
		return "[" + ip.String() + "]"
	}
	return host
}

func load(dir string) (*CA, error) {
	bad := func(what, hint string) (*CA, error) { return nil, &FolderError{dir, what, hint} }
	again := "restore the folder from a backup, or move it away to get a new CA (Orthanc must then trust the new bundle.pem)"
	keyPath := filepath.Join(dir, keyFile)
	info, err := os.Stat(keyPath)
	if err != nil {
		return bad(err.Error(), "make the folder readable for the gateway's user")
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return bad(fmt.Sprintf("%s can be read by other users (mode %04o)", keyFile, info.Mode().Perm()), "chmod 600 "+keyPath)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), keyPath)
	if err != nil {
		return bad(err.Error(), again)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return bad(keyFile+" is not an ECDSA key", again)
	}
	now := time.Now()
	switch cert := pair.Leaf; {
	case !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return bad(certFile+" is not a CA certificate", again)
	case now.After(cert.NotAfter):
		return bad("the CA ended on "+cert.NotAfter.Format(time.DateOnly), "move the folder away to get a new CA")
	case now.Before(cert.NotBefore):
		return bad("the CA begins on "+cert.NotBefore.Format(time.DateOnly), "check this machine's clock")
	}
	return &CA{dir: dir, cert: pair.Leaf, key: key}, nil
}

func create(dir string, names *Names) error {
	fail := func(err error) error {
		return &FolderError{dir, "make a new CA: " + err.Error(), "let the gateway's user write there, or set dir under [ca]"}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	template := caTemplate(names, time.Now())
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return fail(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fail(err)
	}
	if err := writeNew(filepath.Join(dir, keyFile), pemBlock("PRIVATE KEY", keyDER), 0o600); err != nil {
		return fail(err)
	}
	if err := writeNew(filepath.Join(dir, certFile), pemBlock("CERTIFICATE", der), 0o644); err != nil {
		return fail(err)
	}
	return nil
}

// caTemplate is a root that can sign server certificates for names and nothing
// else, so that its stolen key is of little use.
func caTemplate(names *Names, now time.Time) *x509.Certificate {
	t := &x509.Certificate{
		Subject: pkix.Name{
			Organization: []string{"orthanc-dicomweb-oauth"},
			CommonName:   "orthanc-dicomweb-oauth local CA " + rand.Text()[:8],
		},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if names == nil {
		return t
	}
	t.PermittedDNSDomainsCritical = true
	t.PermittedDNSDomains = append(t.PermittedDNSDomains, names.Hosts...)
	for _, parent := range names.Parents {
		t.PermittedDNSDomains = append(t.PermittedDNSDomains, "."+parent)
	}
	if t.PermittedDNSDomains == nil {
		t.PermittedDNSDomains = []string{"invalid"} // no list at all would permit every name (RFC 2606 reserves this one)
	}
	// Without a word on addresses, a leaf for any IP would be accepted.
	var v4, v6 bool
	for _, ip := range names.IPs {
		v4, v6 = v4 || ip.Is4(), v6 || ip.Is6()
		t.PermittedIPRanges = append(t.PermittedIPRanges, &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())})
	}
	if !v4 {
		t.ExcludedIPRanges = append(t.ExcludedIPRanges, &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)})
	}
	if !v6 {
		t.ExcludedIPRanges = append(t.ExcludedIPRanges, &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)})
	}
	return t
}

// ensureBundle writes bundle.pem unless it already carries this CA.
func (ca *CA) ensureBundle() error {
	path := ca.BundlePath()
	own := pemBlock("CERTIFICATE", ca.cert.Raw)
	if have, err := os.ReadFile(path); err == nil && bytes.Contains(have, own) {
		return nil
	}
	if err := replaceFile(path, own, 0o644); err != nil {
		return &FolderError{ca.dir, "write " + bundleFile + ": " + err.Error(), "let the gateway's user write there"}
	}
	return nil
}

func pemBlock(typ string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
}

// writeNew creates a file that must not exist yet.
func writeNew(path string, content []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

// replaceFile replaces a file in one step, so that no reader sees a half.
func replaceFile(path string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
