package gateway

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// upstream is a pool of verified connections with one set of TLS settings.
type upstream struct {
	transport *http.Transport
	dial      dialFunc
	// unresolved judges the addresses that can be told without DNS, where a
	// corporate proxy resolves names; nil otherwise, when the dialler judges all.
	unresolved *addressPolicy
	certified  bool // a client certificate is shown
}

// refused is called after a 401. Tokens may be bound to the client certificate,
// and kept connections go on with the one that they began with.
func (u *upstream) refused() {
	if u.certified {
		u.transport.CloseIdleConnections()
	}
}

// permits refuses an authority that the corporate proxy must not be asked for.
// What names resolve to is for that proxy to judge.
func (u *upstream) permits(a rules.Authority) error {
	if u.unresolved == nil {
		return nil
	}
	ip, ok := a.IP()
	if host := a.Host(); host == "localhost" || strings.HasSuffix(host, ".localhost") {
		ip, ok = netip.AddrFrom4([4]byte{127, 0, 0, 1}), true
	}
	if !ok {
		return nil
	}
	return u.unresolved.check(ip)
}

// clientCertificate returns what the gateway shows to a rule's upstream: the
// rule's own, or the one that the profile's tokens are bound to.
func clientCertificate(r *rules.Rule, p *rules.Profile) (token.File, token.PrivateFile) {
	if r.ClientCert == "" && p != nil {
		if b, ok := p.Settings.(interface {
			BoundCertificate() (token.File, token.PrivateFile, bool)
		}); ok {
			if cert, key, bound := b.BoundCertificate(); bound {
				return cert, key
			}
		}
	}
	return r.ClientCert, r.ClientKey
}

func newUpstream(key upstreamKey, allow []netip.Prefix, p rules.Proxy, corporate *url.URL, own *ownAddresses) (*upstream, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(64)}
	if key.ca != "" {
		pool, err := key.ca.CertPool()
		if err != nil {
			return nil, fmt.Errorf("read ca_file: %w", err)
		}
		conf.RootCAs = pool
	}
	if key.cert != "" {
		if _, err := tls.LoadX509KeyPair(string(key.cert), string(key.key)); err != nil {
			return nil, fmt.Errorf("load client_cert: %w", err)
		}
		conf.ClientSessionCache = nil // a resumed session goes on with the certificate that it began with
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(string(key.cert), string(key.key)) // anew each time: certificates get replaced
			return &pair, err
		}
	}
	dial := own.guard(&addressPolicy{allow: allow})
	if corporate != nil {
		dial = own.guard(nil) // the one address that is dialled is the proxy's, which the user named
	}
	http1 := &http.Protocols{}
	http1.SetHTTP1(true) // over h2 the flow-control window makes a large STOW-RS several times slower
	t := &http.Transport{
		DialContext:            dial,
		TLSClientConfig:        conf,
		Protocols:              http1,
		TLSHandshakeTimeout:    p.HeaderTimeout,
		ResponseHeaderTimeout:  p.ResponseTimeout,
		DisableCompression:     true, // nothing is decompressed, nothing gains an Accept-Encoding
		MaxIdleConnsPerHost:    64,   // Orthanc has up to 50 requests at once
		IdleConnTimeout:        p.IdleTimeout,
		MaxResponseHeaderBytes: 256 << 10,
	}
	up := &upstream{transport: t, dial: dial, certified: key.cert != ""}
	if corporate != nil {
		t.Proxy = http.ProxyURL(corporate)
		t.OnProxyConnectResponse = func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
			if resp.StatusCode != http.StatusOK {
				return errCorporateProxy{resp.StatusCode}
			}
			return nil
		}
		up.unresolved = &addressPolicy{allow: allow}
	}
	return up, nil
}
