package gateway_test

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/gateway/demo"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// config returns gateway.toml as it is.
func (h *harness) config() string {
	h.t.Helper()
	text, err := os.ReadFile(filepath.Join(h.dir, "gateway.toml"))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(text)
}

// edit replaces parts of gateway.toml, given in pairs.
func (h *harness) edit(pairs ...string) {
	h.t.Helper()
	text := h.config()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			h.t.Fatalf("gateway.toml has no %q", pairs[i])
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	h.write("gateway.toml", text)
}

// write replaces a file in one step.
func (h *harness) write(name, text string) {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		h.t.Fatal(err)
	}
}

// reload takes up gateway.toml as it is.
func (h *harness) reload() (gateway.Reloaded, error) {
	return h.gw.Reload(func() (*rules.Config, error) {
		return rules.Load(filepath.Join(h.dir, "gateway.toml"), func(string) (string, bool) { return "", false })
	})
}

// reloads edits gateway.toml and takes it up.
func (h *harness) reloads(pairs ...string) gateway.Reloaded {
	h.t.Helper()
	h.edit(pairs...)
	done, err := h.reload()
	if err != nil {
		h.t.Fatal(err)
	}
	return done
}

// profile is the status of one profile; the zero value if there is none.
func (h *harness) profile(name string) gateway.ProfileStatus {
	for _, p := range h.gw.Status().Profiles {
		if p.Name == name {
			return p
		}
	}
	return gateway.ProfileStatus{}
}

func (h *harness) waitFresh(name string) {
	h.t.Helper()
	eventually(h.t, "profile "+name+" has a token", func() bool { return h.profile(name).State == token.Fresh })
}

// second is a rule and a profile of its own, for a double.
func (h *harness) second(up *double) string {
	return fmt.Sprintf(`
[[rule]]
name = "second"
url = %q
profile = "other"
ca_file = "up.pem"
allow_networks = ["127.0.0.0/8"]
[profile.other]
type = "client_credentials"
token_endpoint = %q
client_id = %q
client_secret = %q
ca_file = "idp.pem"
`, up.url+"/", h.idp.TokenEndpoint(), h.idp.ClientID(), h.idp.ClientSecret())
}

func TestUnchangedProfileKeepsItsTokenOverReloads(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	h.get("/studies").want(t, 200)
	before := h.config()
	for _, change := range [][]string{
		{"", "# a comment\n"},
		{"[proxy]", "[proxy]\nstall_timeout = \"77s\""},
		{`name = "dicom"`, `name = "renamed"`},
		{"[token]", passRule("more", "127.0.0.1:9") + "[token]"},
	} {
		done := h.reloads(change...)
		if done.Revision != h.gw.Status().Config.Revision || len(done.RestartNeeded) != 0 {
			t.Errorf("after %q: got %+v", change, done)
		}
		h.get("/studies").want(t, 200)
	}
	h.write("gateway.toml", before)
	if _, err := h.reload(); err != nil {
		t.Fatal(err)
	}
	h.get("/studies").want(t, 200)
	if n := h.idp.TokenRequests(); n != 1 {
		t.Errorf("got %d token requests, want 1", n)
	}
	if n := len(unique(h.up.credentials())); n != 1 {
		t.Errorf("the server saw %d tokens, want 1", n)
	}
}

func TestWarmConnectionsSurviveAReload(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	h.get("/studies").want(t, 200)
	h.reloads("[token]", passRule("more", "127.0.0.1:9")+"[token]")
	h.get("/studies").want(t, 200)
	if n := h.up.connections(); n != 1 {
		t.Errorf("got %d connections to the server, want the first one used again", n)
	}
}

func TestReloadOfChangedSettingsAcquiresAnew(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		change func(h *harness, corporate string) []string
	}{
		{"another secret", func(h *harness, _ string) []string {
			old := h.idp.ClientSecret()
			h.idp.SetClientSecret("the-new-secret")
			return []string{fmt.Sprintf("client_secret = %q", old), `client_secret = "the-new-secret"`}
		}},
		{"another key of the profile", func(*harness, string) []string {
			return []string{"ca_file = \"idp.pem\"\n", "ca_file = \"idp.pem\"\nscopes = [\"dicomweb\"]\n"}
		}},
		{"another default of [token]", func(*harness, string) []string { return []string{"[token]", "[token]\nrefresh_buffer = \"9s\""} }},
		{"another upstream_proxy", func(_ *harness, corporate string) []string {
			return []string{"[proxy]", fmt.Sprintf("[proxy]\nupstream_proxy = \"http://%s\"", corporate)}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			corporate := newCorporate(t, func(authority string) string { return authority })
			h := newHarness(t, setup{})
			h.get("/studies").want(t, 200)
			h.reloads(row.change(h, corporate.addr)...)
			h.get("/studies").want(t, 200)
			if n := h.idp.TokenRequests(); n != 2 {
				t.Errorf("got %d token requests, want 2", n)
			}
			if p := h.profile("main"); p.Acquisitions != 1 || p.State != token.Fresh {
				t.Errorf("got %+v, want a new source", p.Status)
			}
		})
	}
}

