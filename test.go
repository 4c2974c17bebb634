package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/gateway/admin"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// errTestFailed is a rule that does not work; its steps have been shown.
var errTestFailed = errors.New("the test failed")

// test is the test command: the steps of one rule, with the connections and
// credentials that run would use.
func test(ctx context.Context, path, target string, asJSON bool, stdout io.Writer) error {
	c, err := rules.Load(path, os.LookupEnv)
	if err != nil {
		return err
	}
	if r := c.Rule(target); r != nil {
		if _, wildcard := r.Host(); wildcard {
			return &usageError{fmt.Sprintf("rule %q is for many hosts", r.Name), "test the URL of one of them: " + strings.Replace(r.URL, "*", "HOST", 1)}
		}
		target = r.URL
	}
	if !strings.Contains(target, "://") {
		var names []string
		for _, r := range c.Rules {
			names = append(names, r.Name)
		}
		return &usageError{fmt.Sprintf("there is no rule %q", target), cmp.Or(rules.DidYouMean(target, names), "name a rule of the config, or give a URL")}
	}
	if c, err = tested(c, target); err != nil {
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

// tested returns the config with only the profile that a test of the URL needs:
// a refresh token that is used here may be lost to the gateway that runs.
func tested(c *rules.Config, target string) (*rules.Config, error) {
	e, err := c.Explain(http.MethodGet, strings.TrimSuffix(target, "/")+"/studies")
	if err != nil {
		return nil, &usageError{err.Error(), "name a rule of the config, or give a URL"}
	}
	c = c.Only(e.Profile)
	if p := c.Profiles[e.Profile]; p != nil {
		if r, ok := p.Settings.(*token.RefreshToken); ok && r.Rotation == "memory" {
			return nil, &usageError{
				fmt.Sprintf("profile %q keeps its refresh token in memory only, and a test would use it up", p.Name),
				"let the gateway that runs do it: POST /dicomweb-oauth/servers/NAME/test on its admin listener; or set rotation = \"write-back\"",
			}
		}
	}
	return c, nil
}

func healthCommand(config *cli.StringFlag, stdout io.Writer) *cli.Command {
	at := &cli.StringFlag{Name: "url", Usage: "ask the admin listener at `URL`, without a config: http://127.0.0.1:3129"}
	at.Action = func(_ *cli.Context, raw string) error {
		if u, err := url.Parse(raw); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return &usageError{"--url is not the URL of an admin listener", "such as: --url http://127.0.0.1:3129"}
		}
		return nil
	}
	return &cli.Command{
		Name: "health", Usage: "ask the gateway on this machine whether it is ready, for container health checks",
		UsageText: name + " health --config gateway.toml",
		Flags:     []cli.Flag{config, at},
		Action:    func(c *cli.Context) error { return health(c.Context, c.String("config"), c.String("url"), stdout) },
	}
}

// healthTimeout is below the patience of any container engine.
const healthTimeout = 3 * time.Second

// health is the health command.
func health(ctx context.Context, path, at string, stdout io.Writer) error {
	if at == "" {
		c, err := rules.Load(path, os.LookupEnv)
		if err != nil {
			return err
		}
		if c.Admin.Listen == "" {
			return &usageError{"[admin] listen is off, so there is nothing to ask", "set listen under [admin]"}
		}
		at = admin.URL(c.Admin)
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	at = strings.TrimSuffix(at, "/")
	detail, err := admin.Ready(ctx, at)
	if err != nil {
		return &hintedError{err, at + "/ shows what to change; if nothing answers there, start the gateway, or see its log"}
	}
	_, err = fmt.Fprintln(stdout, detail)
	return err
}
