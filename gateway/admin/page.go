package admin

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS string

//go:embed page.js
var pageJS string

// pages are the templates of the status page ("page") and of a test's result
// without script ("report").
var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"css":   func() template.CSS { return template.CSS(pageCSS) }, //nolint:gosec // ours
	"js":    func() template.JS { return template.JS(pageJS) },    //nolint:gosec // ours
	"clock": clock, "bytes": byteCount, "took": took, "why": why,
}).Parse(pageHTML))

// pagePolicy lets the page run its own script and style, and nothing else.
var pagePolicy = "default-src 'none'; script-src " + hashOf(pageJS) + "; style-src " + hashOf(pageCSS) +
	"; img-src data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// concern is how long an event without a rule stays one.
const concern = 15 * time.Minute

// view is what the status page shows.
type view struct {
	Version    string
	Now        time.Time
	Mark       mark
	Verdict    string
	Findings   []finding
	Status     gateway.Status
	Servers    []serverRow
	Profiles   []profileRow
	Recent     gateway.Recent
	Chart      chart
	CA         caRow
	BundlePath string
}

// mark is how good or bad something is; never shown by colour alone.
type mark string

const (
	good  mark = "good"
	worry mark = "worry"
	bad   mark = "bad"
)

// finding is something that an operator should know and what to do about it.
type finding struct {
	Mark       mark
	What, Hint string
}

type serverRow struct {
	gateway.RuleStatus
	Profile  *profileRow
	Mark     mark // of the last status
	Testable bool
}

type profileRow struct {
	gateway.ProfileStatus
	Mark mark
	Life string // what is left of the credential
}

type caRow struct {
	NotAfter    time.Time
	Warning     string // what is to be done, if it ends soon
	Life        string
	Fingerprint string
}

// page serves the status page.
func (a *api) page(w http.ResponseWriter, r *http.Request) {
	a.render(w, r, http.StatusOK, "page", a.look())
}

