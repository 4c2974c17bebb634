//go:build e2e

package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// soakLifetime is that of the provider's tokens. They are renewed at an age of 6 to 7.5 s and used until one of 13.5 s.
	soakLifetime = 15 * time.Second
	// beforeRefresh is the age of a token at which a fault of the provider begins, so that a refresh meets it.
	beforeRefresh = 5500 * time.Millisecond
	// soakIdle is how long the gateway keeps idle connections; after it a gateway without requests has none.
	soakIdle = 5 * time.Second
	// betweenRevocations is a little more than the gateway's pause between two renewals that a 401 causes.
	betweenRevocations = 35 * time.Second
)

// soak is a gateway in use by a real Orthanc, whose upstream and provider get into trouble by schedule.
type soak struct {
	*stack

	toServer, toProvider *relay
	moodyServer          *moodyServer
	moodyProvider        *moodyProvider
	audit                string // file
	traffic              *traffic
	random               *rand.Rand
	deck                 []*soakFault // those to come
	windows              []window
	lastRevocation       time.Time
}

// soakFault is one kind of trouble, and all that a request may tell of it.
type soakFault struct {
	name         string
	begin, end   func(t *testing.T)
	min, max     time.Duration // how long it lasts
	atRefresh    bool          // it begins just before the token is due
	explains     []string      // see auditRecord.trouble; empty: no request may tell of it
	from         time.Duration // no request may tell of it before
	allowance    time.Duration // or this long after its end
	notSoonAgain bool          // see betweenRevocations
}

// window is one occurrence of a fault.
type window struct {
	fault      *soakFault
	begin, end time.Time // the end is that of the allowance
	from       time.Time // when errors begin to be explained
}

// explains reports whether the window explains a trouble that a request met at some time between the two.
func (w *window) explains(trouble string, begin, end time.Time) bool {
	return slices.Contains(w.fault.explains, trouble) && !end.Before(w.from) && !begin.After(w.end)
}

// trouble names what a client was told instead of a whole answer: the gateway's own code, "cut", "client_gone", or the
// status of the upstream's answer. It is "" for a success.
func (r *auditRecord) trouble() string {
	switch {
	case r.Reason != "":
		return r.Reason
	case r.Outcome != "forwarded":
		return r.Outcome
	case r.Status >= 400:
		return fmt.Sprintf("status %d", r.Status)
	}
	return ""
}

// end is when the request ended.
func (r *auditRecord) end() time.Time {
	return r.Time.Add(time.Duration(r.Duration * float64(time.Millisecond)))
}

