//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// upload is a STOW-RS of unknown length that a test writes piece by piece.
type upload struct {
	body   *io.PipeWriter
	answer chan error // nil: 200, and the server has got every byte
	bytes  int        // written so far
}

// uploads is what the protected server has got of the uploads to it.
type uploads struct {
	begun    atomic.Int64
	complete atomic.Int64 // ended as their sender meant it
}

// ServeHTTP answers with the number of bytes that it got.
func (s *uploads) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(r.Body, first); err != nil {
		return
	}
	s.begun.Add(1)
	n, err := io.Copy(io.Discard, r.Body)
	if err == nil {
		s.complete.Add(1)
	}
	_, _ = fmt.Fprint(w, n+1)
}

// begin starts an upload and waits until its first bytes have arrived.
func (s *uploads) begin(t *testing.T, client *http.Client, url string) *upload {
	t.Helper()
	body, writer := io.Pipe()
	up := &upload{body: writer, answer: make(chan error, 1)}
	req, err := http.NewRequest(http.MethodPost, url+"studies/1.2.3", body)
	if err != nil {
		t.Fatal(err)
	}
	before := s.begun.Load()
	go func() {
		got, err := do(client, req)
		if err == nil && string(got) != fmt.Sprint(up.bytes) {
			err = fmt.Errorf("the server has got %s bytes of %d", got, up.bytes)
		}
		up.answer <- err
	}()
	up.write(t)
	eventually(t, 10*time.Second, func() error {
		if s.begun.Load() == before {
			return errors.New("the upload has not arrived")
		}
		return nil
	})
	return up
}

// write sends a piece that is larger than the buffers on its way through the gateway.
func (up *upload) write(t *testing.T) {
	t.Helper()
	piece := make([]byte, 256<<10)
	if _, err := up.body.Write(piece); err != nil {
		t.Errorf("upload: %v", err)
	}
	up.bytes += len(piece)
}

// exited waits for the end of a process and returns its exit code; -1 stands for a signal.
func (p *process) exited(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		t.Fatalf("%s has not ended within %v", p.name, within)
		return 0
	}
}

// stopping is a gateway with an upload of Orthanc under way, and one of a raw client.
type stopping struct {
	*stack

	line    *relay // to the protected server
	raw     *uploads
	client  *http.Client
	upload  *upload
	stow    chan error // the result of Orthanc's upload
	dicom   []byte
	stored  string // Orthanc's name of the instance
	archive *orthanc
}

// startStopping starts the chain. Orthanc's upload takes four seconds if nothing ends it.
func startStopping(t *testing.T, drainTimeout time.Duration) *stopping {
	t.Helper()
	s := &stopping{raw: &uploads{}, stow: make(chan error, 1), dicom: daikonFile(t, "jpeg_baseline_8bit.dcm")}
	s.archive = startOrthanc(t, "Orthanc-archive", nil)
	mux := http.NewServeMux()
	mux.Handle("/", forward(t, s.archive))
	mux.Handle("POST /dicom-web/studies/1.2.3", s.raw)
	u := startUpstream(t, 5*time.Minute, mux)
	s.archive.ready(t)
	s.line, u.server.url = relayTo(t, u.server.url, fault{})
	g := newGateway(t, u, profileFor(u.provider.issuer+"/token"), clientSecret)
	g.configure(t, "[proxy]", fmt.Sprintf("drain_timeout = %q", drainTimeout))
	g.start(t)
	g.waitReady(t)
	s.stack = &stack{upstream: u, gateway: g, orthanc: startClient(t, u, g, g.bundle)}
	s.client = g.client(t)
	s.stored, _ = s.orthanc.add(t, s.dicom)

	s.upload = s.raw.begin(t, s.client, u.server.url)
	s.line.set(t, fault{rate: len(s.dicom) / 4})
	go func() { s.stow <- s.orthanc.stow(s.stored) }()
	eventually(t, 10*time.Second, func() error {
		if seen := u.server.seen(); seen[len(seen)-1].path != "/dicom-web/studies" {
			return errors.New("Orthanc's upload has not arrived")
		}
		return nil
	})
	return s
}

