package gateway

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"orthanc-dicomweb-oauth/gateway/audit"
)

const (
	lastRequests = 100
	lastFailures = 50
	lastMinutes  = 60
)

// Recent is what happened lately.
type Recent struct {
	Requests []audit.Record // the last 100, newest first
	Failures []Failure      // the last 50 kinds, newest first; successes do not push them out
	Minutes  []Minute       // the last hour, oldest first; the last one is under way
}

// Failure is a kind of failure: requests that failed in the same way.
type Failure struct {
	audit.Record           // of the last one
	Since        time.Time // when the first began
	Times        int
	Hint         string // what to change
}

// Minute counts the requests that ended in one minute.
type Minute struct {
	Begin              time.Time
	Requests, Failures uint64
}

// recent collects what [Recent] shows. The zero value is empty.
type recent struct {
	next     atomic.Uint64
	requests [lastRequests]struct {
		mu  sync.Mutex
		n   uint64 // which request this is, counted from 1; 0: none
		rec audit.Record
	}
	minutes [lastMinutes]struct {
		mu                 sync.Mutex   // held to begin a minute
		minute             atomic.Int64 // since 1970
		requests, failures atomic.Uint64
	}
	mu       sync.Mutex
	failures []Failure // oldest first
}

// add notes a request that has ended.
func (r *recent) add(rec *audit.Record) {
	n := r.next.Add(1)
	slot := &r.requests[n%lastRequests]
	slot.mu.Lock()
	if n > slot.n {
		slot.n, slot.rec = n, *rec
	}
	slot.mu.Unlock()
	bad := rec.Failed()
	r.count(time.Now(), bad)
	if bad {
		r.addFailure(rec)
	}
}

func (r *recent) count(now time.Time, bad bool) {
	minute := now.Unix() / 60
	slot := &r.minutes[minute%lastMinutes]
	if slot.minute.Load() != minute {
		slot.mu.Lock()
		if slot.minute.Load() != minute {
			slot.requests.Store(0)
			slot.failures.Store(0)
			slot.minute.Store(minute)
		}
		slot.mu.Unlock()
	}
	slot.requests.Add(1)
	if bad {
		slot.failures.Add(1)
	}
}

func (r *recent) addFailure(rec *audit.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := Failure{Since: rec.Time}
	if i := slices.IndexFunc(r.failures, func(f Failure) bool { return sameKind(&f.Record, rec) }); i >= 0 {
		f = r.failures[i]
		r.failures = slices.Delete(r.failures, i, i+1)
	} else if len(r.failures) == lastFailures {
		r.failures = slices.Delete(r.failures, 0, 1)
	}
	f.Record, f.Times, f.Hint = *rec, f.Times+1, remedy(rec)
	r.failures = append(r.failures, f)
}

func sameKind(a, b *audit.Record) bool {
	return a.Rule == b.Rule && a.Authority == b.Authority && a.Method == b.Method && a.Route == b.Route &&
		a.Status == b.Status && a.UpstreamStatus == b.UpstreamStatus && a.Reason == b.Reason && a.Outcome == b.Outcome
}

// Recent returns what happened lately.
func (g *Gateway) Recent() Recent {
	r := &g.stats.recent
	var all Recent
	newest := r.next.Load()
	for n := newest; n > 0 && n+lastRequests > newest; n-- {
		slot := &r.requests[n%lastRequests]
		slot.mu.Lock()
		if slot.n == n { // else it is being written, or written again
			all.Requests = append(all.Requests, slot.rec)
		}
		slot.mu.Unlock()
	}
	r.mu.Lock()
	all.Failures = slices.Clone(r.failures)
	r.mu.Unlock()
	slices.Reverse(all.Failures)
	now := time.Now().Unix() / 60
	for minute := now - lastMinutes + 1; minute <= now; minute++ {
		m := Minute{Begin: time.Unix(minute*60, 0)}
		if slot := &r.minutes[minute%lastMinutes]; slot.minute.Load() == minute {
			m.Requests, m.Failures = slot.requests.Load(), slot.failures.Load()
		}
		all.Minutes = append(all.Minutes, m)
	}
	return all
}

// trouble is a kind of failure that the log tells of. It is of a small set:
// nothing of it is a client's choice.
type trouble struct {
	rule, reason   string
	outcome        audit.Outcome
	upstreamStatus int
}

// tellAgain is how long the log is silent about a kind of failure that it has
// told of.
const tellAgain = 15 * time.Minute