// TestSoak runs for as long as the environment variable SOAK says. It fails on any error of a request that no fault
// explains, and if goroutines, descriptors or memory have grown at the end. SOAK_REPORT names a file for a table of it in
// Markdown, SOAK_SEED repeats the schedule of an earlier run.
func TestSoak(t *testing.T) {
	duration, err := time.ParseDuration(os.Getenv("SOAK"))
	if err != nil {
		t.Skip("set SOAK to a duration; see make soak")
	}
	seed, err := strconv.ParseUint(os.Getenv("SOAK_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64N(1_000_000)
	}
	t.Logf("SOAK_SEED=%d", seed)
	began := time.Now()
	s := startSoak(t, seed)
	s.traffic.start()
	defer s.traffic.stop()
	// The first part warms up: what is allocated once by each kind of fault is no leak.
	s.trouble(t, began.Add(duration/5))
	first := s.quiet(t)
	s.trouble(t, began.Add(duration-quietTime))
	last := s.quiet(t)
	s.traffic.stop()

	report := s.judge(t)
	report.duration, report.seed, report.first, report.last = time.Since(began), seed, first, last
	first.wantFlat(t, last)
	t.Log("\n" + report.markdown())
	if path := os.Getenv("SOAK_REPORT"); path != "" {
		if err := os.WriteFile(path, []byte(report.markdown()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

func startSoak(t *testing.T, seed uint64) *soak {
	t.Helper()
	s := &soak{random: rand.New(rand.NewPCG(seed, 0))}
	archive := startOrthanc(t, "Orthanc-archive", nil)
	s.moodyServer = &moodyServer{inner: forward(t, archive), seen: make(map[string]bool), revoked: make(map[string]bool)}
	u := startUpstream(t, soakLifetime, s.moodyServer)
	u.archive = archive
	archive.ready(t)
	s.moodyProvider = startMoodyProvider(t, u.provider)
	s.toServer, u.server.url = relayTo(t, u.server.url, fault{})
	toProvider, endpoint := relayTo(t, s.moodyProvider.url+"/token", fault{})
	s.toProvider = toProvider

	g := newGateway(t, u, profileFor(endpoint), clientSecret)
	g.configure(t, "[proxy]", fmt.Sprintf("header_timeout = \"3s\"\nresponse_timeout = \"4s\"\nidle_timeout = %q", soakIdle))
	g.configure(t, "[token]", `request_timeout = "2s"`)
	g.configure(t, "[log]", `audit = "audit.jsonl"`)
	s.audit = filepath.Join(filepath.Dir(g.config), "audit.jsonl")
	g.start(t)
	g.waitReady(t)
	s.stack = &stack{upstream: u, gateway: g, orthanc: startClient(t, u, g, g.bundle)}
	s.traffic = newTraffic(t, s.orthanc, archive)
	return s
}

// The schedule.

// faults are all kinds of trouble.
func (s *soak) faults() []*soakFault {
	onLine := func(r *relay, f fault) func(*testing.T) { return func(t *testing.T) { r.set(t, f) } }
	upstream := func(name string, f fault, explains ...string) *soakFault {
		return &soakFault{
			name: "upstream " + name, begin: onLine(s.toServer, f), end: onLine(s.toServer, fault{}),
			min: 3 * time.Second, max: 8 * time.Second, explains: explains, allowance: 2 * time.Second,
		}
	}
	// What is shorter than the rest of a token's life after its refresh was due, no request may feel.
	provider := func(name string, f fault, status int, delay time.Duration) *soakFault {
		return &soakFault{
			name: "provider " + name, min: 3 * time.Second, max: 4 * time.Second, atRefresh: true,
			begin: func(t *testing.T) { s.toProvider.set(t, f); s.moodyProvider.set(status, delay) },
			end:   func(t *testing.T) { s.toProvider.set(t, fault{}); s.moodyProvider.set(0, 0) },
			// Until the next attempt, and the request of it, are over.
			allowance: 4 * time.Second,
		}
	}
	// outlasting makes a fault longer than the rest of a token's life.
	outlasting := func(f *soakFault) *soakFault {
		f.name += ", for longer than a token lives"
		f.min, f.max = 18*time.Second, 24*time.Second
		f.explains = []string{"token_unavailable"}
		f.from = soakLifetime*9/10 - beforeRefresh - time.Second
		return f
	}
	broken := []string{"upstream_protocol", "upstream_unreachable", "upstream_tls", "cut"}
	nothing := func(*testing.T) {}
	restart := upstream("restart", fault{down: true}, broken...)
	restart.min, restart.max = time.Second, 2*time.Second
	answers := func(status int) func(*testing.T) { return func(*testing.T) { s.moodyServer.set(status) } }
	return []*soakFault{
		upstream("latency of 150 ms", fault{latency: 150 * time.Millisecond}),
		upstream("bandwidth of 300 kB/s", fault{rate: 300_000}),
		upstream("resets each connection", fault{reset: true}, broken...),
		upstream("resets connections after 100 kB", fault{cutAfter: 100_000}, broken...),
		upstream("silent", fault{hold: true}, "upstream_timeout", "cut"),
		upstream("refuses connections", fault{down: true}, broken...),
		restart,
		{
			name: "upstream answers 429", begin: answers(http.StatusTooManyRequests), end: answers(0),
			min: 2 * time.Second, max: 4 * time.Second, explains: []string{"status 503"}, allowance: time.Second,
		},
		{
			name: "upstream revokes the token", begin: func(*testing.T) { s.moodyServer.revoke() }, end: nothing,
			min: 2 * time.Second, max: 3 * time.Second, notSoonAgain: true,
		},
		provider("latency of 300 ms", fault{latency: 300 * time.Millisecond}, 0, 0),
		provider("answers after 1.5 s", fault{}, 0, 1500*time.Millisecond),
		provider("resets each connection", fault{reset: true}, 0, 0),
		provider("resets within answers", fault{cutAfter: 1000}, 0, 0),
		provider("silent", fault{hold: true}, 0, 0),
		provider("refuses connections", fault{down: true}, 0, 0),
		provider("answers 503", fault{}, http.StatusServiceUnavailable, 0),
		provider("answers 429", fault{}, http.StatusTooManyRequests, 0),
		outlasting(provider("refuses connections", fault{down: true}, 0, 0)),
		outlasting(provider("answers 500", fault{}, http.StatusInternalServerError, 0)),
		{
			name: "SIGHUP", begin: func(*testing.T) { s.gateway.process.signal(syscall.SIGHUP) }, end: nothing,
			min: time.Second, max: 2 * time.Second,
		},
	}
}

// trouble causes one fault after the other until the deadline, in an order that the seed decides. After each the gateway
// must be as before, by itself.
func (s *soak) trouble(t *testing.T, deadline time.Time) {
	t.Helper()
	const atLeast = soakLifetime + 12*time.Second // for the shorter ones
	for time.Until(deadline) > atLeast {
		if len(s.deck) == 0 {
			s.deck = s.faults()
			s.random.Shuffle(len(s.deck), func(i, j int) { s.deck[i], s.deck[j] = s.deck[j], s.deck[i] })
		}
		f := s.deck[0]
		s.deck = s.deck[1:]
		lasts := f.min + time.Duration(s.random.Int64N(int64(f.max-f.min)))
		pause := time.Second + time.Duration(s.random.Int64N(int64(3*time.Second)))
		if time.Now().Add(lasts + f.allowance + pause + soakLifetime).After(deadline) {
			continue
		}
		if f.notSoonAgain {
			if time.Since(s.lastRevocation) < betweenRevocations {
				continue
			}
			s.lastRevocation = time.Now()
		}
		pass(pause)
		if f.atRefresh {
			eventually(t, soakLifetime, func() error {
				if left := time.Until(s.gateway.profile(t).ExpiresAt); left > soakLifetime-beforeRefresh || left < soakLifetime-beforeRefresh-time.Second/2 {
					return fmt.Errorf("the token has %v left", left)
				}
				return nil
			})
		}
		t.Logf("%s %s for %v", time.Now().UTC().Format(time.TimeOnly), f.name, lasts.Round(time.Millisecond))
		w := window{fault: f, begin: time.Now()}
		w.from = w.begin.Add(f.from)
		f.begin(t)
		pass(lasts)
		f.end(t)
		pass(f.allowance)
		w.end = time.Now()
		s.windows = append(s.windows, w)
		if _, err := s.orthanc.find(s.traffic.patient); err != nil {
			t.Errorf("%s after the end of: %s: %v", f.allowance, f.name, err)
		}
		if state := s.gateway.profile(t).State; state != "fresh" {
			t.Errorf("%s after the end of: %s: the profile is %q", f.allowance, f.name, state)
		}
	}
	pass(time.Until(deadline))
}

// pass lets time go by: a soak is made of it.
func pass(d time.Duration) { <-time.After(d) }

// moodyServer stands between the protected server and its archive.
type moodyServer struct {
	inner http.Handler

	mu      sync.Mutex
	status  int // what it answers instead of what was asked for; 0: nothing
	seen    map[string]bool
	revoked map[string]bool
	refused int // answers 401
}

func (s *moodyServer) set(status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = status
}

// revoke makes every token that has been seen so far a bad one.
func (s *moodyServer) revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.revoked, s.seen)
}

func (s *moodyServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	credential := r.Header.Get("Authorization")
	s.mu.Lock()
	status := s.status
	if s.revoked[credential] {
		status = http.StatusUnauthorized
		s.refused++
	}
	s.seen[credential] = true
	s.mu.Unlock()
	if status != 0 {
		w.Header().Set("Retry-After", "1")
		http.Error(w, http.StatusText(status), status)
		return
	}
	s.inner.ServeHTTP(w, r)
}

// moodyProvider stands before the provider.
type moodyProvider struct {
	url string

	mu     sync.Mutex
	status int // what it answers instead of a token; 0: nothing
	delay  time.Duration
}

func startMoodyProvider(t *testing.T, p *provider) *moodyProvider {
	t.Helper()
	target, err := url.Parse(p.issuer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(p.pki.certFile, p.pki.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		ErrorLog: quiet, Transport: p.pki.client().Transport, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
	}
	m := &moodyProvider{}
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		status, delay := m.status, m.delay
		m.mu.Unlock()
		pass(delay)
		if status != 0 {
			w.Header().Set("Retry-After", "1")
			http.Error(w, http.StatusText(status), status)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	front.Config.ErrorLog = quiet
	front.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	front.StartTLS()
	t.Cleanup(front.Close)
	m.url = strings.Replace(front.URL, "127.0.0.1", "localhost", 1)
	return m
}

func (m *moodyProvider) set(status int, delay time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status, m.delay = status, delay
}

// The traffic.

// traffic is what Orthanc does all the time: a query twice a second, and beside it an upload and a download of studies.
type traffic struct {
	t                *testing.T
	orthanc          *orthanc
	patient          string
	wanted, uploaded map[string][]byte // instances by Orthanc's names
	studyUID         string            // of those that are wanted

	running sync.RWMutex // held by each call; whoever has it alone has peace
	tasks   sync.WaitGroup
	ended   chan struct{}
	once    sync.Once

	mu    sync.Mutex
	calls []call
}

// call is one call of Orthanc's REST API.
type call struct {
	kind       string
	begin, end time.Time
	err        error
}

func newTraffic(t *testing.T, o, archive *orthanc) *traffic {
	t.Helper()
	tr := &traffic{
		t: t, orthanc: o, patient: "anyone", ended: make(chan struct{}),
		wanted: make(map[string][]byte), uploaded: make(map[string][]byte),
	}
	wanted := daikonFile(t, "jpeg_ls.dcm")
	instance, study := archive.add(t, wanted)
	tr.wanted[instance], tr.studyUID = wanted, archive.studyUID(t, study)
	for _, name := range []string{"implicit_little.dcm", "rle.dcm", "deflated.dcm"} { // together in the gateway's replay window
		dicom := daikonFile(t, name)
		instance, _ := o.add(t, dicom)
		tr.uploaded[instance] = dicom
	}
	return tr
}

func (tr *traffic) start() {
	tr.every(500*time.Millisecond, "QIDO-RS", func() error {
		_, err := tr.orthanc.find(tr.patient)
		return err
	})
	tr.every(2*time.Second, "STOW-RS", func() error { return tr.orthanc.stow(slices.Collect(maps.Keys(tr.uploaded))...) })
	tr.every(2*time.Second, "WADO-RS", tr.retrieve)
}

// retrieve fetches the study and looks at every byte of it.
func (tr *traffic) retrieve() error {
	if err := tr.orthanc.retrieve(tr.studyUID); err != nil {
		return err
	}
	for name, want := range tr.wanted {
		got, err := get(loopbackClient, tr.orthanc.url+"/instances/"+name+"/file")
		if err != nil || !bytes.Equal(got, want) {
			tr.t.Errorf("WADO-RS succeeded, but Orthanc has %d bytes of %d, or other ones: %v", len(got), len(want), err)
		}
		if err := tr.orthanc.call(http.MethodDelete, "/instances/"+name, nil, nil); err != nil {
			tr.t.Error(err)
		}
	}
	return nil
}

// every makes a call again and again until the traffic stops.
func (tr *traffic) every(period time.Duration, kind string, make func() error) {
	tr.tasks.Go(func() {
		ticker := time.NewTicker(period)
		defer ticker.Stop()
		for {
			select {
			case <-tr.ended:
				return
			case <-ticker.C:
			}
			tr.running.RLock()
			begin := time.Now()
			err := make()
			tr.mu.Lock()
			tr.calls = append(tr.calls, call{kind, begin, time.Now(), err})
			tr.mu.Unlock()
			tr.running.RUnlock()
		}
	})
}

// stop ends the traffic, if it has not ended.
func (tr *traffic) stop() {
	tr.once.Do(func() { close(tr.ended) })
	tr.tasks.Wait()
}

// The figures.

// quietTime is how long quiet takes.
const quietTime = soakIdle + 3*time.Second + sampled*time.Second

// sampled is how many times a second apart the gateway is looked at.
const sampled = 10

// figures are means of what the gateway process takes when it has nothing to do.
type figures struct {
	goroutines, descriptors, resident float64 // resident: bytes
	countedThreads                    bool    // instead of goroutines, where there are no metrics
}

// quiet stops the traffic for a while and looks at what the gateway keeps.
func (s *soak) quiet(t *testing.T) figures {
	t.Helper()
	s.traffic.running.Lock()
	defer s.traffic.running.Unlock()
	pass(soakIdle + 3*time.Second)
	var f figures
	for range sampled {
		pass(time.Second)
		p := s.gateway.process
		goroutines, ok := s.gateway.metric("go_goroutines")
		if !ok {
			goroutines, f.countedThreads = float64(p.status(t, "Threads:")), true
		}
		f.goroutines += goroutines / sampled
		f.descriptors += float64(len(p.descriptors(t))) / sampled
		f.resident += float64(p.status(t, "VmRSS:")<<10) / sampled
	}
	t.Logf("%s quiet: %s", time.Now().UTC().Format(time.TimeOnly), f)
	return f
}

func (f figures) String() string {
	return fmt.Sprintf("%.1f %s, %.1f descriptors, %.1f MiB resident", f.goroutines, f.kind(), f.descriptors, f.resident/(1<<20))
}

func (f figures) kind() string {
	if f.countedThreads {
		return "threads"
	}
	return "goroutines"
}

// wantFlat fails the test if the figures have grown by more than chance.
func (f figures) wantFlat(t *testing.T, last figures) {
	t.Helper()
	more := 3.0
	if f.countedThreads {
		more = 5 // Go's runtime adds one for each system call that blocks for long, and keeps it
	}
	if last.goroutines > f.goroutines+more || last.descriptors > f.descriptors+3 || last.resident > f.resident+max(f.resident/10, 4<<20) {
		t.Errorf("the gateway has grown from %s to %s", f, last)
	}
}

// metric returns a metric without labels, if there is one of this name.
func (g *gateway) metric(name string) (float64, bool) {
	page, err := get(loopbackClient, g.admin+"/metrics")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(page)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			value, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return value, err == nil
		}
	}
	return 0, false
}

// The judgement.

// soakReport is the outcome of a soak.
type soakReport struct {
	duration             time.Duration
	seed                 uint64
	records              map[string]int // by transaction
	troubled             map[string]int
	faults               map[string]*faultReport
	unexplained          int
	acquisitions, failed int
	revocations          int // answers 401
	first, last          figures
	queries              []time.Duration // that no fault was near, sorted
}

// faultReport is what came of a kind of fault.
type faultReport struct {
	times, requests int
	told            map[string]int // requests by what they told
}

// judge looks at every audit record and every call of Orthanc, and fails the test for each error that no fault explains.
func (s *soak) judge(t *testing.T) *soakReport {
	t.Helper()
	r := &soakReport{records: make(map[string]int), troubled: make(map[string]int), faults: make(map[string]*faultReport)}
	for _, f := range s.faults() {
		r.faults[f.name] = &faultReport{told: make(map[string]int)}
	}
	for _, w := range s.windows {
		r.faults[w.fault.name].times++
	}
	for _, record := range auditRecords(t, s.audit) {
		r.records[record.Transaction]++
		trouble := record.trouble()
		explained := trouble == ""
		for _, w := range s.windows {
			if record.end().Before(w.begin) || record.Time.After(w.end) {
				continue
			}
			f := r.faults[w.fault.name]
			f.requests++
			if trouble != "" && w.explains(trouble, record.Time, record.end()) {
				f.told[trouble]++
				explained = true
			}
		}
		if trouble != "" {
			r.troubled[record.Transaction]++
		}
		if !explained {
			r.unexplained++
			t.Errorf("no fault explains %q of the %s %s at %s, which took %.0f ms\n%s%s", trouble, record.Transaction, record.RequestID,
				record.Time.Format(time.StampMilli), record.Duration, s.near(record.Time), s.gateway.linesWith(t, record.RequestID))
		}
	}
	s.traffic.mu.Lock()
	defer s.traffic.mu.Unlock()
	for _, c := range s.traffic.calls {
		near, explained := false, c.err == nil
		for _, w := range s.windows {
			near = near || !c.end.Before(w.begin) && !c.begin.After(w.end)
			explained = explained || len(w.fault.explains) > 0 && !c.end.Before(w.from) && !c.begin.After(w.end)
		}
		if !explained {
			r.unexplained++
			t.Errorf("no fault explains that Orthanc's %s failed at %s: %v\n%s", c.kind, c.begin.UTC().Format(time.StampMilli), c.err, s.near(c.begin))
		}
		if c.kind == "QIDO-RS" && !near {
			r.queries = append(r.queries, c.end.Sub(c.begin))
		}
	}
	slices.Sort(r.queries)
	s.server.wantOnlyAdmitted(t)
	r.acquisitions, r.failed = s.gateway.acquisitions(t)
	s.moodyServer.mu.Lock()
	r.revocations = s.moodyServer.refused
	s.moodyServer.mu.Unlock()
	return r
}

// near tells of the faults at a time.
func (s *soak) near(at time.Time) string {
	var all strings.Builder
	for _, w := range s.windows {
		if at.After(w.begin.Add(-time.Minute)) && at.Before(w.end.Add(time.Minute)) {
			fmt.Fprintf(&all, "%s to %s: %s\n", w.begin.UTC().Format(time.StampMilli), w.end.UTC().Format(time.StampMilli), w.fault.name)
		}
	}
	return all.String()
}

// linesWith returns the lines of the gateway's log with these words.
func (g *gateway) linesWith(t *testing.T, words string) string {
	t.Helper()
	var found strings.Builder
	for line := range strings.Lines(g.process.output(t)) {
		if strings.Contains(line, words) {
			found.WriteString(line)
		}
	}
	return found.String()
}

// acquisitions returns how often the gateway has asked for a token, and how often in vain.
func (g *gateway) acquisitions(t *testing.T) (all, failed int) {
	t.Helper()
	body, err := get(loopbackClient, g.admin+"/dicomweb-oauth/status")
	if err != nil {
		t.Fatal(err)
	}
	var status struct {
		Profiles []struct{ Acquisitions, Failures int }
	}
	if err := json.Unmarshal(body, &status); err != nil {
		t.Fatal(err)
	}
	return status.Profiles[0].Acquisitions, status.Profiles[0].Failures
}

func (r *soakReport) markdown() string {
	var b strings.Builder
	percentile := func(p int) string {
		if len(r.queries) == 0 {
			return "-"
		}
		return fmt.Sprintf("%.0f ms", float64(r.queries[(len(r.queries)-1)*p/100].Microseconds())/1000)
	}
	b.WriteString("| soak | |\n| --- | --- |\n")
	row := func(name, format string, values ...any) {
		fmt.Fprintf(&b, "| %s | %s |\n", name, fmt.Sprintf(format, values...))
	}
	row("duration, seed", "%s, %d", r.duration.Round(time.Second), r.seed)
	for _, kind := range slices.Sorted(maps.Keys(r.records)) {
		row("requests "+kind+", of them not whole or an error", "%d, %d", r.records[kind], r.troubled[kind])
	}
	row("errors that no fault explains", "%d", r.unexplained)
	row("token requests, of them failed", "%d, %d", r.acquisitions, r.failed)
	row("answers 401 to a revoked token", "%d", r.revocations)
	row(r.first.kind()+", first and last quiet time", "%.1f, %.1f", r.first.goroutines, r.last.goroutines)
	row("file descriptors", "%.1f, %.1f", r.first.descriptors, r.last.descriptors)
	row("resident memory", "%.1f MiB, %.1f MiB", r.first.resident/(1<<20), r.last.resident/(1<<20))
	row("QIDO-RS without a fault, as Orthanc's REST API sees it: p50, p99", "%s, %s", percentile(50), percentile(99))

	b.WriteString("\n| fault | times | requests meanwhile | errors that it explains |\n| --- | --- | --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(r.faults)) {
		f := r.faults[name]
		var told []string
		for _, trouble := range slices.Sorted(maps.Keys(f.told)) {
			told = append(told, fmt.Sprintf("%d %s", f.told[trouble], trouble))
		}
		if told == nil {
			told = []string{"none"}
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %s |\n", name, f.times, f.requests, strings.Join(told, ", "))
	}
	return b.String()
}
