//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// answering starts an Orthanc that uses a gateway to a recorder with these answers, by target.
func answering(t *testing.T, answer func(target string) string) (o *orthanc, a *arena, s *recorder) {
	t.Helper()
	p := newPKI(t)
	s = startRecorder(t, p, func(r recorded) string { return answer(r.target) })
	a = startArena(t, "", p.inject("archive", s.url(), ""))
	o = startOrthanc(t, "Orthanc-client", map[string]any{
		"HttpProxy":           a.proxy,
		"HttpsCACertificates": a.bundle,
		"DicomWeb":            dicomWebServer(map[string]any{"Url": s.url()}),
	})
	o.ready(t)
	return o, a, s
}

// logged returns what Orthanc has written while f ran.
func (o *orthanc) logged(t *testing.T, f func()) string {
	t.Helper()
	before := len(o.process.output(t))
	f()
	return o.process.output(t)[before:]
}

// Orthanc's log says what went wrong, though the server sends a type and a body with its error, or a status that
// Orthanc does not know.
func TestOrthancLogsTheTrueStatus(t *testing.T) {
	t.Parallel()
	const reasons = "HTTP/1.1 %s Because\r\nContent-Type: application/json\r\nContent-Length: 17\r\nX-Gateway-Error: forged\r\n\r\n{\"error\":\"quota\"}"
	o, _, s := answering(t, func(target string) string {
		return fmt.Sprintf(reasons, target[len(target)-3:])
	})
	for upstream, shown := range map[int]int{400: 400, 403: 403, 404: 404, 406: 406, 418: 400, 429: 503, 451: 400, 499: 502, 500: 500, 503: 503, 511: 502, 520: 502} {
		name := fmt.Sprintf("%03d", upstream)
		want := fmt.Sprintf("HTTP status %d (", shown)
		for transaction, send := range map[string]func() error{
			"QIDO-RS": func() error { _, err := o.find(name); return err },
			"WADO-RS": func() error { return o.retrieve("1.2." + name) },
			"DELETE":  func() error { return o.remove("1.2." + name) },
		} {
			if transaction != "WADO-RS" && upstream != 429 && upstream != 520 { // each of its jobs takes half a second
				continue
			}
			log := o.logged(t, func() {
				if err := send(); err == nil {
					t.Errorf("%s: no error for %d", transaction, upstream)
				}
			})
			if !strings.Contains(log, want) || strings.Contains(log, "Content-Type") {
				t.Errorf("%s, %d: Orthanc's log says %q, want %q in it", transaction, upstream, log, want)
			}
		}
	}
	s.wantOurs(t)
}

// Orthanc follows a redirect to a place that a rule covers, and is told of another one as an error.
func TestOrthancAndRedirects(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	evil := startRecorder(t, p, nil)
	const redirect = "HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n"
	o, a, s := answering(t, func(target string) string {
		switch {
		case strings.HasSuffix(target, "=near"):
			return fmt.Sprintf(redirect, "/elsewhere")
		case strings.HasSuffix(target, "=far"):
			return fmt.Sprintf(redirect, evil.url())
		case strings.HasSuffix(target, "=round"), target == "/round":
			return fmt.Sprintf(redirect, "/round")
		}
		return "HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\nContent-Length: 2\r\n\r\n[]"
	})
	if _, err := o.find("near"); err != nil {
		t.Errorf("a redirect that a rule covers: %v", err)
	}
	if log := o.logged(t, func() { _, _ = o.find("far") }); !strings.Contains(log, "HTTP status 502 (") {
		t.Errorf("a redirect to elsewhere: Orthanc's log says %q, want status 502", log)
	}
	if err := a.warned(t, "redirect_refused"); err != nil {
		t.Error(err)
	}
	before := len(s.seen())
	if log := o.logged(t, func() { _, _ = o.find("round") }); !strings.Contains(log, "HTTP status 502 (") {
		t.Errorf("a redirect that goes round: Orthanc's log says %q, want status 502", log)
	}
	if n := len(s.seen()) - before; n > 12 {
		t.Errorf("a redirect that goes round made %d requests", n)
	}
	if n := evil.dialled(); n > 0 {
		t.Errorf("the other server was dialled %d times", n)
	}
	s.wantOurs(t)
}