// render answers with a template, compressed where the client can read that: the
// status page is fetched once a second.
func (a *api) render(w http.ResponseWriter, r *http.Request, status int, name string, data any) {
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, name, data); err != nil {
		a.Log.Error("status page not made", "err", err)
		http.Error(w, "the page could not be made", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	// A client that has gone cannot be told.
	if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.WriteHeader(status)
		_, _ = w.Write(b.Bytes())
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	w.WriteHeader(status)
	z := gzip.NewWriter(w)
	_, _ = z.Write(b.Bytes())
	_ = z.Close()
}

// look gathers the page's content.
func (a *api) look() *view {
	now := time.Now()
	st := a.Gateway.Status()
	ca := a.Gateway.CA()
	v := &view{Version: a.Version, Now: now, Status: st, Recent: a.Gateway.Recent(), BundlePath: ca.BundlePath()}
	v.Chart = newChart(v.Recent.Minutes)
	notAfter := ca.Certificate().NotAfter
	v.CA = caRow{notAfter, ca.Warning(now), life(notAfter.Sub(now)), ca.Fingerprint()}
	byName := map[string]*profileRow{}
	v.Profiles = make([]profileRow, len(st.Profiles))
	for i, p := range st.Profiles {
		row := profileRow{ProfileStatus: p, Mark: markOf(p.State), Life: "none"}
		if !p.ExpiresAt.IsZero() {
			row.Life = life(p.ExpiresAt.Sub(now))
		}
		v.Profiles[i] = row
		byName[p.Name] = &v.Profiles[i]
	}
	for _, r := range a.Gateway.Rules() {
		_, wildcard := r.Rule.Host()
		row := serverRow{
			RuleStatus: r, Profile: byName[r.Rule.Profile], Mark: good,
			Testable: !wildcard && r.Rule.Decision() != rules.Deny && strings.HasPrefix(r.Rule.URL, "https://"),
		}
		if r.LastFailed {
			row.Mark = bad
		}
		v.Servers = append(v.Servers, row)
	}
	v.judge()
	return v
}

// judge says what is wrong, worst first.
func (v *view) judge() {
	for _, p := range v.Profiles {
		if f, found := p.finding(); found {
			v.Findings = append(v.Findings, f)
		}
	}
	if what, remedy, soon := strings.Cut(v.CA.Warning, "; "); soon {
		m := worry
		if v.Now.After(v.CA.NotAfter) {
			m = bad
		}
		v.note(m, "Local CA: "+what+".", remedy)
	}
	if e := v.Status.ReloadError; e != "" {
		v.note(worry, "The last reload failed; the former configuration serves on: "+e, "mend the file; `check` lists every problem")
	}
	if at := v.Status.UntrustedAt; v.Now.Sub(at) < concern {
		v.note(worry, "A client refused the gateway's certificate at "+clock(at)+".", "set HttpsCACertificates in orthanc.json to "+v.BundlePath)
	}
	if n := v.Status.AuditLost; n > 0 {
		v.note(worry, plural(n, "audit record was", "audit records were")+" lost since the start.", "see whether the disk of [log] audit is full, or its pipe closed")
	}
	v.judgeRequests()
	slices.SortStableFunc(v.Findings, func(a, b finding) int { return strings.Compare(string(a.Mark), string(b.Mark)) }) // bad before worry
	cold := slices.ContainsFunc(v.Profiles, func(p profileRow) bool { return p.State == token.Cold })
	v.Verdict, v.Mark = verdict(overall(v.Status), cold, v.Findings)
}

func (v *view) note(m mark, what, hint string) {
	v.Findings = append(v.Findings, finding{m, what, hint})
}

// judgeRequests finds rules whose last request failed for a reason that lies in
// the set-up, and requests that no rule covers. What a study's absence explains
// is no finding, but a service that is not there is one.
func (v *view) judgeRequests() {
	const most = 5
	concerns := map[string]bool{} // rules whose last request failed, and the absence of one
	for _, s := range v.Servers {
		concerns[s.Rule.Name] = s.LastFailed
	}
	n := 0
	for _, f := range v.Recent.Failures { // newest first
		if f.Rule == "" {
			concerns[""] = v.Now.Sub(f.Time) < concern
		}
		if n == most || !concerns[f.Rule] {
			continue
		}
		concerns[f.Rule] = false // those before it are history
		if setUp(f.Record) {
			n++
			target := f.Authority + f.Route
			if target == "" { // refused before it was looked at
				target = "from " + f.Client
			}
			v.note(worry, fmt.Sprintf("%s %s: %s.", f.Method, target, why(f.Record)), f.Hint)
		}
	}
}

// setUp reports whether a failure may lie in the set-up, or in a server that
// does not work.
func setUp(rec audit.Record) bool {
	switch {
	case rec.Outcome == audit.Refused:
		return rec.Reason != "rule_denied" && rec.Reason != "draining" && rec.Reason != "token_unavailable" // whose profile is a finding
	case rec.Outcome != audit.Forwarded:
		return true
	}
	switch s := rec.UpstreamStatus; s {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests:
		return true
	case http.StatusNotFound:
		return !rec.Absent()
	default:
		return s >= 500
	}
}

// finding tells whether and why a profile's credential is in a bad way.
func (p *profileRow) finding() (finding, bool) {
	name := strconv.Quote(p.Name)
	f := finding{Mark: p.Mark}
	switch p.State {
	case token.Fresh:
		return f, false
	case token.Cold:
		f.What, f.Hint = "Profile "+name+" has not got its first credential yet.", "wait a few seconds; the identity provider is being asked"
		return f, true
	case token.RejectedAll:
		f.What = "The DICOMweb server refuses fresh credentials of profile " + name + "."
		f.Hint = "the token itself is not the problem: check audience, scopes or resource of the profile, and the client's role on the server"
		return f, true
	case token.Stale:
		f.What = "The credential of profile " + name + " cannot be renewed; it is good until " + clock(p.ExpiresAt) + "."
	default:
		f.What = "Profile " + name + " has no usable credential: its requests are answered with 503."
	}
	if p.LastFailure != nil {
		e := p.LastFailure.Err
		f.What += " Last error: " + e.Code + "."
		f.Hint = e.Hint
		if e.Key != "" {
			f.Hint += fmt.Sprintf(" (profile.%s.%s)", p.Name, e.Key)
		}
	}
	return f, true
}

// verdict condenses everything into one line. Cold tells that a profile has not
// been answered yet.
func verdict(word string, cold bool, findings []finding) (string, mark) {
	switch {
	case word == "draining":
		return "Stopping: running transfers may end, new ones are refused.", worry
	case word == "unavailable" && cold:
		return "Starting: the first credentials are being acquired.", worry
	case word == "unavailable":
		return "Not working: no profile has a usable credential.", bad
	case word == "degraded":
		return "Degraded: not every profile has a good credential.", worry
	case len(findings) > 0:
		return "Working, with " + plural(uint64(len(findings)), "thing", "things") + " to look at.", worry
	}
	return "Healthy: every profile has a fresh credential.", good
}

func markOf(s token.State) mark {
	switch s {
	case token.Fresh:
		return good
	case token.Cold, token.Stale:
		return worry
	}
	return bad
}

// why says in a few words how a request failed.
func why(rec audit.Record) string {
	switch {
	case rec.Reason != "" && rec.Detail != "":
		return rec.Reason + ", " + rec.Detail
	case rec.Reason != "":
		return rec.Reason
	case rec.Outcome == audit.ClientGone:
		return "the client left before the end"
	case rec.Outcome == audit.Cut:
		return "the answer broke off"
	case rec.UpstreamStatus != rec.Status && rec.UpstreamStatus != 0:
		return fmt.Sprintf("the server answered %d, passed on as %d", rec.UpstreamStatus, rec.Status)
	}
	return fmt.Sprintf("the server answered %d", rec.Status)
}

// life writes a remaining time with its two largest units.
func life(d time.Duration) string {
	d = d.Round(time.Second)
	seconds := int64(d / time.Second)
	switch {
	case seconds <= 0:
		return "0 s"
	case seconds < 60:
		return fmt.Sprintf("%d s", seconds)
	case seconds < 3600:
		return fmt.Sprintf("%d min %02d s", seconds/60, seconds%60)
	case seconds < 48*3600:
		return fmt.Sprintf("%d h %02d min", seconds/3600, seconds/60%60)
	}
	return fmt.Sprintf("%d days", seconds/86400)
}

// clock writes a time of day in UTC, with its date unless it is today.
func clock(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	t = t.UTC()
	if now := time.Now().UTC(); t.Year() == now.Year() && t.YearDay() == now.YearDay() {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04")
}

func byteCount(n int64) string {
	const unit = 1000
	if n < unit {
		return strconv.FormatInt(n, 10) + " B"
	}
	value, name := float64(n), ""
	for _, name = range []string{"kB", "MB", "GB", "TB"} {
		if value /= unit; value < unit {
			break
		}
	}
	return fmt.Sprintf("%.3g %s", value, name)
}

// took writes milliseconds as one is used to.
func took(milliseconds float64) string {
	if milliseconds < 1000 {
		return fmt.Sprintf("%.0f ms", milliseconds)
	}
	return fmt.Sprintf("%.1f s", milliseconds/1000)
}

func plural(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// chart is the last hour in SVG: a bar for each minute, and a narrower one for its failures.
type chart struct {
	Bars               []bar
	Requests, Failures uint64
	Most               uint64 // requests in one minute
}

type bar struct {
	X, Y, Height, FailedX, FailedY, FailedHeight int
}

// The chart's size, in units of its viewBox.
const (
	chartHeight = 80
	barWidth    = 10
)

func newChart(minutes []gateway.Minute) chart {
	var c chart
	for _, m := range minutes {
		c.Requests += m.Requests
		c.Failures += m.Failures
		c.Most = max(c.Most, m.Requests)
	}
	for i, m := range minutes {
		if m.Requests == 0 {
			continue
		}
		height := func(n uint64) int {
			if n == 0 {
				return 0
			}
			return max(2, int(float64(n)/float64(c.Most)*chartHeight))
		}
		b := bar{X: i * barWidth, FailedX: i*barWidth + 2, Height: height(m.Requests), FailedHeight: height(m.Failures)}
		b.Y, b.FailedY = chartHeight-b.Height, chartHeight-b.FailedHeight
		c.Bars = append(c.Bars, b)
	}
	return c
}
