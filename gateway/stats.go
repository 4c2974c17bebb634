package gateway

import (
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// stats counts what the admin API, the status page and the metrics show. It
// outlives reloads. What every request touches takes no lock that another
// request holds.
type stats struct {
	connections atomic.Int64
	strangers   atomic.Int64 // connections of clients that are not admitted
	untrusted   tally        // clients that refused our certificate
	stripped    atomic.Int64 // upstream errors whose body was kept from Orthanc

	told     table[trouble, atomic.Int64] // Unix nanoseconds: when the log last did
	rules    table[string, ruleStats]     // by name; "" is for requests that no rule covers
	refusals table[string, atomic.Uint64]
	recent   recent
}

// ruleStats is what happened to the requests of one rule.
type ruleStats struct {
	requests   atomic.Uint64
	lastStatus atomic.Int64
	lastUsed   atomic.Int64 // Unix nanoseconds; 0: never
	lastFailed atomic.Bool

	answers  table[answer, atomic.Uint64]
	upstream table[int, atomic.Uint64] // by the status that came from there
	seconds  prometheus.Histogram
	sent     atomic.Int64 // bytes of requests
	received atomic.Int64 // bytes of answers
}

// answer is what requests are counted by.
type answer struct {
	method string // from a fixed list
	status int
}

func newStats() *stats {
	s := &stats{}
	s.rules.make = newRuleStats
	return s
}

func newRuleStats(name string) *ruleStats {
	r := &ruleStats{seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: metricPrefix + "request_duration_seconds", Help: "How long requests took, from their headers to the end of the answer.",
		Buckets:     []float64{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800},
		ConstLabels: prometheus.Labels{"rule": name},
	})}
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} { // 0 so far, lest an alert misses the first one
		r.upstream.get(status)
	}
	return r
}

// observe counts a request that has ended.
func (s *stats) observe(rec *audit.Record) {
	r := s.rules.get(rec.Rule)
	r.requests.Add(1)
	r.lastStatus.Store(int64(rec.Status))
	r.lastUsed.Store(time.Now().UnixNano())
	r.lastFailed.Store(rec.Failed())
	r.answers.get(answer{rec.Method, rec.Status}).Add(1)
	if rec.UpstreamStatus != 0 {
		r.upstream.get(rec.UpstreamStatus).Add(1)
	}
	r.seconds.Observe(rec.Duration / 1000)
	r.sent.Add(rec.RequestBytes)
	r.received.Add(rec.ResponseBytes)
	s.recent.add(rec)
}

func (s *stats) refused(reason string) { s.refusals.get(reason).Add(1) }

// table is a map that only grows. Reading takes no lock and makes no garbage,
// so it is for keys of a small set. The zero value is empty.
type table[K comparable, V any] struct {
	make func(K) *V // of an entry; nil: its zero value
	now  atomic.Pointer[map[K]*V]
	mu   sync.Mutex // held to add an entry
}

// all returns the entries, not to be changed.
func (t *table[K, V]) all() map[K]*V {
	if m := t.now.Load(); m != nil {
		return *m
	}
	return nil
}

// get returns the entry of a key, a new one at its first use.
func (t *table[K, V]) get(key K) *V {
	if v := t.all()[key]; v != nil {
		return v
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.all()
	if v := old[key]; v != nil {
		return v
	}
	v := new(V)
	if t.make != nil {
		v = t.make(key)
	}
	grown := map[K]*V{key: v}
	maps.Copy(grown, old)
	t.now.Store(&grown)
	return v
}

// tally counts events and remembers when the last one was.
type tally struct {
	n    atomic.Int64
	last atomic.Int64 // Unix nanoseconds; 0: never
}

// Add counts n events.
func (t *tally) Add(n int64) {
	t.n.Add(n)
	t.last.Store(time.Now().UnixNano())
}

// at returns a time that is kept as Unix nanoseconds; 0 is the zero time.
func at(nanoseconds int64) time.Time {
	if nanoseconds == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds)
}

// Status is what an operator may know about the gateway.
type Status struct {
	StartedAt time.Time
	Draining  bool
	Config    *rules.Config
	// LoadedAt is when this config was taken up.
	LoadedAt time.Time
	// ReloadedAt is when the last reload was tried; zero: never.
	ReloadedAt time.Time
	// ReloadError tells why the last reload changed nothing; "": it did, or there was none.
	ReloadError string
	// RestartNeeded are the keys of the file whose change waits for a restart.
	RestartNeeded []string
	Profiles      []ProfileStatus // by name
	Connections   int64
	InFlight      int
	// Untrusted counts clients that refused our certificate.
	Untrusted int64
	// UntrustedAt is when the last of them did; zero: never.
	UntrustedAt time.Time
	// AuditLost counts audit records that could not be written.
	AuditLost uint64
	// Refused counts the gateway's own answers by code.
	Refused map[string]uint64
}

// ProfileStatus is the condition of one profile's credential.
type ProfileStatus struct {
	Name, Type string
	token.Status

	Took token.Durations // of its acquisitions
}

// RuleStatus is what happened to the requests of one rule.
type RuleStatus struct {
	Rule       *rules.Rule
	Requests   uint64
	LastStatus int       // 0: none yet
	LastUsed   time.Time // zero: never
	LastFailed bool      // the last request did
}

// Status returns the gateway's condition now.
func (g *Gateway) Status() Status {
	snap := g.current.Load()
	last := g.reloaded.Load()
	st := Status{
		StartedAt: g.started, Draining: g.Draining(), Config: snap.config,
		LoadedAt: last.loadedAt, ReloadedAt: last.triedAt, ReloadError: last.failure, RestartNeeded: last.restartNeeded,
		Connections: g.stats.connections.Load(), InFlight: g.busy.count(),
		Untrusted: g.stats.untrusted.n.Load(), UntrustedAt: at(g.stats.untrusted.last.Load()),
		AuditLost: g.audit.Lost(), Refused: map[string]uint64{},
	}
	for _, name := range slices.Sorted(maps.Keys(snap.sources)) {
		st.Profiles = append(st.Profiles, ProfileStatus{name, snap.config.Profiles[name].Type, snap.sources[name].Status(), snap.sources[name].Durations()})
	}
	for reason, n := range g.stats.refusals.all() {
		st.Refused[reason] = n.Load()
	}
	return st
}

// CA returns the CA that signs for clients now.
func (g *Gateway) CA() *certs.CA { return g.ca.Load() }

// Rules returns what happened to the requests of each rule, in the order of the config.
func (g *Gateway) Rules() []RuleStatus {
	var list []RuleStatus
	for _, r := range g.current.Load().config.Rules {
		s := g.stats.rules.get(r.Name)
		list = append(list, RuleStatus{
			Rule: r, Requests: s.requests.Load(), LastStatus: int(s.lastStatus.Load()), LastUsed: at(s.lastUsed.Load()), LastFailed: s.lastFailed.Load(),
		})
	}
	return list
}
