package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// roleArgument is the first argument of a bench process that plays a role; the second is the role, the third its settings
// as JSON.
const roleArgument = "role"

// clockTicks is the unit of the CPU times in /proc, in ticks per second. Linux has no other for programs.
const clockTicks = 100

// process is a running program. It ends with the benchmark, even if that is killed.
type process struct {
	name  string
	cmd   *exec.Cmd
	log   string // path of what it wrote to standard error, and to standard output unless it plays a role
	in    io.WriteCloser
	out   *bufio.Reader
	pipe  *os.File      // under out
	ended chan struct{} // closed when it has ended
}

// startProgram runs a program with nothing of our environment but PATH: a proxy variable would lead its requests astray.
func (b *bench) startProgram(name string, argv ...string) (*process, error) {
	return b.startProcess(name, false, argv...)
}

// startRole runs this program in a role.
func (b *bench) startRole(role string, settings any) (*process, error) {
	text, err := json.Marshal(settings)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	return b.startProcess(role, true, self, roleArgument, role, string(text))
}

// startServer runs this program in the role of a server, and returns where it listens.
func (b *bench) startServer(role string, settings any) (p *process, address string, err error) {
	if p, err = b.startRole(role, settings); err != nil {
		return nil, "", err
	}
	if err := p.read(&address); err != nil {
		return nil, "", err
	}
	return p, address, nil
}

func (b *bench) startProcess(name string, piped bool, argv ...string) (*process, error) {
	b.started++
	p := &process{
		name: name, log: filepath.Join(b.dir, fmt.Sprintf("%02d-%s.log", b.started, name)), ended: make(chan struct{}),
	}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer func() { _ = log.Close() }()         // the process has its own
	p.cmd = exec.Command(argv[0], argv[1:]...) //nolint:noctx // stop ends it in order
	p.cmd.Dir = b.dir
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if piped {
		if p.in, err = p.cmd.StdinPipe(); err != nil {
			return nil, fmt.Errorf("start %s: %w", name, err)
		}
		var input *os.File // ours to close after Wait, which would otherwise cut off what we have not read yet
		if p.pipe, input, err = os.Pipe(); err != nil {
			return nil, fmt.Errorf("start %s: %w", name, err)
		}
		defer func() { _ = input.Close() }()
		p.cmd.Stdout, p.out = input, bufio.NewReader(p.pipe)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is told by what it wrote
		close(p.ended)
	}()
	b.processes = append(b.processes, p)
	return p, nil
}

// read reads one line of JSON that a role has written.
func (p *process) read(v any) error {
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		<-p.ended
		return fmt.Errorf("%s ended: %s", p.name, p.tail())
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fmt.Errorf("read %s: %w", p.name, err)
	}
	return nil
}

// tail is the end of what the process has written.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text[max(0, len(text)-2000):]))
}

// stop ends the process, at once if it does not end in order. A second call does no harm.
func (p *process) stop() {
	if p.in != nil {
		_ = p.in.Close()         // a role ends with its input
		_ = p.cmd.Process.Kill() // and has nothing to put in order
	}
	_ = p.cmd.Process.Signal(syscall.SIGCONT) // wakes one that was stopped with SIGSTOP
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	if p.pipe != nil {
		_ = p.pipe.Close()
	}
}

// ready asks until the process answers.
func (p *process) ready(ctx context.Context, answers func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := answers()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return fmt.Errorf("%s ended: %s", p.name, p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %s", p.name, err, p.tail())
		}
	}
}

// family returns the numbers of the process and of its children: nginx works in these.
func (p *process) family() []int {
	family := []int{p.cmd.Process.Pid}
	paths, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well formed
	for _, path := range paths {
		fields, err := statFields(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		if parent, _ := strconv.Atoi(fields[1]); parent == p.cmd.Process.Pid {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			family = append(family, pid)
		}
	}
	return family
}

// statFields returns what stands in a stat file of /proc behind the name of the program: state, parent, and so on.
func statFields(path string) ([]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 {
		return nil, fmt.Errorf("read %s: %d fields", path, len(fields))
	}
	return fields, nil
}

// cpu returns the CPU seconds that the process and its children have used, in user and kernel mode.
func (p *process) cpu() (float64, error) {
	var ticks int
	for _, pid := range p.family() {
		fields, err := statFields(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("read CPU time of %s: %w", p.name, err)
		}
		for _, field := range fields[11:13] { // utime, stime
			n, err := strconv.Atoi(field)
			if err != nil {
				return 0, fmt.Errorf("read CPU time of %s: %w", p.name, err)
			}
			ticks += n
		}
	}
	return float64(ticks) / clockTicks, nil
}

// memory returns a figure of /proc/PID/status, VmRSS or VmHWM, in KiB: the sum over the process and its children.
func (p *process) memory(figure string) (int, error) {
	var sum int
	for _, pid := range p.family() {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, fmt.Errorf("read memory of %s: %w", p.name, err)
		}
		_, line, _ := strings.Cut(string(text), figure+":")
		var kibibytes int
		if _, err := fmt.Sscan(line, &kibibytes); err != nil {
			return 0, fmt.Errorf("read %s of %s: %w", figure, p.name, err)
		}
		sum += kibibytes
	}
	return sum, nil
}

// playRole is the main function of a bench process that plays a role.
func playRole(role, settings string) error {
	play, ok := map[string]func([]byte) error{
		"client": playClient, "upstream": playUpstream, "provider": playProvider, "relay": playRelay, "delay": playDelay,
	}[role]
	if !ok {
		return fmt.Errorf("unknown role %q", role)
	}
	if err := play([]byte(settings)); err != nil {
		return fmt.Errorf("%s: %w", role, err)
	}
	return nil
}

// announce writes one line of JSON to whoever started this role.
func announce(v any) error {
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	return nil
}

// serveRole tells where ln listens, serves, and returns when the one who started this role closes its input.
func serveRole(ln net.Listener, serve func(net.Listener) error) error {
	if err := announce(ln.Addr().String()); err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- serve(ln) }()
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		failed <- err
	}()
	return <-failed
}

func listenLoopback() (net.Listener, error) {
	var c net.ListenConfig
	ln, err := c.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen on loopback: %w", err)
	}
	return ln, nil
}

// freePort returns a port that was free a moment ago, for programs that take no port 0. It lies below Linux's ephemeral
// range, lest an outgoing connection takes it first.
func freePort() (int, error) {
	for range 100 {
		port := 20000 + rand.IntN(12000)
		var c net.ListenConfig
		ln, err := c.Listen(context.Background(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		return port, ln.Close()
	}
	return 0, errors.New("found no free port")
}
