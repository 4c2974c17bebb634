package orthanc_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/gateway/orthanc"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/rules/orthancjson"
	"orthanc-dicomweb-oauth/token"
)

// doubles are an Orthanc and a gateway's admin API that tell what a test wants.
type doubles struct {
	t *testing.T

	mu          sync.Mutex
	root        string // of the DICOMweb plugin
	noPlugin    bool
	off         bool                           // the plugin's Enable is false
	answers     map[string]int                 // statuses of Orthanc's own by method and path
	servers     map[string]map[string]any      // Orthanc's
	query       map[string]func() (status int) // what Orthanc's query to a server does
	requests    map[string]int                 // the gateway's, by rule
	lastStatus  map[string]int
	refused     map[string]int
	untrusted   int
	test        map[string]string // the report of the gateway's own test, by rule
	tested      []string
	orthancURL  string
	orthancAuth string // "user:password"
	adminOff    bool
	lacks       string // a rule of the config that the gateway which runs has not
}

func newDoubles(t *testing.T) *doubles {
	d := &doubles{
		t: t, root: "dicom-web", answers: map[string]int{}, servers: map[string]map[string]any{}, query: map[string]func() int{},
		requests: map[string]int{}, lastStatus: map[string]int{}, refused: map[string]int{}, test: map[string]string{},
	}
	server := httptest.NewServer(http.HandlerFunc(d.serveOrthanc))
	t.Cleanup(server.Close)
	d.orthancURL = server.URL + "/orthanc"
	return d
}

// arrives is a query that comes to the gateway for a rule and ends with a status.
func (d *doubles) arrives(rule string, status int, codes ...string) func() int {
	return func() int {
		d.requests[rule]++
		d.lastStatus[rule] = status
		for _, code := range codes {
			d.refused[code]++
		}
		return status
	}
}

func (d *doubles) serveOrthanc(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path, below := strings.CutPrefix(r.URL.Path, "/orthanc/")
	if user, password, _ := r.BasicAuth(); d.orthancAuth != "" && user+":"+password != d.orthancAuth {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if status := d.answers[r.Method+" "+path]; status != 0 {
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
		return
	}
	answer := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	name, isServer := strings.CutPrefix(path, d.root+"/servers/")
	switch {
	case !below:
		d.t.Errorf("%s %s went out of the base URL", r.Method, r.URL)
	case path == "system":
		answer(map[string]string{"Version": "1.12.7"})
		return
	case path == "plugins/dicom-web" && !d.noPlugin:
		answer(map[string]string{"Version": "1.20", "RootUri": "../" + d.root + "/app/client/index.html"})
		return
	case d.off:
	case path == d.root+"/servers":
		if !r.URL.Query().Has("expand") {
			d.t.Error("the list of servers was asked for without their settings")
		}
		answer(d.servers)
		return
	case isServer && r.Method == http.MethodPut:
		settings := map[string]any{}
		if err := json.NewDecoder(r.Body).Decode(&settings); err != nil {
			d.t.Error(err)
		}
		d.servers[name] = settings
		return
	case isServer && r.Method == http.MethodDelete:
		delete(d.servers, name)
		return
	case isServer && r.Method == http.MethodPost:
		name, isQuery := strings.CutSuffix(name, "/qido")
		if query := d.query[name]; isQuery && d.servers[name] != nil && query != nil {
			w.WriteHeader(query())
			answer([]any{})
			return
		}
	}
	w.WriteHeader(http.StatusNotFound)
}

func (d *doubles) serveAdmin(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if name, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/dicomweb-oauth/servers/"), "/test"); ok && r.Method == http.MethodPost {
		d.tested = append(d.tested, name)
		_, _ = w.Write([]byte(d.test[name]))
		return
	}
	if r.URL.Path == "/dicomweb-oauth/status" {
		_ = json.NewEncoder(w).Encode(map[string]any{"untrusted_ca": d.untrusted, "refused": d.refused})
		return
	}
	list := []any{}
	for name, n := range d.requests {
		list = append(list, map[string]any{"name": name, "requests": n, "last_status": d.lastStatus[name]})
	}
	_ = json.NewEncoder(w).Encode(list)
}

func rule(name, url string, more ...string) string {
	return fmt.Sprintf("[[rule]]\nname = %q\nurl = %q\nprofile = \"p\"\n%s\n", name, url, strings.Join(more, "\n"))
}

// register runs it for a config of these rules.
func (d *doubles) register(ruleTables ...string) (orthanc.Report, error) {
	d.t.Helper()
	return d.registerWith(d.t.Context(), ruleTables...)
}

