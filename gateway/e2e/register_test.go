//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bench is a gateway that works, for Orthancs that may not.
type bench struct {
	*upstream

	gateway *gateway
}

func newBench(t *testing.T, inner http.HandlerFunc) *bench {
	t.Helper()
	u := startUpstream(t, 5*time.Minute, inner)
	g := startGateway(t, u, basicLogin, clientSecret)
	g.waitReady(t)
	return &bench{u, g}
}

// settings are those of an Orthanc that has everything but the servers.
func (b *bench) settings() map[string]any {
	return map[string]any{"HttpProxy": b.gateway.proxy, "HttpsCACertificates": b.gateway.bundle}
}

// orthanc starts one that register is to set up.
func (b *bench) orthanc(t *testing.T, settings map[string]any, env ...string) *orthanc {
	t.Helper()
	o := startOrthanc(t, "Orthanc-registered", settings, env...)
	o.process.ready(t, func() error {
		_, err := get(loopbackClient, o.url+"/system")
		if answer, ok := errors.AsType[statusError](err); ok && answer.status == http.StatusUnauthorized {
			return nil
		}
		return err
	})
	return o
}

// register runs the command to its end, which must be with this exit code.
func (b *bench) register(t *testing.T, code int, o *orthanc, env []string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), gatewayBinary,
		append([]string{"orthanc", "register", "--config", b.gateway.config, "--url", o.url}, args...)...)
	cmd.Env = append([]string{"E2E_CLIENT_SECRET=" + clientSecret}, env...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("orthanc register %q: exit code %d, want %d", args, got, code)
	}
	shown := out.String() + complaints.String()
	t.Logf("it has written:\n%s", shown)
	b.gateway.wantNoSecret(t, b.server, shown, "proxy-pass", "rest-pass")
	return out.String()
}

// wantFailure fails the test unless the last step is this one, failed, with these words in it and in its hint.
func wantFailure(t *testing.T, text, step string, words ...string) {
	t.Helper()
	lines := strings.Split(text, "\n")
	at := 0
	for i, line := range lines {
		if strings.Contains(line, "FAILED") {
			at = i
		}
	}
	said := strings.Join(lines[at:min(at+2, len(lines))], "\n")
	if !strings.HasPrefix(lines[at], step) || !strings.Contains(said, "hint: ") || !containsAll(said, words) {
		t.Errorf("got %q, want the step %s to fail, and the words %q", said, step, words)
	}
}

// serversOf returns the settings of Orthanc's DICOMweb servers.
func serversOf(t *testing.T, o *orthanc) map[string]map[string]any {
	t.Helper()
	var servers map[string]map[string]any
	o.must(t, http.MethodGet, "/dicom-web/servers?expand", nil, &servers)
	return servers
}

func TestRegisteredServersWorkThroughTheGateway(t *testing.T) {
	t.Parallel()
	b := newBench(t, emptyAnswer)
	settings := b.settings()
	settings["DicomWeb"] = map[string]any{"Servers": map[string]any{"archive": map[string]any{
		"Url": "https://old.example.org/", "Username": "someone", "Password": "rest-pass", "Timeout": 77, "ChunkedTransfers": false,
	}}}
	o := b.orthanc(t, settings)
	text := b.register(t, 0, o, nil)
	steps, notes, _ := strings.Cut(text, "note: ")
	wantLines(t, steps, []string{"orthanc ok", "plugin ok", "register ok", "gateway ok", "query ok"},
		"archive: "+b.server.url+", without the credential that Orthanc had for it", "came through the gateway")
	if !strings.Contains(notes, "ServersInDatabase") {
		t.Errorf("got the notes %q, want one about ServersInDatabase", notes)
	}
	var found []any
	o.must(t, http.MethodPost, "/dicom-web/servers/archive/qido", map[string]any{"Uri": "/studies"}, &found)
	if n := len(b.server.seen()); n != 2 {
		t.Errorf("%d requests have reached the protected server, want those of register and of the test", n)
	}
	b.server.wantOnlyAdmitted(t)

	servers := serversOf(t, o)
	got := servers["archive"]
	if len(servers) != 1 || got["Url"] != b.server.url || fmt.Sprint(got["Timeout"]) != "77" || got["Username"] != nil || got["HasDelete"] != "1" {
		t.Errorf("Orthanc has the servers %v", servers)
	}

	// Once more, for a program.
	var report struct {
		OK    bool
		Steps []struct {
			Step, Server string
			OK           bool
		}
		Notes []string
	}
	if err := json.Unmarshal([]byte(b.register(t, 0, o, nil, "--json")), &report); err != nil {
		t.Fatal(err)
	}
	if !report.OK || len(report.Steps) != 5 || report.Steps[4].Step != "query" || report.Steps[4].Server != "archive" || len(report.Notes) != 1 {
		t.Errorf("got %+v", report)
	}
	if again := serversOf(t, o)["archive"]; fmt.Sprint(again) != fmt.Sprint(got) {
		t.Errorf("registered again it became %v, want it to stay %v", again, got)
	}
}

// Whoever merges what `orthanc config` prints has an Orthanc that works.
func TestPrintedSettingsWork(t *testing.T) {
	t.Parallel()
	b := newBench(t, emptyAnswer)
	b.gateway.setProxy(t, "username = \"orthanc\"\npassword = \"proxy-pass/@:$ %\"")
	cmd := exec.CommandContext(t.Context(), gatewayBinary, "orthanc", "config", "--config", b.gateway.config, "--reveal")
	cmd.Env = []string{"E2E_CLIENT_SECRET=" + clientSecret}
	text, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]any{}
	if err := json.Unmarshal(text, &settings); err != nil {
		t.Fatal(err)
	}
	o := b.orthanc(t, settings)
	var found []any
	o.must(t, http.MethodPost, "/dicom-web/servers/archive/qido", map[string]any{"Uri": "/studies"}, &found)
	b.server.wantOnlyAdmitted(t)
}