func TestReloadTakesUpAReplacedCAFileOfARule(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	h.write("up.pem", string(newPKI().pem))
	h.reloads()
	h.get("/studies").problem(t, 502, "upstream_tls")
	h.write("up.pem", string(testPKI().pem))
	h.reloads()
	h.get("/studies").want(t, 200)
	if n := h.idp.TokenRequests(); n != 1 {
		t.Errorf("got %d token requests, want 1", n)
	}
}

func TestRulesAndProfilesComeGoAndChange(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	up := newDouble(t, nil)
	kept := secure(t, h.addr, h.authority(), "", h.roots()) // a connection over all reloads
	head := "GET /studies HTTP/1.1\r\nHost: " + h.authority() + "\r\n\r\n"
	talk(kept, head).want(t, 200)
	try := func() answer {
		a, err := h.try("GET", up.url+"/studies", nil)
		if err != nil {
			return answer{err: err}
		}
		return a
	}

	// A new rule with a new profile works; CONNECT was refused before.
	if a := try(); a.err == nil {
		t.Errorf("got %d from a host without a rule", a.status)
	}
	second := h.second(up)
	h.reloads("[token]", second+"[token]")
	try().want(t, 200)

	// The rule moves to the other profile: no token is asked for.
	asked := h.idp.TokenRequests()
	h.reloads(`profile = "other"`, `profile = "main"`)
	try().want(t, 200)
	h.get("/studies").want(t, 200)
	if up.last(t).header.Get("Authorization") != h.up.last(t).header.Get("Authorization") {
		t.Error("the moved rule does not use the token of its new profile")
	}
	if n := h.idp.TokenRequests(); n != asked {
		t.Errorf("moving a rule caused %d token requests", n-asked)
	}

	// The profile goes, the rule stays.
	_, profile, _ := strings.Cut(second, "[profile.other]")
	h.reloads("[profile.other]"+profile, "")
	if p := h.profile("other"); p.Name != "" {
		t.Error("a profile that is gone is still shown")
	}
	try().want(t, 200)

	// Another rule's path narrows: what it no longer covers is no_rule, also on the kept connection.
	talk(kept, head).want(t, 200)
	h.reloads(fmt.Sprintf("url = %q", h.up.url+"/"), fmt.Sprintf("url = %q", h.up.url+"/v2/"))
	talk(kept, head).problem(t, 403, "no_rule")
	h.get("/studies").problem(t, 403, "no_rule")
	h.get("/v2/studies").want(t, 200)

	// The rule goes: its host is no_rule for the kept connection, and refused for a new one.
	text := h.config()
	from, to := strings.Index(text, "[[rule]]\nname = \"dicom\""), strings.Index(text, "[profile.main]")
	h.reloads(text[from:to], "")
	talk(kept, head).problem(t, 403, "no_rule")
	if a, err := h.try("GET", h.up.url+"/v2/studies", nil); err == nil && a.status != 403 {
		t.Errorf("got %d after the rule has gone", a.status)
	}
	h.connectTo(h.authority()).problem(t, 403, "no_rule")
	try().want(t, 200)
}