func (d *doubles) registerWith(ctx context.Context, ruleTables ...string) (orthanc.Report, error) {
	d.t.Helper()
	api := httptest.NewServer(http.HandlerFunc(d.serveAdmin))
	d.t.Cleanup(api.Close)
	listen := strings.TrimPrefix(api.URL, "http://")
	if d.adminOff {
		listen = ""
	}
	path := filepath.Join(d.t.TempDir(), "gateway.toml")
	text := fmt.Sprintf("[admin]\nlisten = %q\n%s[profile.p]\ntype = \"static_bearer\"\ntoken = \"s3cr3t\"\n", listen, strings.Join(ruleTables, ""))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	c, err := rules.Load(path, os.LookupEnv)
	if err != nil {
		d.t.Fatal(err)
	}
	for name := range orthancjson.Servers(c) {
		if name != d.lacks {
			d.requests[name] = 0
		}
	}
	var told []orthanc.Step
	o := orthanc.Options{
		URL: d.orthancURL, Config: c,
		Settings: orthancjson.Settings{HTTPProxy: "http://the-proxy:3128", CACertificates: "/the/bundle.pem"},
	}
	if d.orthancAuth != "" {
		o.Username, o.Password = "admin", token.NewSecret("rest-pass")
	}
	report, err := orthanc.Register(ctx, o, func(s orthanc.Step) { told = append(told, s) })
	if err == nil {
		if diff := cmp.Diff(report.Steps, told); diff != "" {
			d.t.Errorf("told step by step was something else: %s", diff)
		}
	}
	return report, err
}

// wantSteps compares the names of the steps; a failed one has "!" before it.
func wantSteps(t *testing.T, r orthanc.Report, want ...string) {
	t.Helper()
	var got []string
	ok := true
	for _, s := range r.Steps {
		name := strings.TrimSpace(s.Step.Step + " " + s.Server)
		if !s.OK {
			name, ok = "!"+name, false
		}
		got = append(got, name)
	}
	if diff := cmp.Diff(want, got); diff != "" || r.OK != ok {
		t.Errorf("ok: %v, steps: %s\n%+v", r.OK, diff, r.Steps)
	}
}

// wantSaid fails the test unless the last step's detail and hint have these words.
func wantSaid(t *testing.T, r orthanc.Report, words ...string) {
	t.Helper()
	last := r.Steps[len(r.Steps)-1]
	for _, word := range words {
		if !strings.Contains(last.Detail+"\n"+last.Hint, word) {
			t.Errorf("got %q, hint %q; want %q in it", last.Detail, last.Hint, word)
		}
	}
}

var azure = rule("azure", "https://dicom.example.org/v2/")

func TestRegisterWithAPluginRootOfItsOwn(t *testing.T) {
	t.Parallel()
	d := newDoubles(t)
	d.root, d.orthancAuth = "pacs/wado", "admin:rest-pass"
	d.query["azure"] = d.arrives("azure", http.StatusOK)
	d.query["reader"] = d.arrives("reader", http.StatusOK)
	d.servers["azure"] = map[string]any{
		"Url": "https://old.example.org/", "HasDelete": "1", "Username": "u", "Password": nil, "HttpHeaders": []string{"Authorization"},
		"Timeout": 90, "ChunkedTransfers": "0", "Pkcs11": false, "CertificateFile": "/old.pem",
	}
	d.servers["reader"] = map[string]any{"Url": "https://reader.example.org/", "HasDelete": "1"}
	d.servers["other"] = map[string]any{"Url": "https://other.example.org/"}
	r, err := d.register(azure, rule("reader", "https://reader.example.org/", `methods = ["GET"]`))
	if err != nil {
		t.Fatal(err)
	}
	wantSteps(t, r, "orthanc", "plugin", "register azure", "register reader", "gateway", "query azure", "query reader")
	want := map[string]map[string]any{
		"azure":  {"Url": "https://dicom.example.org/v2/", "HasDelete": true, "Timeout": 90.0, "ChunkedTransfers": "0"},
		"reader": {"Url": "https://reader.example.org/"},
		"other":  {"Url": "https://other.example.org/"},
	}
	if diff := cmp.Diff(want, d.servers); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(r.Steps[2].Detail, "without the credential that Orthanc had") || strings.Contains(r.Steps[3].Detail, "without") {
		t.Errorf("got %+v", r.Steps[2:4])
	}
}

