package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"reflect"
	"sync"
	"sync/atomic"

	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// snapshot is everything that one configuration means at run time. It is built
// whole, swapped in one step, and immutable from then on: a request keeps the
// snapshot that it began with. What a new configuration leaves as it is, a new
// snapshot takes over from the one before: the sources with their tokens, the
// pools with their connections.
type snapshot struct {
	config    *rules.Config
	sources   map[string]*token.Source    // by profile name
	upstreams map[*rules.Rule]*upstream   // shared among rules with the same settings
	unruled   *upstream                   // for hosts that no rule names
	corporate *url.URL                    // upstream_proxy, or nil
	warmed    map[*upstream][]*rules.Rule // to whose servers a connection is always kept
	auditKey  []byte                      // of the study hashes; nil: there are none
	auth      *proxyAuth
	frontTLS  *tls.Config // nil: the proxy speaks plain HTTP

	origins map[string]origin      // what each source was made from
	pools   map[poolKey]*upstream  // all pools
	files   map[string]fs.FileInfo // by path, what all this was read from; nil: it was not there

	// users counts the requests that have the snapshot, and one more until the
	// next snapshot is there. The last one calls unused.
	users  atomic.Int64
	unused func()
}

// maxWarm bounds the servers to which a connection is kept without a request.
const maxWarm = 64

// upstreamKey is what tells one pool of upstream connections from another.
type upstreamKey struct {
	ca, cert token.File
	key      token.PrivateFile
	networks string
}

// poolKey is all that a pool of upstream connections was made from.
type poolKey struct {
	upstreamKey
	files     digest // of the content of ca, cert and key
	timeouts  [4]int64
	corporate digest // of upstream_proxy
}

// origin is all that a source was made from.
type origin struct {
	profile   rules.Profile
	corporate digest // of upstream_proxy
}

// same compares settings deeply: secrets in them by their content, secret files
// by their path, since they are read anew at each acquisition, as is a ca_file.
func (o origin) same(other origin) bool { return reflect.DeepEqual(o, other) }

type digest = [sha256.Size]byte

// follow notes files that are about to be read, as they are before that. Each is
// a path, or empty.
func (s *snapshot) follow(paths ...string) {
	for _, path := range paths {
		if _, noted := s.files[path]; path != "" && !noted {
			s.files[path], _ = os.Stat(path) // nil on an error
		}
	}
}

// digestOf tells whether files have been replaced. Each is a path, or empty; one
// that cannot be read is another's problem.
func digestOf(paths ...string) digest {
	h := sha256.New()
	for _, path := range paths {
		content := []byte(nil)
		if path != "" {
			content, _ = os.ReadFile(path)
		}
		sum := sha256.Sum256(content)
		h.Write(sum[:])
	}
	return digest(h.Sum(nil))
}

// newSnapshot builds the snapshot of a configuration on the one before it; nil
// for the first one. Nothing of that one is changed, and nothing is left behind
// when it fails.
func (g *Gateway) newSnapshot(c *rules.Config, before *snapshot) (*snapshot, error) {
	s := &snapshot{
		config: c, sources: map[string]*token.Source{}, upstreams: map[*rules.Rule]*upstream{},
		warmed: map[*upstream][]*rules.Rule{}, origins: map[string]origin{}, pools: map[poolKey]*upstream{},
		files: map[string]fs.FileInfo{c.Path: c.Info},
	}
	if before == nil {
		before = &snapshot{}
	}
	if raw := c.Proxy.UpstreamProxy; !raw.Empty() {
		u, err := url.Parse(raw.Reveal())
		if err != nil {
			return nil, fmt.Errorf("proxy.upstream_proxy is not a URL") // err would show its password
		}
		s.corporate = u
	}
	if path := c.Log.AuditKeyFile; path != "" {
		s.follow(string(path))
		key, err := os.ReadFile(string(path))
		if err != nil {
			return nil, fmt.Errorf("log.audit_key_file: %w", err)
		}
		s.auditKey = key
	}
	if err := s.openFront(before, &g.stats.connections); err != nil {
		return nil, err
	}
	if err := s.openPools(before, g.own); err != nil {
		s.closeBut(before)
		return nil, err
	}
	acquirers := map[string]token.Acquirer{}
	for name, p := range c.Profiles {
		o := origin{profile: *p, corporate: sha256.Sum256([]byte(c.Proxy.UpstreamProxy.Reveal()))}
		if t, ok := p.Settings.(interface{ TrustFile() token.File }); ok {
			s.follow(string(t.TrustFile()))
		}
		s.origins[name] = o
		if was, ok := before.origins[name]; ok && was.same(o) {
			s.sources[name] = before.sources[name]
			continue
		}
		a, err := s.acquirer(p, g.own)
		if err != nil {
			s.closeBut(before)
			return nil, fmt.Errorf("profile %q: %w", name, err)
		}
		acquirers[name] = a
	}
	for name, a := range acquirers {
		s.sources[name] = token.NewSource(a, c.Profiles[name].Lifecycle, g.log.With("profile", name))
	}
	return s, nil
}

