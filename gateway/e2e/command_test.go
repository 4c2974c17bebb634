//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// commands is the built binary for commands that end by themselves, with a config but no gateway that runs.
type commands struct {
	gateway

	upstream *upstream
}

// newCommands writes a config for the upstream.
func newCommands(t *testing.T, u *upstream, secret string) *commands {
	t.Helper()
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	c := &commands{gateway: gateway{config: filepath.Join(t.TempDir(), "gateway.toml"), secret: secret}, upstream: u}
	// No command listens, so a port of 0 will do.
	text := fmt.Sprintf(gatewayTOML, 0, 0, u.server.url, u.pki.caFile, profileName, fmt.Sprintf(secretProfile, basicLogin(u.provider)))
	if err := os.WriteFile(c.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs a command to its end, which must be with this exit code. What it writes may hold no secret.
func (c *commands) run(t *testing.T, code int, command string, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, gatewayBinary, append([]string{command, "--config", c.config}, args...)...)
	cmd.Env = []string{"E2E_CLIENT_SECRET=" + c.secret}
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("%s %q: exit code %d, want %d\n%s%s", command, args, got, code, &out, &complaints)
	}
	shown := out.String() + complaints.String()
	c.wantNoSecret(t, c.upstream.server, shown)
	for _, r := range c.upstream.server.seen() {
		for _, authorization := range r.authorization { // nor the parts before the signature
			for part := range strings.SplitSeq(strings.TrimPrefix(authorization, "Bearer "), ".") {
				if strings.Contains(shown, part) {
					t.Errorf("%s %q has shown a part of the access token", command, args)
				}
			}
		}
	}
	return out.String(), complaints.String()
}

// wantLines fails the test unless the lines begin with these texts, one each, and hold the words.
func wantLines(t *testing.T, text string, begins []string, words ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	good := len(lines) == len(begins)
	for i := range min(len(lines), len(begins)) {
		good = good && strings.HasPrefix(strings.Join(strings.Fields(lines[i]), " "), begins[i])
	}
	if !good || !containsAll(text, words) {
		t.Errorf("got\n%swant lines beginning with %q, and in them %q", text, begins, words)
	}
}

func TestTestCommandOnARuleThatWorks(t *testing.T) {
	t.Parallel()
	u := startArchive(t, 5*time.Minute)
	c := newCommands(t, u, clientSecret)
	claims := []string{fmt.Sprintf("aud %q", resource), fmt.Sprintf("iss %q", u.provider.issuer), `scope "dicom"`, "expires in "}
	for _, target := range []string{"archive", u.server.url} {
		stdout, stderr := c.run(t, 0, "test", target)
		wantLines(t, stdout, []string{"dns ok", "tcp ok", "tls ok", "token ok", "query ok"}, claims...)
		if stderr != "" {
			t.Errorf("got %q on stderr, want nothing", stderr)
		}
	}
	seen := u.server.seen()
	if len(seen) != 2 || seen[0].method != http.MethodGet || seen[0].path != "/dicom-web/studies" {
		t.Errorf("got %d requests at the protected server, want one query each: %+v", len(seen), seen)
	}
	u.server.wantOnlyAdmitted(t)

	stdout, _ := c.run(t, 0, "test", "--json", "archive")
	var report struct {
		Name  string
		OK    bool
		Steps []struct {
			Step, Detail, Hint string
			OK                 bool
		}
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatalf("%v: %s", err, stdout)
	}
	if report.Name != "archive" || !report.OK || len(report.Steps) != 5 || !containsAll(report.Steps[3].Detail, claims) {
		t.Errorf("got %+v", report)
	}

	stdout, _ = c.run(t, 0, "match", "GET", u.server.url+"studies?PatientName=anyone")
	wantLines(t, stdout, []string{"rule: archive", "would: inject", "why: " + u.server.url}, profileName)
}

