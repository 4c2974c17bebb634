//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// gatewayBinary is the program under test. TestMain builds it, and buildErr says why it could not: the tests of the
// servers around it need no gateway.
var (
	gatewayBinary string
	buildErr      error
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "gateway-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	gatewayBinary = filepath.Join(dir, "orthanc-dicomweb-oauth")
	if out, err := exec.Command("go", "build", "-o", gatewayBinary, "../..").CombinedOutput(); err != nil {
		buildErr = fmt.Errorf("go build: %w\n%s", err, out)
	}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// program returns the path of a server or tool. Where it is missing the test is skipped, or fails in CI.
func program(t *testing.T, name string, otherPlaces ...string) string {
	t.Helper()
	for _, candidate := range append([]string{name}, otherPlaces...) {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	missing(t, name)
	return ""
}

// installed is program for a file that is not run.
func installed(t *testing.T, path string) string {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		missing(t, path)
	}
	return path
}

func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed; run gateway/e2e/setup.sh", what)
	}
	t.Skipf("%s is not installed; run gateway/e2e/setup.sh", what)
}

// eventually asks until the answer is nil. When the time is over it fails the test with the last error.
func eventually(t *testing.T, within time.Duration, ask func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ask()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not within %v: %v", within, err)
		case <-ticker.C:
		}
	}
}

// repeatUntil calls step five times a second until the deadline, and returns how often that was.
func repeatUntil(deadline time.Time, step func()) int {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	n := 0
	for ; time.Now().Before(deadline); <-ticker.C {
		step()
		n++
	}
	return n
}
