package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"orthanc-dicomweb-oauth/gateway/orthanc"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/rules/orthancjson"
	"orthanc-dicomweb-oauth/token"
)

// orthancCommand is what sets Orthanc's side up.
func orthancCommand(config *cli.StringFlag, jsonFlag *cli.BoolFlag, stdout, stderr io.Writer) *cli.Command {
	proxyHost := &cli.StringFlag{Name: "proxy-host", Usage: "`NAME` under which Orthanc reaches the gateway (default: the host of listen)"}
	proxyHost.Action = func(_ *cli.Context, host string) error {
		if _, err := netip.ParseAddr(host); err != nil && strings.ContainsAny(host, "/:@[] ") {
			return &usageError{fmt.Sprintf("--proxy-host %q is not a host", host), "give its name or address alone; the port is that of listen"}
		}
		return nil
	}
	return &cli.Command{
		Name: "orthanc", Usage: "set Orthanc up: print its settings, or register the DICOMweb servers in a running one",
		UsageText: name + " orthanc config\n" + name + " orthanc register --url http://localhost:8042", Action: group("orthanc"),
		Subcommands: []*cli.Command{
			{
				Name: "config", Usage: "print what orthanc.json needs, as one JSON object to merge",
				UsageText: name + " orthanc config --config gateway.toml",
				Flags: []cli.Flag{
					config,
					&cli.StringFlag{Name: "format", Usage: "json, or env for the image orthancteam/orthanc: `FORMAT`", Value: "json"},
					proxyHost,
					&cli.BoolFlag{Name: "reveal", Usage: "print user and password of the proxy, in clear"},
				},
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