func TestBrokenConfigurationChangesNothingAndIsShown(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	h.get("/studies").want(t, 200)
	good, loaded := h.config(), h.gw.Status()
	if !loaded.ReloadedAt.IsZero() || loaded.ReloadError != "" {
		t.Errorf("before any reload: got %v %q", loaded.ReloadedAt, loaded.ReloadError)
	}
	h.edit("[proxy]", "[proxy]\nunmatched = \"maybe\"\nlisen = \"typo\"", `profile = "main"`, `profile = "mian"`)
	_, err := h.reload()
	problems, _ := errors.AsType[rules.Problems](err)
	if len(problems) != 3 {
		t.Fatalf("got %v, want three problems", err)
	}
	st := h.gw.Status()
	if st.Config != loaded.Config || !st.LoadedAt.Equal(loaded.LoadedAt) || st.ReloadedAt.IsZero() {
		t.Error("a broken file has changed the config")
	}
	var logged []string
	for line := range strings.Lines(h.log.String()) {
		var l struct{ Level, Msg, Problem, Hint string }
		if json.Unmarshal([]byte(line), &l) == nil && l.Level == "ERROR" && strings.HasPrefix(l.Msg, "configuration not reloaded") {
			logged = append(logged, l.Problem+l.Hint)
		}
	}
	for _, p := range problems {
		if !strings.Contains(st.ReloadError, p.String()) || !strings.Contains(st.ReloadError, p.Hint) {
			t.Errorf("the status %q lacks %v", st.ReloadError, p)
		}
		if !slices.Contains(logged, p.String()+p.Hint) {
			t.Errorf("the log %q lacks %v", logged, p)
		}
	}
	h.get("/studies").want(t, 200)

	// Gone altogether.
	if err := os.Remove(filepath.Join(h.dir, "gateway.toml")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.reload(); err == nil {
		t.Error("a file that is not there was reloaded")
	}
	h.get("/studies").want(t, 200)

	h.write("gateway.toml", good)
	if _, err := h.reload(); err != nil {
		t.Fatal(err)
	}
	if st := h.gw.Status(); st.ReloadError != "" || !st.LoadedAt.After(loaded.LoadedAt) {
		t.Errorf("after a good reload: got %+v", st)
	}
	if n := h.idp.TokenRequests(); n != 1 {
		t.Errorf("got %d token requests, want 1", n)
	}
}

func TestNewHostThatTheCADoesNotCoverIsAProblem(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	h.edit("[token]", `
[[rule]]
name = "elsewhere"
url = "https://elsewhere.test/"
profile = "main"
[token]`)
	_, err := h.reload()
	problems, _ := errors.AsType[rules.Problems](err)
	if len(problems) != 1 || problems[0].Key != "rule[0].url" || problems[0].Hint == "" {
		t.Errorf("got %v, want one problem at rule[0].url", err)
	}
	h.get("/studies").want(t, 200)
}

func TestReloadMakesNoCA(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	if err := os.Rename(filepath.Join(h.dir, "ca"), filepath.Join(h.dir, "ca-before")); err != nil {
		t.Fatal(err)
	}
	_, err := h.reload()
	if problems, _ := errors.AsType[rules.Problems](err); len(problems) != 1 || problems[0].Key != "ca.dir" || problems[0].Hint == "" {
		t.Errorf("got %v, want a problem at ca.dir", err)
	}
	if _, err := os.Stat(filepath.Join(h.dir, "ca")); err == nil {
		t.Error("there is a new CA, which nobody trusts")
	}
	h.get("/studies").want(t, 200)
}

func TestKeysThatNeedARestartAreNamedAndTheRestIsApplied(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	before := h.config()
	done := h.reloads(`listen = "127.0.0.1:0"`, "listen = \"127.0.0.1:1\"\nheader_timeout = \"3s\"\nstall_timeout = \"77s\"",
		"[token]", "[log]\nformat = \"json\"\n[token]", "[profile.main]", "[ca]\ndir = \"elsewhere\"\n[profile.main]")
	want := []string{"proxy.listen", "proxy.header_timeout", "ca.dir", "log.format"}
	if !slices.Equal(done.RestartNeeded, want) {
		t.Errorf("got %q, want %q", done.RestartNeeded, want)
	}
	// A later reload still names what differs from what runs.
	done = h.reloads("header_timeout = \"3s\"\n", "")
	want = []string{"proxy.listen", "ca.dir", "log.format"}
	st := h.gw.Status()
	if !slices.Equal(done.RestartNeeded, want) || !slices.Equal(st.RestartNeeded, want) {
		t.Errorf("got %q and %q in the status, want %q", done.RestartNeeded, st.RestartNeeded, want)
	}
	if p := st.Config.Proxy; p.Listen != "127.0.0.1:0" || p.StallTimeout != 77*time.Second {
		t.Errorf("got listen %s and stall_timeout %s", p.Listen, p.StallTimeout)
	}
	if !strings.Contains(h.log.String(), `"level":"WARN","msg":"some changed keys take effect at the next restart only","keys":["proxy.listen"`) {
		t.Errorf("no warning in the log:\n%s", h.log)
	}
	h.write("gateway.toml", before)
	if done := h.reloads(); len(done.RestartNeeded) != 0 {
		t.Errorf("got %q with the first file again", done.RestartNeeded)
	}
}

func TestWhoMayUseTheProxyChangesLive(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	kept := secure(t, h.addr, h.authority(), "", h.roots())
	head := "GET /studies HTTP/1.1\r\nHost: " + h.authority() + "\r\n\r\n"
	talk(kept, head).want(t, 200)

	h.reloads("[proxy]", "[proxy]\nusername = \"orthanc\"\npassword = \"let-me-in\"")
	h.connectTo(h.authority()).problem(t, 407, "proxy_auth_required")
	talk(kept, head).problem(t, 403, "client_not_allowed") // its CONNECT had no user
	withUser := h.newClient(url.UserPassword("orthanc", "let-me-in"))
	get := func() int {
		resp, err := withUser.Get(h.up.url + "/studies")
		if err != nil {
			t.Fatal(err)
		}
		return readAnswer(resp).status
	}
	if status := get(); status != 200 {
		t.Errorf("got %d with the new password", status)
	}
	h.reloads("username = \"orthanc\"\npassword = \"let-me-in\"", "")
	if status := get(); status != 200 { // on its kept connection
		t.Errorf("got %d after the password was taken away", status)
	}
	h.get("/studies").want(t, 200)

	h.reloads("[proxy]", "[proxy]\nallow_clients = [\"192.0.2.0/24\"]")
	if status := get(); status != 403 {
		t.Errorf("got %d on the kept connection of a client that is no longer allowed, want 403", status)
	}
	h.connectTo(h.authority()).problem(t, 403, "client_not_allowed")
	h.reloads("allow_clients = [\"192.0.2.0/24\"]", "max_connections = 1")
	eventually(t, "a connection is one too many", func() bool {
		dial(t, h.addr)
		return h.connectTo("192.0.2.1:443").header.Get("X-Gateway-Error") == "overloaded"
	})
}

func TestCertificateOfTheProxyItselfChangesLive(t *testing.T) {
	t.Parallel()
	cert, key := pair(t, testPKI().leaf(time.Now().Add(time.Hour), "127.0.0.1"))
	h := newHarness(t, setup{proxy: "tls_cert = \"front.pem\"\ntls_key = \"front-key.pem\"", files: map[string][]byte{"front.pem": cert, "front-key.pem": key}})
	shown := func() string {
		c := tls.Client(dial(t, h.addr), &tls.Config{InsecureSkipVerify: true})
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return string(c.ConnectionState().PeerCertificates[0].Raw)
	}
	first := shown()
	cert, key = pair(t, testPKI().leaf(time.Now().Add(time.Hour), "127.0.0.1"))
	h.write("front.pem", string(cert))
	if _, err := h.reload(); err == nil {
		t.Error("a certificate without its key was taken up")
	}
	if shown() != first {
		t.Error("a broken pair has changed the certificate")
	}
	h.write("front-key.pem", string(key))
	h.reloads()
	if shown() == first {
		t.Error("the new certificate is not shown")
	}
}

func TestRunningTransferEndsUnderTheOldConfiguration(t *testing.T) {
	t.Parallel()
	up := newSlow(t)
	other := newDouble(t, nil)
	h := newHarness(t, setup{up: up.double})
	h.waitFresh("main")
	c := secure(t, h.addr, h.authority(), "", h.roots())
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", h.authority())
	<-up.begun

	// Rule and profile go, with them the pool and the source.
	text := h.config()
	from := strings.Index(text, "[[rule]]")
	h.reloads(text[from:], h.second(other))
	h.waitFresh("other")
	_, _ = io.WriteString(c, "4\r\nbcde\r\n0\r\n\r\n")
	if a := read(c).want(t, 200); a.body != "5 <nil>" {
		t.Errorf("got %q", a.body)
	}
	eventually(t, "the pool of the old configuration is closed", func() bool { return up.stillOpen() == 0 })
	talk(c, "GET / HTTP/1.1\r\nHost: "+h.authority()+"\r\n\r\n").problem(t, 403, "no_rule")
}

// A transfer of the old configuration, which may take hours, keeps no more of the
// old pool open than its own connection.
func TestReplacedPoolKeepsNoIdleConnections(t *testing.T) {
	t.Parallel()
	up := newSlow(t)
	h := newHarness(t, setup{up: up.double})
	h.waitFresh("main")
	var clients []net.Conn
	for range 3 {
		c := secure(t, h.addr, h.authority(), "", h.roots())
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", h.authority())
		<-up.begun
		clients = append(clients, c)
	}
	end := func(c net.Conn) {
		_, _ = io.WriteString(c, "4\r\nbcde\r\n0\r\n\r\n")
		if a := read(c).want(t, 200); a.body != "5 <nil>" {
			t.Errorf("got %q", a.body)
		}
	}
	end(clients[0])
	eventually(t, "its connection is kept", func() bool { return h.gw.Idle() > 0 })
	text := h.config()
	h.reloads(text[strings.Index(text, "[[rule]]"):], h.second(newDouble(t, nil)))
	eventually(t, "only those in use are open", func() bool { return up.stillOpen() == 2 })
	end(clients[1]) // its connection is not kept
	eventually(t, "only the one in use is open", func() bool { return up.stillOpen() == 1 })
	end(clients[2])
}

// A request that waits for its token gets it, though its profile has gone.
func TestRequestThatWaitsForATokenSurvivesTheReload(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{before: (*demo.IdentityProvider).Hang})
	done := make(chan answer, 1)
	go func() {
		a, err := h.try("GET", h.up.url+"/studies", nil)
		if err != nil {
			a.err = err
		}
		done <- a
	}()
	eventually(t, "it waits", func() bool { return h.gw.Status().InFlight == 1 })
	text := h.config()
	h.reloads(text[strings.Index(text, "[[rule]]"):], passRule("through", "127.0.0.1:9"))
	select {
	case a := <-done:
		t.Errorf("got %d, %v, before there was a token", a.status, a.err)
	default:
		h.idp.Recover()
		(<-done).want(t, 200)
	}
}