func TestRulesThatAreNoServerAreNoted(t *testing.T) {
	t.Parallel()
	d := newDoubles(t)
	d.query["azure"] = d.arrives("azure", http.StatusOK)
	r, err := d.register(azure, rule("many", "https://*.cloud.example.org/"), rule("soon", "https://soon.example.org/", `mode = "report"`))
	if err != nil {
		t.Fatal(err)
	}
	wantSteps(t, r, "orthanc", "plugin", "register azure", "gateway", "query azure")
	notes := strings.Join(r.Notes, "\n")
	if !strings.Contains(notes, `"many" is for many hosts`) || !strings.Contains(notes, `"soon" is in mode report`) || !strings.Contains(notes, "ServersInDatabase") {
		t.Errorf("got %q", notes)
	}
	if _, err := d.register(rule("many", "https://*.cloud.example.org/")); err == nil || !strings.Contains(err.Error(), "no server to register") {
		t.Errorf("got %v", err)
	}
}

func TestOneServerThatFailsDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	d := newDoubles(t)
	d.query["a"] = d.arrives("a", http.StatusServiceUnavailable, "token_unavailable")
	d.query["b"] = d.arrives("b", http.StatusOK)
	d.test["a"] = `{"name":"a","ok":false,"steps":[{"step":"dns","ok":true},{"step":"token","ok":false,"detail":"it is refused","hint":"check client_secret"}]}`
	r, err := d.register(rule("a", "https://a.example.org/"), rule("b", "https://b.example.org/"))
	if err != nil {
		t.Fatal(err)
	}
	wantSteps(t, r, "orthanc", "plugin", "register a", "register b", "gateway", "!query a", "query b")
	failed := r.Steps[5]
	if want := "Orthanc's query came to the gateway, which answered HTTP 503 (token_unavailable); its own test fails at token: it is refused"; failed.Detail != want || failed.Hint != "check client_secret" {
		t.Errorf("got %+v", failed)
	}
}

func TestWhatStopsTheRegistrationIsNamed(t *testing.T) {
	all := []string{"orthanc", "plugin", "register azure", "gateway", "!query azure"}
	for _, c := range []struct {
		name  string
		spoil func(*doubles)
		steps []string
		said  []string
	}{
		{"Orthanc is not there", func(d *doubles) { d.orthancURL = "http://127.0.0.1:1" }, []string{"!orthanc"}, []string{"does not answer at http://127.0.0.1:1", "--url"}},
		{"something else is there", func(d *doubles) { d.answers["GET system"] = 404 }, []string{"!orthanc"}, []string{"is not Orthanc: HTTP 404"}},
		{"a redirect, which the password does not follow", func(d *doubles) { d.answers["GET system"] = 302 }, []string{"!orthanc"}, []string{"is not Orthanc: HTTP 302"}},
		{"a wrong password", func(d *doubles) { d.orthancAuth = "admin:another" }, []string{"!orthanc"}, []string{"does not accept this user", "RegisteredUsers"}},
		{"no password where one is needed", func(d *doubles) { d.answers["GET system"] = 401 }, []string{"!orthanc"}, []string{"wants a user", "ORTHANC_PASSWORD"}},
		{"no plugin", func(d *doubles) { d.noPlugin, d.off = true, true }, []string{"orthanc", "!plugin"}, []string{"without its DICOMweb plugin", "orthanc-dicomweb"}},
		{"the plugin is off", func(d *doubles) { d.off = true }, []string{"orthanc", "!plugin"}, []string{"turned off", "Enable"}},
		{"a user who may not ask", func(d *doubles) { d.answers["GET dicom-web/servers"] = 403 }, []string{"orthanc", "!plugin"}, []string{"HTTP 403", "may not ask"}},
		{"a user who may not change", func(d *doubles) { d.answers["PUT dicom-web/servers/azure"] = 403 }, []string{"orthanc", "plugin", "!register azure"}, []string{"HTTP 403", "may not change"}},
		{"a rule that the running gateway lacks", func(d *doubles) { d.lacks = "azure" }, []string{"orthanc", "plugin", "register azure", "!gateway"}, []string{`no rule "azure"`, "reload"}},
		{"the CA", func(d *doubles) { d.query["azure"] = func() int { d.untrusted++; return 500 } }, all, []string{"does not trust", "HttpsCACertificates", "/the/bundle.pem"}},
		{"the proxy password", func(d *doubles) { d.query["azure"] = func() int { d.refused["proxy_auth_required"]++; return 500 } }, all, []string{"407", "--reveal"}},
		{"allow_clients", func(d *doubles) { d.query["azure"] = func() int { d.refused["client_not_allowed"]++; return 500 } }, all, []string{"allow_clients"}},
		{"another URL in the running gateway", func(d *doubles) { d.query["azure"] = func() int { d.refused["no_rule"]++; return 500 } }, all, []string{"no_rule", "reload"}},
		{"overload", func(d *doubles) { d.query["azure"] = func() int { d.refused["overloaded"]++; return 500 } }, all, []string{"overloaded"}},
		{"an answer that Orthanc does not like", func(d *doubles) {
			through := d.arrives("azure", 200)
			d.query["azure"] = func() int { through(); return 400 }
			d.test["azure"] = `{"ok":true,"steps":[]}`
		}, all, []string{"answered HTTP 200", "does not like what it got (HTTP 400)", "logs"}},
		{"HttpProxy", func(d *doubles) {
			d.query["azure"] = func() int { return 401 }
			d.query["dicomweb-oauth-probe"] = func() int { return 500 }
		}, all, []string{"did not ask the gateway, but the server itself, which refused it", `"HttpProxy"`, "http://the-proxy:3128"}},
		{"a server that wants no credential, past the gateway", func(d *doubles) {
			d.query["azure"] = func() int { return 200 }
			d.query["dicomweb-oauth-probe"] = func() int { return 500 }
		}, all, []string{"did not ask the gateway, but the server itself, which answered without a credential", `"HttpProxy"`}},
		{"NO_PROXY", func(d *doubles) {
			d.query["azure"] = func() int { return 500 }
			d.query["dicomweb-oauth-probe"] = func() int { d.refused["no_rule"]++; return 500 }
		}, all, []string{"for other hosts it does", "dicom.example.org from NO_PROXY"}},
		{"a probe that Orthanc does not take", func(d *doubles) {
			d.query["azure"] = func() int { return 500 }
			d.answers["PUT dicom-web/servers/dicomweb-oauth-probe"] = 500
		}, all, []string{"did not ask the gateway", "HttpProxy", "NO_PROXY"}},
		{"no admin listener", func(d *doubles) { d.adminOff = true; d.query["azure"] = func() int { return 500 } }, all, []string{"HTTP 500", "[admin]"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDoubles(t)
			c.spoil(d)
			r, err := d.register(azure)
			if err != nil {
				t.Fatal(err)
			}
			wantSteps(t, r, c.steps...)
			wantSaid(t, r, c.said...)
			if _, left := d.servers["dicomweb-oauth-probe"]; left {
				t.Error("the server of the test is still there")
			}
		})
	}
}

