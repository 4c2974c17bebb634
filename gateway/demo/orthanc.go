package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// How long Orthanc may take to start, and to stop before it is killed.
const (
	orthancStart = 30 * time.Second
	orthancStop  = 10 * time.Second
)

// errNoOrthanc says that Orthanc, or its DICOMweb plugin, is not installed.
var errNoOrthanc = errors.New("not installed")

// installation is where Orthanc and its DICOMweb plugin are.
type installation struct {
	binary string
	plugin string
}

// findOrthanc looks for the binary where choice says (see [Options]), and for the plugin in the usual places.
func findOrthanc(choice string) (installation, error) {
	candidates := []string{choice}
	if choice == OrthancAuto || choice == "" {
		candidates = []string{"Orthanc", "/usr/sbin/Orthanc", "/usr/local/sbin/Orthanc"}
	}
	for _, candidate := range candidates {
		binary, err := exec.LookPath(candidate)
		if err != nil {
			continue
		}
		for _, folder := range []string{
			"/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins", filepath.Dir(binary),
		} {
			found, _ := filepath.Glob(filepath.Join(folder, "libOrthancDicomWeb.so*")) // the pattern is well formed
			if len(found) > 0 {
				return installation{binary, found[0]}, nil
			}
		}
		return installation{}, fmt.Errorf("DICOMweb plugin for %q: %w", binary, errNoOrthanc)
	}
	return installation{}, fmt.Errorf("binary %q: %w", candidates[len(candidates)-1], errNoOrthanc)
}

// orthanc is a running Orthanc of the demo.
type orthanc struct {
	url    string // of its REST API, without a slash at its end
	log    *os.File
	cancel context.CancelFunc
	ended  chan struct{} // closed when the process is gone
	client *client
}

// startOrthanc starts Orthanc with a configuration in folder, and waits for its REST API.
func startOrthanc(ctx context.Context, where installation, folder string, settings map[string]any) (*orthanc, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(folder, "orthanc.json")
	settings["HttpPort"] = port
	settings["Plugins"] = []string{where.plugin}
	settings["StorageDirectory"] = filepath.Join(folder, "orthanc")
	settings["DicomServerEnabled"] = false
	text, err := json.MarshalIndent(settings, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write orthanc.json: %w", err)
	}
	if err := os.WriteFile(config, text, 0o600); err != nil {
		return nil, fmt.Errorf("write orthanc.json: %w", err)
	}
	log, err := os.Create(filepath.Join(folder, "orthanc.log"))
	if err != nil {
		return nil, fmt.Errorf("make Orthanc's log: %w", err)
	}
	// The process outlives ctx: a story that is told to its end stops it in order, and so does one that is not.
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	command := exec.CommandContext(running, where.binary, config)
	command.Env = withoutProxy(os.Environ())
	command.Stdout, command.Stderr = log, log
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.WaitDelay = orthancStop
	if err := command.Start(); err != nil {
		cancel()
		return nil, errors.Join(fmt.Errorf("start Orthanc: %w", err), log.Close())
	}
	o := &orthanc{
		url: fmt.Sprintf("http://127.0.0.1:%d", port), log: log, cancel: cancel, ended: make(chan struct{}), client: newPlainClient(),
	}
	go func() {
		defer close(o.ended)
		_ = command.Wait() // the exit code of a stopped Orthanc says nothing; its log does
	}()
	if err := o.ready(ctx); err != nil {
		o.stop()
		return nil, err
	}
	return o, nil
}

// ready waits for the REST API.
func (o *orthanc) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, orthancStart)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if a, err := o.client.do(ctx, "GET", o.url+"/system", nil); err == nil && a.status == 200 {
			return nil
		}
		select {
		case <-tick.C:
		case <-o.ended:
			return fmt.Errorf("start Orthanc: it ended at once; its log ends with:\n%s", o.logTail())
		case <-ctx.Done():
			return fmt.Errorf("start Orthanc: no answer from %s/system: %w; its log ends with:\n%s", o.url, ctx.Err(), o.logTail())
		}
	}
}

// call asks the REST API, and decodes the answer into v.
func (o *orthanc) call(ctx context.Context, method, path string, body []byte, v any) error {
	a, err := o.client.do(ctx, method, o.url+path, body)
	if err == nil {
		err = a.want(200)
	}
	if err != nil {
		return fmt.Errorf("%s %s of Orthanc: %w; its log ends with:\n%s", method, path, err, o.logTail())
	}
	if err := json.Unmarshal(a.body, v); err != nil {
		return fmt.Errorf("parse Orthanc's answer to %s %s: %w", method, path, err)
	}
	return nil
}

// logTail is the end of Orthanc's log.
func (o *orthanc) logTail() string {
	text, err := os.ReadFile(o.log.Name())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(bytes.ToValidUTF8(text, nil))), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-6):], "\n  ")
}

// stop ends Orthanc and waits for that.
func (o *orthanc) stop() {
	o.cancel()
	<-o.ended
	o.client.close()
	_ = o.log.Close() // Orthanc wrote it, not we
}

// freePort returns a port that was free a moment ago.
func freePort(ctx context.Context) (int, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// withoutProxy drops the variables that libcurl obeys: NO_PROXY often names localhost, and wins over HttpProxy.
func withoutProxy(environment []string) []string {
	var kept []string
	for _, variable := range environment {
		name, _, _ := strings.Cut(variable, "=")
		if !strings.HasSuffix(strings.ToLower(name), "_proxy") {
			kept = append(kept, variable)
		}
	}
	return kept
}
