// Package orthanc sets a running Orthanc up over its REST API, and finds out why
// its requests do not come through the gateway, which Orthanc itself never says:
// it compares what Orthanc answers with what the gateway has seen meanwhile. On a
// gateway with much traffic it may take another client's refusal for Orthanc's.
package orthanc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/gateway/admin"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/rules/orthancjson"
	"orthanc-dicomweb-oauth/token"
)

const (
	// callTimeout limits a call that Orthanc answers by itself.
	callTimeout = 10 * time.Second
	// queryTimeout is longer than Orthanc waits by default.
	queryTimeout = 90 * time.Second
	// settleTime is how long the gateway may take to count what has happened.
	settleTime = time.Second
	settleStep = 50 * time.Millisecond
)

// Options say which Orthanc, and what for.
type Options struct {
	// URL is where Orthanc's REST API is.
	URL string
	// Username and Password are those of the REST API; empty: it wants none.
	Username string
	Password token.Secret
	// Config is that of the gateway.
	Config *rules.Config
	// Settings are what orthanc.json should have.
	Settings orthancjson.Settings
}

// Report is what [Register] did and saw.
type Report struct {
	OK    bool     `json:"ok"`
	Steps []Step   `json:"steps"`
	Notes []string `json:"notes"` // what to know even where all is well
}

// Step is one step of a [Report]: orthanc, plugin, gateway, and for each server
// register and query.
type Step struct {
	gateway.Step

	// Server is the DICOMweb server that the step is about; empty: all.
	Server string `json:"server,omitempty"`
}

// Register gives the rules of a config to a running Orthanc as DICOMweb servers,
// then has Orthanc send one query to each, through the gateway. Each step is also
// given to onStep when it is done, if that is not nil. An error means that there
// is nothing to do, or that the options are wrong.
func Register(ctx context.Context, o Options, onStep func(Step)) (Report, error) {
	c, err := newClient(o)
	if err != nil {
		return Report{}, err
	}
	r := &registration{Options: o, client: c, servers: map[string]orthancjson.Server{}, onStep: onStep}
	r.report = Report{OK: true, Steps: []Step{}, Notes: []string{}}
	all := orthancjson.Servers(o.Config)
	for _, rule := range o.Config.Rules {
		switch s, exact := all[rule.Name]; {
		case exact && rule.Mode == "report":
			r.note("rule %q is in mode report and puts no credential on yet: its server was left as it is", rule.Name)
		case exact:
			r.servers[rule.Name] = s
		case rule.Action == rules.Inject:
			r.note("rule %q is for many hosts: add each of them to DicomWeb.Servers yourself", rule.Name)
		}
	}
	if len(r.servers) == 0 {
		return Report{}, errors.New("no rule injects a credential for one exact host, so there is no server to register")
	}
	r.run(ctx)
	return r.report, nil
}

type registration struct {
	Options

	client  *client
	gateway *admin.Client // nil: turned off
	servers map[string]orthancjson.Server
	known   map[string]map[string]any // the settings of the servers that Orthanc has had
	report  Report
	onStep  func(Step)
}

// failure is a step that did not hold. Its remedy may be empty.
type failure struct {
	what, remedy string
	// all: the same would happen to every server.
	all bool
}

func (r *registration) note(format string, a ...any) {
	r.report.Notes = append(r.report.Notes, fmt.Sprintf(format, a...))
}

// step carries out one step, and reports whether to go on.
func (r *registration) step(ctx context.Context, name, server string, do func(context.Context) (string, *failure)) bool {
	began := time.Now()
	detail, failed := do(ctx)
	s := Step{Server: server, Step: gateway.Step{Step: name, OK: failed == nil, Detail: detail}}
	s.Milliseconds = float64(time.Since(began).Microseconds()) / 1000
	if failed != nil && errors.Is(ctx.Err(), context.Canceled) {
		failed = &failure{what: "it was ended before it was done", all: true}
	}
	if failed != nil {
		s.Detail, s.Hint = failed.what, failed.remedy
		r.report.OK = false
	}
	r.report.Steps = append(r.report.Steps, s)
	if r.onStep != nil {
		r.onStep(s)
	}
	return failed == nil || !failed.all
}

func (r *registration) run(ctx context.Context) {
	if !r.step(ctx, "orthanc", "", r.reach) || !r.step(ctx, "plugin", "", r.findPlugin) {
		return
	}
	names := slices.Sorted(maps.Keys(r.servers))
	for _, name := range names {
		if !r.step(ctx, "register", name, func(ctx context.Context) (string, *failure) { return r.put(ctx, name) }) {
			return
		}
	}
	r.note("Orthanc forgets these servers when it restarts, unless DicomWeb.ServersInDatabase is true; " +
		"to keep them, merge what `orthanc config` prints into orthanc.json")
	if !r.step(ctx, "gateway", "", r.findGateway) {
		return
	}
	for _, name := range names {
		if !r.step(ctx, "query", name, func(ctx context.Context) (string, *failure) { return r.query(ctx, name) }) {
			return
		}
	}
}

