//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Whatever becomes of the audit log, requests are served, and what is lost is counted.
func TestTrafficGoesOnWithoutTheAuditLog(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, 5*time.Minute, emptyAnswer)
	for name, row := range map[string]struct {
		audit     string
		gone      string // the stream whose reader goes away
		told      bool   // by a log that is still there
		beforeEnd bool   // records came through at first
	}{
		"reader of standard output gone": {"stdout", "stdout", true, true},
		"reader of standard error gone":  {"stderr", "stderr", false, true},
		"full disk":                      {"/dev/full", "", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCommands(t, u, clientSecret)
			text, err := os.ReadFile(c.config)
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.Replace(string(text), "[log]\n", "[log]\naudit = \""+row.audit+"\"\n", 1)
			if err := os.WriteFile(c.config, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			g, streams := c.startPiped(t)
			send := func() {
				t.Helper()
				client := g.client(t)
				defer client.CloseIdleConnections()
				if _, err := get(client, u.server.url+"studies"); err != nil {
					t.Fatal(err)
				}
			}
			send()
			if row.beforeEnd {
				streams[row.audit].await(t, `"route":"/dicom-web/studies"`)
			}
			if row.gone != "" {
				streams[row.gone].pipe.Close()
			}
			for range 5 {
				send()
			}
			eventually(t, 10*time.Second, func() error {
				body, err := get(loopbackClient, g.admin+"/dicomweb-oauth/status")
				if err != nil {
					return err
				}
				var status struct {
					AuditLost uint64 `json:"audit_lost"`
				}
				if err := json.Unmarshal(body, &status); err != nil {
					return err
				}
				if status.AuditLost < 5 {
					return errors.New("fewer than 5 records are counted as lost")
				}
				return nil
			})
			if row.told {
				streams["stderr"].await(t, `"msg":"audit records are lost, traffic goes on","audit_lost":`)
			}
			send()
			select {
			case <-g.process.ended:
				t.Errorf("the gateway has ended: %v", g.process.cmd.ProcessState)
			default:
			}
		})
	}
}

// stream is what a process writes into a pipe.
type stream struct {
	pipe  *os.File // the reader's end
	lines chan string
}

func (s *stream) await(t *testing.T, text string) {
	t.Helper()
	end := time.After(20 * time.Second)
	for {
		select {
		case line, open := <-s.lines:
			if !open {
				t.Fatalf("the stream has ended without %q", text)
			}
			if strings.Contains(line, text) {
				return
			}
		case <-end:
			t.Fatalf("no line has %q", text)
		}
	}
}

// startPiped runs a gateway whose standard output and standard error are pipes.
func (c *commands) startPiped(t *testing.T) (*gateway, map[string]*stream) {
	t.Helper()
	cmd := exec.Command(gatewayBinary, "run", "--config", c.config)
	cmd.Env = []string{"E2E_CLIENT_SECRET=" + c.secret}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	streams := map[string]*stream{}
	for name, end := range map[string]*io.Writer{"stdout": &cmd.Stdout, "stderr": &cmd.Stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close() // the process has its own
		*end = w
		s := &stream{r, make(chan string, 10000)}
		streams[name] = s
		go func() {
			for scanner := bufio.NewScanner(r); scanner.Scan(); {
				s.lines <- scanner.Text()
			}
			close(s.lines)
		}()
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{name: "gateway", cmd: cmd, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill()
		for _, s := range streams {
			s.pipe.Close()
		}
	})
	g := &gateway{bundle: filepath.Join(filepath.Dir(c.config), "ca", "bundle.pem"), config: c.config, secret: c.secret, process: p}
	for g.proxy == "" {
		select {
		case line, open := <-streams["stderr"].lines:
			if !open {
				t.Fatal("the gateway ended instead of starting")
			}
			var started struct{ Msg, Proxy, Admin string }
			if json.Unmarshal([]byte(line), &started) == nil && started.Msg == "started" {
				g.proxy, g.admin = "http://"+started.Proxy, "http://"+started.Admin
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the gateway has not started")
		}
	}
	g.waitReady(t)
	return g, streams
}