// wantBroken fails the test unless both uploads have failed, and neither server took a part of one for the whole.
func (s *stopping) wantBroken(t *testing.T) {
	t.Helper()
	_ = s.upload.body.Close() // its sender has said all
	for who, answer := range map[string]chan error{"the raw client": s.upload.answer, "Orthanc": s.stow} {
		select {
		case err := <-answer:
			if err == nil {
				t.Errorf("%s was told that its upload succeeded", who)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s does not know that its upload is broken", who)
		}
	}
	if n := s.raw.complete.Load(); n > 0 {
		t.Error("the server took the raw client's upload for complete")
	}
	wantInstances(t, s.archive, nil, "after an upload that broke off")
}

// wantWorking fails the test unless both clients, which nobody has restarted, can upload at once.
func (s *stopping) wantWorking(t *testing.T) {
	t.Helper()
	s.line.set(t, fault{})
	if err := s.orthanc.stow(s.stored); err != nil {
		t.Errorf("Orthanc's first request to the new gateway: %v", err)
	}
	wantInstances(t, s.archive, map[string][]byte{s.stored: s.dicom}, "at the end")
	again := s.raw.begin(t, s.client, s.server.url)
	_ = again.body.Close()
	if err := <-again.answer; err != nil {
		t.Errorf("the raw client's first upload to the new gateway: %v", err)
	}
	s.server.wantOnlyAdmitted(t)
}

// After SIGTERM what is under way ends as it should; new requests are told to come again.
func TestTerminationLetsUploadsEnd(t *testing.T) {
	t.Parallel()
	s := startStopping(t, 30*time.Second)
	s.gateway.process.signal(syscall.SIGTERM)
	eventually(t, 5*time.Second, func() error {
		if _, err := get(loopbackClient, s.gateway.admin+"/readyz"); err == nil {
			return errors.New("the gateway is ready")
		}
		return nil
	})
	resp, err := s.gateway.client(t).Get(s.server.url + "studies")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if code := resp.Header.Get("X-Gateway-Error"); resp.StatusCode != http.StatusServiceUnavailable || code != "draining" || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a new request got %d %q with Retry-After %q, want 503 draining with one", resp.StatusCode, code, resp.Header.Get("Retry-After"))
	}
	before := len(s.orthanc.process.output(t))
	if _, err := s.orthanc.find("anyone"); err == nil || !strings.Contains(s.orthanc.process.output(t)[before:], "HTTP status 503") {
		t.Errorf("a new request of Orthanc got %v, want 503", err)
	}
	select {
	case err := <-s.stow:
		t.Fatalf("Orthanc's upload has ended too early for this test: %v", err)
	default:
	}

	s.line.set(t, fault{})
	s.upload.write(t)
	_ = s.upload.body.Close()
	if err := <-s.upload.answer; err != nil {
		t.Errorf("the raw client's upload: %v", err)
	}
	if err := <-s.stow; err != nil {
		t.Errorf("Orthanc's upload: %v", err)
	}
	wantInstances(t, s.archive, map[string][]byte{s.stored: s.dicom}, "after the stop")
	if code := s.gateway.process.exited(t, 10*time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	s.gateway.start(t)
	s.wantWorking(t)
}

// Uploads that take longer than drain_timeout are cut, and cut for both sides.
func TestTerminationCutsWhatTakesTooLong(t *testing.T) {
	t.Parallel()
	s := startStopping(t, time.Second)
	s.gateway.process.signal(syscall.SIGTERM)
	if code := s.gateway.process.exited(t, 5*time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if err := s.gateway.warned(t, "drain_timeout", "cut"); err != nil {
		t.Error(err)
	}
	s.wantBroken(t)
	s.gateway.start(t)
	s.wantWorking(t)
}

// A crash breaks the uploads under way, visibly; the next gateway on the same CA folder is trusted as the one before.
func TestCrashDuringUploads(t *testing.T) {
	t.Parallel()
	s := startStopping(t, time.Second)
	bundle := contents(t, filepath.Dir(s.gateway.bundle))
	s.gateway.process.kill()
	s.wantBroken(t)
	s.gateway.start(t)
	if contents(t, filepath.Dir(s.gateway.bundle)) != bundle {
		t.Error("the CA folder has changed")
	}
	s.wantWorking(t)
}
