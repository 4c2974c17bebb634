// Command orthanc-dicomweb-oauth is a forward proxy that gives Orthanc's
// DICOMweb client the OAuth 2.0 credentials it cannot get itself. See README.md.
package main

import (
	"cmp"
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
	"time"

	"github.com/urfave/cli/v2"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway/demo"
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
	err := commands(stdout, stderr).RunContext(ctx, args)
	if err == nil {
		return 0
	}
	code := exitFailed
	var usage *usageError
	switch {
	case errors.As(err, &usage):
		code = exitUsage
		for what := range strings.SplitSeq(usage.Error(), "\n") {
			say(stderr, what, "")
		}
		say(stderr, "", usage.hint)
	case isType[rules.Problems](err):
		code = exitUsage
		problems, _ := errors.AsType[rules.Problems](err)
		for _, p := range problems {
			say(stderr, p.String(), p.Hint)
		}
	case isType[*certs.FolderError](err):
		code = exitUsage
		folder, _ := errors.AsType[*certs.FolderError](err)
		say(stderr, folder.Error(), folder.Hint)
	case errors.Is(err, syscall.EADDRINUSE):
		say(stderr, err.Error(), "another program listens there, perhaps this gateway already; stop it, or change listen")
	default:
		say(stderr, err.Error(), "")
	}
	return code
}

func isType[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
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

// usageError is a command line that cannot be understood.
type usageError struct{ what, hint string }

// Error implements error.
func (e *usageError) Error() string { return e.what }

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
				Flags:     []cli.Flag{config}, OnUsageError: badFlag("run"),
				Action: func(c *cli.Context) error { return serve(c.Context, c.String("config"), stderr) },
			},
			{
				Name: "demo", Usage: "show the whole job with an embedded provider and DICOMweb server",
				UsageText: name + " demo", OnUsageError: badFlag("demo"),
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "orthanc", Usage: "also send with a real Orthanc: auto, off or its `PATH`", Value: demo.OrthancAuto},
					&cli.DurationFlag{Name: "token-lifetime", Usage: "how long the provider's tokens live", Value: 12 * time.Second},
					&cli.StringFlag{Name: "servers", Usage: "only the provider and the DICOMweb server, for a gateway of your own; what it needs goes into `FOLDER`"},
					&cli.BoolFlag{Name: "once", Usage: "end after the story instead of serving on"},
				},
				Action: func(c *cli.Context) error {
					if folder := c.String("servers"); folder != "" {
						return demo.Serve(c.Context, folder, demo.Options{Out: stdout, Color: colored(stdout)})
					}
					return demo.Run(c.Context, demo.Options{
						Out: stdout, Color: colored(stdout),
						Orthanc: c.String("orthanc"), TokenLifetime: c.Duration("token-lifetime"), Once: c.Bool("once"),
						Start: func(ctx context.Context, path string) (*demo.Running, error) { return startForDemo(ctx, path, stderr) },
					})
				},
			},
			{
				Name: "check", Usage: "validate the configuration and list every problem",
				UsageText: name + " check --config gateway.toml",
				Flags:     []cli.Flag{config, jsonFlag}, OnUsageError: badFlag("check"),
				Action: func(c *cli.Context) error { return check(c.String("config"), c.Bool("json"), stdout, stderr) },
			},
			{
				Name: "match", Usage: "tell which rule a request meets, and what would be done",
				UsageText: name + " match GET https://dicom.example.org/dicom-web/studies", ArgsUsage: "METHOD URL",
				Flags: []cli.Flag{config, jsonFlag}, OnUsageError: badFlag("match"),
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
				Flags: []cli.Flag{config, jsonFlag}, OnUsageError: badFlag("test"),
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
				OnUsageError: badFlag("ca"), Action: group("ca"), Subcommands: caCommands(config, jsonFlag, stdout),
			},
			{
				Name: "import", Usage: "print a gateway.toml made from the OAuth settings of an orthanc.json",
				UsageText: name + " import /etc/orthanc/orthanc.json > gateway.toml", ArgsUsage: "FILE", OnUsageError: badFlag("import"),
				Action: func(c *cli.Context) error {
					if c.NArg() != 1 {
						return &usageError{"import needs the path of an orthanc.json", "such as: " + c.Command.UsageText}
					}
					return importFile(c.Args().First(), stdout, stderr)
				},
			},
			{
				Name: "health", Usage: "ask the gateway on this machine whether it is ready, for container health checks",
				UsageText: name + " health --config gateway.toml",
				Flags:     []cli.Flag{config, &cli.StringFlag{Name: "url", Usage: "ask the admin listener at `URL`, without a config: http://127.0.0.1:3129"}},

				OnUsageError: badFlag("health"),
				Action:       func(c *cli.Context) error { return health(c.Context, c.String("config"), c.String("url"), stdout) },
			},
			{
				Name: "completion", Usage: "print a script that lets a shell complete our commands",
				UsageText: "source <(" + name + " completion bash)", ArgsUsage: shells, OnUsageError: badFlag("completion"),
				Action:       func(c *cli.Context) error { return completion(c, stdout) },
				BashComplete: func(*cli.Context) { fmt.Fprintln(stdout, strings.ReplaceAll(shells, "|", "\n")) },
			},
			{
				Name: "version", Usage: "print the version", UsageText: name + " version",
				Flags: []cli.Flag{jsonFlag}, OnUsageError: badFlag("version"),
				Action: func(c *cli.Context) error { return printVersion(c.Bool("json"), stdout) },
			},
		},
	}
	withoutHelpCommand(app.Commands)
	return app
}

// withoutHelpCommand leaves --help alone: a command help below each command
// would be completed where arguments belong.
func withoutHelpCommand(commands []*cli.Command) {
	for _, c := range commands {
		c.HideHelpCommand = true
		withoutHelpCommand(c.Subcommands)
	}
}

// badFlag is what a command says about a flag that it does not have.
func badFlag(command string) cli.OnUsageErrorFunc {
	return func(c *cli.Context, err error, _ bool) error {
		hint := "see " + strings.Join(strings.Fields(name+" "+command+" --help"), " ")
		if flag, unknown := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); unknown {
			candidates := []string{"--help"}
			for _, f := range c.Command.Flags {
				candidates = append(candidates, "--"+f.Names()[0])
			}
			hint = cmp.Or(rules.DidYouMean("--"+strings.TrimPrefix(flag, "-"), candidates), hint)
		}
		return &usageError{err.Error(), hint}
	}
}

// group is the action of a command that has nothing but commands: it shows its help.
func group(command string) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.NArg() == 0 {
			return cli.ShowSubcommandHelp(c)
		}
		var candidates []string
		for _, sub := range c.Command.Subcommands {
			candidates = append(candidates, sub.Name)
		}
		hint := "see " + strings.Join(strings.Fields(name+" "+command+" --help"), " ")
		return &usageError{
			fmt.Sprintf("unknown command %q", strings.TrimSpace(command+" "+c.Args().First())),
			cmp.Or(rules.DidYouMean(c.Args().First(), candidates), hint),
		}
	}
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
