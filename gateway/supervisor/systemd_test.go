package supervisor_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/gateway/supervisor"
)

func TestSystemdHearsTheState(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no datagram sockets with paths")
	}
	sockets := map[string]string{"a path": filepath.Join(t.TempDir(), "notify")}
	if runtime.GOOS == "linux" {
		sockets["an abstract socket"] = "@orthanc-dicomweb-oauth/" + t.Name()
	}
	for name, socket := range sockets {
		t.Run(name, func(t *testing.T) {
			systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer systemd.Close()
			if err := systemd.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			t.Setenv("NOTIFY_SOCKET", socket)
			var log bytes.Buffer
			supervisor.Notify(slog.New(slog.NewTextHandler(&log, nil)), "READY=1\nSTATUS=serving")
			got := make([]byte, 100)
			n, err := systemd.Read(got)
			if err != nil || string(got[:n]) != "READY=1\nSTATUS=serving" || log.Len() > 0 {
				t.Errorf("systemd heard %q, %v, and the log says %q", got[:n], err, &log)
			}
		})
	}
}

func TestWithoutSystemdNothingIsSaid(t *testing.T) {
	for _, row := range []struct{ name, socket, want string }{
		{"no socket is named", "", ""},
		{"the socket is gone", filepath.Join(t.TempDir(), "gone"), "the service manager was not told"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", row.socket)
			var log bytes.Buffer
			supervisor.Notify(slog.New(slog.NewTextHandler(&log, nil)), "READY=1")
			if got := log.String(); !strings.Contains(got, row.want) || row.want == "" && got != "" {
				t.Errorf("log: got %q, want %q", got, row.want)
			}
		})
	}
}

func TestByHandItRunsAsItIs(t *testing.T) {
	var stderr bytes.Buffer
	code := supervisor.Run(t.Context(), "orthanc-dicomweb-oauth", &stderr, func(ctx context.Context, w io.Writer) int {
		_, _ = io.WriteString(w, "started")
		if ctx != t.Context() {
			t.Error("it runs under another context")
		}
		return 7
	})
	if code != 7 || stderr.String() != "started" {
		t.Errorf("got code %d and %q, want 7 and its messages", code, &stderr)
	}
}
