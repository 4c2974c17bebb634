//go:build e2e

package e2e

import (
	"encoding/binary"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stepFile is the environment variable that names the file with the step of a clock, in seconds.
const stepFile = "E2E_WALL_CLOCK_STEP"

// stepSource is added to Go's package time, so that a running program's wall clock, and nothing else, can be stepped: the
// machine's own clock is not ours, and a preloaded library has no part in how Go reads it.
const stepSource = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var wallStep = func() *int64 {
	path, _ := syscall.Getenv("` + stepFile + `")
	fd, err := syscall.Open(path, syscall.O_RDONLY, 0)
	if err != nil {
		return new(int64)
	}
	page, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	return (*int64)(unsafe.Pointer(&page[0]))
}()

func stepped(sec int64) int64 { return sec + atomic.LoadInt64(wallStep) }
`

// buildStepped builds the gateway with a wall clock that can be stepped.
func buildStepped(t *testing.T) string {
	t.Helper()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	original := filepath.Join(strings.TrimSpace(string(goroot)), "src", "time", "time.go")
	text, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	const reading = "\tsec, nsec, mono := runtimeNow()\n"
	before, rest, _ := strings.Cut(string(text), "\nfunc Now() Time {\n")
	body, after, found := strings.Cut(rest, reading)
	if !found {
		t.Fatal("time.Now of this version of Go reads its clocks in another way; change this test")
	}
	changed := before + "\nfunc Now() Time {\n" + body + reading + "\tsec = stepped(sec)\n" + after

	dir := t.TempDir()
	overlay := struct{ Replace map[string]string }{map[string]string{
		original: filepath.Join(dir, "time.go"),
		filepath.Join(filepath.Dir(original), "step.go"): filepath.Join(dir, "step.go"),
	}}
	list, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"time.go": changed, "step.go": stepSource, "overlay.json": string(list)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(dir, "gateway")
	if out, err := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, "../..").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

// The wall clock is stepped an hour ahead, then two hours back, while requests go on. None fails, and none goes out with a
// token that has ended by the clock of the server, which stays right.
func TestWallClockStepped(t *testing.T) {
	t.Parallel()
	binaryPath := buildStepped(t)
	u := startArchive(t, shortLifetime)
	g := newGateway(t, u, profileFor(u.provider.issuer+"/token"), clientSecret)
	clock, err := os.Create(filepath.Join(t.TempDir(), "step"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = clock.Close() }()
	step := func(d time.Duration) {
		t.Helper()
		if _, err := clock.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(int64(d.Seconds()))), 0); err != nil {
			t.Fatal(err)
		}
	}
	step(0)
	g.command = []string{"env", stepFile + "=" + clock.Name(), binaryPath}
	g.start(t)
	g.waitReady(t)
	o := startClient(t, u, g, g.bundle)
	ask := func() {
		if _, err := o.find("anyone"); err != nil {
			t.Error(err)
		}
	}
	ask()
	for _, by := range []time.Duration{time.Hour, -time.Hour} {
		step(by)
		if g.gatewayTime(t).Sub(time.Now().Add(by)).Abs() > time.Minute {
			t.Fatal("the gateway's clock has not been stepped")
		}
		repeatUntil(time.Now().Add(shortLifetime*12/10), ask)
	}
	// Of a step ahead the token ends at once, of one back it does not. Else it is renewed at half of its life.
	if granted, refused := u.provider.tokenRequests(t); granted < 5 || granted > 8 || refused > 0 {
		t.Errorf("the provider granted %d token requests and refused %d, want 5 to 8 and none", granted, refused)
	}
	u.server.wantOnlyAdmitted(t)
}

// gatewayTime returns what the gateway takes for the time, to the second.
func (g *gateway) gatewayTime(t *testing.T) time.Time {
	t.Helper()
	resp, err := loopbackClient.Get(g.admin + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		t.Fatal(err)
	}
	return date
}
