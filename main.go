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
	"io/fs"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/gateway/admin"
	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/gateway/demo"
	"orthanc-dicomweb-oauth/gateway/orthanc"
	"orthanc-dicomweb-oauth/gateway/supervisor"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/rules/orthancjson"
	"orthanc-dicomweb-oauth/token"
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

// completable keeps a shell that asks for completions from running the command
// instead, which urfave/cli does when "--" is among the words.
func completable(args []string) ([]string, bool) {
	n := len(args) - 1
	if n < 1 || args[n] != "--generate-bash-completion" || !slices.Contains(args, "--") {
		return args, true
	}
	if slices.Index(args, "--") != n-1 {
		return nil, false // what follows "--" is not ours to complete
	}
	return slices.Concat(args[:n-1], []string{"-", args[n]}), true // a flag begins
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
				Action: func(c *cli.Context) error { return check(c.String("config"), c.Bool("json"), stdout) },
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

// check loads the config as run would, but listens nowhere and makes no CA.
func check(path string, asJSON bool, stdout io.Writer) error {
	c, err := rules.Load(path, os.LookupEnv)
	if err == nil {
		if _, statErr := os.Stat(filepath.Join(string(c.CA.Dir), "ca.pem")); statErr == nil {
			_, err = gateway.OpenCA(c)
		}
	}
	if asJSON {
		problems, _ := errors.AsType[rules.Problems](err)
		if problems == nil {
			problems = rules.Problems{}
		}
		if jsonErr := json.NewEncoder(stdout).Encode(map[string]any{"ok": err == nil, "problems": problems}); jsonErr != nil {
			return jsonErr
		}
		return err
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s: ok, %d rules, %d profiles\n", path, len(c.Rules), len(c.Profiles))
	return err
}

// match is the match command.
func match(path, method, url string, asJSON bool, stdout io.Writer) error {
	c, err := rules.Load(path, os.LookupEnv)
	if err != nil {
		return err
	}
	e, err := c.Explain(method, url)
	if err != nil {
		return &usageError{err.Error(), "such as: " + name + " match GET https://dicom.example.org/dicom-web/studies"}
	}
	if asJSON {
		return json.NewEncoder(stdout).Encode(e)
	}
	rule := "none"
	if e.Rule != "" {
		rule = e.Rule
	}
	_, err = fmt.Fprintf(stdout, "rule:  %s\nwould: %s\nwhy:   %s\n", rule, strings.TrimSpace(e.Would+" "+e.Code), e.Why)
	return err
}

// importFile is the import command.
func importFile(path string, stdout, stderr io.Writer) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return &usageError{err.Error(), "name the orthanc.json, or a file with its OAuth section"}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	converted, notes, err := orthancjson.Convert(text, filepath.Dir(abs))
	if err != nil {
		return &usageError{fmt.Sprintf("%s: %s", path, err), ""}
	}
	for _, note := range notes {
		fmt.Fprintf(stderr, "note: %s\n", note)
	}
	_, err = stdout.Write(converted)
	return err
}

// caCommands are the commands below ca. They work on the folder; a gateway that
// runs takes up by itself what they make of it.
func caCommands(config, jsonFlag cli.Flag, stdout io.Writer) []*cli.Command {
	command := func(what, usage string, run func(*cli.Context, *rules.Config) error, flags ...cli.Flag) *cli.Command {
		return &cli.Command{
			Name: what, Usage: usage, UsageText: name + " ca " + what + " --config gateway.toml",
			Flags: append([]cli.Flag{config}, flags...), OnUsageError: badFlag("ca " + what),
			Action: func(c *cli.Context) error {
				if c.NArg() > 0 {
					return &usageError{fmt.Sprintf("ca %s takes no argument %q", what, c.Args().First()), "such as: " + c.Command.UsageText}
				}
				conf, err := rules.Load(c.String("config"), os.LookupEnv)
				if err != nil {
					return err
				}
				return run(c, conf)
			},
		}
	}
	return []*cli.Command{
		command("show", "show the CA, and the one that waits", func(c *cli.Context, conf *rules.Config) error {
			ca, err := certs.Load(string(conf.CA.Dir))
			if err != nil {
				return err
			}
			return showCA(ca, c.Bool("json"), "", stdout)
		}, jsonFlag),
		command("bundle", "print what Orthanc is to trust, for HttpsCACertificates", func(c *cli.Context, conf *rules.Config) error {
			ca, err := certs.Load(string(conf.CA.Dir))
			if err != nil {
				return err
			}
			bundle := ca.Bundle()
			if c.Bool("system") {
				roots, err := certs.SystemRoots()
				if err != nil {
					return err
				}
				bundle = append(bundle, roots...)
			}
			_, err = stdout.Write(bundle)
			return err
		}, &cli.BoolFlag{Name: "system", Usage: "add the system's roots"}),
		command("rotate", "make a new CA for the rules, which waits beside the old one", func(c *cli.Context, conf *rules.Config) error {
			ca, err := gateway.RotateCA(conf, c.Bool("force"))
			if err != nil {
				return err
			}
			return showCA(ca, c.Bool("json"), "next: "+name+" ca activate, when all that use a copy of the bundle have the new one", stdout)
		}, &cli.BoolFlag{Name: "force", Usage: "replace a new CA that waits already"}, jsonFlag),
		command("activate", "let the new CA sign from now on", func(c *cli.Context, conf *rules.Config) error {
			ca, err := gateway.ActivateCA(conf)
			if err != nil {
				return err
			}
			return showCA(ca, c.Bool("json"), "a gateway that runs takes it up within seconds", stdout)
		}, jsonFlag),
	}
}

// showCA prints a CA folder, and in text what comes next.
func showCA(ca *certs.CA, asJSON bool, next string, stdout io.Writer) error {
	d := ca.Describe(time.Now())
	if asJSON {
		return json.NewEncoder(stdout).Encode(d)
	}
	one := func(what string, a *certs.Authority) {
		if a == nil {
			fmt.Fprintf(stdout, "%s none\n", what)
			return
		}
		names := "any host"
		if a.Names != nil {
			names = strings.Join(a.Names, ", ")
		}
		fmt.Fprintf(stdout, "%s SHA-256 %s\n          ends %s, for %s\n", what, a.Fingerprint, a.NotAfter.Format(time.DateOnly), names)
	}
	one("signs:   ", &d.Authority)
	one("waits:   ", d.Waiting)
	one("previous:", d.Previous)
	fmt.Fprintf(stdout, "bundle:   %s\n", d.Bundle)
	if d.Warning != "" {
		fmt.Fprintf(stdout, "warning:  %s\n", d.Warning)
	}
	if next != "" {
		fmt.Fprintln(stdout, next)
	}
	return nil
}

// errTestFailed is a rule that does not work; its steps have been shown.
var errTestFailed = errors.New("the test failed")

// test is the test command: the steps of one rule, with the connections and
// credentials that run would use.
func test(ctx context.Context, path, target string, asJSON bool, stdout io.Writer) error {
	c, err := rules.Load(path, os.LookupEnv)
	if err != nil {
		return err
	}
	for _, r := range c.Rules {
		if r.Name == target {
			if _, wildcard := r.Host(); wildcard {
				return &usageError{fmt.Sprintf("rule %q is for many hosts", r.Name), "test the URL of one of them: " + strings.Replace(r.URL, "*", "HOST", 1)}
			}
			target = r.URL
		}
	}
	if !strings.Contains(target, "://") {
		return &usageError{fmt.Sprintf("there is no rule %q", target), "name a rule of the config, or give a URL"}
	}
	if err := keepTested(c, target); err != nil {
		return err
	}
	g, err := gateway.New(gateway.Options{Config: c, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer g.Shutdown(ctx) //nolint:errcheck // nothing was served
	show := newSteps(stdout, 6, "testing", isTerminal(stdout) && !asJSON)
	defer show.end()
	onStep := show.step
	if asJSON {
		onStep = nil
	}
	report, err := g.Probe(ctx, target, onStep)
	if err != nil {
		return &usageError{err.Error(), "see " + name + " match GET " + target}
	}
	if asJSON {
		if err := json.NewEncoder(stdout).Encode(report); err != nil {
			return err
		}
	}
	if !report.OK {
		return errTestFailed
	}
	return nil
}

// keepTested leaves only the profile that a test of the URL needs: a refresh
// token that is used here may be lost to the gateway that runs.
func keepTested(c *rules.Config, target string) error {
	e, err := c.Explain(http.MethodGet, strings.TrimSuffix(target, "/")+"/studies")
	if err != nil {
		return &usageError{err.Error(), "name a rule of the config, or give a URL"}
	}
	maps.DeleteFunc(c.Profiles, func(name string, _ *rules.Profile) bool { return name != e.Profile })
	if p := c.Profiles[e.Profile]; p != nil {
		if r, ok := p.Settings.(*token.RefreshToken); ok && r.Rotation == "memory" {
			return &usageError{
				fmt.Sprintf("profile %q keeps its refresh token in memory only, and a test would use it up", p.Name),
				"let the gateway that runs do it: POST /dicomweb-oauth/servers/NAME/test on its admin listener; or set rotation = \"write-back\"",
			}
		}
	}
	return nil
}

// orthancCommand is what sets Orthanc's side up.
func orthancCommand(config *cli.StringFlag, jsonFlag *cli.BoolFlag, stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name: "orthanc", Usage: "set Orthanc up: print its settings, or register the DICOMweb servers in a running one",
		UsageText:    name + " orthanc config\n" + name + " orthanc register --url http://localhost:8042",
		OnUsageError: badFlag("orthanc"), Action: group("orthanc"),
		Subcommands: []*cli.Command{
			{
				Name: "config", Usage: "print what orthanc.json needs, as one JSON object to merge",
				UsageText: name + " orthanc config --config gateway.toml",
				Flags: []cli.Flag{
					config,
					&cli.StringFlag{Name: "format", Usage: "json, or env for the image orthancteam/orthanc: `FORMAT`", Value: "json"},
					&cli.StringFlag{Name: "proxy-host", Usage: "`NAME` under which Orthanc reaches the gateway (default: the host of listen)"},
					&cli.BoolFlag{Name: "reveal", Usage: "print user and password of the proxy, in clear"},
				},
				OnUsageError: badFlag("orthanc config"),
				Action: func(c *cli.Context) error {
					o := orthancjson.SettingsOptions{ProxyHost: c.String("proxy-host"), Reveal: c.Bool("reveal")}
					return orthancConfig(c.String("config"), c.String("format"), o, stdout, stderr)
				},
			},
			{
				Name: "register", Usage: "register the rules as DICOMweb servers in a running Orthanc, and try each through the gateway",
				UsageText: name + " orthanc register --url http://localhost:8042",
				Flags: []cli.Flag{
					config, jsonFlag,
					&cli.StringFlag{Name: "url", Usage: "`URL` of Orthanc's REST API", Value: "http://localhost:8042"},
					&cli.StringFlag{Name: "username", Usage: "`USER` of the REST API; the password is taken from ORTHANC_PASSWORD"},
					&cli.StringFlag{Name: "password-file", Usage: "read the password from `FILE`"},
				},
				OnUsageError: badFlag("orthanc register"),
				Action: func(c *cli.Context) error {
					o, err := orthancLogin(c.String("username"), c.String("password-file"))
					if err != nil {
						return err
					}
					o.URL = c.String("url")
					return register(c.Context, c.String("config"), o, c.Bool("json"), stdout)
				},
			},
		},
	}
}

// orthancSettings are what Orthanc needs for this config.
func orthancSettings(c *rules.Config, o orthancjson.SettingsOptions) (orthancjson.Settings, []string, error) {
	o.Bundle = filepath.Join(string(c.CA.Dir), "bundle.pem")
	s, notes, err := orthancjson.NewSettings(c, o)
	if err != nil {
		return s, nil, &usageError{err.Error(), "let this user read the file, or leave --reveal out"}
	}
	return s, notes, nil
}

// orthancConfig is the command orthanc config.
func orthancConfig(path, format string, o orthancjson.SettingsOptions, stdout, stderr io.Writer) error {
	write := orthancjson.Settings.JSON
	switch format {
	case "json":
	case "env":
		write = orthancjson.Settings.Env
	default:
		return &usageError{fmt.Sprintf("unknown format %q", format), "give --format json or --format env"}
	}
	c, err := rules.Load(path, os.LookupEnv)
	if err != nil {
		return err
	}
	settings, notes, err := orthancSettings(c, o)
	if err != nil {
		return err
	}
	text, err := write(settings)
	if err != nil {
		return err
	}
	if _, err := os.Stat(settings.CACertificates); err != nil {
		notes = append(notes, "HttpsCACertificates: the file is not there yet; the first run of the gateway makes it")
	}
	for _, note := range notes {
		fmt.Fprintf(stderr, "note: %s\n", note)
	}
	_, err = stdout.Write(text)
	return err
}

// orthancLogin takes the password of Orthanc's REST API from where it is no
// argument that other users of the machine can see.
func orthancLogin(username, passwordFile string) (orthanc.Options, error) {
	o := orthanc.Options{Username: username, Password: token.NewSecret(os.Getenv("ORTHANC_PASSWORD"))}
	if passwordFile != "" {
		var err error
		if o.Password, err = token.SecretFile(passwordFile).Read(); err != nil {
			return o, &usageError{"--password-file: " + err.Error(), "name a file that holds nothing but the password"}
		}
	}
	switch {
	case username != "" && o.Password.Empty():
		return o, &usageError{"--username needs a password", "give --password-file, or set ORTHANC_PASSWORD"}
	case username == "" && passwordFile != "":
		return o, &usageError{"--password-file needs --username", "add --username"}
	}
	return o, nil
}

// errRegisterFailed is a registration whose steps have been shown.
var errRegisterFailed = errors.New("the registration failed")

// register is the command orthanc register.
func register(ctx context.Context, path string, o orthanc.Options, asJSON bool, stdout io.Writer) error {
	c, err := rules.Load(path, os.LookupEnv)
	if err != nil {
		return err
	}
	o.Config = c
	if o.Settings, _, err = orthancSettings(c, orthancjson.SettingsOptions{}); err != nil {
		return err
	}
	show := newSteps(stdout, 8, "working", isTerminal(stdout) && !asJSON)
	defer show.end()
	onStep := func(s orthanc.Step) {
		if s.Server != "" {
			s.Detail = s.Server + ": " + s.Detail
		}
		show.step(s.Step)
	}
	if asJSON {
		onStep = nil
	}
	report, err := orthanc.Register(ctx, o, onStep)
	if err != nil {
		return &usageError{err.Error(), "see " + name + " orthanc register --help"}
	}
	show.end()
	if asJSON {
		if err := json.NewEncoder(stdout).Encode(report); err != nil {
			return err
		}
	} else {
		for _, note := range report.Notes {
			fmt.Fprintf(stdout, "note: %s\n", note)
		}
	}
	if !report.OK {
		return errRegisterFailed
	}
	return nil
}

// healthTimeout is below the patience of any container engine.
const healthTimeout = 3 * time.Second

// health is the health command.
func health(ctx context.Context, path, url string, stdout io.Writer) error {
	if url == "" {
		c, err := rules.Load(path, os.LookupEnv)
		if err != nil {
			return err
		}
		if c.Admin.Listen == "" {
			return &usageError{"[admin] listen is off, so there is nothing to ask", "set listen under [admin]"}
		}
		url = admin.URL(c.Admin)
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	detail, err := admin.Ready(ctx, strings.TrimSuffix(url, "/"))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, detail)
	return err
}

// shells are those that can complete our commands.
const shells = "bash|zsh|fish|powershell"

// The scripts that complete our commands; each asks the program itself.
const (
	bashCompletion = `_orthanc_dicomweb_oauth() {
  local cur=${COMP_WORDS[COMP_CWORD]} words=("${COMP_WORDS[@]:0:COMP_CWORD}")
  case $cur in -*) words+=("$cur") ;; esac
  COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
}
complete -o bashdefault -o default -F _orthanc_dicomweb_oauth orthanc-dicomweb-oauth
`
	zshCompletion = `#compdef orthanc-dicomweb-oauth
_orthanc_dicomweb_oauth() {
  local -a asked found
  asked=("${(@)words[1,CURRENT-1]}")
  [[ ${words[CURRENT]} == -* ]] && asked+=("${words[CURRENT]}")
  found=("${(@f)$("${asked[@]}" --generate-bash-completion 2>/dev/null)}")
  if [[ -n ${found[1]} ]]; then _describe values found; else _files; fi
}
compdef _orthanc_dicomweb_oauth orthanc-dicomweb-oauth
`
	fishCompletion = `function _orthanc_dicomweb_oauth
  set -l asked (commandline -opc)
  set -l word (commandline -ct)
  string match -q -- '-*' $word; and set -a asked $word
  $asked --generate-bash-completion 2>/dev/null
end
complete -c orthanc-dicomweb-oauth -a '(_orthanc_dicomweb_oauth)'
`
	powershellCompletion = `Register-ArgumentCompleter -Native -CommandName orthanc-dicomweb-oauth -ScriptBlock {
  param($word, $ast, $position)
  $command, $rest = @($ast.CommandElements | ForEach-Object { $_.ToString() })
  if ($word -and -not $word.StartsWith('-')) { $rest = @($rest | Select-Object -SkipLast 1) }
  & $command @rest --generate-bash-completion | Where-Object { $_ -like "$word*" } | ForEach-Object {
    [System.Management.Automation.CompletionResult]::new($_, $_, 'ParameterValue', $_)
  }
}
`
)

// completion is the completion command.
func completion(c *cli.Context, stdout io.Writer) error {
	var script string
	switch c.Args().First() {
	case "bash":
		script = bashCompletion
	case "zsh":
		script = zshCompletion
	case "fish":
		script = fishCompletion
	case "powershell":
		script = powershellCompletion
	default:
		return &usageError{"completion needs the name of a shell: bash, zsh, fish or powershell", "such as: " + c.Command.UsageText}
	}
	_, err := io.WriteString(stdout, script)
	return err
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

// steps prints the steps of a test as they are done and, on a terminal, a line
// that tells for how long the next one has been under way.
type steps struct {
	out   io.Writer
	width int // of the steps' names
	what  string
	end   func() // erases that line; may be called again

	mu    sync.Mutex // held while writing
	since time.Time
	drawn int // length of that line as it stands there
}

// newSteps prints to out; the caller calls end. With live it draws the line.
func newSteps(out io.Writer, width int, what string, live bool) *steps {
	p := &steps{out: out, width: width, what: what, since: time.Now(), end: func() {}}
	if !live {
		return p
	}
	done := make(chan struct{})
	var drawing sync.WaitGroup
	drawing.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				p.draw()
			}
		}
	})
	p.end = sync.OnceFunc(func() {
		close(done)
		drawing.Wait()
		p.erase()
	})
	return p
}

