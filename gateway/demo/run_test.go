package demo

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// demoFolders lists what demos left in the temporary folder of the test.
func demoFolders(t *testing.T, temporary string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(temporary, "dicomweb-oauth-demo-*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestStoryShowsEachStepAndNoSecret(t *testing.T) {
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	out := newLines()
	var secret string
	start := startFakeGateway(t, 6)
	err := Run(t.Context(), Options{
		Out: out, Orthanc: OrthancOff, TokenLifetime: time.Second, Once: true,
		Start: func(ctx context.Context, path string) (*Running, error) {
			secret = readConfig(t, path)["client_secret"]
			if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("got mode %v (%v) of the folder, want 0700", info.Mode(), err)
			}
			return start(ctx, path)
		},
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"401 Unauthorized",
		"1 instance stored",
		"1 study found",
		"equal to what was sent",
		"next token",
		"none failed",
		"skipped: --orthanc off",
		"+ Authorization: Bearer eyJhbG… (",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the story lacks %q", want)
		}
	}
	if strings.Contains(out.String(), secret) || regexp.MustCompile(`eyJ\w{6}`).MatchString(out.String()) {
		t.Error("the story shows a secret or a token")
	}
	if strings.Contains(out.String(), "\x1b[") {
		t.Error("the story has colours, want none")
	}
	if left := demoFolders(t, temporary); len(left) > 0 {
		t.Errorf("%v is left behind", left)
	}
	if testing.Verbose() {
		t.Logf("\n%s", out)
	}
}

func TestDemoServesUntilItsContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out := newLines()
	var gateway *Running
	start := startFakeGateway(t, 2)
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{
			Out: out, Color: true, Orthanc: OrthancOff, TokenLifetime: time.Second,
			Start: func(ctx context.Context, path string) (*Running, error) {
				var err error
				gateway, err = start(ctx, path)
				return gateway, err
			},
		})
	}()
	if err := out.waitFor(ctx, "What reaches the DICOMweb server"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"--proxy http://" + gateway.ProxyAddr, "--cacert " + gateway.CAFile, gateway.AdminAddr + "/dicomweb-oauth/status", "\x1b[32m"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	bundle, err := os.ReadFile(gateway.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newClient(gateway.ProxyAddr, bundle)
	if err != nil {
		t.Fatal(err)
	}
	search := regexp.MustCompile(`https://localhost:\d+/dicom-web/`).FindAllString(out.String(), 1)[0]
	if _, err := c.do(ctx, "GET", search+"series", nil); err != nil {
		t.Fatal(err)
	}
	if err := out.waitFor(ctx, "GET /dicom-web/series"); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("got %v at the end of the context, want nil", err)
	}
}

func TestRunSaysWhatFailed(t *testing.T) {
	broken := errors.New("port is busy")
	for _, row := range []struct {
		name  string
		start func(context.Context, string) (*Running, error)
		want  string
	}{
		{"no Start", nil, "Options.Start is nil"},
		{"gateway does not start", func(context.Context, string) (*Running, error) { return nil, broken }, "start gateway: port is busy"},
		{"gateway puts no token on", startFakeGateway(t, 0), "got 401 Unauthorized, want 200 OK"},
		{"gateway has no CA file", func(context.Context, string) (*Running, error) {
			return &Running{CAFile: "/nonexistent", Stop: func() error { return nil }}, nil
		}, "read the gateway's CA"},
	} {
		t.Run(row.name, func(t *testing.T) {
			temporary := t.TempDir()
			t.Setenv("TMPDIR", temporary)
			err := Run(t.Context(), Options{Orthanc: OrthancOff, Once: true, Start: row.start})
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %q", err, row.want)
			}
			if left := demoFolders(t, temporary); len(left) > 0 {
				t.Errorf("%v is left behind", left)
			}
		})
	}
}

func TestRunNamesAMissingOrthanc(t *testing.T) {
	err := Run(t.Context(), Options{
		Orthanc: "/nonexistent/Orthanc", TokenLifetime: time.Second, Once: true, Start: startFakeGateway(t, 2),
	})
	if err == nil || !strings.Contains(err.Error(), "--orthanc off") || !strings.Contains(err.Error(), "/nonexistent/Orthanc") {
		t.Errorf("got %v, want an error that names the binary and the way out", err)
	}
}

func TestStoryIncludesARealOrthanc(t *testing.T) {
	if _, err := findOrthanc(OrthancAuto); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v; apt install orthanc orthanc-dicomweb", err)
		}
		t.Skipf("%v; apt install orthanc orthanc-dicomweb", err)
	}
	out := newLines()
	err := Run(t.Context(), Options{
		Out: out, Orthanc: OrthancAuto, TokenLifetime: time.Second, Once: true, Start: startFakeGateway(t, 2),
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{`"HttpProxy": "http://127.0.0.1:`, "POST /dicom-web/servers/demo/stow", "POST /dicom-web/studies · no Authorization"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the story lacks %q", want)
		}
	}
	if testing.Verbose() {
		t.Logf("\n%s", out)
	}
}
