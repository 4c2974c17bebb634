package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// maxIdle is how many connections to one server are kept for later: Orthanc has
// up to 50 requests at once.
const maxIdle = 64

// upstream is a pool of verified connections with one set of TLS settings.
type upstream struct {
	conf *tls.Config
	dial dialFunc
	// corporate is upstream_proxy, or nil.
	corporate *url.URL
	// unresolved judges the addresses that can be told without DNS, where a
	// corporate proxy resolves names; nil otherwise, when the dialler judges all.
	unresolved *addressPolicy
	certified  bool // a client certificate is shown
	limits     rules.Proxy

	mu      sync.Mutex
	closed  bool
	servers map[place]*server
}

// place is where a connection leads.
type place struct {
	scheme    string
	authority rules.Authority
}

// server is what a pool knows about one of its servers.
type server struct {
	idle []*upstreamConn // the longest unused first

	accepted   *token.Token // the token that it last accepted ...
	acceptedAt time.Time    // ... and when it last did
	noContinue time.Time    // until then it is not asked for 100 (Continue)

	used  time.Time // when a request last went there
	tried time.Time // when a warm connection was last tried
}

func newUpstream(key upstreamKey, allow []netip.Prefix, p rules.Proxy, corporate *url.URL, own *ownAddresses) (*upstream, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, ClientSessionCache: tls.NewLRUClientSessionCache(64)}
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
	up := &upstream{
		conf: conf, dial: own.guard(&addressPolicy{allow: allow}), corporate: corporate,
		certified: key.cert != "", limits: p, servers: map[place]*server{},
	}
	if corporate != nil {
		up.dial = own.guard(nil) // the one address that is dialled is the proxy's, which the user named
		up.unresolved = &addressPolicy{allow: allow}
	}
	return up, nil
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

// errToProxy is a corporate proxy that was not reached.
type errToProxy struct{ err error }

// Error implements error.
func (e errToProxy) Error() string { return "upstream_proxy: " + e.err.Error() }

// Unwrap returns the cause.
func (e errToProxy) Unwrap() error { return e.err }

// tunnel opens a connection to an authority, through the corporate proxy if
// there is one. No byte of it has been used.
func (u *upstream) tunnel(ctx context.Context, a rules.Authority) (net.Conn, error) {
	if err := u.permits(a); err != nil {
		return nil, err
	}
	if u.corporate == nil {
		return u.dial(ctx, "tcp", a.String())
	}
	c, err := u.dialCorporate(ctx)
	if err != nil {
		return nil, err
	}
	through, err := connectThrough(ctx, c, u.corporate, a, u.limits.HeaderTimeout)
	if err != nil {
		c.Close()
		return nil, err
	}
	return through, nil
}

// dialCorporate opens a connection to the corporate proxy itself.
func (u *upstream) dialCorporate(ctx context.Context) (net.Conn, error) {
	c, err := u.dial(ctx, "tcp", u.corporate.Host)
	if err != nil {
		return nil, errToProxy{err}
	}
	return c, nil
}

// secure shakes hands over c, which it closes on failure.
func (u *upstream) secure(ctx context.Context, c net.Conn, a rules.Authority) (*secureConn, error) {
	conf := u.conf.Clone()
	conf.ServerName = a.Host()
	low := &bulkConn{Conn: c}
	conn := tls.Client(low, conf)
	ctx, cancel := context.WithTimeout(ctx, u.limits.HeaderTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		c.Close()
		if errors.Is(err, io.EOF) || connectionReset(err) {
			return nil, &refusal{problem{code: upstreamTLS, detail: "the server ended the connection during the TLS handshake", hint: "it may speak no TLS on this port, or want another version or a client certificate (client_cert, client_key)"}}
		}
		return nil, err
	}
	return &secureConn{Conn: conn, low: low}, nil
}

// connect opens a new connection for requests.
func (u *upstream) connect(ctx context.Context, p place) (*upstreamConn, error) {
	var c net.Conn
	var err error
	if p.scheme == "http" && u.corporate != nil {
		if err := u.permits(p.authority); err != nil {
			return nil, err
		}
		c, err = u.dialCorporate(ctx)
	} else {
		c, err = u.tunnel(ctx, p.authority)
	}
	if err != nil {
		return nil, err
	}
	if p.scheme == "http" {
		return newUpstreamConn(u, p, c, &bulkConn{Conn: c}), nil
	}
	conn, err := u.secure(ctx, c, p.authority)
	if err != nil {
		return nil, err
	}
	return newUpstreamConn(u, p, c, conn), nil
}