// openFront decides how and by whom the proxy may be used.
func (s *snapshot) openFront(before *snapshot, places *atomic.Int64) error {
	p := s.config.Proxy
	auth, err := newProxyAuth(p, places)
	if err != nil {
		return err
	}
	s.auth = auth
	if before.auth.same(auth) {
		s.auth = before.auth // it remembers the guesses
	}
	if p.TLSCert != "" {
		s.follow(string(p.TLSCert), string(p.TLSKey))
		pair, err := tls.LoadX509KeyPair(string(p.TLSCert), string(p.TLSKey))
		if err != nil {
			return fmt.Errorf("load proxy.tls_cert: %w", err)
		}
		s.frontTLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	}
	return nil
}

// openPools gives each rule its pool.
func (s *snapshot) openPools(before *snapshot, own *ownAddresses) error {
	p := s.config.Proxy
	open := func(r *rules.Rule) (*upstream, error) {
		cert, private := clientCertificate(r, s.config.Profiles[r.Profile])
		s.follow(string(r.CAFile), string(cert), string(private))
		key := poolKey{
			upstreamKey: upstreamKey{r.CAFile, cert, private, fmt.Sprint(r.AllowNetworks)},
			files:       digestOf(string(r.CAFile), string(cert), string(private)),
			timeouts:    [...]int64{int64(p.HeaderTimeout), int64(p.StallTimeout), int64(p.ResponseTimeout), int64(p.IdleTimeout)},
			corporate:   sha256.Sum256([]byte(p.UpstreamProxy.Reveal())),
		}
		if s.pools[key] == nil {
			s.pools[key] = before.pools[key]
		}
		if s.pools[key] == nil {
			up, err := newUpstream(key.upstreamKey, r.AllowNetworks, p, s.corporate, own)
			if err != nil {
				delete(s.pools, key)
				return nil, fmt.Errorf("rule %q: %w", r.Name, err)
			}
			s.pools[key] = up
		}
		return s.pools[key], nil
	}
	var err error
	if s.unruled, err = open(&rules.Rule{}); err != nil {
		return err
	}
	for _, r := range s.config.Rules {
		if s.upstreams[r], err = open(r); err != nil {
			return err
		}
		if _, exact := r.Authority(); exact && r.Decision() == rules.Inject && len(s.upstreams) <= maxWarm {
			s.warmed[s.upstreams[r]] = append(s.warmed[s.upstreams[r]], r)
		}
	}
	return nil
}

// acquirer builds what asks the provider of a profile.
func (s *snapshot) acquirer(p *rules.Profile, own *ownAddresses) (token.Acquirer, error) {
	policy := &addressPolicy{metadataOnly: true}
	if m, ok := p.Settings.(token.MetadataUser); ok && m.AsksMetadata() {
		policy = nil
	}
	kept := &keptConnections{}
	var err error
	kept.Acquirer, err = p.Settings.Acquirer(token.Env{
		Dial: own.guard(policy), Proxy: s.corporate,
		Kept: func(closeIdle func()) { kept.closers = append(kept.closers, closeIdle) },
	})
	return kept, err
}