func (p *steps) draw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	line := fmt.Sprintf("%s ... %.0f s", p.what, time.Since(p.since).Seconds())
	p.drawn = len(line)
	fmt.Fprintf(p.out, "\r%s", line)
}

func (p *steps) erase() {
	if p.drawn > 0 {
		fmt.Fprintf(p.out, "\r%*s\r", p.drawn, "")
		p.drawn = 0
	}
}

func (p *steps) step(s gateway.Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	p.since = time.Now()
	mark, style := "ok    ", "32"
	if !s.OK {
		mark, style = "FAILED", "31"
	}
	if colored(p.out) {
		mark = "\x1b[" + style + "m" + mark + "\x1b[0m"
	}
	fmt.Fprintf(p.out, "%-*s %s %6.0f ms  %s\n", p.width, s.Step, mark, s.Milliseconds, s.Detail)
	if s.Hint != "" {
		fmt.Fprintf(p.out, "%*s hint: %s\n", p.width, "", s.Hint)
	}
}

// service is a gateway with its admin listener, both serving.
type service struct {
	gateway *gateway.Gateway
	ca      *certs.CA
	audit   *audit.Log
	admin   *http.Server
	log     *slog.Logger
	config  string // its path
	proxyAt net.Addr
	adminAt net.Addr // nil: turned off
	failed  chan error
}

