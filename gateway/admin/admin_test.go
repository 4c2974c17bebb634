package admin_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/gateway/admin"
	"orthanc-dicomweb-oauth/gateway/demo"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// stack is a gateway with two profiles, one at a provider that works, one with a wrong secret, and its admin API.
type stack struct {
	gateway  *gateway.Gateway
	ca       *certs.CA
	config   *rules.Config
	options  admin.Options
	handler  http.Handler
	provider *demo.IdentityProvider
}

const configText = `
[admin]
%s
[[rule]]
name    = "archive"
url     = "https://dicom.example.org/dicom-web/"
profile = "good"
[[rule]]
name    = "broken"
url     = "https://broken.example.org/"
profile = "wrong"
[[rule]]
name   = "closed"
url    = "https://closed.example.org/"
action = "deny"
[profile.good]
type           = "client_credentials"
token_endpoint = %q
ca_file        = "provider.pem"
client_id      = %q
client_secret  = %q
[profile.wrong]
type           = "client_credentials"
token_endpoint = %q
ca_file        = "provider.pem"
client_id      = %q
client_secret  = "wr0ng"
`

func start(t *testing.T, adminTable string) *stack {
	t.Helper()
	s := &stack{provider: demo.NewIdentityProvider(demo.ProviderOptions{})}
	t.Cleanup(s.provider.Close)
	return s.start(t, adminTable)
}

func (s *stack) start(t *testing.T, adminTable string) *stack {
	t.Helper()
	p := s.provider
	dir := t.TempDir()
	text := fmt.Sprintf(configText, adminTable, p.TokenEndpoint(), p.ClientID(), p.ClientSecret(), p.TokenEndpoint(), p.ClientID())
	for name, content := range map[string]string{"gateway.toml": text, "provider.pem": string(p.CAPEM()), "admin-password": "adm1n\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if s.config, err = rules.Load(filepath.Join(dir, "gateway.toml"), os.LookupEnv); err != nil {
		t.Fatal(err)
	}
	if s.ca, err = gateway.OpenCA(s.config); err != nil {
		t.Fatal(err)
	}
	if s.gateway, err = gateway.New(gateway.Options{Config: s.config, CA: s.ca, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.gateway.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	s.options = admin.Options{Gateway: s.gateway, Admin: s.config.Admin, Version: "1.2.3", Log: slog.New(slog.DiscardHandler)}
	s.handler = admin.New(s.options).Handler
	return s
}

// until waits for a state of a profile.
func (s *stack) until(t *testing.T, profile string, want token.State) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		for _, p := range s.gateway.Status().Profiles {
			if p.Name == profile && p.State == want {
				return
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("profile %s is never %s: %+v", profile, want, s.gateway.Status().Profiles)
		case <-ticker.C:
		}
	}
}

// get asks the API; headers are pairs, "Host" among them.
func (s *stack) get(t *testing.T, path string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Host = "127.0.0.1:3129"
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
			continue
		}
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	return w
}

func decode[T any](t *testing.T, w *httptest.ResponseRecorder) T {
	t.Helper()
	var body T
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	if got := w.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type %q", got)
	}
	if got := w.Header().Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control %q", got)
	}
	return body
}

func has(t *testing.T, what string, object map[string]any, keys ...string) {
	t.Helper()
	for _, key := range keys {
		if _, ok := object[key]; !ok {
			t.Errorf("%s lacks %s; it has %v", what, key, slices.Sorted(maps.Keys(object)))
		}
	}
	for key := range object {
		if strings.ToLower(key) != key {
			t.Errorf("%s: the key %s is not in snake_case", what, key)
		}
	}
}

func isTime(t *testing.T, what string, v any) {
	t.Helper()
	s, _ := v.(string)
	if at, err := time.Parse(time.RFC3339, s); err != nil || !strings.HasSuffix(s, "Z") || time.Since(at) > 24*time.Hour*7 {
		t.Errorf("%s: got %v, want a time as RFC 3339 in UTC", what, v)
	}
}

