// Command orthanc-dicomweb-oauth is a forward proxy that gives Orthanc's
// DICOMweb client the OAuth 2.0 credentials it cannot get itself. See README.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/gateway/admin"
	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/gateway/demo"
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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(supervisor.Run(ctx, name, os.Stderr, func(ctx context.Context, stderr io.Writer) int {
		return run(ctx, os.Args, os.Stdout, stderr)
	}))
}

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
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
	return &cli.App{
		Name:            name,
		Usage:           "OAuth 2.0 for Orthanc's DICOMweb client, as a forward proxy",
		HideVersion:     true,
		HideHelpCommand: true,
		Writer:          stdout,
		ErrWriter:       stderr,
		ExitErrHandler:  func(*cli.Context, error) {}, // run decides about the exit code
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return &usageError{err.Error(), "see " + name + " --help"}
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return &usageError{fmt.Sprintf("unknown command %q", c.Args().First()), "see " + name + " --help"}
			}
			return cli.ShowAppHelp(c)
		},
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
						return demo.Serve(c.Context, folder, demo.Options{Out: stdout, Color: isTerminal(stdout) && os.Getenv("NO_COLOR") == ""})
					}
					return demo.Run(c.Context, demo.Options{
						Out: stdout, Color: isTerminal(stdout) && os.Getenv("NO_COLOR") == "",
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
				Name: "version", Usage: "print the version", OnUsageError: badFlag("version"),
				Action: func(*cli.Context) error {
					_, err := fmt.Fprintln(stdout, name, buildVersion())
					return err
				},
			},
		},
	}
}

func badFlag(command string) cli.OnUsageErrorFunc {
	return func(_ *cli.Context, err error, _ bool) error {
		return &usageError{err.Error(), fmt.Sprintf("see %s %s --help", name, command)}
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
	show := func(s gateway.Step) {
		mark := "ok    "
		if !s.OK {
			mark = "FAILED"
		}
		fmt.Fprintf(stdout, "%-6s %s %6.0f ms  %s\n", s.Step, mark, s.Milliseconds, s.Detail)
		if s.Hint != "" {
			fmt.Fprintf(stdout, "       hint: %s\n", s.Hint)
		}
	}
	if asJSON {
		show = nil
	}
	report, err := g.Probe(ctx, target, show)
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

// service is a gateway with its admin listener, both serving.
type service struct {
	gateway *gateway.Gateway
	ca      *certs.CA
	audit   *audit.Log
	admin   *http.Server
	log     *slog.Logger
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
	s := &service{log: newLogger(c.Log, stderr), failed: make(chan error, 2)}
	if s.ca, err = gateway.OpenCA(c); err != nil {
		return nil, nil, err
	}
	if s.audit, err = audit.Open(auditTarget(c)); err != nil {
		return nil, nil, err
	}
	if s.gateway, err = gateway.New(gateway.Options{Config: c, CA: s.ca, Log: s.log, Audit: s.audit}); err != nil {
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
		s.admin = admin.New(admin.Options{Gateway: s.gateway, Admin: c.Admin, Version: buildVersion(), Log: s.log})
		go func() { s.failed <- s.admin.Serve(ln) }()
	}
	s.proxyAt = proxy.Addr()
	go func() { s.failed <- s.gateway.Serve(proxy) }()
	return nil
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
	s, c, err := start(ctx, path, stderr)
	if err != nil {
		return err
	}
	s.log.Info("started", "version", buildVersion(), "proxy", s.proxyAt.String(), "admin", address(s.adminAt),
		"config", c.Path, "revision", c.Revision, "ca_bundle", s.ca.BundlePath(), "ca_fingerprint_sha256", s.ca.Fingerprint())
	supervisor.Notify(s.log, "READY=1\nSTATUS=proxy "+s.proxyAt.String()+", admin "+address(s.adminAt))
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-hangup:
			if err := s.audit.Reopen(); err != nil {
				s.log.Error("audit file not reopened, the old one is kept", "err", err)
			}
		case err := <-s.failed:
			drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.Proxy.DrainTimeout)
			defer cancel()
			return errors.Join(err, s.stop(drain))
		case <-ctx.Done():
			supervisor.Notify(s.log, "STOPPING=1")
			s.log.Info("stopping, running transfers may end", "cause", context.Cause(ctx).Error(), "drain_timeout", c.Proxy.DrainTimeout.String())
			drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.Proxy.DrainTimeout)
			defer cancel()
			if err := s.stop(drain); errors.Is(err, context.DeadlineExceeded) {
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
	s, c, err := start(ctx, path, stderr)
	if err != nil {
		return nil, err
	}
	return &demo.Running{
		ProxyAddr: s.proxyAt.String(), AdminAddr: address(s.adminAt), CAFile: s.ca.BundlePath(),
		Stop: func() error {
			drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.Proxy.DrainTimeout)
			defer cancel()
			return s.stop(drain)
		},
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

func newLogger(l rules.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(l.Level)) // checked at load
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