// keptConnections lets a source close the connections of its acquirer.
type keptConnections struct {
	token.Acquirer
	closers []func()
}

// CloseIdleConnections closes the connections that no acquisition uses.
func (k *keptConnections) CloseIdleConnections() {
	for _, closeIdle := range k.closers {
		closeIdle()
	}
}

// upstream returns the connections for a rule; nil stands for a host that no
// rule names.
func (s *snapshot) upstream(r *rules.Rule) *upstream {
	if r == nil {
		return s.unruled
	}
	return s.upstreams[r]
}

// warm looks after the pools, see [upstream.warm].
func (s *snapshot) warm(ctx context.Context) {
	var all sync.WaitGroup
	for _, up := range s.pools {
		var wanted []place
		for _, r := range s.warmed[up] {
			if a, _ := r.Authority(); s.sources[r.Profile].Peek() != nil {
				wanted = append(wanted, place{"https", a})
			}
		}
		all.Go(func() { up.warm(ctx, wanted) })
	}
	all.Wait()
}

// closeBut closes the sources and pools that no other snapshot has.
func (s *snapshot) closeBut(others ...*snapshot) {
	kept := map[any]bool{}
	for _, other := range others {
		for _, source := range other.sources {
			kept[source] = true
		}
		for _, up := range other.pools {
			kept[up] = true
		}
	}
	var all sync.WaitGroup
	for _, source := range s.sources {
		if !kept[source] {
			all.Go(source.Close)
		}
	}
	all.Wait()
	for _, up := range s.pools {
		if !kept[up] {
			up.close()
		}
	}
}

// hold takes the snapshot for one more user, unless its last one has gone.
func (s *snapshot) hold() bool {
	for {
		n := s.users.Load()
		if n == 0 {
			return false
		}
		if s.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release ends one user's hold. The config can be read on; sources and pools
// must not be used any more.
func (s *snapshot) release() {
	if s.users.Add(-1) == 0 {
		s.unused()
	}
}

// release lets go of the snapshot, once.
func (x *exchange) release() {
	if !x.released {
		x.released = true
		x.snap.release()
	}
}

// hold returns the current snapshot for a new request; release must follow.
func (g *Gateway) hold() *snapshot {
	for {
		if s := g.current.Load(); s.hold() {
			return s
		} // else a newer one is there already
	}
}

// install makes s the current snapshot. It reports false, and s is closed, when
// the gateway has been stopped.
func (g *Gateway) install(s *snapshot) bool {
	s.users.Store(1)
	s.unused = func() { g.snapshots.unused(s) }
	if !g.snapshots.add(s) {
		return false
	}
	before := g.current.Swap(s)
	if before == nil {
		return true
	}
	for name, source := range before.sources {
		if s.sources[name] != source {
			source.Rest()
		}
	}
	for key, up := range before.pools {
		if s.pools[key] != up {
			up.close() // requests under way keep their connections, and may open others
		}
	}
	before.release()
	return true
}

// snapshots are the current snapshot and those before it that requests still
// use. A source or pool is open as long as one of them has it. The zero value is
// ready.
type snapshots struct {
	mu      sync.Mutex
	live    []*snapshot
	stopped bool
	closing sync.WaitGroup // under way for snapshots that are no longer used
}

// add takes in a new snapshot, or closes it and reports false after the stop.
func (l *snapshots) add(s *snapshot) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		s.closeBut(l.live...)
		return false
	}
	l.live = append(l.live, s)
	return true
}

// unused closes what only s had. It does not wait: the last user is a request
// whose answer is about to end.
func (l *snapshots) unused(s *snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return // closed with all others
	}
	others := make([]*snapshot, 0, len(l.live)-1)
	for _, other := range l.live {
		if other != s {
			others = append(others, other)
		}
	}
	l.live = others
	l.closing.Go(func() { s.closeBut(others...) })
}

// closeAll ends everything, used or not.
func (l *snapshots) closeAll() {
	l.mu.Lock()
	l.stopped = true
	live := l.live
	l.mu.Unlock()
	l.closing.Wait()
	for _, s := range live {
		s.closeBut()
	}
}
