package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	leafLife = 24 * time.Hour
	// renewBefore is how long before its end a leaf is no longer handed out.
	renewBefore = 6 * time.Hour
	// maxLeaves bounds the cache: exact rules need one leaf each, but a wildcard
	// stands for any number of names.
	maxLeaves = 4096
)

// leaves is the cache of minted certificates.
type leaves struct {
	mu     sync.Mutex
	byHost map[string]*leaf
}

// leaf is minted once; all who ask for the same host meanwhile wait for it.
type leaf struct {
	once sync.Once
	cert *tls.Certificate
	err  error
}

// Leaf returns the certificate under which the gateway speaks as host, a
// canonical DNS name or IP address. It is minted once and renewed before its
// end. Call it for hosts of rules only.
func (ca *CA) Leaf(host string) (*tls.Certificate, error) {
	l := ca.leaves.entry(host)
	l.once.Do(func() { l.cert, l.err = ca.mint(host) })
	if l.err == nil && time.Until(l.cert.Leaf.NotAfter) > renewBefore {
		return l.cert, nil
	}
	ca.leaves.drop(host, l)
	if l.err != nil {
		return nil, l.err
	}
	l = ca.leaves.entry(host)
	l.once.Do(func() { l.cert, l.err = ca.mint(host) })
	return l.cert, l.err
}

func (c *leaves) entry(host string) *leaf {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.byHost[host]
	if l == nil {
		if c.byHost == nil {
			c.byHost = map[string]*leaf{}
		}
		if len(c.byHost) >= maxLeaves {
			for other := range c.byHost { // any one: minting costs half a millisecond
				delete(c.byHost, other)
				break
			}
		}
		l = &leaf{}
		c.byHost[host] = l
	}
	return l
}

// drop forgets l unless somebody replaced it already.
func (c *leaves) drop(host string, l *leaf) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byHost[host] == l {
		delete(c.byHost, host)
	}
}

func (ca *CA) mint(host string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make leaf key for %q: %w", host, err)
	}
	template := leafTemplate(host, time.Now())
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign leaf for %q: %w", host, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse leaf for %q: %w", host, err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}, nil
}

// leafTemplate names the host in the SAN only; the serial number is left to
// crypto/x509, which draws a random one.
func leafTemplate(host string, now time.Time) *x509.Certificate {
	t := &x509.Certificate{
		NotBefore:   now.Add(-backdate),
		NotAfter:    now.Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		t.IPAddresses = []net.IP{ip}
	} else {
		t.DNSNames = []string{host}
	}
	return t
}