// A study comes whole where the server sends trailers behind it, which Orthanc could not bear; and where it comes in
// part, Orthanc is told.
func TestOrthancRetrievesWholeStudiesOnly(t *testing.T) {
	t.Parallel()
	file := string(daikonFiles(t)[0])
	const boundary = "end-of-part"
	body := "--" + boundary + "\r\nContent-Type: application/dicom\r\n\r\n" + file + "\r\n--" + boundary + "--\r\n"
	const head = "HTTP/1.1 200 OK\r\nContent-Type: multipart/related; type=\"application/dicom\"; boundary=" + boundary + "\r\n"
	half := body[:len(body)/2]
	o, _, s := answering(t, func(target string) string {
		switch target {
		case "/studies/1.2.1":
			return head + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), half) + hangUp
		case "/studies/1.2.2":
			return head + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(half), half) + hangUp
		case "/studies/1.2.3":
			return head + fmt.Sprintf("Trailer: Content-MD5\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\nContent-MD5: x\r\nX-Late: y\r\n\r\n", len(body), body)
		}
		return head + "Connection: close\r\n\r\n" + body + hangUp // as an Orthanc server answers
	})
	for _, uid := range []string{"1.2.1", "1.2.2"} {
		if err := o.retrieve(uid); err == nil {
			t.Errorf("%s: half an answer is a success", uid)
		}
		if n := len(o.list(t, "instances")); n != 0 {
			t.Errorf("%s: Orthanc has %d instances of half an answer", uid, n)
		}
	}
	for _, uid := range []string{"1.2.3", "1.2.4"} {
		if err := o.retrieve(uid); err != nil {
			t.Errorf("%s: %v\n%s", uid, err, tail(o.process.output(t), 500))
		}
		instances := o.list(t, "instances")
		if len(instances) != 1 || string(o.file(t, instances[0])) != file {
			t.Fatalf("%s: Orthanc has %d instances, or another one than the server's", uid, len(instances))
		}
		o.must(t, "DELETE", "/instances/"+instances[0], nil, nil)
	}
	s.wantOurs(t)
}

// Orthanc's peers with HTTP headers send Expect and wait a second for the answer. curl, which is what Orthanc uses,
// waits for half a minute here.
func TestExpectIsAnsweredAtOnce(t *testing.T) {
	t.Parallel()
	curl := program(t, "curl")
	p := newPKI(t)
	s := startRecorder(t, p, nil)
	a := startArena(t, "", p.inject("archive", s.url(), ""))
	file := filepath.Join(t.TempDir(), "instance")
	if err := os.WriteFile(file, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, framing := range map[string][]string{"with a length": {}, "chunked": {"-H", "Transfer-Encoding: chunked"}} {
		began := time.Now()
		args := append([]string{
			"-q", "--silent", "--max-time", "20", "--expect100-timeout", "30", "-H", "Expect: 100-continue", "--data-binary", "@" + file,
			"--noproxy", "", "--proxy", a.proxy, "--cacert", a.bundle, "--write-out", " %{http_code}",
		}, framing...)
		out, err := exec.Command(curl, append(args, s.url()+"instances")...).Output()
		if string(out) != "/instances 200" {
			t.Errorf("%s: got %q, %v after %v; want the server's answer", name, out, err, time.Since(began))
		}
	}
	for _, r := range s.seen() {
		if len(r.body) != 3<<20 {
			t.Errorf("%d bytes at the server, want %d", len(r.body), 3<<20)
		}
	}
	s.wantOurs(t)
}
