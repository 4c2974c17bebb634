package gateway_test

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// pair is a certificate as two files.
func pair(t *testing.T, c tls.Certificate) (cert, key []byte) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestProxyOverTLS(t *testing.T) {
	t.Parallel()
	cert, key := pair(t, testPKI().leaf(time.Now().Add(time.Hour), "127.0.0.1"))
	h := newHarness(t, setup{
		proxy: "tls_cert = \"proxy.pem\"\ntls_key = \"proxy-key.pem\"\nheader_timeout = \"500ms\"",
		files: map[string][]byte{"proxy.pem": cert, "proxy-key.pem": key},
	})
	roots := h.roots()
	roots.AddCert(testPKI().cert) // the proxy's own certificate is not of our CA
	transport := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "https", Host: h.addr}), TLSClientConfig: clientTLS(roots)}
	t.Cleanup(transport.CloseIdleConnections)
	h.client.Transport = transport
	for range 3 {
		h.get("/studies").want(t, 200)
		transport.CloseIdleConnections()
	}
	if h.up.last(t).header.Get("Authorization") == "" {
		t.Error("no credential")
	}
	silent := dial(t, h.addr) // no ClientHello to the proxy itself
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("got a byte for nothing")
	}
	eventually(t, "the silent client is let go", func() bool { return h.gw.Status().Connections <= 1 })
}

func TestClientCertificateForTheServer(t *testing.T) {
	t.Parallel()
	client := testPKI().leaf(time.Now().Add(time.Hour), "gateway.test")
	cert, key := pair(t, client)
	conf := serverTLS(testPKI().leaf(time.Now().Add(time.Hour), "localhost"))
	conf.ClientAuth = tls.RequireAnyClientCert
	up := newDoubleWith(t, conf, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.TLS.PeerCertificates[0].DNSNames)
	})
	h := newHarness(t, setup{
		up: up, url: up.url + "/mutual/", rule: "client_cert = \"client.pem\"\nclient_key = \"client-key.pem\"",
		files: map[string][]byte{"client.pem": cert, "client-key.pem": key},
		more:  fmt.Sprintf("[[rule]]\nname = \"without\"\nurl = \"%s/without/\"\nprofile = \"main\"\nca_file = \"up.pem\"\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n", up.url),
	})
	if a := h.get("/mutual/x").want(t, 200); a.body != "[gateway.test]" {
		t.Errorf("the server saw %q", a.body)
	}
	h.get("/without/x").problem(t, 502, "upstream_tls") // connections are not shared among the two
}

// A certificate is replaced on disk while the gateway runs. The server, which
// ties tokens to certificates, refuses what comes over the kept connection; the
// request is then sent again over one with the new certificate.
func TestReplacedClientCertificateIsShown(t *testing.T) {
	t.Parallel()
	before, beforeKey := pair(t, testPKI().leaf(time.Now().Add(time.Hour), "before.test"))
	after, afterKey := pair(t, testPKI().leaf(time.Now().Add(time.Hour), "after.test"))
	conf := serverTLS(testPKI().leaf(time.Now().Add(time.Hour), "localhost"))
	conf.ClientAuth = tls.RequireAnyClientCert
	var wanted atomic.Value
	wanted.Store("before.test")
	up := newDoubleWith(t, conf, func(w http.ResponseWriter, r *http.Request) {
		if r.TLS.PeerCertificates[0].DNSNames[0] != wanted.Load() {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	h := newHarness(t, setup{
		up: up, rule: "client_cert = \"client.pem\"\nclient_key = \"client-key.pem\"",
		files: map[string][]byte{"client.pem": before, "client-key.pem": beforeKey},
	})
	h.get("/").want(t, 200)
	for name, content := range map[string][]byte{"client.pem": after, "client-key.pem": afterKey} {
		if err := os.WriteFile(filepath.Join(h.dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wanted.Store("after.test")
	h.get("/").want(t, 200)
}