// take returns a kept connection, or a new one. Those that the server has closed
// are not taken, as far as that can be told.
func (u *upstream) take(ctx context.Context, p place, fresh bool) (*upstreamConn, error) {
	if fresh {
		u.dropIdle(p)
		return u.connect(ctx, p)
	}
	for {
		c := u.pop(p)
		if c == nil {
			return u.connect(ctx, p)
		}
		if time.Since(c.idleSince) < u.limits.IdleTimeout && c.quiet() {
			return c, nil
		}
		c.close()
	}
}

func (u *upstream) pop(p place) *upstreamConn {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.servers[p]
	if s == nil || len(s.idle) == 0 {
		return nil
	}
	n := len(s.idle)
	c := s.idle[n-1]
	s.idle = s.idle[:n-1]
	return c
}

// server returns the entry of a place; u.mu is held.
func (u *upstream) server(p place) *server {
	s := u.servers[p]
	if s == nil {
		s = &server{}
		u.servers[p] = s
	}
	return s
}

// put keeps a connection for later.
func (u *upstream) put(c *upstreamConn) {
	c.idleSince = time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.server(c.place)
	if c.served > 0 {
		s.used = c.idleSince
	}
	if u.closed || len(s.idle) >= maxIdle {
		c.close()
		return
	}
	s.idle = append(s.idle, c)
}

// dropIdle closes the kept connections to one place.
func (u *upstream) dropIdle(p place) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.servers[p]
	if s == nil {
		return
	}
	for _, c := range s.idle {
		c.close()
	}
	s.idle = nil
}

// refused is called after a 401. Tokens may be bound to the client certificate,
// and kept connections go on with the one that they began with.
func (u *upstream) refused(p place) {
	if u.certified {
		u.dropIdle(p)
	}
}

// close closes what is kept now and later.
func (u *upstream) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	for _, s := range u.servers {
		for _, c := range s.idle {
			c.close()
		}
		s.idle = nil
	}
}

// lately is how long an accepted token counts as good, and how long a server
// that does not answer 100 (Continue) is not asked for it.
const (
	lately        = time.Minute
	noContinueFor = time.Hour
)

// expectation tells how an upload that cannot be kept whole should begin.
func (u *upstream) expectation(p place, t *token.Token) (ask, wait bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.servers[p]
	if s == nil {
		return true, true
	}
	now := time.Now()
	if now.Before(s.noContinue) {
		return false, false
	}
	return true, s.accepted != t || now.Sub(s.acceptedAt) > lately
}

// accept notes that the server took a token.
func (u *upstream) accept(p place, t *token.Token) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.server(p)
	s.accepted, s.acceptedAt = t, time.Now()
}

// neverContinues notes that the server did not answer 100 (Continue).
func (u *upstream) neverContinues(p place) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.server(p).noContinue = time.Now().Add(noContinueFor)
}

const (
	// warmEvery is how often the pools are looked after.
	warmEvery = time.Second
	// warmFor is how long after its last request a server is kept warm.
	warmFor = time.Hour
	// warmAgain is the pause before a connection that failed is tried again.
	warmAgain = time.Minute
)

// warm closes what has ended or is too old, and opens a connection to each place
// that has none, so that the next request pays no handshake: to those in wanted,
// and to those that were used of late.
func (u *upstream) warm(ctx context.Context, wanted []place) {
	var open []place
	u.mu.Lock()
	now := time.Now()
	for _, p := range wanted {
		u.server(p).used = now
	}
	for p, s := range u.servers {
		s.idle = slices.DeleteFunc(s.idle, func(c *upstreamConn) bool {
			gone := now.Sub(c.idleSince) >= u.limits.IdleTimeout || !c.quiet()
			if gone {
				c.close()
			}
			return gone
		})
		if now.Sub(s.used) >= warmFor && now.After(s.noContinue) && len(s.idle) == 0 {
			delete(u.servers, p)
			continue
		}
		if p.scheme == "https" && len(s.idle) == 0 && now.Sub(s.used) < warmFor && now.Sub(s.tried) >= warmAgain {
			s.tried = now
			open = append(open, p)
		}
	}
	u.mu.Unlock()
	var all sync.WaitGroup
	for _, p := range open {
		all.Go(func() {
			if c, err := u.connect(ctx, p); err == nil { // else the next request tells why
				c.settle(ctx)
				u.put(c)
			}
		})
	}
	all.Wait()
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
