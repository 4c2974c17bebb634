// Package admin is the gateway's own face: health, status, the list of servers
// and metrics for machines, and a status page for people. It reads the gateway
// and changes nothing of the proxied traffic; it can try a rule out. Its handler
// is safe for concurrent use.
package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// Options are what the admin API shows and how it is guarded.
type Options struct {
	Gateway *gateway.Gateway
	Admin   rules.Admin
	Version string
	Log     *slog.Logger
	// Reload takes up the config file as it is now; nil: there is none.
	Reload func() (gateway.Reloaded, error)
}

// New returns a server for the admin listener; the caller runs and stops it.
func New(o Options) *http.Server {
	a := &api{o}
	mux := http.NewServeMux()
	for pattern, h := range a.routes() {
		mux.Handle(pattern, h)
	}
	return &http.Server{
		Handler:           a.ownHost(mux),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
}

type api struct{ Options }

// routes returns the handlers; docs/openapi.yaml describes each of them.
func (a *api) routes() map[string]http.Handler {
	sameOrigin := http.NewCrossOriginProtection()
	all := map[string]http.Handler{
		"GET /livez":                  http.HandlerFunc(a.livez),
		"GET /readyz":                 http.HandlerFunc(a.readyz),
		"GET /{$}":                    a.guarded(a.page),
		"GET /metrics":                a.guarded(a.metrics()),
		"GET /dicomweb-oauth/status":  a.guarded(a.status),
		"GET /dicomweb-oauth/servers": a.guarded(a.servers),
		"POST /dicomweb-oauth/servers/{name}/test": sameOrigin.Handler(a.guarded(a.test)),
	}
	if a.Reload != nil {
		all["POST /dicomweb-oauth/reload"] = sameOrigin.Handler(a.guarded(a.reload))
	}
	return all
}

// guarded asks for Basic authentication where a password is configured.
func (a *api) guarded(h http.HandlerFunc) http.Handler {
	if a.Admin.Username == "" {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		password, err := a.Admin.Password.Read()
		if err != nil {
			a.Log.Error("admin password not readable", "err", err)
			http.Error(w, "admin password not readable", http.StatusInternalServerError)
			return
		}
		user, given, _ := r.BasicAuth()
		have := sha256.Sum256([]byte(user + ":" + given))
		want := sha256.Sum256([]byte(a.Admin.Username + ":" + password.Reveal()))
		if subtle.ConstantTimeCompare(have[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="orthanc-dicomweb-oauth", charset="UTF-8"`)
			http.Error(w, "admin credentials are missing or wrong", http.StatusUnauthorized)
			return
		}
		h(w, r)
	})
}

// ownHost refuses foreign Host headers on a loopback listener: a web page that
// rebinds its name to 127.0.0.1 must not read the API with its visitor's hands.
func (a *api) ownHost(next http.Handler) http.Handler {
	listen, _, err := net.SplitHostPort(a.Admin.Listen)
	loopback := err == nil && isLoopback(listen)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if loopback && !isLoopback(host) {
			http.Error(w, "this listener answers for localhost only", http.StatusMisdirectedRequest)
			return
		}
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", pagePolicy)
		next.ServeHTTP(w, r)
	})
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || host == "[::1]" || err == nil && ip.IsLoopback()
}

func (a *api) livez(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "ok")
}

// readiness is the body of /readyz.
type readiness struct {
	Ready    bool `json:"ready"`
	Draining bool `json:"draining,omitempty"`
	// CAWarning tells that the CA ends soon; it changes nothing of Ready.
	CAWarning string                 `json:"ca_warning"`
	Profiles  map[string]token.State `json:"profiles"`
}

// readyz answers 200 while requests can be served: not draining, and at least
// one profile usable (or none configured). ?rule=NAME asks about one rule.
func (a *api) readyz(w http.ResponseWriter, r *http.Request) {
	st := a.Gateway.Status()
	profiles := st.Profiles
	if name := r.URL.Query().Get("rule"); name != "" {
		rule := st.Config.Rule(name)
		if rule == nil {
			writeJSON(w, http.StatusNotFound, map[string]string{"error": "no rule has this name"})
			return
		}
		profiles = slices.DeleteFunc(profiles, func(p gateway.ProfileStatus) bool { return p.Name != rule.Profile })
	}
	body := readiness{Ready: len(profiles) == 0, Draining: st.Draining, CAWarning: a.Gateway.CA().Warning(time.Now()), Profiles: map[string]token.State{}}
	for _, p := range profiles {
		body.Profiles[p.Name] = p.State
		body.Ready = body.Ready || usable(p.State)
	}
	status := http.StatusOK
	if st.Draining || !body.Ready {
		body.Ready, status = false, http.StatusServiceUnavailable
	}
	writeJSON(w, status, body)
}

func usable(s token.State) bool { return s == token.Fresh || s == token.Stale }

// status is the whole condition of the gateway.
type status struct {
	Status      string          `json:"status"`
	Version     string          `json:"version"`
	StartedAt   time.Time       `json:"started_at"`
	Config      configStatus    `json:"config"`
	CA          caStatus        `json:"ca"`
	Profiles    []profileStatus `json:"profiles"`
	Connections int64           `json:"connections"`
	InFlight    int             `json:"requests_in_flight"`
	// UntrustedCA counts clients that refused our certificate.
	UntrustedCA int64             `json:"untrusted_ca"`
	Refused     map[string]uint64 `json:"refused"`
	// AuditLost counts audit records that could not be written.
	AuditLost uint64 `json:"audit_lost"`
	// Findings are what the status page names: what is wrong and what to change, worst first.
	Findings []findingStatus `json:"findings"`
}

type findingStatus struct {
	Severity string `json:"severity"` // error or warning
	What     string `json:"what"`
	Hint     string `json:"hint"`
}

type configStatus struct {
	Path      string    `json:"path"`
	Revision  string    `json:"revision"`
	LoadedAt  time.Time `json:"loaded_at"`
	LastError *string   `json:"last_error"`
	// RestartNeeded are the changed keys that take effect at the next restart only.
	RestartNeeded []string `json:"restart_needed"`
}

type caStatus struct {
	Fingerprint string    `json:"fingerprint_sha256"`
	NotAfter    time.Time `json:"not_after"`
	// Warning tells that the CA ends soon, and what to do.
	Warning string `json:"warning"`
}

type profileStatus struct {
	Name         string      `json:"name"`
	Type         string      `json:"type"`
	State        token.State `json:"state"`
	ExpiresAt    *time.Time  `json:"expires_at"`
	ExpiresIn    *float64    `json:"expires_in_seconds"`
	LastRefresh  *time.Time  `json:"last_refresh_at"`
	LastError    *lastError  `json:"last_error"`
	Acquisitions uint64      `json:"acquisitions"`
	Failures     uint64      `json:"failures"`
}

type lastError struct {
	Code    string    `json:"code"`
	Message string    `json:"message"`
	Hint    string    `json:"hint"`
	At      time.Time `json:"at"`
}

func (a *api) status(w http.ResponseWriter, _ *http.Request) {
	v := a.look()
	st := v.Status
	ca := a.Gateway.CA()
	body := status{
		Status: overall(st), Version: a.Version, StartedAt: st.StartedAt.UTC(),
		Config:      configStatus{Path: st.Config.Path, Revision: st.Config.Revision, LoadedAt: st.LoadedAt.UTC(), LastError: textOrNull(st.ReloadError), RestartNeeded: append([]string{}, st.RestartNeeded...)},
		CA:          caStatus{ca.Fingerprint(), ca.Certificate().NotAfter, ca.Warning(time.Now())},
		Profiles:    []profileStatus{},
		Connections: st.Connections, InFlight: st.InFlight, UntrustedCA: st.Untrusted, Refused: st.Refused, AuditLost: st.AuditLost,
		Findings: []findingStatus{},
	}
	for _, f := range v.Findings {
		severity := "warning"
		if f.Mark == bad {
			severity = "error"
		}
		body.Findings = append(body.Findings, findingStatus{severity, f.What, f.Hint})
	}
	for _, p := range st.Profiles {
		ps := profileStatus{
			Name: p.Name, Type: p.Type, State: p.State, Acquisitions: p.Acquisitions, Failures: p.Failures,
			ExpiresAt: orNull(p.ExpiresAt), LastRefresh: orNull(p.LastRefresh),
		}
		if !p.ExpiresAt.IsZero() {
			seconds := math.Round(time.Until(p.ExpiresAt).Seconds()*10) / 10
			ps.ExpiresIn = &seconds
		}
		if f := p.LastFailure; f != nil {
			ps.LastError = &lastError{Code: f.Err.Code, Message: fmt.Sprintf("profile %q: %s", p.Name, f.Err.Error()), Hint: f.Err.Hint, At: f.At.UTC()}
		}
		body.Profiles = append(body.Profiles, ps)
	}
	writeJSON(w, http.StatusOK, body)
}

// overall condenses the profiles' states into one word.
func overall(st gateway.Status) string {
	if st.Draining {
		return "draining"
	}
	good, fresh := 0, 0
	for _, p := range st.Profiles {
		if usable(p.State) {
			good++
		}
		if p.State == token.Fresh {
			fresh++
		}
	}
	switch n := len(st.Profiles); {
	case fresh == n:
		return "ok"
	case good == 0:
		return "unavailable"
	}
	return "degraded"
}

// server is one rule as the API shows it.
type server struct {
	Name       string       `json:"name"`
	URL        string       `json:"url"`
	Action     rules.Action `json:"action"`
	Profile    *string      `json:"profile"`
	State      *token.State `json:"state"`
	Requests   uint64       `json:"requests"`
	LastStatus *int         `json:"last_status"`
	LastUsed   *time.Time   `json:"last_used_at"`
}

func (a *api) servers(w http.ResponseWriter, _ *http.Request) {
	states := map[string]token.State{}
	for _, p := range a.Gateway.Status().Profiles {
		states[p.Name] = p.State
	}
	list := []server{}
	for _, r := range a.Gateway.Rules() {
		s := server{Name: r.Rule.Name, URL: r.Rule.URL, Action: r.Rule.Action, Requests: r.Requests, LastUsed: orNull(r.LastUsed)}
		if r.Rule.Profile != "" {
			state := states[r.Rule.Profile]
			s.Profile, s.State = &r.Rule.Profile, &state
		}
		if r.LastStatus != 0 {
			s.LastStatus = &r.LastStatus
		}
		list = append(list, s)
	}
	writeJSON(w, http.StatusOK, list)
}

// test tries a rule for real, with the credentials of the running gateway. 200:
// it works; 502: a step failed; 404: no such rule; 409: nothing to test. Whoever
// asks for application/x-ndjson gets 200 and each step in a line of its own when
// it is done, and the whole report in the last line; whoever asks for text/html
// gets a page.
func (a *api) test(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	rule := a.Gateway.Status().Config.Rule(name)
	if rule == nil {
		writeJSON(w, http.StatusNotFound, map[string]string{"error": "no rule has this name"})
		return
	}
	accept := r.Header.Get("Accept")
	lines := json.NewEncoder(w)
	var show func(gateway.Step)
	if strings.Contains(accept, "application/x-ndjson") {
		show = func(s gateway.Step) {
			w.Header().Set("Content-Type", "application/x-ndjson")
			_ = lines.Encode(s) // a client that has gone cannot be told
			_ = http.NewResponseController(w).Flush()
		}
	}
	report, err := a.Gateway.Probe(r.Context(), rule.URL, show)
	if err != nil { // a deny rule, a wildcard, http://
		writeJSON(w, http.StatusConflict, map[string]string{"error": err.Error()})
		return
	}
	if show != nil {
		_ = lines.Encode(report)
		return
	}
	status := http.StatusOK
	if !report.OK {
		status = http.StatusBadGateway
	}
	if strings.Contains(accept, "text/html") {
		a.render(w, r, status, "report", report)
		return
	}
	writeJSON(w, status, report)
}

// reload takes up the config file. 200: it holds now, but for the keys that need
// a restart; 422: every problem of the file, and the config before holds on; 503:
// the gateway is stopping.
func (a *api) reload(w http.ResponseWriter, _ *http.Request) {
	done, err := a.Reload()
	if problems, bad := errors.AsType[rules.Problems](err); bad {
		writeJSON(w, http.StatusUnprocessableEntity, map[string]any{"ok": false, "problems": problems})
		return
	}
	if err != nil {
		writeJSON(w, http.StatusServiceUnavailable, map[string]string{"error": err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, done)
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func writeJSON(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(body) // the client has gone; nothing to tell
}

func textOrNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
