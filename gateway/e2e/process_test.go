//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// process is a server in a process group of its own. It ends with its test, or with the test binary if that is killed.
type process struct {
	name    string
	cmd     *exec.Cmd
	logPath string        // standard output and error
	ended   chan struct{} // closed when it has ended
}

// start runs a program with nothing of our environment but PATH: a proxy variable would lead its requests astray.
func start(t *testing.T, name string, env []string, argv ...string) *process {
	t.Helper()
	p := &process{name: name, logPath: filepath.Join(t.ArtifactDir(), name+".log"), ended: make(chan struct{})}
	log, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	err = p.cmd.Start()
	_ = log.Close() // the process has its own
	if err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended says nothing: we end it with a signal
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("the end of what %s wrote:\n%s", name, tail(p.output(t), 8<<10))
		}
	})
	return p
}

// ready waits until the process answers. It fails at once when it has ended instead.
func (p *process) ready(t *testing.T, answers func() error) {
	t.Helper()
	p.within(t, 60*time.Second, answers)
}

// within is ready for a process that may take so long.
func (p *process) within(t *testing.T, limit time.Duration, answers func() error) {
	t.Helper()
	eventually(t, limit, func() error {
		select {
		case <-p.ended:
			t.Fatalf("%s ended instead of becoming ready (%v)", p.name, p.cmd.ProcessState)
		default:
		}
		if err := answers(); err != nil {
			return fmt.Errorf("%s is not ready: %w", p.name, err)
		}
		return nil
	})
}

// terminate asks the process to end, and waits until it has.
func (p *process) terminate(t *testing.T) {
	t.Helper()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		t.Errorf("%s has not ended within 20 s of SIGTERM", p.name)
	}
}

// kill ends the process at once, as a crash would.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.ended
}

func (p *process) signal(s syscall.Signal) {
	select {
	case <-p.ended: // its number may be another's by now
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, s)
	}
}

// output returns all that the process, and an earlier one of the same name in this test, has written so far.
func (p *process) output(t *testing.T) string {
	t.Helper()
	out, err := os.ReadFile(p.logPath)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// freePorts returns n different ports of 127.0.0.1 that were free a moment ago, for servers that take no port 0. They lie
// below Linux's ephemeral range, lest an outgoing connection takes one before its server does.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for len(ports) < n {
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer func() { _ = l.Close() }() // at the end, so that no port comes twice
		ports = append(ports, port)
	}
	return ports
}