// tell logs a request that failed, with what to change, if it is the first of
// its kind for a while: the audit log has each, but no hint.
func (g *Gateway) tell(rec *audit.Record) {
	c := code(rec.Reason)
	if !rec.Failed() || c.loud() || c == tokenUnavailable || c == draining { // a token's source tells of it, and a stop is no failure
		return
	}
	if rec.Method == http.MethodConnect && (c == noRule || c == ruleDenied) {
		return // told where it is decided, each time
	}
	last := g.stats.told.get(trouble{rec.Rule, rec.Reason, rec.Outcome, rec.UpstreamStatus})
	before, now := last.Load(), time.Now()
	if now.Sub(at(before)) < tellAgain || !last.CompareAndSwap(before, now.UnixNano()) {
		return
	}
	level := slog.LevelWarn
	if rec.Absent() {
		level = slog.LevelInfo
	}
	g.log.Log(context.Background(), level, "request failed; more of this kind within 15 minutes are in the audit log only",
		"code", rec.Reason, "outcome", rec.Outcome, "status", rec.Status, "upstream_status", rec.UpstreamStatus, "rule", rec.Rule,
		"method", rec.Method, "authority", rec.Authority, "route", rec.Route, "client", rec.Client, "hint", remedy(rec), "request_id", rec.RequestID)
}

// remedy says what to change after a request that failed.
func remedy(rec *audit.Record) string {
	if rec.Hint != "" {
		return rec.Hint
	}
	if rec.Reason == "" && rec.Outcome == audit.Forwarded {
		return statusRemedy(rec.UpstreamStatus, rec.Profile != "")
	}
	switch code(rec.Reason) {
	case ruleDenied:
		return `a rule with action = "deny" covers this; change the rule if that is not meant`
	case clientNotAllowed:
		return "if this client is yours, add its network to allow_clients under [proxy]"
	case badRequest, authorityMismatch:
		return "the client's request breaks HTTP; if Orthanc sent it, please report it with the audit record"
	case tokenUnavailable:
		return "see the last error of this profile"
	case upstreamTLS, upstreamProtocol:
		return "see the DICOMweb server's own log, and what stands between: firewall, proxy, load balancer"
	case overloaded:
		return "see max_connections under [proxy]"
	case draining:
		return "the gateway was stopping; send it again"
	case "client_stalled":
		return "Orthanc stopped sending: look at its log and at the network between it and the gateway"
	}
	switch rec.Outcome {
	case audit.ClientGone:
		return "Orthanc left before the end: raise its HttpTimeout, which limits a whole transfer and is 60 s by default"
	case audit.Cut:
		return "the answer broke off: see the DICOMweb server's own log, and the network between"
	}
	return "look up this code in the documentation"
}

// statusRemedy says what to change when a DICOMweb server answers with this
// status; sent tells whether a credential went with the request.
func statusRemedy(status int, sent bool) string {
	switch {
	case !sent && (status == http.StatusUnauthorized || status == http.StatusForbidden):
		return `if it should have a credential, give the rule a profile, action = "inject" and mode = "enforce"`
	case status == http.StatusUnauthorized:
		return "the token is for another audience or from another tenant: compare its aud and iss (a test shows them) with what the server expects, and check scopes, audience or resource of the profile"
	case status == http.StatusForbidden:
		return "give the client the role that reads and writes DICOM there (Azure: DICOM Data Reader or Owner; Google: roles/healthcare.dicomViewer or dicomEditor); it may take minutes until it works"
	case status == http.StatusNotFound:
		return "if the study exists, check the path of the rule's url and of Orthanc's DicomWeb.Servers (Azure wants /v2/ at the end)"
	case status == http.StatusConflict:
		return "the server refused instances: they may be there already, or be incomplete; see its own log"
	case status == http.StatusRequestEntityTooLarge:
		return "the server limits the size of one request: raise its limit, or send fewer instances at once"
	case status == http.StatusTooManyRequests:
		return "the server throttles: send less at once, or ask for a higher quota"
	case status == http.StatusUnsupportedMediaType || status == http.StatusNotAcceptable:
		return "the server does not know this media type or transfer syntax; see its conformance statement"
	case status >= 300 && status <= 399:
		return "write the final URL into the rule"
	case status == http.StatusServiceUnavailable:
		return "the server is overloaded or under maintenance; see its status page or its own log"
	}
	return "see the DICOMweb server's own log"
}