// start loads and builds everything, and only then listens.
func start(ctx context.Context, path string, stderr io.Writer) (*service, *rules.Config, error) {
	c, err := rules.Load(path, os.LookupEnv)
	if err != nil {
		return nil, nil, err
	}
	level := &slog.LevelVar{}
	s := &service{log: newLogger(c.Log, level, stderr), config: path, failed: make(chan error, 2)}
	if s.ca, err = gateway.OpenCA(c); err != nil {
		return nil, nil, err
	}
	if s.audit, err = audit.Open(auditTarget(c)); err != nil {
		return nil, nil, err
	}
	if s.gateway, err = gateway.New(gateway.Options{Config: c, CA: s.ca, Log: s.log, Level: level, Audit: s.audit}); err != nil {
		return nil, nil, errors.Join(err, s.audit.Close())
	}
	if err := s.listen(ctx, c); err != nil {
		return nil, nil, errors.Join(err, s.stop(ctx))
	}
	return s, c, nil
}

// listen opens both listeners before either serves.
func (s *service) listen(ctx context.Context, c *rules.Config) error {
	var config net.ListenConfig
	proxy, err := config.Listen(ctx, "tcp", c.Proxy.Listen)
	if err != nil {
		return fmt.Errorf("proxy.listen: %w", err)
	}
	if c.Admin.Listen != "" {
		ln, err := config.Listen(ctx, "tcp", c.Admin.Listen)
		if err != nil {
			proxy.Close()
			return fmt.Errorf("admin.listen: %w", err)
		}
		s.adminAt = ln.Addr()
		s.gateway.Protect(s.adminAt)
		s.admin = admin.New(admin.Options{Gateway: s.gateway, Admin: c.Admin, Version: buildVersion(), Log: s.log, Reload: s.reload})
		go func() { s.failed <- s.admin.Serve(ln) }()
	}
	s.proxyAt = proxy.Addr()
	go func() { s.failed <- s.gateway.Serve(proxy) }()
	return nil
}

