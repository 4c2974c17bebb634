package admin_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/token"
)

func TestStatusPageNamesWhatIsWrongAndWhatToChange(t *testing.T) {
	s := start(t, "")
	s.until(t, "good", token.Fresh)
	s.until(t, "wrong", token.Unusable)
	w := s.get(t, "/")
	page := w.Body.String()
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("got %d %v", w.Code, w.Header())
	}
	for _, want := range []string{
		"Degraded", "invalid_client", "profile.wrong.client_secret", // what to change
		"archive", "https://dicom.example.org/dicom-web/", "fresh", "life left",
		s.config.Revision, s.ca.Fingerprint(), "Audit records lost", "Last reload",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
	for _, secret := range []string{s.provider.ClientSecret(), "wr0ng", "eyJ"} {
		if strings.Contains(page, secret) {
			t.Errorf("the page shows %q", secret)
		}
	}
	if n := strings.Count(page, "<form"); n != 2 {
		t.Errorf("%d servers can be tested, want archive and broken, but not the one that is denied", n)
	}
}

func TestStatusPageLoadsAndRunsNothingForeign(t *testing.T) {
	s := start(t, "")
	w := s.get(t, "/")
	page, policy := w.Body.String(), w.Header().Get("Content-Security-Policy")
	for header, want := range map[string]string{
		"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
	} {
		if got := w.Header().Get(header); got != want {
			t.Errorf("%s: got %q, want %q", header, got, want)
		}
	}
	for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("the policy %q lacks %s", policy, want)
		}
	}
	if strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
	for _, element := range []string{"script", "style"} {
		parts := regexp.MustCompile(`(?s)<`+element+`>(.*?)</`+element+`>`).FindAllStringSubmatch(page, -1)
		if len(parts) != 1 {
			t.Fatalf("%d <%s>, want one", len(parts), element)
		}
		sum := sha256.Sum256([]byte(parts[0][1]))
		if hash := element + "-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; !strings.Contains(policy, hash) {
			t.Errorf("the policy does not allow the page's own %s: a browser would not use it", element)
		}
	}
	for _, bad := range []string{` style=`, ` src=`, "javascript:"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	if handler := regexp.MustCompile(`<[^>]* on[a-z]+=`).FindString(page); handler != "" {
		t.Errorf("inline event handler %s", handler)
	}
}

// Without script the Test button is a form; its answer must be one that people can read.
func TestServerTestIsAPageForBrowsers(t *testing.T) {
	s := start(t, "")
	w := s.post(t, "/dicomweb-oauth/servers/archive/test", "Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
	if page := w.Body.String(); w.Code != http.StatusBadGateway || !strings.Contains(page, "What to do:") || !strings.Contains(page, "It does not work.") {
		t.Errorf("got %d %s", w.Code, page)
	}
}

func TestServerTestStreamsItsSteps(t *testing.T) {
	s := start(t, "")
	w := s.post(t, "/dicomweb-oauth/servers/archive/test", "Accept", "application/x-ndjson")
	lines := bytes.Split(bytes.TrimSpace(w.Body.Bytes()), []byte("\n"))
	if w.Code != http.StatusOK || !w.Flushed || w.Header().Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("got %d, flushed %v, %v", w.Code, w.Flushed, w.Header())
	}
	var report gateway.Report
	if err := json.Unmarshal(lines[len(lines)-1], &report); err != nil {
		t.Fatal(err)
	}
	var steps []gateway.Step
	for _, line := range lines[:len(lines)-1] {
		var step gateway.Step
		if err := json.Unmarshal(line, &step); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, step)
	}
	if diff := cmp.Diff(report.Steps, steps); diff != "" || report.Name != "archive" || report.OK || len(steps) == 0 {
		t.Errorf("the last line is %+v; its steps and those before differ (-last +before):\n%s", report, diff)
	}
}

func TestMetricsTellOfProfiles(t *testing.T) {
	s := start(t, "")
	s.until(t, "good", token.Fresh)
	s.until(t, "wrong", token.Unusable)
	w := s.get(t, "/metrics")
	text := w.Body.String()
	for _, want := range []string{
		`dicomweb_oauth_build_info{version="1.2.3"} 1`,
		`dicomweb_oauth_token_acquire_total{profile="good",result="success"} 1`,
		`dicomweb_oauth_token_acquire_total{profile="wrong",result="success"} 0`,
		`dicomweb_oauth_token_acquire_total{profile="wrong",result="failure"} 1`,
		`dicomweb_oauth_token_acquire_duration_seconds_count{profile="wrong"} 1`,
		`dicomweb_oauth_token_acquire_duration_seconds_bucket{profile="good",le="10"} 1`,
		`dicomweb_oauth_token_expiry_timestamp_seconds{profile="good"} `,
		`dicomweb_oauth_profile_state{profile="good",state="fresh"} 1`,
		`dicomweb_oauth_profile_state{profile="good",state="unavailable"} 0`,
		`dicomweb_oauth_profile_state{profile="wrong",state="unavailable"} 1`,
		`dicomweb_oauth_profile_state{profile="wrong",state="stale"} 0`,
		`dicomweb_oauth_profile_error{code="invalid_client",profile="wrong"} 1`,
		"go_goroutines ", "process_start_time_seconds ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	if strings.Contains(text, `expiry_timestamp_seconds{profile="wrong"}`) {
		t.Error("a profile without a token has an expiry")
	}
}

// operations.md has a row for each metric, and none for others.
func TestOperationsListsEveryMetric(t *testing.T) {
	guide, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, guide, _ = bytes.Cut(guide, []byte("\n## Metrics and alerts\n"))
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)").FindAllSubmatch(guide, -1) {
		documented["dicomweb_oauth_"+string(m[1])] = true
	}
	s := start(t, "")
	s.until(t, "good", token.Fresh)
	s.until(t, "wrong", token.Unusable)
	served := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (dicomweb_oauth_\w+) `).FindAllStringSubmatch(s.get(t, "/metrics").Body.String(), -1) {
		served[m[1]] = true
	}
	served["dicomweb_oauth_requests_total"] = true // not before the first request; package gateway tests it
	if diff := cmp.Diff(served, documented); diff != "" {
		t.Errorf("metrics (-served +documented):\n%s", diff)
	}
}