func TestRegisterNamesAMissingHttpProxy(t *testing.T) {
	t.Parallel()
	b := newBench(t, emptyAnswer)
	o := b.orthanc(t, map[string]any{"HttpsCACertificates": b.pki.caFile})
	wantFailure(t, b.register(t, 1, o, nil), "query", "did not ask the gateway", "for want of a credential", `set "HttpProxy"`, b.gateway.proxy)
	if servers := serversOf(t, o); len(servers) != 1 {
		t.Errorf("Orthanc has the servers %v, want archive alone: that of the test is gone", servers)
	}
}

func TestRegisterNamesAnHttpProxyThatLeadsElsewhere(t *testing.T) {
	t.Parallel()
	b := newBench(t, emptyAnswer)
	settings := b.settings()
	settings["HttpProxy"] = fmt.Sprintf("http://127.0.0.1:%d", freePorts(t, 1)[0])
	wantFailure(t, b.register(t, 1, b.orthanc(t, settings), nil), "query", "did not ask the gateway", `set "HttpProxy"`, b.gateway.proxy)
}

func TestRegisterNamesACAThatOrthancDoesNotTrust(t *testing.T) {
	t.Parallel()
	b := newBench(t, emptyAnswer)
	settings := b.settings()
	settings["HttpsCACertificates"] = newPKI(t).caFile
	wantFailure(t, b.register(t, 1, b.orthanc(t, settings), nil), "query", "does not trust the gateway's CA", "HttpsCACertificates", b.gateway.bundle)
	if err := b.gateway.warned(t, "does not trust this CA", "HttpsCACertificates"); err != nil {
		t.Error(err)
	}
}

func TestRegisterNamesACAFileThatOrthancCannotRead(t *testing.T) {
	t.Parallel()
	b := newBench(t, emptyAnswer)
	settings := b.settings()
	settings["HttpsCACertificates"] = filepath.Join(t.TempDir(), "bundle.pem")
	wantFailure(t, b.register(t, 1, b.orthanc(t, settings), nil), "query", "does not trust the gateway's CA", "HttpsCACertificates", b.gateway.bundle, "able to read")
}

func TestRegisterNamesAWrongProxyPassword(t *testing.T) {
	t.Parallel()
	b := newBench(t, emptyAnswer)
	b.gateway.setProxy(t, "username = \"orthanc\"\npassword = \"proxy-pass\"")
	settings := b.settings()
	settings["HttpProxy"] = strings.Replace(b.gateway.proxy, "//", "//orthanc:wrong@", 1)
	wantFailure(t, b.register(t, 1, b.orthanc(t, settings), nil), "query", "407", "HttpProxy")
}

func TestRegisterNamesNoProxy(t *testing.T) {
	t.Parallel()
	b := newBench(t, emptyAnswer)
	o := b.orthanc(t, b.settings(), "NO_PROXY=localhost")
	wantFailure(t, b.register(t, 1, o, nil), "query", "did not ask the gateway", "for other hosts it does", "localhost", "NO_PROXY")
	if servers := serversOf(t, o); len(servers) != 1 {
		t.Errorf("Orthanc has the servers %v, want archive alone: that of the test is gone", servers)
	}
}

func TestRegisterNamesWrongCredentialsOfOrthanc(t *testing.T) {
	t.Parallel()
	b := newBench(t, emptyAnswer)
	settings := b.settings()
	settings["AuthenticationEnabled"] = true
	settings["RegisteredUsers"] = map[string]string{"admin": "rest-pass"}
	o := b.orthanc(t, settings)
	wantFailure(t, b.register(t, 1, o, nil), "orthanc", "HTTP 401", "--username")
	wantFailure(t, b.register(t, 1, o, []string{"ORTHANC_PASSWORD=wrong"}, "--username", "admin"), "orthanc", "HTTP 401", "RegisteredUsers")
	b.register(t, 0, o, []string{"ORTHANC_PASSWORD=rest-pass"}, "--username", "admin")
}

func TestRegisterNamesAMissingPlugin(t *testing.T) {
	t.Parallel()
	b := newBench(t, emptyAnswer)
	settings := b.settings()
	settings["Plugins"] = []string{}
	wantFailure(t, b.register(t, 1, b.orthanc(t, settings), nil), "plugin", "without its DICOMweb plugin", "orthanc-dicomweb")
}

func TestRegisterNamesARefusalOfTheServer(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the server's own words", http.StatusForbidden)
	})
	text := b.register(t, 1, b.orthanc(t, b.settings()), nil)
	wantFailure(t, text, "query", "came to the gateway, which answered HTTP 403", "the credential is good", "role")
	if strings.Contains(text, "own words") {
		t.Error("the server's answer is shown")
	}
}

func TestRegisterNamesAGatewayThatDoesNotRun(t *testing.T) {
	t.Parallel()
	b := newBench(t, emptyAnswer)
	o := b.orthanc(t, b.settings())
	b.gateway.process.terminate(t)
	wantFailure(t, b.register(t, 1, o, nil), "gateway", "does not answer", "run --config")
}

// setProxy gives the gateway a proxy user and starts it anew.
func (g *gateway) setProxy(t *testing.T, keys string) {
	t.Helper()
	g.process.terminate(t)
	g.configure(t, "[proxy]", keys)
	g.start(t)
	g.waitReady(t)
}
