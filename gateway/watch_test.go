package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/rules"
)

const watchedConfig = `
[[rule]]
name    = "dicom"
url     = "https://dicom.example.org/"
profile = "main"
[profile.main]
type  = "static_bearer"
token = "t0ken"
`

// watched is a gateway with nothing but what a watcher looks at, its config and its log.
func watched(t *testing.T) (*Gateway, *rules.Config, *bytes.Buffer) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gateway.toml")
	if err := os.WriteFile(path, []byte(watchedConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := rules.Load(path, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := OpenCA(config)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	g := &Gateway{log: slog.New(slog.NewJSONHandler(&log, nil))}
	g.ca.Store(ca)
	g.current.Store(&snapshot{config: config})
	return g, config, &log
}

// messages returns what was logged since the last call, as level and message.
func messages(t *testing.T, log *bytes.Buffer) []string {
	t.Helper()
	var all []string
	for line := range strings.Lines(log.String()) {
		var record struct{ Level, Msg string }
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatal(err)
		}
		all = append(all, record.Level+" "+record.Msg)
	}
	log.Reset()
	return all
}

func TestRunningGatewayTakesUpTheFolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, config, log := watched(t)
		first := g.CA()
		ctx, cancel := context.WithCancel(t.Context())
		var looking sync.WaitGroup
		looking.Go(func() { g.look(ctx) })
		after := func(d time.Duration, want ...string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if diff := cmp.Diff(want, messages(t, log)); diff != "" {
				t.Errorf("log (-want +got):\n%s", diff)
			}
		}
		after(time.Minute)

		if _, err := RotateCA(config, false); err != nil {
			t.Fatal(err)
		}
		after(watchEvery, "INFO a new CA waits, and signs after ca activate")
		if g.CA().Fingerprint() != first.Fingerprint() || g.CA().Waiting() == nil {
			t.Error("want the first CA to sign, and one to wait")
		}
		second, err := ActivateCA(config)
		if err != nil {
			t.Fatal(err)
		}
		after(watchEvery, "INFO a new CA signs from now on")
		if g.CA().Fingerprint() != second.Fingerprint() {
			t.Error("want the CA that waited to sign")
		}
		after(time.Hour)

		// A folder that is broken, or is for other hosts, changes nothing, and is told of once.
		dir := string(config.CA.Dir)
		good, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "ca.pem"), []byte("broken"), 0o600); err != nil {
			t.Fatal(err)
		}
		after(time.Minute, "ERROR the CA folder is not taken up, the CA in memory signs on")
		if g.CA().Fingerprint() != second.Fingerprint() {
			t.Error("the CA in memory is lost")
		}
		if err := os.WriteFile(filepath.Join(dir, "ca.pem"), good, 0o600); err != nil {
			t.Fatal(err)
		}
		after(time.Minute, "INFO the CA folder is good again")
		if _, err := certs.Rotate(dir, &certs.Names{Hosts: []string{"other.example.org"}}, false); err != nil {
			t.Fatal(err)
		}
		if _, err := certs.Activate(dir); err != nil {
			t.Fatal(err)
		}
		after(time.Minute, "ERROR the CA folder is not taken up, the CA in memory signs on")
		if !g.CA().Covers("dicom.example.org") {
			t.Error("a CA is taken up that cannot sign for the rule's host")
		}
		cancel()
		looking.Wait()
	})
}

func TestEndOfTheCAIsToldOnceADay(t *testing.T) {
	g, config, log := watched(t)
	w := &watcher{g: g}
	end := g.CA().Certificate().NotAfter
	const warning = "WARN the CA is to be replaced"
	for _, row := range []struct {
		left time.Duration
		want []string
	}{
		{31 * 24 * time.Hour, nil},
		{30 * 24 * time.Hour, []string{warning}},
		{30*24*time.Hour - time.Minute, nil},
		{29*24*time.Hour + time.Second, nil},
		{29 * 24 * time.Hour, []string{warning}},
		{-time.Hour, []string{warning}},
	} {
		w.warnOfCA(end.Add(-row.left))
		if diff := cmp.Diff(row.want, messages(t, log)); diff != "" {
			t.Errorf("%v before its end (-want +got):\n%s", row.left, diff)
		}
	}
	// A step on the way is no reason to be silent until tomorrow about what is to be done now.
	if _, err := RotateCA(config, false); err != nil {
		t.Fatal(err)
	}
	w.takeUpCA()
	w.warnOfCA(end.Add(-time.Hour))
	if text := log.String(); !strings.Contains(text, "a new one waits: run ca activate") {
		t.Errorf("got %s", text)
	}
}

// flaky is a sink that fails while err is not nil.
type flaky struct {
	mu  sync.Mutex
	err error
}

func (f *flaky) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *flaky) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return 0, f.err
	}
	return len(p), nil
}

func TestLostAuditRecordsAreToldOfAtMostOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, log := watched(t)
		sink := &flaky{}
		g.audit = audit.New(sink)
		w := &watcher{g: g}
		look := func(wait time.Duration, records int, want ...string) {
			t.Helper()
			for range records {
				g.audit.Write(audit.Record{})
			}
			time.Sleep(wait)
			synctest.Wait()
			w.warnOfAudit(time.Now())
			if diff := cmp.Diff(want, messages(t, log)); diff != "" {
				t.Errorf("log (-want +got):\n%s", diff)
			}
		}
		const lost, again = "WARN audit records are lost, traffic goes on", "INFO audit records are written again"
		look(time.Second, 10)
		sink.set(errors.New("no space left on device"))
		look(time.Second, 1, lost)
		look(time.Second, 5)
		look(time.Minute, 0) // nothing written, nothing lost: nothing is known
		look(time.Second, 1, lost)
		look(59*time.Second, 1)
		sink.set(nil)
		look(time.Second, 1, again)
		look(time.Second, 1)
		sink.set(errors.New("broken pipe"))
		g.audit.Write(audit.Record{})
		time.Sleep(time.Minute)
		synctest.Wait()
		w.warnOfAudit(time.Now())
		if text := log.String(); !strings.Contains(text, `"audit_lost":9,"reason":"broken pipe"`) {
			t.Errorf("got %s, want number and reason", text)
		}
		if got := g.audit.Lost(); got != 9 {
			t.Errorf("%d lost, want 9", got)
		}
		if err := g.audit.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
