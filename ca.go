package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/rules"
)

// caCommands are the commands below ca. They work on the folder; a gateway that
// runs takes up by itself what they make of it.
func caCommands(config, jsonFlag cli.Flag, stdout io.Writer) []*cli.Command {
	command := func(what, usage string, run func(*cli.Context, *rules.Config) error, flags ...cli.Flag) *cli.Command {
		return &cli.Command{
			Name: what, Usage: usage, UsageText: name + " ca " + what + " --config gateway.toml",
			Flags: append([]cli.Flag{config}, flags...),
			Action: func(c *cli.Context) error {
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
