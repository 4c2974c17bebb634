package certs

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"
	"time"
)

// Description is what an operator may know about a CA folder.
type Description struct {
	Dir    string `json:"dir"`
	Bundle string `json:"bundle"` // path
	Authority
	// Waiting is the CA that ca activate would let sign.
	Waiting *Authority `json:"waiting"`
	// Previous is the one before the last activation, which the bundle still carries.
	Previous *Authority `json:"previous"`
	// Warning tells what is to be done, if anything is.
	Warning string `json:"warning,omitempty"`
}

// Authority is one CA certificate.
type Authority struct {
	// Fingerprint is the SHA-256 of the certificate in hexadecimal.
	Fingerprint string `json:"fingerprint_sha256"`
	// Names are the hosts and addresses that it may sign for, *.parent for all
	// names below a parent. Null: any.
	Names     []string  `json:"names"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
}

// Describe tells what the folder holds.
func (ca *CA) Describe(now time.Time) Description {
	d := Description{Dir: ca.dir, Bundle: ca.BundlePath(), Authority: describe(ca.cert), Warning: ca.Warning(now)}
	if ca.next != nil {
		next := describe(ca.next.cert)
		d.Waiting = &next
	} else if ca.previous != nil {
		previous := describe(ca.previous)
		d.Previous = &previous
	}
	return d
}

func describe(cert *x509.Certificate) Authority {
	a := Authority{Fingerprint: fingerprint(cert), NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC()}
	if !cert.PermittedDNSDomainsCritical {
		return a
	}
	a.Names = []string{}
	for _, name := range cert.PermittedDNSDomains {
		switch {
		case name == noName:
		case strings.HasPrefix(name, "."):
			a.Names = append(a.Names, "*"+name)
		default:
			a.Names = append(a.Names, name)
		}
	}
	for _, network := range cert.PermittedIPRanges {
		a.Names = append(a.Names, network.IP.String())
	}
	return a
}

func fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// SystemRoots returns the CA certificates that this system trusts, in PEM.
func SystemRoots() ([]byte, error) {
	text, err := systemRoots()
	if err != nil {
		return nil, fmt.Errorf("read the system's roots: %w", err)
	}
	var roots bytes.Buffer
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			roots.Write(pemBlock(block.Type, block.Bytes)) // without the comments of some systems
		}
	}
	if roots.Len() == 0 {
		return nil, fmt.Errorf("read the system's roots: there is no certificate in them")
	}
	return roots.Bytes(), nil
}
