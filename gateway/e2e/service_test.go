//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestSystemdHearsReadyWhenTheGatewayListensAndStoppingWhenItEnds(t *testing.T) {
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	dir, ports := t.TempDir(), freePorts(t, 2)
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = systemd.Close() }()
	hears := func() string {
		t.Helper()
		message := make([]byte, 4096)
		if err := systemd.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := systemd.Read(message)
		if err != nil {
			t.Fatalf("systemd heard nothing: %v", err)
		}
		return string(message[:n])
	}
	config := filepath.Join(dir, "gateway.toml")
	text := fmt.Sprintf(`
[proxy]
listen = "127.0.0.1:%d"
[admin]
listen = "127.0.0.1:%d"
[[rule]]
name    = "archive"
url     = "https://archive.example.org/"
profile = "login"
[profile.login]
type  = "static_bearer"
token = "${TOKEN}"
`, ports[0], ports[1])
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"TOKEN=" + clientSecret, "NOTIFY_SOCKET=" + systemd.LocalAddr().String()}
	p := start(t, "gateway", env, gatewayBinary, "run", "--config", config)

	if got := hears(); !strings.HasPrefix(got, "READY=1\n") {
		t.Fatalf("systemd heard %q first, want READY=1", got)
	}
	for _, port := range ports { // at once, without waiting
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatalf("ready, but: %v", err)
		}
		_ = conn.Close()
	}
	p.signal(syscall.SIGTERM)
	for got := hears(); got != "STOPPING=1"; got = hears() { // a reload may be told of in between
		if strings.HasPrefix(got, "READY=1") {
			t.Errorf("systemd heard %q after SIGTERM", got)
		}
	}
	p.terminate(t)
}
