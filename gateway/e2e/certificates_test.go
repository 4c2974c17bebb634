//go:build e2e

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// signedBy signs a certificate for localhost with another authority of the test's own.
func signedBy(t *testing.T, parent *x509.Certificate, parentKey signer) tls.Certificate {
	t.Helper()
	return (&pki{ca: parent, caKey: parentKey}).leaf(t, nil)
}

// authority makes a CA; the parent nil: it signs itself.
func authority(t *testing.T, name string, parent *x509.Certificate, parentKey signer) (*x509.Certificate, signer) {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	return sign(t, filepath.Join(t.TempDir(), "ca.pem"), template, parent, key, parentKey), key
}

// Each thing that can be wrong with the server's TLS has a reason of its own, and the server sees nothing of the request.
func TestAttackA21FaultsOfTheServersTLS(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	good := p.leaf(t, nil)
	serves := func(certificate tls.Certificate) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{certificate}}
	}
	leaf := func(change func(*x509.Certificate)) *tls.Config { return serves(p.leaf(t, change)) }

	ownKey := newKey(t)
	selfSigned := &x509.Certificate{
		DNSNames: []string{"localhost"}, NotBefore: p.ca.NotBefore, NotAfter: p.ca.NotAfter,
		Subject: pkix.Name{CommonName: "localhost"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	selfSigned = sign(t, filepath.Join(t.TempDir(), "self.pem"), selfSigned, selfSigned, ownKey, ownKey)
	root, rootKey := authority(t, "Another hospital's CA", nil, nil)
	unknown := signedBy(t, root, rootKey)
	unknown.Certificate = append(unknown.Certificate, root.Raw)
	intermediate, intermediateKey := authority(t, "Intermediate", p.ca, p.caKey)
	incomplete := signedBy(t, intermediate, intermediateKey)
	complete := signedBy(t, intermediate, intermediateKey)
	complete.Certificate = append(complete.Certificate, intermediate.Raw)

	only := func(version uint16) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: version}
	}
	demanding, demanding12 := serves(good), only(tls.VersionTLS12)
	demanding.ClientAuth, demanding.ClientCAs = tls.RequireAndVerifyClientCert, p.pool
	demanding12.ClientAuth = tls.RequireAnyClientCert
	rows := []struct {
		name   string
		conf   *tls.Config // nil: no TLS at all
		detail string      // a part of the reason
	}{
		{"expired", leaf(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-time.Hour)
		}), "expired on "},
		{"not yet valid", leaf(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }), "not yet valid"},
		{"wrong name", leaf(func(c *x509.Certificate) { c.DNSNames = []string{"evil.test"} }), "another name"},
		{"wrong purpose", leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), "not valid for a server"},
		{"SHA-1", leaf(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }), "SHA-1"},
		{"self-signed", serves(tls.Certificate{Certificate: [][]byte{selfSigned.Raw}, PrivateKey: ownKey}), "itself"},
		{"unknown root", serves(unknown), "unknown authority"},
		{"intermediate missing", serves(incomplete), "intermediate"},
		{"TLS 1.1 only", only(tls.VersionTLS11), "protocol version"},
		{"client certificate demanded", demanding, "certificate required"},
		{"client certificate demanded in TLS 1.2", demanding12, "the server refused the handshake"},
		{"no TLS", nil, "does not speak TLS"},
	}
	servers := make([]*recorder, len(rows))
	var tables string
	for i, row := range rows {
		servers[i] = startRecorderWith(t, row.conf, nil)
		tables += p.inject(fmt.Sprint("rule-", i), servers[i].url(), "")
	}
	whole := startRecorderWith(t, serves(complete), nil)
	tables += p.inject("whole", whole.url(), "")
	a := startArena(t, "", tables)

	reasons := map[string]string{}
	for i, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			host := servers[i].authority
			c := a.tunnel(t, host)
			const head = " /studies?PatientName=x HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n"
			for _, request := range []string{fmt.Sprintf("GET"+head, host, 0), fmt.Sprintf("POST"+head, host, 5) + "hello"} {
				got := talk(c, request)
				if wrong := got.is(502, "upstream_tls"); wrong != "" {
					t.Fatal(wrong)
				}
				detail := got.detail(t)
				if !strings.Contains(detail, row.detail) {
					t.Errorf("got the reason %q, want %q in it", detail, row.detail)
				}
				if other, taken := reasons[detail]; taken && other != row.name {
					t.Errorf("%q is also the reason of %q", detail, other)
				}
				reasons[detail] = row.name
			}
		})
	}
	for i, row := range rows {
		if servers[i].dialled() == 0 {
			t.Errorf("%s: the server was not asked", row.name)
		}
		for _, r := range servers[i].seen() {
			if r.method != "" || len(r.fields) > 0 {
				t.Errorf("%s: the server got %s %s", row.name, r.method, r.target)
			}
		}
	}
	t.Run("the whole chain", func(t *testing.T) {
		if wrong := talk(a.tunnel(t, whole.authority), "GET / HTTP/1.1\r\nHost: "+whole.authority+"\r\n\r\n").is(200, ""); wrong != "" {
			t.Error(wrong)
		}
		whole.wantOurs(t)
	})
}