// A pass tunnel may last for days. It goes on, and holds nothing of its
// configuration back.
func TestOpenTunnelOutlivesItsConfigurationAndPinsNothing(t *testing.T) {
	t.Parallel()
	through := echo(t).Addr().String()
	up := newDouble(t, nil)
	h := newHarness(t, setup{up: up, more: passRule("through", through)})
	connect(t, h.addr, through).Close() // one that ends before any reload
	eventually(t, "the first tunnel has ended", func() bool { return h.gw.Status().InFlight == 0 })
	h.get("/studies").want(t, 200)
	tunnel := connect(t, h.addr, through)
	h.reloads(passRule("through", through), "", "[proxy]", "[proxy]\nstall_timeout = \"77s\"") // a new pool, and no rule for the tunnel
	eventually(t, "the old pool is closed", func() bool { return up.stillOpen() == 0 })
	_, _ = io.WriteString(tunnel, "hi")
	if _, err := io.ReadFull(tunnel, make([]byte, 2)); err != nil {
		t.Errorf("the tunnel has ended: %v", err)
	}
	h.connectTo(through).problem(t, 403, "no_rule")
}

func TestReloadDuringDrainIsRefused(t *testing.T) {
	t.Parallel()
	r, up := newRunning(t)
	ctx, cancel := contextWithPatience()
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop(ctx) }()
	eventually(t, "it drains", r.gw.Draining)
	if _, err := r.reload(); !errors.Is(err, gateway.ErrDraining) {
		t.Errorf("got %v, want %v", err, gateway.ErrDraining)
	}
	_, _ = io.WriteString(r.upload, "4\r\nbcde\r\n0\r\n\r\n")
	read(r.upload).want(t, 200)
	close(up.goOn)
	read(r.download).want(t, 200)
	r.tunnel.Close()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// A stop may begin while a reload is under way, and the other way round.
