//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestQuickstart runs the blocks of docs/quickstart.md that are marked bash, as they stand there, in one shell. Its ports are
// fixed: the shell has a network of its own where the machine permits that.
func TestQuickstart(t *testing.T) {
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	program(t, "Orthanc", "/usr/sbin/Orthanc")
	program(t, "curl")
	installed(t, "/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
	page, err := os.ReadFile("../../docs/quickstart.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(page), "```bash\n")[1:]
	if len(blocks) < 8 {
		t.Fatalf("docs/quickstart.md has %d blocks marked bash, want all of its steps", len(blocks))
	}
	var script strings.Builder
	script.WriteString("set -euo pipefail\n")
	for i, block := range blocks {
		commands, _, closed := strings.Cut(block, "```\n")
		if !closed {
			t.Fatalf("block %d has no end", i+1)
		}
		fmt.Fprintf(&script, "echo '=== block %d'\n%s", i+1, commands)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	argv := []string{"bash", "-c", script.String()}
	if exec.Command("unshare", "--net", "ip", "link", "set", "lo", "up").Run() == nil {
		argv = append([]string{"unshare", "--net", "bash", "-c", `ip link set lo up && exec "$@"`, "-"}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = t.TempDir()
	cmd.Env = []string{"PATH=" + filepath.Dir(gatewayBinary) + ":" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	log, err := os.Create(filepath.Join(t.ArtifactDir(), "quickstart.log")) // a file: servers that are left behind keep a pipe open
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	began := time.Now()
	err = cmd.Run()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	text, _ := os.ReadFile(log.Name())
	if err != nil {
		gatewayLog, _ := os.ReadFile(filepath.Join(cmd.Dir, "quickstart", "gateway.log"))
		t.Fatalf("%v\n%s\ngateway.log:\n%s", err, text, gatewayLog)
	}
	t.Logf("done in %v", time.Since(began).Round(time.Second))
	for _, want := range []string{
		"\n401\n",               // without a token
		"ok, 1 rule, 1 profile", // check
		"query  ok",             // test
		`"Status" : "Success"`,  // Orthanc about the instance
		"0020000D",              // found in the cloud
		"POST /dicom-web/studies · Authorization: Bearer", // what the cloud saw
		`"state": "fresh"`, // status
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