// The two refusals that Orthanc's users cannot tell apart: what the token says is wrong (401), or the client may not (403).
func TestTestCommandTellsRefusalsApart(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, 5*time.Minute, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the server's own words", http.StatusForbidden)
	}))
	stdout, stderr := newCommands(t, u, clientSecret).run(t, 1, "test", "archive")
	wantLines(t, stdout, []string{"dns ok", "tcp ok", "tls ok", "token ok", "query FAILED", "hint:"}, "HTTP 403", "role")
	if want := "orthanc-dicomweb-oauth: the test failed\n"; stderr != want {
		t.Errorf("got %q on stderr, want %q", stderr, want)
	}
	if strings.Contains(stdout, "own words") {
		t.Errorf("the server's answer is shown: %s", stdout)
	}
	u.server.wantOnlyAdmitted(t) // it was the handler that said no

	// A server of another provider, whose tokens it does not know.
	stranger := &upstream{pki: u.pki, provider: u.provider, server: startServer(t, startProvider(t, u.pki, 5*time.Minute), emptyAnswer)}
	stdout, _ = newCommands(t, stranger, clientSecret).run(t, 1, "test", "archive")
	wantLines(t, stdout, []string{"dns ok", "tcp ok", "tls ok", "token ok", "query FAILED", "hint:"}, "HTTP 401", "audience", "tenant")
}

func TestTestCommandNamesAWrongSecret(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, 5*time.Minute, emptyAnswer)
	c := newCommands(t, u, clientSecret+"-expired")
	stdout, stderr := c.run(t, 1, "test", "archive")
	wantLines(t, stdout, []string{"dns ok", "tcp ok", "tls ok", "token FAILED", "hint:"}, "invalid_client", "profile."+profileName+".client_secret")
	if !strings.Contains(stderr, "the test failed") {
		t.Errorf("got %q on stderr", stderr)
	}
	if seen := u.server.seen(); len(seen) > 0 {
		t.Errorf("%d requests have reached the protected server without a token", len(seen))
	}
	if granted, refused := u.provider.tokenRequests(t); granted != 0 || refused != 1 {
		t.Errorf("the provider granted %d token requests and refused %d, want one, refused", granted, refused)
	}
}

// Whoever imports the settings of the Python plugin goes on with a gateway that works.
func TestImportedConfigWorks(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, 5*time.Minute, emptyAnswer)
	c := newCommands(t, u, clientSecret)
	dir := filepath.Dir(c.config)
	settings, err := json.Marshal(map[string]any{"HttpsCACertificates": u.pki.caFile, "DicomWebOAuth": map[string]any{"Servers": map[string]any{"archive": map[string]any{
		"Url": u.server.url, "TokenEndpoint": u.provider.issuer + "/token", "ClientId": "post", "ClientSecret": "${E2E_CLIENT_SECRET}",
		"Scope": "dicom", "VerifySSL": u.pki.caFile,
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "orthanc.json")
	if err := os.WriteFile(file, settings, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), gatewayBinary, "import", file)
	cmd.Env = []string{"E2E_CLIENT_SECRET=" + clientSecret}
	var notes bytes.Buffer
	cmd.Stderr = &notes
	imported, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &notes)
	}
	c.wantNoSecret(t, u.server, string(imported)+notes.String())
	if !containsAll(notes.String(), []string{"note: HttpsCACertificates", u.pki.caFile, "ca_file"}) {
		t.Errorf("got the notes %q, want one that the CA is to be named", &notes)
	}
	// What the note asks for, and what only this test bench needs: the server is on loopback, and the provider's tokens are
	// for a resource.
	text := strings.Replace(string(imported), "[[rule]]\n", fmt.Sprintf("[[rule]]\nca_file = %q\nallow_networks = [\"127.0.0.0/8\"]\n", u.pki.caFile), 1)
	text = strings.Replace(text, "[profile.archive]\n", fmt.Sprintf("[profile.archive]\nresource = %q\n", resource), 1)
	if err := os.WriteFile(c.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, _ := c.run(t, 0, "check")
	wantLines(t, stdout, []string{c.config + ": ok"})
	stdout, _ = c.run(t, 0, "test", "archive")
	wantLines(t, stdout, []string{"dns ok", "tcp ok", "tls ok", "token ok", "query ok"})
	u.server.wantOnlyAdmitted(t)
}
