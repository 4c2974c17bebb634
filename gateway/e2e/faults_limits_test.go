//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A flood that takes all file descriptors ends no process and no upload. When it is over, requests succeed as before.
func TestOutOfFileDescriptors(t *testing.T) {
	t.Parallel()
	const limit = 64
	server := &uploads{}
	mux := http.NewServeMux()
	mux.HandleFunc("/", emptyAnswer)
	mux.Handle("POST /dicom-web/studies/1.2.3", server)
	u := startUpstream(t, 5*time.Minute, mux)
	g := newGateway(t, u, profileFor(u.provider.issuer+"/token"), clientSecret)
	g.command = append([]string{program(t, "prlimit"), fmt.Sprintf("--nofile=%d", limit)}, g.program()...)
	g.start(t)
	g.waitReady(t)
	o := startClient(t, u, g, g.bundle)
	under := server.begin(t, g.client(t), u.server.url)

	var flood []net.Conn
	defer func() {
		for _, c := range flood {
			_ = c.Close()
		}
	}()
	for range 2 * limit {
		c, err := net.DialTimeout("tcp", strings.TrimPrefix(g.proxy, "http://"), time.Second)
		if err != nil {
			t.Fatal(err) // the kernel takes them, whatever the gateway does
		}
		flood = append(flood, c)
	}
	eventually(t, 10*time.Second, func() error {
		if n := len(g.process.descriptors(t)); n < limit {
			return fmt.Errorf("the gateway has %d descriptors open, want %d", n, limit)
		}
		return nil
	})
	waiting := make(chan error, 1)
	go func() {
		_, err := o.find("anyone")
		waiting <- err
	}()
	eventually(t, 10*time.Second, func() error { return g.warned(t, "too many open files") })
	under.write(t) // it has its descriptors
	_ = under.body.Close()
	if err := <-under.answer; err != nil {
		t.Errorf("the upload under way: %v", err)
	}

	for _, c := range flood {
		_ = c.Close()
	}
	flood = nil
	if err := <-waiting; err != nil {
		t.Errorf("Orthanc's request within the flood: %v", err)
	}
	if _, err := o.find("anyone"); err != nil {
		t.Errorf("Orthanc's request after the flood: %v", err)
	}
	g.waitReady(t)
	u.server.wantOnlyAdmitted(t)
}

// descriptors returns the numbers of the process' open file descriptors.
func (p *process) descriptors(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// While the disk of the audit file is full, requests go on; when it has room again, so does the audit.
func TestDiskOfTheAuditFileFull(t *testing.T) {
	t.Parallel()
	unshare := program(t, "unshare")
	if out, err := exec.Command(unshare, "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", t.TempDir()).CombinedOutput(); err != nil {
		t.Skipf("mounts are not permitted here: %s", out)
	}
	u := startUpstream(t, 5*time.Minute, emptyAnswer)
	g := newGateway(t, u, profileFor(u.provider.issuer+"/token"), clientSecret)
	dir := t.TempDir()
	g.configure(t, "[log]", fmt.Sprintf("audit = %q", filepath.Join(dir, "audit.jsonl")))
	// The file system is of the gateway's mount namespace, and ends with it.
	g.command = append([]string{unshare, "--map-root-user", "--mount", "sh", "-c", `mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"`, dir}, g.program()...)
	g.start(t)
	g.waitReady(t)
	seenFromHere := filepath.Join(fmt.Sprintf("/proc/%d/root", g.process.cmd.Process.Pid), dir)
	client := g.client(t)
	// ask sends n requests, and returns how many records of requests the audit has then.
	ask := func(n int) int {
		t.Helper()
		for range n {
			if _, err := get(client, u.server.url+"studies"); err != nil {
				t.Fatal(err)
			}
		}
		return len(auditRecords(t, filepath.Join(seenFromHere, "audit.jsonl")))
	}
	eventually(t, 5*time.Second, func() error {
		if ask(1) == 0 {
			return errors.New("there is no audit")
		}
		return nil
	})

	filler := filepath.Join(seenFromHere, "filler")
	if err := os.WriteFile(filler, make([]byte, 64<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v, want a full disk", err)
	}
	lost := func(atLeast int) {
		t.Helper()
		eventually(t, 5*time.Second, func() error {
			text, err := get(loopbackClient, g.admin+"/dicomweb-oauth/status")
			var status struct {
				AuditLost int `json:"audit_lost"`
			}
			if err == nil {
				err = json.Unmarshal(text, &status)
			}
			if err == nil && status.AuditLost < atLeast {
				err = fmt.Errorf("%d records are lost, want at least %d", status.AuditLost, atLeast)
			}
			return err
		})
	}
	ask(50) // more than a page, which is what a file may still have
	lost(30)
	full := ask(0)
	ask(20)
	lost(50)
	if now := ask(0); now != full {
		t.Errorf("%d records on a full disk after %d", now, full)
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	const after = 20
	ask(after)
	eventually(t, 5*time.Second, func() error {
		if now := len(auditRecords(t, filepath.Join(seenFromHere, "audit.jsonl"))); now < full+after {
			return fmt.Errorf("%d records, want the %d of before and %d", now, full, after)
		}
		return nil
	})
	u.server.wantOnlyAdmitted(t)
}

// auditRecord is what the tests read of an audit record.
type auditRecord struct {
	Time        time.Time
	RequestID   string `json:"request_id"`
	Transaction string
	Status      int
	Upstream    int     `json:"upstream_status"`
	Duration    float64 `json:"duration_ms"`
	Attempts    int
	Outcome     string
	Reason      string
}

// auditRecords reads the lines of a file that are audit records.
func auditRecords(t *testing.T, path string) []auditRecord {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []auditRecord
	for line := range bytes.Lines(text) {
		var r auditRecord
		if json.Unmarshal(line, &r) == nil && r.RequestID != "" {
			all = append(all, r)
		}
	}
	return all
}
