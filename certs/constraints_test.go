package certs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/certs"
)

// constraints are CAs with the names they are made for, and what they may sign for then.
var constraints = map[string]struct {
	names    *certs.Names
	accepted []string
	refused  []string
}{
	"hosts": {
		&certs.Names{Hosts: []string{"dicom.example.org", "xn--bcher-kva.example"}},
		[]string{"dicom.example.org", "xn--bcher-kva.example", "below.dicom.example.org"},
		[]string{"example.org", "other.example.org", "xdicom.example.org", "dicom.example.org.evil", "localhost", "192.0.2.1", "127.0.0.1", "::1"},
	},
	"a parent": {
		&certs.Names{Parents: []string{"example.org"}},
		[]string{"a.example.org", "b.a.example.org"},
		[]string{"example.org", "aexample.org", "org", "example.com", "192.0.2.1", "2001:db8::1"},
	},
	"a host and a parent": {
		&certs.Names{Hosts: []string{"dicom.example.org"}, Parents: []string{"example.com"}},
		[]string{"dicom.example.org", "a.example.com"},
		[]string{"example.org", "example.com", "a.example.org"},
	},
	"an IPv4 address": {
		&certs.Names{IPs: addresses("192.0.2.1", "10.0.0.1")},
		[]string{"192.0.2.1", "10.0.0.1"},
		[]string{"192.0.2.2", "192.0.2.0", "127.0.0.1", "::1", "2001:db8::1", "dicom.example.org", "localhost"},
	},
	"an IPv6 address": {
		&certs.Names{IPs: addresses("2001:db8::1")},
		[]string{"2001:db8::1"},
		[]string{"2001:db8::2", "::1", "192.0.2.1", "dicom.example.org"},
	},
	"a host and both kinds of address": {
		&certs.Names{Hosts: []string{"dicom.example.org"}, IPs: addresses("192.0.2.1", "2001:db8::1")},
		[]string{"dicom.example.org", "192.0.2.1", "2001:db8::1"},
		[]string{"192.0.2.2", "2001:db8::2", "example.org"},
	},
	"no name at all": {
		&certs.Names{},
		nil,
		[]string{"dicom.example.org", "localhost", "192.0.2.1", "::1"},
	},
	"not constrained": {
		nil,
		[]string{"dicom.example.org", "localhost", "192.0.2.1", "::1"},
		nil,
	},
}

func TestClientsRefuseLeavesForOtherNames(t *testing.T) {
	for name, row := range constraints {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ca")
			ca := open(t, dir, row.names)
			if critical := ca.Certificate().PermittedDNSDomainsCritical; critical != (row.names != nil) {
				t.Errorf("constraints critical: %v", critical)
			}
			signer := signerOf(t, dir)
			for _, host := range append(row.accepted, row.refused...) {
				want := strings.Contains("\n"+strings.Join(row.accepted, "\n")+"\n", "\n"+host+"\n")
				if got := ca.Covers(host); got != want {
					t.Errorf("Covers(%s): got %v, want %v", host, got, want)
				}
				leaf, err := ca.Leaf(host)
				if err != nil {
					t.Fatal(err)
				}
				if err := verify(ca, leaf.Leaf, host); (err == nil) != want {
					t.Errorf("%s: a client says %v, want accepted: %v", host, err, want)
				}
				// A thief of the key is not bound to what our code would sign.
				if err := verify(ca, signer.sign(t, host, ca.Certificate().NotAfter), host); (err == nil) != want {
					t.Errorf("%s: signed by a thief: a client says %v, want accepted: %v", host, err, want)
				}
			}
		})
	}
}

func verify(ca *certs.CA, leaf *x509.Certificate, host string) error {
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	if ip := net.ParseIP(host); ip != nil {
		host = "[" + host + "]"
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host})
	return err
}

// signer signs with a CA's key as it lies in the folder.
type signer struct {
	ca  *x509.Certificate
	key any
}

func signerOf(t testing.TB, dir string) signer {
	t.Helper()
	block, _ := pem.Decode(read(t, filepath.Join(dir, "ca-key.pem")))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return signer{certificate(t, read(t, filepath.Join(dir, "ca.pem"))), key}
}

func (s signer) sign(t testing.TB, host string, until time.Time) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{NotBefore: time.Now().Add(-time.Hour), NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.ca, key.Public(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// The CA is for servers only, and has no CA below it.
func TestStolenKeyIsOfLittleUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	ca := open(t, dir, hosts)
	s := signerOf(t, dir)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	leaf := s.sign(t, "dicom.example.org", time.Now().Add(time.Hour))
	for use, want := range map[x509.ExtKeyUsage]bool{
		x509.ExtKeyUsageServerAuth: true, x509.ExtKeyUsageClientAuth: false, x509.ExtKeyUsageCodeSigning: false, x509.ExtKeyUsageEmailProtection: false,
	} {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{use}})
		if (err == nil) != want {
			t.Errorf("key usage %v: got %v, want accepted: %v", use, err, want)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	template.Subject.CommonName = "below"
	der, err := x509.CreateCertificate(rand.Reader, template, s.ca, key.Public(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	below, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	between := x509.NewCertPool()
	between.AddCert(below)
	leaf = signer{below, key}.sign(t, "dicom.example.org", time.Now().Add(time.Hour))
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between}); err == nil {
		t.Error("a CA below ours is accepted")
	}
}

// Orthanc verifies with OpenSSL, whose reading of RFC 5280 is another one than Go's.
func TestOpenSSLAgrees(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	for name, row := range constraints {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "ca")
			ca := open(t, dir, row.names)
			check := func(host string, want bool) {
				leaf, err := ca.Leaf(host)
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(dir, strings.ReplaceAll(host, ":", "_")+".leaf.pem")
				write(t, path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}), 0o600)
				option := "-verify_hostname"
				if _, err := netip.ParseAddr(host); err == nil {
					option = "-verify_ip"
				}
				out, err := exec.Command(openssl, "verify", "-x509_strict", "-purpose", "sslserver", "-no-CApath", "-CAfile", ca.BundlePath(), option, host, path).CombinedOutput()
				if (err == nil) != want {
					t.Errorf("%s: got %v, want accepted: %v\n%s", host, err, want, out)
				}
			}
			for _, host := range row.accepted {
				check(host, true)
			}
			for _, host := range row.refused {
				check(host, false)
			}
		})
	}
}