func TestReloadAndStopAtOnceLeaveNothing(t *testing.T) {
	idp := demo.NewIdentityProvider(demo.ProviderOptions{})
	idp.Close()
	eventually(t, "the other tests' goroutines have ended", settled())
	before := runtime.NumGoroutine()
	t.Run("both", func(t *testing.T) {
		for i := range 10 {
			h := newHarness(t, setup{})
			begun := make(chan struct{})
			var all sync.WaitGroup
			all.Go(func() {
				for j := 0; ; j++ {
					h.edit("[token]", fmt.Sprintf("[token]\n# %d", j))
					text := h.config() // another profile each time
					h.write("gateway.toml", strings.Replace(text, "client_id = ", fmt.Sprintf("params = {n = \"%d\"}\nclient_id = ", j), 1))
					_, err := h.reload()
					h.write("gateway.toml", text)
					if j == i/2 {
						close(begun)
					}
					if err != nil {
						return
					}
				}
			})
			<-begun
			ctx, cancel := contextWithPatience()
			if err := h.stop(ctx); err != nil {
				t.Error(err)
			}
			cancel()
			all.Wait()
		}
	})
	var now int
	eventuallyOr(func() bool { now = runtime.NumGoroutine(); return now <= before }, func() {
		stacks := make([]byte, 1<<20)
		t.Errorf("got %d goroutines, want %d:\n%s", now, before, stacks[:runtime.Stack(stacks, true)])
	})
}

