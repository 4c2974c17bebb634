package gateway

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// stats counts what the admin API shows. It outlives reloads.
type stats struct {
	connections atomic.Int64
	strangers   atomic.Int64 // connections of clients that are not admitted
	untrusted   atomic.Int64 // clients that refused our certificate
	stripped    atomic.Int64 // upstream errors whose body was kept from Orthanc

	mu       sync.Mutex
	rules    map[string]*ruleStats
	refusals map[string]uint64
}

// ruleStats is what happened to the requests of one rule.
type ruleStats struct {
	requests   atomic.Uint64
	lastStatus atomic.Int64
	lastUsed   atomic.Int64 // Unix nanoseconds; 0: never
}

func newStats() *stats {
	return &stats{rules: map[string]*ruleStats{}, refusals: map[string]uint64{}}
}

func (s *stats) rule(name string) *ruleStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rules[name]
	if r == nil {
		r = &ruleStats{}
		s.rules[name] = r
	}
	return r
}

// observe counts a request that has ended.
func (s *stats) observe(rec *audit.Record) {
	if rec.Rule == "" {
		return
	}
	r := s.rule(rec.Rule)
	r.requests.Add(1)
	r.lastStatus.Store(int64(rec.Status))
	r.lastUsed.Store(time.Now().UnixNano())
}

func (s *stats) refused(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusals[reason]++
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
	// AuditLost counts audit records that could not be written.
	AuditLost uint64
	// Refused counts the gateway's own answers by code.
	Refused map[string]uint64
}

// ProfileStatus is the condition of one profile's credential.
type ProfileStatus struct {
	Name, Type string
	token.Status
}

// RuleStatus is what happened to the requests of one rule.
type RuleStatus struct {
	Rule       *rules.Rule
	Requests   uint64
	LastStatus int       // 0: none yet
	LastUsed   time.Time // zero: never
}

// Status returns the gateway's condition now.
func (g *Gateway) Status() Status {
	snap := g.current.Load()
	last := g.reloaded.Load()
	st := Status{
		StartedAt: g.started, Draining: g.Draining(), Config: snap.config,
		LoadedAt: last.loadedAt, ReloadedAt: last.triedAt, ReloadError: last.failure, RestartNeeded: last.restartNeeded,
		Connections: g.stats.connections.Load(), InFlight: g.busy.count(), Untrusted: g.stats.untrusted.Load(),
		AuditLost: g.audit.Lost(),
	}
	for _, name := range slices.Sorted(maps.Keys(snap.sources)) {
		st.Profiles = append(st.Profiles, ProfileStatus{name, snap.config.Profiles[name].Type, snap.sources[name].Status()})
	}
	g.stats.mu.Lock()
	defer g.stats.mu.Unlock()
	st.Refused = maps.Clone(g.stats.refusals)
	return st
}

// CA returns the CA that signs for clients now.
func (g *Gateway) CA() *certs.CA { return g.ca.Load() }

// Rules returns what happened to the requests of each rule, in the order of the config.
func (g *Gateway) Rules() []RuleStatus {
	var list []RuleStatus
	for _, r := range g.current.Load().config.Rules {
		s := g.stats.rule(r.Name)
		st := RuleStatus{Rule: r, Requests: s.requests.Load(), LastStatus: int(s.lastStatus.Load())}
		if n := s.lastUsed.Load(); n != 0 {
			st.LastUsed = time.Unix(0, n)
		}
		list = append(list, st)
	}
	return list
}
