// Command orthanc-dicomweb-oauth is a forward proxy that gives Orthanc's
// DICOMweb client the OAuth 2.0 credentials it cannot get itself. See README.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway/supervisor"
	"orthanc-dicomweb-oauth/rules"
)

// version is set by the linker in releases; else the build's own is shown.
var version string

const name = "orthanc-dicomweb-oauth"

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2 // wrong usage or wrong config
)

func main() {
	log.SetOutput(io.Discard) // where net/http shows bytes that a server sent unasked: they may be a patient's, or a token's
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(supervisor.Run(ctx, name, os.Stderr, func(ctx context.Context, stderr io.Writer) int {
		return run(ctx, os.Args, os.Stdout, stderr)
	}))
}

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	args, ok := completable(args)
	if !ok {
		return 0
	}
	app := commands(stdout, stderr)
	if err := app.RunContext(ctx, flagsFirst(app.Commands, args)); err != nil {
		return report(stderr, err)
	}
	return 0
}

// report shows an error with what to change, and returns the exit code for it.
func report(stderr io.Writer, err error) int {
	if usage, ok := errors.AsType[*usageError](err); ok {
		for what := range strings.SplitSeq(usage.Error(), "\n") {
			say(stderr, what, "")
		}
		say(stderr, "", usage.hint)
		return exitUsage
	}
	if problems, ok := errors.AsType[rules.Problems](err); ok {
		for _, p := range problems {
			say(stderr, p.String(), p.Hint)
		}
		return exitUsage
	}
	if folder, ok := errors.AsType[*certs.FolderError](err); ok {
		say(stderr, folder.Error(), folder.Hint)
		return exitUsage
	}
	hint := ""
	if hinted, ok := errors.AsType[*hintedError](err); ok {
		hint = hinted.hint
	}
	if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.Errno(10048)) { // the latter on Windows
		hint = "another program listens there, perhaps this gateway already; stop it, or change listen"
	}
	say(stderr, err.Error(), hint)
	return exitFailed
}

// say writes one error as users see it.
func say(w io.Writer, what, hint string) {
	if what != "" {
		fmt.Fprintf(w, "%s: %s\n", name, what)
	}
	if hint != "" {
		fmt.Fprintf(w, "hint: %s\n", hint)
	}
}

func commands(stdout, stderr io.Writer) *cli.App {
	config := &cli.StringFlag{Name: "config", Usage: "read the configuration from `FILE`", EnvVars: []string{"DICOMWEB_OAUTH_CONFIG"}, Value: "gateway.toml"}
	jsonFlag := &cli.BoolFlag{Name: "json", Usage: "print the result as JSON"}
	app := &cli.App{
		Name:            name,
		Usage:           "OAuth 2.0 for Orthanc's DICOMweb client, as a forward proxy",
		HideVersion:     true,
		HideHelpCommand: true,
		Writer:          stdout,
		ErrWriter:       stderr,
		ExitErrHandler:  func(*cli.Context, error) {}, // run decides about the exit code
		OnUsageError:    badFlag(""),
		Action:          group(""),

		EnableBashCompletion: true, // the other shells ask in the same way
		Commands: []*cli.Command{
			{
				Name: "run", Usage: "serve as Orthanc's HttpProxy until SIGTERM",
				UsageText: name + " run --config gateway.toml",
				Flags:     []cli.Flag{config},
				Action:    func(c *cli.Context) error { return serve(c.Context, c.String("config"), stderr) },
			},
			demoCommand(stdout, stderr),
			{
				Name: "check", Usage: "validate the configuration and list every problem",
				UsageText: name + " check --config gateway.toml",
				Flags:     []cli.Flag{config, jsonFlag},
				Action:    func(c *cli.Context) error { return check(c.String("config"), c.Bool("json"), stdout, stderr) },
			},
			{
				Name: "match", Usage: "tell which rule a request meets, and what would be done",
				UsageText: name + " match GET https://dicom.example.org/dicom-web/studies", ArgsUsage: "METHOD URL",
				Flags: []cli.Flag{config, jsonFlag},
				Action: func(c *cli.Context) error {
					if c.NArg() != 2 {
						return &usageError{"match needs a method and a URL", "such as: " + c.Command.UsageText}
					}
					return match(c.String("config"), c.Args().Get(0), c.Args().Get(1), c.Bool("json"), stdout)
				},
			},
			{
				Name: "test", Usage: "test a rule for real: DNS, TCP, TLS, token and one query",
				UsageText: name + " test azure", ArgsUsage: "NAME|URL",
				Flags: []cli.Flag{config, jsonFlag},
				Action: func(c *cli.Context) error {
					if c.NArg() != 1 {
						return &usageError{"test needs the name of a rule, or a URL", "such as: " + c.Command.UsageText}
					}
					return test(c.Context, c.String("config"), c.Args().First(), c.Bool("json"), stdout)
				},
			},
			orthancCommand(config, jsonFlag, stdout, stderr),
			{
				Name: "ca", Usage: "show and replace the local CA", UsageText: name + " ca show",
				Action: group("ca"), Subcommands: caCommands(config, jsonFlag, stdout),
			},
			{
				Name: "import", Usage: "print a gateway.toml made from the OAuth settings of an orthanc.json",
				UsageText: name + " import /etc/orthanc/orthanc.json > gateway.toml", ArgsUsage: "FILE",
				Action: func(c *cli.Context) error {
					if c.NArg() != 1 || c.Args().First() == "" {
						return &usageError{"import needs the path of an orthanc.json", "such as: " + c.Command.UsageText}
					}
					return importFile(c.Args().First(), stdout, stderr)
				},
			},
			healthCommand(config, stdout),
			{
				Name: "completion", Usage: "print a script that lets a shell complete our commands",
				UsageText: "source <(" + name + " completion bash)", ArgsUsage: shells,
				Action:       func(c *cli.Context) error { return completion(c, stdout) },
				BashComplete: func(*cli.Context) { fmt.Fprintln(stdout, strings.ReplaceAll(shells, "|", "\n")) },
			},
			{
				Name: "version", Usage: "print the version", UsageText: name + " version",
				Flags:  []cli.Flag{jsonFlag},
				Action: func(c *cli.Context) error { return printVersion(c.Bool("json"), stdout) },
			},
		},
	}
	finish(app.Commands, "")
	return app
}

// printVersion is the version command.
func printVersion(asJSON bool, stdout io.Writer) error {
	if asJSON {
		return json.NewEncoder(stdout).Encode(map[string]string{
			"name": name, "version": buildVersion(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
		})
	}
	_, err := fmt.Fprintln(stdout, name, buildVersion())
	return err
}

func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := strings.Trim(info.Main.Version, "()")
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && v == "devel" {
			return "devel-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return v
}
