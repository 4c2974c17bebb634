package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"orthanc-dicomweb-oauth/gateway"
)

// TestMain makes the test binary the program itself, so that the scripts run it without a build.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){name: main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			busy, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			e.Defer(func() { busy.Close() })
			e.Setenv("BUSY", busy.Addr().String())
			e.Setenv("BUSY_PORT", strconv.Itoa(busy.Addr().(*net.TCPAddr).Port))
			e.Setenv("SECRET", "s3cr3t")
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name != "root" {
				return false, fmt.Errorf("unknown condition %q", name)
			}
			return os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "await": await},
	})
}

// exits CODE PROGRAM ARGUMENT... runs a program that must end with that code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM [ARGUMENT...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if ended, ok := errors.AsType[*exec.ExitError](err); ok {
		got = ended.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// await FILE TEXT waits until the file has the text.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await FILE TEXT")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && strings.Contains(string(text), args[1]) {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("no %q in %s: %v\n%s", args[1], args[0], err, text)
		case <-ticker.C:
		}
	}
}

func TestHelpOfEachCommandHasAnExample(t *testing.T) {
	check := func(words ...string) {
		var help bytes.Buffer
		if code := run(t.Context(), append(words, "--help"), &help, io.Discard); code != 0 {
			t.Errorf("%q --help: exit code %d", words, code)
		}
		if _, usage, _ := strings.Cut(help.String(), "USAGE:"); !strings.Contains(usage, strings.Join(words, " ")) {
			t.Errorf("%q --help has no example: %s", words, &help)
		}
	}
	for _, c := range commands(io.Discard, io.Discard).Commands {
		check(name, c.Name)
		for _, sub := range c.Subcommands {
			check(name, c.Name, sub.Name)
		}
	}
}

func TestFlagsMayFollowTheArguments(t *testing.T) {
	all := commands(io.Discard, io.Discard).Commands
	for given, want := range map[string]string{
		"test azure":                            "test azure",
		"test azure --config x.toml":            "test --config x.toml azure",
		"test azure --config=x.toml --json":     "test --config=x.toml --json azure",
		"test --json azure --config x.toml":     "test --json --config x.toml azure",
		"test --json azure":                     "test --json azure",
		"test azure --config":                   "test --config",
		"test azure --typo x":                   "test --typo azure x",
		"test azure -- --config x":              "test azure -- --config x",
		"match GET https://x.example.org/ -h":   "match -h GET https://x.example.org/",
		"orthanc config x --format env":         "orthanc config --format env x",
		"orthanc --help":                        "orthanc --help",
		"ca show":                               "ca show",
		"--config x.toml check":                 "--config x.toml check",
		"":                                      "",
		"test azure --generate-bash-completion": "test azure --generate-bash-completion",
	} {
		got := strings.Join(flagsFirst(all, append([]string{name}, strings.Fields(given)...)), " ")
		if got != strings.TrimSpace(name+" "+want) {
			t.Errorf("%q: got %q, want %q", given, got, want)
		}
	}
}

func TestTerminalShowsForHowLongAStepHasBeenUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := newSteps(&out, 5, "testing", true)
		time.Sleep(2500 * time.Millisecond)
		s.step(gateway.Step{Step: "dns", OK: true, Milliseconds: 2500, Detail: "found"})
		time.Sleep(1200 * time.Millisecond)
		s.end()
		s.end()
		want := "\rtesting ... 1 s\rtesting ... 2 s\r               \rdns   ok       2500 ms  found\n\rtesting ... 0 s\r               \r"
		if out.String() != want {
			t.Errorf("got  %q\nwant %q", &out, want)
		}
	})
}

func TestWithoutATerminalThereAreStepsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := newSteps(&out, 5, "testing", false)
		time.Sleep(time.Hour)
		s.step(gateway.Step{Step: "dns", Milliseconds: 1, Detail: "lost", Hint: "look"})
		s.end()
		if want := "dns   FAILED      1 ms  lost\n      hint: look\n"; out.String() != want {
			t.Errorf("got %q, want %q", &out, want)
		}
	})
}
