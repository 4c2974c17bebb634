// Package certs is the local certificate authority: it makes the CA on first
// start, keeps its folder, replaces the CA, and mints the leaf certificates
// under which the gateway speaks as the hosts of its rules. It decides nothing
// about which hosts these are. A [CA] is safe for concurrent use.
//
// # The folder
//
//	ca.pem           the CA that signs
//	ca-key.pem       its private key, mode 0600
//	bundle.pem       what clients are to trust
//	next-ca.pem      a CA that waits: made by [Rotate], signs after [Activate]
//	next-ca-key.pem  its private key, mode 0600
//	previous-ca.pem  the CA before the last Activate; its key is gone
//
// The bundle carries the CA that signs, and beside it the one that waits or else
// the previous one. So a client trusts a new CA before it signs, and the old
// one until the next Rotate; what else a user has added to the bundle stays.
//
// Files are replaced in one step and by one process at a time. The key decides
// which CA signs: it is the one certificate of ca.pem and next-ca.pem that
// ca-key.pem belongs to. So each state in which a crash may leave the folder is
// one of these, and loads:
//
//	next-ca-key.pem without its certificate   no CA waits; Rotate writes a new pair
//	a waiting pair that the bundle lacks      it waits; Open and Activate complete the bundle
//	ca-key.pem belongs to next-ca.pem         it signs; Rotate and Activate rename it to ca.pem
package certs

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

const (
	caLife = 10 * 365 * 24 * time.Hour
	// warnBefore is how long before its end a CA asks to be replaced.
	warnBefore = 30 * 24 * time.Hour
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
	dir      string
	cert     *x509.Certificate
	key      *ecdsa.PrivateKey
	next     *CA               // the one that waits, or nil
	previous *x509.Certificate // or nil
	leaves   *leaves
}

// Open loads the CA in dir, or makes one there if there is none yet. A new CA
// is constrained to names; nil means that it may sign for any host. Nothing
// that exists is ever overwritten, but the bundle where it lacks a CA. What is
// wrong with the folder comes back as a [*FolderError].
func Open(dir string, names *Names) (*CA, error) {
	if there, half := present(dir); !there { // half a CA may be one that somebody is making
		if err := create(dir, names); err != nil {
			return nil, cmp.Or(half, err)
		}
	}
	ca, err := load(dir)
	if err != nil {
		return nil, err
	}
	return ca, ca.ensureBundle()
}

// Latest returns the CA that the folder holds now: ca itself, unless another
// one signs or waits there since ca was loaded.
func (ca *CA) Latest() (*CA, error) {
	now, err := Load(ca.dir)
	if err != nil {
		return nil, err
	}
	if !now.cert.Equal(ca.cert) {
		return now, now.inForce()
	}
	if same(now.next, ca.next) {
		return ca, nil
	}
	now.leaves = ca.leaves
	return now, nil
}

// same reports whether a and b are the same CA, or both none.
func same(a, b *CA) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.cert.Equal(b.cert)
}

// Certificate returns the CA's certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Fingerprint returns the SHA-256 of the certificate in hexadecimal.
func (ca *CA) Fingerprint() string {
	return fingerprint(ca.cert)
}

// BundlePath returns the file that clients are to trust.
func (ca *CA) BundlePath() string { return filepath.Join(ca.dir, bundleFile) }

// Waiting returns the CA that [Activate] would let sign, or nil.
func (ca *CA) Waiting() *CA { return ca.next }

// Warning tells what is to be done about a CA that ends within 30 days, or has
// ended; "" if nothing is.
func (ca *CA) Warning(now time.Time) string {
	left := ca.cert.NotAfter.Sub(now)
	if left > warnBefore {
		return ""
	}
	on := ca.cert.NotAfter.Format(time.DateOnly)
	if left <= 0 {
		return fmt.Sprintf("the CA ended on %s, clients refuse its certificates; %s", on, ca.remedy())
	}
	return fmt.Sprintf("the CA ends on %s, in %d days; %s", on, int(left.Hours()/24), ca.remedy())
}

func (ca *CA) remedy() string {
	if ca.next != nil {
		return "a new one waits: run ca activate"
	}
	return "run ca rotate, then ca activate; Orthanc trusts the new CA by the same bundle.pem"
}

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

// inForce returns an error unless the CA's certificate is valid now.
func (ca *CA) inForce() error {
	switch now := time.Now(); {
	case now.After(ca.cert.NotAfter):
		return &FolderError{ca.dir, "the CA ended on " + ca.cert.NotAfter.Format(time.DateOnly), ca.remedy()}
	case now.Before(ca.cert.NotBefore):
		return &FolderError{ca.dir, "the CA begins on " + ca.cert.NotBefore.Format(time.DateOnly), "check this machine's clock"}
	}
	return nil
}

// create makes the first CA of a folder.
func create(dir string, names *Names) error {
	hint := "let the gateway's user write there, or set dir under [ca]"
	if err := os.MkdirAll(dir, 0o711); err != nil { // Orthanc, as another user, is to read the bundle
		return &FolderError{dir, "make a new CA: " + err.Error(), hint}
	}
	return change(dir, "make a new CA", hint, func() error {
		if there, err := present(dir); there || err != nil {
			return err // somebody else was faster
		}
		return writePair(dir, certFile, keyFile, names)
	})
}

// writePair makes a CA and puts it into the folder, the certificate last.
func writePair(dir, certFile, keyFile string, names *Names) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := caTemplate(names, time.Now())
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(dir, keyFile), pemBlock("PRIVATE KEY", keyDER), 0o600); err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, certFile), pemBlock("CERTIFICATE", der), 0o644)
}

// noName stands where no DNS name is permitted; RFC 2606 reserves it.
const noName = "invalid"

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
		t.PermittedDNSDomains = []string{noName} // no list at all would permit every name
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