func (r *registration) reach(ctx context.Context) (string, *failure) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var system struct{ Version string }
	err := r.client.call(ctx, http.MethodGet, nil, &system, "system")
	where := r.client.base.Redacted()
	if answer, ok := errors.AsType[answerError](err); ok {
		switch {
		case refusesUs(answer) && r.Username == "":
			return "", &failure{answer.Error() + ": its REST API wants a user and a password", "give --username, and the password by --password-file or in ORTHANC_PASSWORD; they are in RegisteredUsers of orthanc.json", true}
		case refusesUs(answer):
			return "", &failure{answer.Error() + ": its REST API does not accept this user and password", "compare --username and the password with RegisteredUsers in orthanc.json", true}
		}
		return "", &failure{fmt.Sprintf("what listens at %s is not Orthanc: HTTP %d", where, answer.status), "check --url", true}
	}
	if err != nil {
		return "", &failure{fmt.Sprintf("Orthanc does not answer at %s: %v", where, err), "start Orthanc, or check --url; from another machine it answers with RemoteAccessAllowed only", true}
	}
	if system.Version == "" {
		return "", &failure{fmt.Sprintf("what listens at %s is not Orthanc", where), "check --url", true}
	}
	return fmt.Sprintf("Orthanc %s at %s", system.Version, where), nil
}

func refusesUs(e answerError) bool {
	return e.status == http.StatusUnauthorized || e.status == http.StatusForbidden
}

// findPlugin learns the plugin's root, and the servers that it has. That root is
// only guessed where somebody hides Orthanc's plugins from this user.
func (r *registration) findPlugin(ctx context.Context) (string, *failure) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	version, err := r.client.plugin(ctx)
	if _, answered := errors.AsType[answerError](err); err != nil && !answered {
		return "", r.refused("", err)
	}
	r.known, err = r.client.servers(ctx)
	answer, _ := errors.AsType[answerError](err)
	switch {
	case err == nil:
		return strings.TrimSpace("DICOMweb " + version), nil
	case answer.status == http.StatusNotFound && version != "":
		return "", &failure{"Orthanc's DICOMweb plugin is turned off", "remove Enable = false from the section DicomWeb of orthanc.json, and restart Orthanc", true}
	case answer.status == http.StatusNotFound:
		return "", &failure{"Orthanc runs without its DICOMweb plugin", "install it (Debian: orthanc-dicomweb), name it in Plugins of orthanc.json, and restart Orthanc", true}
	}
	return "", r.refused("may not ask for the DICOMweb servers", err)
}

// refused is a call that Orthanc should have answered.
func (r *registration) refused(what string, err error) *failure {
	if answer, ok := errors.AsType[answerError](err); ok && refusesUs(answer) {
		return &failure{fmt.Sprintf("%v: this user %s", err, what), "take an administrator of Orthanc's REST API", true}
	}
	return &failure{err.Error(), "see Orthanc's log", true}
}

func (r *registration) put(ctx context.Context, name string) (string, *failure) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, old := r.servers[name], r.known[name]
	if err := r.client.put(ctx, name, s, old); err != nil {
		return "", r.refused("may not change the DICOMweb servers", err)
	}
	detail := s.URL
	if headers, _ := old["HttpHeaders"].([]any); len(headers) > 0 || old["Username"] != nil {
		detail += ", without the credential that Orthanc had for it"
	}
	return detail, nil
}

func (r *registration) findGateway(ctx context.Context) (string, *failure) {
	if r.Config.Admin.Listen == "" {
		return "its admin listener is off: what it sees is not known", nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	api := admin.NewClient(r.Config.Admin)
	seen, err := api.Observe(ctx)
	if err != nil {
		return "", &failure{err.Error(), "start it with this config: orthanc-dicomweb-oauth run --config " + r.Config.Path, true}
	}
	for _, name := range slices.Sorted(maps.Keys(r.servers)) {
		if _, there := seen.Rules[name]; !there {
			return "", &failure{fmt.Sprintf("the gateway that runs has no rule %q", name), "let it reload this config, or start it with --config " + r.Config.Path, true}
		}
	}
	r.gateway = api
	return "running, admin API at " + admin.URL(r.Config.Admin), nil
}

// query has Orthanc ask a server, and finds out how far that came.
func (r *registration) query(ctx context.Context, name string) (string, *failure) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	if r.gateway == nil {
		if err := r.client.query(ctx, name); err != nil {
			return "", &failure{err.Error(), "compare HttpProxy and HttpsCACertificates in orthanc.json with `orthanc config`; with [admin] listen on, this command can tell more", false}
		}
		return "Orthanc has an answer; whether it came through the gateway is not known", nil
	}
	before, err := r.gateway.Observe(ctx)
	if err != nil {
		return "", &failure{err.Error(), "", true}
	}
	queryErr := r.client.query(ctx, name)
	after, err := r.settle(ctx, func(after admin.Observation) bool {
		return after.Rules[name].Count > before.Rules[name].Count || after.UntrustedCA > before.UntrustedCA || turnedAway(before, after) != ""
	})
	if err != nil {
		return "", &failure{err.Error(), "", true}
	}
	if queryErr == nil && after.Rules[name].Count > before.Rules[name].Count {
		return "Orthanc's QIDO-RS came through the gateway and has an answer", nil
	}
	return "", r.diagnose(ctx, name, queryErr, before, after)
}

// settle observes until the gateway has counted enough, or has had time for it.
func (r *registration) settle(ctx context.Context, enough func(admin.Observation) bool) (admin.Observation, error) {
	wait, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for {
		after, err := r.gateway.Observe(ctx)
		if err != nil || enough(after) {
			return after, err
		}
		select {
		case <-wait.Done():
			return after, ctx.Err()
		case <-time.After(settleStep):
		}
	}
}