// openFiles counts the descriptors of this process, where the system shows them.
func openFiles() int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(list)
}

// Not parallel: goroutines and descriptors are counted.
func TestTwoHundredReloadsUnderLoadFailNothingAndLeaveNothing(t *testing.T) {
	const reloads, clients = 200, 50
	idp := demo.NewIdentityProvider(demo.ProviderOptions{})
	idp.Close()
	eventually(t, "the other tests' goroutines have ended", settled())
	up := newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})
	h := newHarness(t, setup{up: up})
	h.waitFresh("main")
	second := h.second(up)
	second = strings.Replace(second, up.url+"/", up.url+"/second/", 1)
	h.client.CloseIdleConnections()
	goroutines, files := runtime.NumGoroutine(), openFiles()

	stop := make(chan struct{})
	var all sync.WaitGroup
	var answers atomic.Int64
	for i := range clients {
		all.Go(func() {
			client := h.newClient(nil)
			defer client.CloseIdleConnections()
			body := strings.Repeat("x", 1+i*1000) // beyond the replay window for none, beyond a buffer for most
			for j := 0; ; j++ {
				select {
				case <-stop:
					return
				default:
				}
				var resp *http.Response
				var err error
				if j%2 == 0 {
					resp, err = client.Get(up.url + "/studies")
				} else {
					resp, err = client.Post(up.url+"/studies", "application/dicom", strings.NewReader(body))
				}
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				a := readAnswer(resp)
				if want := fmt.Sprint(j%2*len(body), " <nil>"); a.status != 200 || a.err != nil || a.body != want {
					t.Errorf("client %d: got %d %q %v, want 200 %q", i, a.status, a.body, a.err, want)
					return
				}
				if answers.Add(1); j%32 == 31 {
					client.CloseIdleConnections() // a new CONNECT
				}
			}
		})
	}
	plain := h.config()
	for n := range reloads {
		text := plain
		switch { // what of the running state changes
		case n%40 == 20: // all pools
			text = strings.Replace(text, "[proxy]", fmt.Sprintf("[proxy]\nstall_timeout = \"%ds\"", 100+n), 1)
		case n%2 == 1: // a profile and a rule come, and go
			text = strings.Replace(text, "[token]", second+"[token]", 1)
		}
		at := answers.Load()
		h.write("gateway.toml", text)
		if _, err := h.reload(); err != nil {
			t.Errorf("reload %d: %v", n, err)
			break
		}
		eventually(t, "requests go on", func() bool { return answers.Load() >= at+2 || t.Failed() })
	}
	close(stop)
	all.Wait()
	const swaps = 1 + 2*5 // of all pools
	if n := up.connections(); n > swaps*clients {
		t.Errorf("got %d connections to the server for %d requests; the pools are not carried over", n, answers.Load())
	}
	if p := h.profile("main"); p.Acquisitions != 1 || p.State != token.Fresh {
		t.Errorf("got %d acquisitions, state %s; want one, fresh", p.Acquisitions, p.State)
	}
	if n := len(unique(up.credentials())); n != 1 {
		t.Errorf("the server saw %d tokens, want 1", n)
	}
	h.write("gateway.toml", plain)
	h.reloads("[proxy]", "[proxy]\nstall_timeout = \"99s\"") // leaves the pools in use behind
	eventuallyOr(func() bool { return up.stillOpen() == 0 }, func() { t.Errorf("%d connections to the server are left", up.stillOpen()) })
	var g, f int
	eventuallyOr(func() bool { g, f = runtime.NumGoroutine(), openFiles(); return g <= goroutines && f <= files }, func() {
		stacks := make([]byte, 1<<20)
		t.Errorf("got %d goroutines and %d descriptors, want %d and %d:\n%s", g, f, goroutines, files, stacks[:runtime.Stack(stacks, true)])
	})
}