func TestRegisterWithoutTheAdminListenerDoesNotClaimMoreThanItKnows(t *testing.T) {
	t.Parallel()
	d := newDoubles(t)
	d.adminOff = true
	d.query["azure"] = func() int { return 200 }
	r, err := d.register(azure)
	if err != nil {
		t.Fatal(err)
	}
	wantSteps(t, r, "orthanc", "plugin", "register azure", "gateway", "query azure")
	wantSaid(t, r, "not known")
}

func TestPluginsMayBeHidden(t *testing.T) {
	t.Parallel()
	d := newDoubles(t)
	d.noPlugin = true
	d.query["azure"] = d.arrives("azure", http.StatusOK)
	r, err := d.register(azure)
	if err != nil {
		t.Fatal(err)
	}
	wantSteps(t, r, "orthanc", "plugin", "register azure", "gateway", "query azure")
}

func TestAProbeThatStaysBehindIsNoted(t *testing.T) {
	t.Parallel()
	d := newDoubles(t)
	d.query["azure"] = func() int { return 500 }
	d.query["dicomweb-oauth-probe"] = func() int { d.refused["no_rule"]++; return 500 }
	d.answers["DELETE dicom-web/servers/dicomweb-oauth-probe"] = 500
	r, err := d.register(azure)
	if err != nil || !strings.Contains(strings.Join(r.Notes, "\n"), `"dicomweb-oauth-probe" was for a test`) {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestURLOfOrthancIsChecked(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"localhost:8042", "ftp://localhost/", "http://", "http://admin:rest-pass@localhost:8042"} {
		d := newDoubles(t)
		d.orthancURL = url
		if _, err := d.register(azure); err == nil || strings.Contains(err.Error(), "rest-pass") {
			t.Errorf("%s: got %v, want an error without the password", url, err)
		}
	}
}

func TestARegistrationThatIsEndedSaysSo(t *testing.T) {
	t.Parallel()
	d := newDoubles(t)
	ctx, cancel := context.WithCancel(t.Context())
	d.query["azure"] = func() int { cancel(); return 500 }
	r, err := d.registerWith(ctx, azure)
	if err != nil {
		t.Fatal(err)
	}
	wantSteps(t, r, "orthanc", "plugin", "register azure", "gateway", "!query azure")
	wantSaid(t, r, "ended before")
}