// reload takes up the config file as it is now.
func (s *service) reload() (gateway.Reloaded, error) {
	return s.gateway.Reload(func() (*rules.Config, error) { return rules.Load(s.config, os.LookupEnv) })
}

// drain stops the service; running transfers have drain_timeout to end.
func (s *service) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.gateway.Status().Config.Proxy.DrainTimeout)
	defer cancel()
	return s.stop(ctx)
}

// stop drains the gateway and closes everything, readiness last.
func (s *service) stop(ctx context.Context) error {
	err := s.gateway.Shutdown(ctx)
	if s.admin != nil {
		_ = s.admin.Close()
	}
	return errors.Join(err, s.audit.Close())
}

// serve is the run command.
func serve(ctx context.Context, path string, stderr io.Writer) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // Windows has none; the file and the API do the same there
	defer signal.Stop(hangup)
	signal.Ignore(syscall.SIGPIPE) // a log or audit pipe whose reader has gone must not end us; its writes fail
	s, c, err := start(ctx, path, stderr)
	if err != nil {
		return err
	}
	s.log.Info("started", "version", buildVersion(), "proxy", s.proxyAt.String(), "admin", address(s.adminAt),
		"config", c.Path, "revision", c.Revision, "ca_bundle", s.ca.BundlePath(), "ca_fingerprint_sha256", s.ca.Fingerprint())
	supervisor.Notify(s.log, "READY=1\nSTATUS=proxy "+s.proxyAt.String()+", admin "+address(s.adminAt))
	following, unfollow := context.WithCancel(ctx)
	var followed sync.WaitGroup
	defer followed.Wait()
	defer unfollow()
	followed.Go(func() { s.gateway.Follow(following, func() { _, _ = s.reload() }) }) // the gateway tells of errors
	for {
		select {
		case <-hangup:
			if err := s.audit.Reopen(); err != nil {
				s.log.Error("audit file not reopened, the old one is kept", "err", err)
			}
			_, _ = s.reload() // the gateway tells of errors
		case err := <-s.failed:
			return errors.Join(err, s.drain(ctx))
		case <-ctx.Done():
			supervisor.Notify(s.log, "STOPPING=1")
			s.log.Info("stopping, running transfers may end", "cause", context.Cause(ctx).Error(),
				"drain_timeout", s.gateway.Status().Config.Proxy.DrainTimeout.String())
			if err := s.drain(ctx); errors.Is(err, context.DeadlineExceeded) {
				s.log.Warn("stopped, transfers that took longer than drain_timeout were cut")
			} else if err != nil {
				return fmt.Errorf("stop: %w", err)
			}
			s.log.Info("stopped")
			return nil
		}
	}
}

// startForDemo serves the demo's config until the demo stops it.
func startForDemo(ctx context.Context, path string, stderr io.Writer) (*demo.Running, error) {
	s, _, err := start(ctx, path, stderr)
	if err != nil {
		return nil, err
	}
	return &demo.Running{
		ProxyAddr: s.proxyAt.String(), AdminAddr: address(s.adminAt), CAFile: s.ca.BundlePath(),
		Stop: func() error { return s.drain(ctx) },
	}, nil
}

func address(a net.Addr) string {
	if a == nil {
		return "off"
	}
	return a.String()
}

// auditTarget resolves a file path against the config's folder.
func auditTarget(c *rules.Config) string {
	switch t := c.Log.Audit; {
	case t == "stderr" || t == "stdout" || t == "off" || filepath.IsAbs(t):
		return t
	default:
		return filepath.Join(filepath.Dir(c.Path), t)
	}
}

func newLogger(l rules.Log, level slog.Leveler, w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if l.Format == "text" || l.Format == "auto" && isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&fs.ModeCharDevice != 0
}

// colored reports whether to write ANSI colours (no-color.org).
func colored(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && runtime.GOOS != "windows"
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