func TestStatusIsAsPromised(t *testing.T) {
	s := start(t, "")
	s.until(t, "good", token.Fresh)
	s.until(t, "wrong", token.Unusable)
	w := s.get(t, "/dicomweb-oauth/status")
	body := decode[map[string]any](t, w)
	if w.Code != http.StatusOK {
		t.Errorf("got %d", w.Code)
	}
	has(t, "status", body, "status", "version", "started_at", "config", "ca", "profiles", "connections", "requests_in_flight")
	if body["status"] != "degraded" || body["version"] != "1.2.3" || body["connections"] != 0.0 || body["requests_in_flight"] != 0.0 {
		t.Errorf("got %v", body)
	}
	isTime(t, "started_at", body["started_at"])

	config := body["config"].(map[string]any)
	has(t, "config", config, "path", "revision", "loaded_at", "last_error")
	isTime(t, "config.loaded_at", config["loaded_at"])
	if config["path"] != s.config.Path || config["revision"] != s.config.Revision || config["last_error"] != nil {
		t.Errorf("config: got %v", config)
	}
	authority := body["ca"].(map[string]any)
	has(t, "ca", authority, "fingerprint_sha256", "not_after")
	if authority["fingerprint_sha256"] != s.ca.Fingerprint() {
		t.Errorf("ca: got %v", authority)
	}
	isTime(t, "ca.not_after", authority["not_after"])

	profiles := body["profiles"].([]any)
	if len(profiles) != 2 {
		t.Fatalf("%d profiles", len(profiles))
	}
	good, wrong := profiles[0].(map[string]any), profiles[1].(map[string]any)
	for _, p := range []map[string]any{good, wrong} {
		has(t, "profile", p, "name", "type", "state", "expires_at", "expires_in_seconds", "last_refresh_at", "last_error", "acquisitions", "failures")
	}
	if good["name"] != "good" || good["type"] != "client_credentials" || good["state"] != "fresh" || good["last_error"] != nil || good["acquisitions"] != 1.0 || good["failures"] != 0.0 {
		t.Errorf("good: got %v", good)
	}
	isTime(t, "expires_at", good["expires_at"])
	isTime(t, "last_refresh_at", good["last_refresh_at"])
	if left, _ := good["expires_in_seconds"].(float64); left < 200 || left > 300 {
		t.Errorf("expires_in_seconds: got %v, want nearly 300", good["expires_in_seconds"])
	}
	if wrong["state"] != "unavailable" || wrong["expires_at"] != nil || wrong["expires_in_seconds"] != nil || wrong["last_refresh_at"] != nil || wrong["failures"] == 0.0 {
		t.Errorf("wrong: got %v", wrong)
	}
	last := wrong["last_error"].(map[string]any)
	has(t, "last_error", last, "code", "message", "hint", "at")
	isTime(t, "last_error.at", last["at"])
	if last["code"] != "invalid_client" || !strings.Contains(last["message"].(string), "wrong") || !strings.Contains(last["hint"].(string), "client_secret") {
		t.Errorf("last_error: got %v", last)
	}
	if text := w.Body.String(); strings.Contains(text, s.provider.ClientSecret()) || strings.Contains(text, "wr0ng") || strings.Contains(text, "eyJ") {
		t.Error("the status shows a secret or a token")
	}
}

func TestServersAreAsPromised(t *testing.T) {
	s := start(t, "")
	s.until(t, "good", token.Fresh)
	s.until(t, "wrong", token.Unusable)
	w := s.get(t, "/dicomweb-oauth/servers")
	want := []map[string]any{
		{"name": "archive", "url": "https://dicom.example.org/dicom-web/", "action": "inject", "profile": "good", "state": "fresh", "requests": 0.0, "last_status": nil, "last_used_at": nil},
		{"name": "broken", "url": "https://broken.example.org/", "action": "inject", "profile": "wrong", "state": "unavailable", "requests": 0.0, "last_status": nil, "last_used_at": nil},
		{"name": "closed", "url": "https://closed.example.org/", "action": "deny", "profile": nil, "state": nil, "requests": 0.0, "last_status": nil, "last_used_at": nil},
	}
	if diff := cmp.Diff(want, decode[[]map[string]any](t, w)); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
}

