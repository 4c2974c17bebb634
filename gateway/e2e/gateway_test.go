//go:build e2e

package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// gateway is the built binary, running.
type gateway struct {
	proxy   string // for HttpProxy
	bundle  string // for HttpsCACertificates
	admin   string // base URL
	config  string
	secret  string   // the client's
	command []string // the program under test, behind what it is started by if anything; empty: it alone
	process *process // nil before its start
}

// profileName is the one profile of the gateway.
const profileName = "archive-login"

// gatewayTOML takes the proxy's port, the admin listener's, the upstream's URL, its CA file, profileName and the profile.
const gatewayTOML = `
[proxy]
listen = "127.0.0.1:%d"
[admin]
listen = "127.0.0.1:%d"
[log]
level = "debug"
[token]
max_backoff = "2s"

[[rule]]
name           = "archive"
url            = %q
ca_file        = %q
profile        = %q
allow_networks = ["127.0.0.0/8"]

[profile.%[5]s]
scopes  = ["dicom"]
ca_file = %[4]q
%[6]s
`

// secretProfile is the profile of a client that has a secret. It takes a login.
const secretProfile = `
type          = "client_credentials"
client_secret = "${E2E_CLIENT_SECRET}"
resource      = "` + resource + `"
%s
`

// A login is what differs between the provider's clients. basicLogin leaves it to the issuer's discovery document where the
// token endpoint is and how to authenticate, postLogin says both.
func basicLogin(p *provider) string {
	return fmt.Sprintf("client_id = \"basic\"\nissuer = %q", p.issuer)
}

func postLogin(p *provider) string {
	return fmt.Sprintf("client_id = \"post\"\nclient_auth = \"client_secret_post\"\ntoken_endpoint = %q", p.issuer+"/token")
}

// startGateway starts a gateway for the upstream and waits until it answers. When the test ends, so does the gateway, and
// nothing that it has written or shown may hold a secret.
func startGateway(t *testing.T, u *upstream, login func(*provider) string, secret string) *gateway {
	t.Helper()
	return startGatewayWith(t, u, fmt.Sprintf(secretProfile, login(u.provider)), secret)
}

// startGatewayWith is startGateway for any profile. Beside the client's secret it may have others that must not be shown.
func startGatewayWith(t *testing.T, u *upstream, profile, secret string, others ...string) *gateway {
	t.Helper()
	g := newGateway(t, u, profile, secret, others...)
	g.start(t)
	return g
}

// newGateway is startGatewayWith without the start, for tests that change the config or the command before.
func newGateway(t *testing.T, u *upstream, profile, secret string, others ...string) *gateway {
	t.Helper()
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	dir, ports := t.TempDir(), freePorts(t, 2)
	g := &gateway{
		proxy:  fmt.Sprintf("http://127.0.0.1:%d", ports[0]),
		bundle: filepath.Join(dir, "ca", "bundle.pem"),
		admin:  fmt.Sprintf("http://127.0.0.1:%d", ports[1]),
		secret: secret,
	}
	g.config = filepath.Join(dir, "gateway.toml")
	text := fmt.Sprintf(gatewayTOML, ports[0], ports[1], u.server.url, u.pki.caFile, profileName, profile)
	if err := os.WriteFile(g.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if g.process == nil {
			return
		}
		shown := g.pages()
		g.process.terminate(t)
		g.wantNoSecret(t, u.server, shown+g.process.output(t)+contents(t, dir), others...)
	})
	return g
}

// configure adds a line to a section of the config.
func (g *gateway) configure(t *testing.T, section, line string) {
	t.Helper()
	text, err := os.ReadFile(g.config)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), section+"\n", section+"\n"+line+"\n", 1)
	if changed == string(text) {
		t.Fatalf("the config has no %s", section)
	}
	if err := os.WriteFile(g.config, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
}

// program is what start runs.
func (g *gateway) program() []string {
	if g.command == nil {
		return []string{gatewayBinary}
	}
	return g.command
}

// start starts the gateway, for the first time or again, and waits until it answers.
func (g *gateway) start(t *testing.T) {
	t.Helper()
	g.process = start(t, "gateway", []string{"E2E_CLIENT_SECRET=" + g.secret}, slices.Concat(g.program(), []string{"run", "--config", g.config})...)
	g.process.ready(t, func() error {
		_, err := get(loopbackClient, g.admin+"/livez")
		return err
	})
}

// waitReady waits until the gateway has a token.
func (g *gateway) waitReady(t *testing.T) {
	t.Helper()
	g.process.ready(t, func() error {
		_, err := get(loopbackClient, g.admin+"/readyz")
		return err
	})
}

// pages returns all that the admin listener shows, whatever the statuses.
func (g *gateway) pages() string {
	var all strings.Builder
	for _, path := range []string{"/", "/metrics", "/livez", "/readyz", "/dicomweb-oauth/status", "/dicomweb-oauth/servers"} {
		body, _ := get(loopbackClient, g.admin+path)
		all.Write(body)
	}
	return all.String()
}

// contents returns the text of all files below a folder.
func contents(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		all.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// wantNoSecret looks for the client secret, as it is and as Basic authentication sends it, and for each token that has
// reached the server, whole or its signature alone, and for what else the test knows as secret.
func (g *gateway) wantNoSecret(t *testing.T, s *server, text string, others ...string) {
	t.Helper()
	secrets := map[string]string{
		clientSecretPart: "the client secret",
		base64.RawStdEncoding.EncodeToString([]byte("basic:" + clientSecretPart))[:20]: "the client secret in Base64",
	}
	for _, secret := range others {
		secrets[secret] = "another secret"
	}
	for _, r := range s.seen() {
		for _, authorization := range r.authorization {
			secrets[authorization[strings.LastIndex(authorization, ".")+1:]] = "an access token"
		}
	}
	for secret, what := range secrets {
		if before, _, found := strings.Cut(text, secret); found {
			t.Errorf("the gateway has shown %s, after %q", what, tail(before, 200))
		}
	}
}

// profileStatus is what the status API tells of the one profile.
type profileStatus struct {
	State     string    `json:"state"`
	ExpiresAt time.Time `json:"expires_at"`
	LastError struct {
		Code, Message, Hint string
	} `json:"last_error"`
}

func (g *gateway) profile(t *testing.T) profileStatus {
	t.Helper()
	body, err := get(loopbackClient, g.admin+"/dicomweb-oauth/status")
	if err != nil {
		t.Fatal(err)
	}
	var status struct {
		Profiles []struct {
			Name string `json:"name"`
			profileStatus
		} `json:"profiles"`
	}
	if err := json.Unmarshal(body, &status); err != nil {
		t.Fatal(err)
	}
	if len(status.Profiles) != 1 || status.Profiles[0].Name != profileName {
		t.Fatalf("got %s, want one profile %q", body, profileName)
	}
	return status.Profiles[0].profileStatus
}

// warned returns nil once the log has a warning or an error with all of these words in it.
func (g *gateway) warned(t *testing.T, words ...string) error {
	t.Helper()
	for line := range strings.Lines(g.process.output(t)) {
		var record struct{ Level string }
		if json.Unmarshal([]byte(line), &record) != nil || record.Level != "WARN" && record.Level != "ERROR" {
			continue
		}
		if containsAll(line, words) {
			return nil
		}
	}
	return fmt.Errorf("no warning in the gateway's log has %q", words)
}

func containsAll(text string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}
