package gateway

import (
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"sync"

	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// snapshot is everything that one configuration means at run time. It is built
// whole, swapped in one step, and immutable from then on: a request keeps the
// snapshot that it began with.
type snapshot struct {
	config    *rules.Config
	sources   map[string]*token.Source  // by profile name
	upstreams map[*rules.Rule]*upstream // shared among rules with the same settings
	unruled   *upstream                 // for hosts that no rule names
	corporate *url.URL                  // upstream_proxy, or nil
	auditKey  []byte                    // of the study hashes; nil: there are none
}

// upstreamKey is what tells one pool of upstream connections from another.
type upstreamKey struct {
	ca, cert token.File
	key      token.PrivateFile
	networks string
}

func newSnapshot(c *rules.Config, own *ownAddresses, log *slog.Logger) (*snapshot, error) {
	s := &snapshot{config: c, sources: map[string]*token.Source{}, upstreams: map[*rules.Rule]*upstream{}}
	if raw := c.Proxy.UpstreamProxy; !raw.Empty() {
		u, err := url.Parse(raw.Reveal())
		if err != nil {
			return nil, fmt.Errorf("proxy.upstream_proxy is not a URL") // err would show its password
		}
		s.corporate = u
	}
	if path := c.Log.AuditKeyFile; path != "" {
		key, err := os.ReadFile(string(path))
		if err != nil {
			return nil, fmt.Errorf("log.audit_key_file: %w", err)
		}
		s.auditKey = key
	}
	pools := map[upstreamKey]*upstream{}
	pool := func(r *rules.Rule) (*upstream, error) {
		cert, private := clientCertificate(r, c.Profiles[r.Profile])
		key := upstreamKey{r.CAFile, cert, private, fmt.Sprint(r.AllowNetworks)}
		if pools[key] == nil {
			up, err := newUpstream(key, r.AllowNetworks, c.Proxy, s.corporate, own)
			if err != nil {
				return nil, fmt.Errorf("rule %q: %w", r.Name, err)
			}
			pools[key] = up
		}
		return pools[key], nil
	}
	var err error
	if s.unruled, err = pool(&rules.Rule{}); err != nil {
		return nil, err
	}
	for _, r := range c.Rules {
		if s.upstreams[r], err = pool(r); err != nil {
			return nil, err
		}
	}
	acquirers := map[string]token.Acquirer{}
	for name, p := range c.Profiles {
		policy := &addressPolicy{metadataOnly: true}
		if m, ok := p.Settings.(token.MetadataUser); ok && m.AsksMetadata() {
			policy = nil
		}
		a, err := p.Settings.Acquirer(token.Env{Dial: own.guard(policy), Proxy: s.corporate})
		if err != nil {
			return nil, fmt.Errorf("profile %q: %w", name, err)
		}
		acquirers[name] = a
	}
	for name, a := range acquirers {
		s.sources[name] = token.NewSource(a, c.Profiles[name].Lifecycle, log.With("profile", name))
	}
	return s, nil
}

// upstream returns the connections for a rule; nil stands for a host that no
// rule names.
func (s *snapshot) upstream(r *rules.Rule) *upstream {
	if r == nil {
		return s.unruled
	}
	return s.upstreams[r]
}

func (s *snapshot) close() {
	var all sync.WaitGroup
	for _, source := range s.sources {
		all.Go(source.Close)
	}
	all.Wait()
	for _, up := range s.upstreams {
		up.transport.CloseIdleConnections()
	}
}