func TestReadinessFollowsTheProfiles(t *testing.T) {
	s := &stack{provider: demo.NewIdentityProvider(demo.ProviderOptions{})}
	t.Cleanup(s.provider.Close)
	s.provider.Hang()
	s.start(t, "")
	type readiness struct {
		Ready    bool              `json:"ready"`
		Draining bool              `json:"draining"`
		Profiles map[string]string `json:"profiles"`
	}
	expect := func(path string, code int, want readiness) {
		t.Helper()
		w := s.get(t, path)
		if diff := cmp.Diff(want, decode[readiness](t, w)); diff != "" || w.Code != code {
			t.Errorf("%s: got %d, want %d (-want +got):\n%s", path, w.Code, code, diff)
		}
	}
	both := map[string]string{"good": "cold", "wrong": "cold"}
	expect("/readyz", http.StatusServiceUnavailable, readiness{Profiles: both})
	expect("/readyz?rule=archive", http.StatusServiceUnavailable, readiness{Profiles: map[string]string{"good": "cold"}})

	s.provider.Recover()
	s.until(t, "good", token.Fresh)
	s.until(t, "wrong", token.Unusable)
	both = map[string]string{"good": "fresh", "wrong": "unavailable"}
	expect("/readyz", http.StatusOK, readiness{Ready: true, Profiles: both})
	expect("/readyz?rule=archive", http.StatusOK, readiness{Ready: true, Profiles: map[string]string{"good": "fresh"}})
	expect("/readyz?rule=broken", http.StatusServiceUnavailable, readiness{Profiles: map[string]string{"wrong": "unavailable"}})
	if w := s.get(t, "/readyz?rule=closed"); w.Code != http.StatusOK {
		t.Errorf("a rule without a profile: got %d, want 200", w.Code)
	}
	if w := s.get(t, "/readyz?rule=none"); w.Code != http.StatusNotFound || len(decode[map[string]string](t, w)["error"]) == 0 {
		t.Errorf("unknown rule: got %d %s, want 404", w.Code, w.Body)
	}

	if err := s.gateway.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := s.get(t, "/readyz")
	if got := decode[readiness](t, w); w.Code != http.StatusServiceUnavailable || got.Ready || !got.Draining {
		t.Errorf("draining: got %d %+v, want 503", w.Code, got)
	}
	if got := decode[map[string]any](t, s.get(t, "/dicomweb-oauth/status"))["status"]; got != "draining" {
		t.Errorf("status: got %v, want draining", got)
	}
	if w := s.get(t, "/livez"); w.Code != http.StatusOK || strings.TrimSpace(w.Body.String()) != "ok" {
		t.Errorf("/livez: got %d %s, want 200: the process lives", w.Code, w.Body)
	}
}

func TestPasswordGuardsAllButHealth(t *testing.T) {
	s := start(t, "username = \"admin\"\npassword_file = \"admin-password\"")
	basic := func(user, password string) string {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.SetBasicAuth(user, password)
		return r.Header.Get("Authorization")
	}
	for name, row := range map[string]struct {
		authorization string
		want          int
	}{
		"none":                   {"", 401},
		"right":                  {basic("admin", "adm1n"), 200},
		"wrong password":         {basic("admin", "admin"), 401},
		"password with newline":  {basic("admin", "adm1n\n"), 401},
		"wrong user":             {basic("root", "adm1n"), 401},
		"empty":                  {basic("", ""), 401},
		"colon on another place": {basic("admin:adm1n", ""), 401},
		"another scheme":         {"Bearer adm1n", 401},
		"not base64":             {"Basic !", 401},
	} {
		for _, path := range []string{"/dicomweb-oauth/status", "/dicomweb-oauth/servers"} {
			w := s.get(t, path, "Authorization", row.authorization)
			if w.Code != row.want {
				t.Errorf("%s, %s: got %d, want %d", path, name, w.Code, row.want)
			}
			if row.want == 401 && (!strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "Basic ") || strings.Contains(w.Body.String(), "archive")) {
				t.Errorf("%s, %s: got %v %s", path, name, w.Header(), w.Body)
			}
		}
		for path, unwanted := range map[string]int{"/livez": 401, "/readyz": 401} {
			if w := s.get(t, path, "Authorization", row.authorization); w.Code == unwanted {
				t.Errorf("%s, %s: got %d, want no question for a password", path, name, w.Code)
			}
		}
	}
	// The password is read at each use; one that cannot be read lets nobody in.
	if err := os.Remove(filepath.Join(filepath.Dir(s.config.Path), "admin-password")); err != nil {
		t.Fatal(err)
	}
	for _, password := range []string{"adm1n", ""} {
		if w := s.get(t, "/dicomweb-oauth/status", "Authorization", basic("admin", password)); w.Code != http.StatusInternalServerError {
			t.Errorf("password file gone: got %d, want 500", w.Code)
		}
	}
}

