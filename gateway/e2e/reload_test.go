//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// reloadStatus is what the status API tells of the configuration and the one profile's token.
type reloadStatus struct {
	Config struct {
		Revision      string    `json:"revision"`
		LoadedAt      time.Time `json:"loaded_at"`
		LastError     string    `json:"last_error"`
		RestartNeeded []string  `json:"restart_needed"`
	} `json:"config"`
	Profiles []struct {
		Acquisitions int `json:"acquisitions"`
	} `json:"profiles"`
}

func (g *gateway) reloadStatus(t *testing.T) reloadStatus {
	t.Helper()
	body, err := get(loopbackClient, g.admin+"/dicomweb-oauth/status")
	if err != nil {
		t.Fatal(err)
	}
	var s reloadStatus
	if err := json.Unmarshal(body, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// reload asks for a reload by the API.
func (g *gateway) reload(t *testing.T) (status int, body string) {
	t.Helper()
	resp, err := loopbackClient.Post(g.admin+"/dicomweb-oauth/reload", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// within2s is how soon a change must be noticed.
const within2s = 2 * time.Second

func TestReloadInEachWay(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, time.Hour, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.Path) }))
	g := startGateway(t, u, basicLogin, clientSecret)
	g.waitReady(t)
	client := g.client(t)
	defer client.CloseIdleConnections()
	works := func(after string) {
		t.Helper()
		if _, err := get(client, u.server.url+"studies"); err != nil {
			t.Errorf("after %s: %v", after, err)
		}
	}
	works("the start")

	text, err := os.ReadFile(g.config)
	if err != nil {
		t.Fatal(err)
	}
	write := func(path, more string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(string(text)+more), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	// taken waits until another load than the last one holds.
	last := g.reloadStatus(t)
	taken := func(how string) {
		t.Helper()
		eventually(t, within2s, func() error {
			now := g.reloadStatus(t)
			if now.Config.LoadedAt.Equal(last.Config.LoadedAt) || now.Config.LastError != "" {
				return fmt.Errorf("%s is not taken up: %s", how, now.Config.LastError)
			}
			last = now
			return nil
		})
		works(how)
	}

	g.process.signal(syscall.SIGHUP)
	taken("SIGHUP")
	if status, body := g.reload(t); status != http.StatusOK || !strings.Contains(body, last.Config.Revision) {
		t.Errorf("reload by the API: got %d %s", status, body)
	}
	taken("the API")
	write(g.config, "# in place\n")
	taken("a write in place")
	write(g.config+".new", "# renamed\n")
	rename(g.config+".new", g.config)
	taken("an atomic rename")

	// As Kubernetes mounts it: gateway.toml -> ..data/gateway.toml, ..data -> ..1, then ..2.
	mount := t.TempDir()
	link := func(to, path string) {
		t.Helper()
		if err := os.Symlink(to, path+".new"); err != nil {
			t.Fatal(err)
		}
		rename(path+".new", path)
	}
	for _, version := range []string{"..1", "..2"} {
		if err := os.Mkdir(filepath.Join(mount, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(filepath.Join(mount, version, "gateway.toml"), "# "+version+"\n")
	}
	link("..1", filepath.Join(mount, "..data"))
	link(filepath.Join("..data", "gateway.toml"), filepath.Join(mount, "gateway.toml"))
	link(filepath.Join(mount, "gateway.toml"), g.config)
	taken("a link instead of the file")
	link("..2", filepath.Join(mount, "..data"))
	taken("a swap of ..data")

	// A broken file changes nothing, and says so.
	write(g.config, "[proxi]\n[rule2]\n")
	eventually(t, within2s, func() error {
		if now := g.reloadStatus(t); !containsAll(now.Config.LastError, []string{"proxi", "rule2"}) || now.Config.Revision != last.Config.Revision {
			return fmt.Errorf("got %+v, want both problems and revision %s", now.Config, last.Config.Revision)
		}
		return errors.Join(g.warned(t, "not reloaded", "proxi"), g.warned(t, "not reloaded", "rule2"))
	})
	status, body := g.reload(t)
	var answer struct {
		OK       bool `json:"ok"`
		Problems []struct{ Key, Hint string }
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusUnprocessableEntity || answer.OK || len(answer.Problems) != 2 {
		t.Errorf("reload of a broken file by the API: got %d %s (%v), want 422 with two problems", status, body, err)
	}
	works("a broken file")

	// What cannot change is named, the rest is taken up.
	quiet := strings.NewReplacer(`level = "debug"`, `level = "error"`, "[admin]\nlisten = ", "[admin]\nusername = \"x\"\npassword = \"planted\"\nlisten = ")
	if err := os.WriteFile(g.config, []byte(quiet.Replace(string(text))), 0o600); err != nil {
		t.Fatal(err)
	}
	taken("a change of [admin]")
	if got := strings.Join(last.Config.RestartNeeded, " "); got != "admin.username admin.password" {
		t.Errorf("restart_needed is %q", got)
	}

	// None of all this has asked for a token, or leaves anything behind.
	files := g.descriptors(t)
	for range 50 {
		if status, body := g.reload(t); status != http.StatusOK {
			t.Fatalf("got %d %s", status, body)
		}
		works("one of many reloads")
	}
	if now := g.descriptors(t); now > files {
		t.Errorf("%d descriptors after 50 reloads, %d before", now, files)
	}
	if p := g.reloadStatus(t).Profiles; len(p) != 1 || p[0].Acquisitions != 1 {
		t.Errorf("got %+v, want one profile with one acquisition", p)
	}
	tail := g.process.output(t)
	if tail = tail[strings.LastIndex(tail, "configuration not reloaded"):]; strings.Count(tail, "configuration reloaded") != 0 {
		t.Error(`log.level = "error" has not been taken up`)
	}
	u.server.wantOnlyAdmitted(t)
}

// descriptors counts the open files of the gateway's process.
func (g *gateway) descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", g.process.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