// A web page may point its own name at 127.0.0.1; its visitor's browser then sends that name.
func TestForeignHostIsRefusedOnLoopback(t *testing.T) {
	s := start(t, "")
	for host, want := range map[string]int{
		"127.0.0.1:3129": 200, "127.0.0.1": 200, "localhost:3129": 200, "localhost": 200, "[::1]:3129": 200, "[::1]": 200, "127.0.0.2:3129": 200,
		"localhost.evil.test": 421, "127.0.0.1.nip.io": 421, "127.0.0.1.nip.io:3129": 421, "evil.test:3129": 421, "": 421, ":3129": 421, "0.0.0.0:3129": 421,
		"192.0.2.1:3129": 421, "127.1:3129": 421, "2130706433": 421, "notlocalhost": 421, "localhost:3129:1": 421, "localhost@evil.test": 421,
	} {
		for _, path := range []string{"/dicomweb-oauth/status", "/dicomweb-oauth/servers", "/livez"} {
			if w := s.get(t, path, "Host", host); w.Code != want || want != 200 && strings.Contains(w.Body.String(), "archive") {
				t.Errorf("%s with Host %q: got %d, want %d", path, host, w.Code, want)
			}
		}
	}
	open := start(t, "listen = \"192.0.2.1:3129\"\nusername = \"admin\"\npassword_file = \"admin-password\"")
	if w := open.get(t, "/livez", "Host", "gateway.hospital.example:3129"); w.Code != 200 {
		t.Errorf("a listener for other machines: got %d, want any Host: its password guards it", w.Code)
	}
	if w := open.get(t, "/dicomweb-oauth/status", "Host", "evil.test"); w.Code != 401 {
		t.Errorf("a listener for other machines without password: got %d, want 401", w.Code)
	}
}

func TestOtherMethodsAndPathsAreRefused(t *testing.T) {
	s := start(t, "")
	for _, path := range []string{"/dicomweb-oauth/status", "/dicomweb-oauth/servers", "/livez", "/readyz"} {
		r := httptest.NewRequest(http.MethodPost, path, nil)
		r.Host = "localhost"
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, r)
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: got %d, want 405", path, w.Code)
		}
	}
	if w := s.get(t, "/dicomweb-oauth/none"); w.Code != http.StatusNotFound {
		t.Errorf("unknown path: got %d, want 404", w.Code)
	}
}

func (s *stack) post(t *testing.T, path string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, path, nil)
	r.Host = "127.0.0.1:3129"
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	return w
}

// What works is tested end to end; here is what does not.
func TestServerTestTellsTheStepThatFails(t *testing.T) {
	s := start(t, "")
	for path, want := range map[string]int{
		"/dicomweb-oauth/servers/nobody/test": http.StatusNotFound,
		"/dicomweb-oauth/servers/closed/test": http.StatusConflict, // its rule denies
	} {
		if w := s.post(t, path); w.Code != want {
			t.Errorf("%s: got %d, want %d", path, w.Code, want)
		}
	}
	w := s.post(t, "/dicomweb-oauth/servers/archive/test") // example.org has no such server
	report := decode[gateway.Report](t, w)
	if w.Code != http.StatusBadGateway || report.OK || report.Name != "archive" || len(report.Steps) == 0 {
		t.Fatalf("got %d, %+v, want 502 with the steps", w.Code, report)
	}
	if last := report.Steps[len(report.Steps)-1]; last.OK || last.Detail == "" || last.Hint == "" {
		t.Errorf("the last step is %+v, want one that failed and says why", last)
	}
}

// A web page that the administrator visits must not set off anything here.
func TestOtherOriginsMayNotTest(t *testing.T) {
	s := start(t, "")
	for _, headers := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Origin", "https://evil.test"}} {
		if w := s.post(t, "/dicomweb-oauth/servers/closed/test", headers...); w.Code != http.StatusForbidden {
			t.Errorf("%v: got %d, want 403", headers, w.Code)
		}
	}
}

func TestReloadAnswersWithWhatItDidOrEveryProblem(t *testing.T) {
	s := start(t, "")
	if w := s.post(t, "/dicomweb-oauth/reload"); w.Code != http.StatusNotFound {
		t.Errorf("without a config to reload: got %d, want 404", w.Code)
	}
	var next *rules.Config
	var nextErr error
	s.handler = admin.New(admin.Options{
		Gateway: s.gateway, Admin: s.config.Admin, Log: slog.New(slog.DiscardHandler),
		Reload: func() (gateway.Reloaded, error) {
			return s.gateway.Reload(func() (*rules.Config, error) { return next, nextErr })
		},
	}).Handler
	reload := func(code int, want string) {
		t.Helper()
		w := s.post(t, "/dicomweb-oauth/reload")
		if diff := cmp.Diff(want, strings.Join(strings.Fields(w.Body.String()), " ")); w.Code != code || diff != "" {
			t.Errorf("got %d, want %d; body (-want +got):\n%s", w.Code, code, diff)
		}
	}
	type config struct {
		LastError     *string  `json:"last_error"`
		RestartNeeded []string `json:"restart_needed"`
	}
	shown := func() config {
		return decode[struct{ Config config }](t, s.get(t, "/dicomweb-oauth/status")).Config
	}

	changed := *s.config
	changed.Revision, changed.Proxy.Listen = "c0ffee", "127.0.0.1:9"
	next = &changed
	reload(http.StatusOK, `{ "revision": "c0ffee", "restart_needed": [ "proxy.listen" ] }`)
	if diff := cmp.Diff(config{nil, []string{"proxy.listen"}}, shown()); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}

	nextErr = rules.Problems{{File: "g.toml", Line: 3, Key: "proxy.x", What: "is wrong", Hint: "mend it"}, {File: "g.toml", What: "is odd"}}
	reload(http.StatusUnprocessableEntity, `{ "ok": false, "problems": [ `+
		`{ "file": "g.toml", "line": 3, "key": "proxy.x", "what": "is wrong", "hint": "mend it" }, `+
		`{ "file": "g.toml", "line": 0, "key": "", "what": "is odd", "hint": "" } ] }`)
	text := "g.toml:3: proxy.x: is wrong (mend it)\ng.toml: is odd"
	if diff := cmp.Diff(config{&text, []string{"proxy.listen"}}, shown()); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}

	next, nextErr = s.config, nil
	reload(http.StatusOK, `{ "revision": "`+s.config.Revision+`", "restart_needed": [] }`)
	if diff := cmp.Diff(config{nil, []string{}}, shown()); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	for _, headers := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Origin", "https://evil.test"}} {
		if w := s.post(t, "/dicomweb-oauth/reload", headers...); w.Code != http.StatusForbidden {
			t.Errorf("%v: got %d, want 403", headers, w.Code)
		}
	}
	if w := s.get(t, "/dicomweb-oauth/reload"); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: got %d, want 405", w.Code)
	}
	if err := s.gateway.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	reload(http.StatusServiceUnavailable, `{ "error": "the gateway is stopping" }`)
}

func TestReloadNeedsThePassword(t *testing.T) {
	s := start(t, "username = \"admin\"\npassword_file = \"admin-password\"")
	s.handler = admin.New(admin.Options{
		Gateway: s.gateway, Admin: s.config.Admin, Log: slog.New(slog.DiscardHandler),
		Reload: func() (gateway.Reloaded, error) { return gateway.Reloaded{}, nil },
	}).Handler
	if w := s.post(t, "/dicomweb-oauth/reload"); w.Code != http.StatusUnauthorized {
		t.Errorf("without the password: got %d, want 401", w.Code)
	}
}
