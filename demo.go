package main

import (
	"context"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"orthanc-dicomweb-oauth/gateway/demo"
)

func demoCommand(stdout, stderr io.Writer) *cli.Command {
	lifetime := &cli.DurationFlag{Name: "token-lifetime", Usage: "how long the provider's tokens live", Value: 12 * time.Second}
	lifetime.Action = func(_ *cli.Context, d time.Duration) error {
		if d < time.Second {
			return &usageError{"--token-lifetime " + d.String() + " is too short", "give at least 1s"}
		}
		return nil
	}
	return &cli.Command{
		Name: "demo", Usage: "show the whole job with an embedded provider and DICOMweb server",
		UsageText: name + " demo",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "orthanc", Usage: "also send with a real Orthanc: auto, off or its `PATH`", Value: demo.OrthancAuto},
			lifetime,
			&cli.StringFlag{Name: "servers", Usage: "only the provider and the DICOMweb server, for a gateway of your own; what it needs goes into `FOLDER`"},
			&cli.BoolFlag{Name: "once", Usage: "end after the story instead of serving on"},
		},
		Action: func(c *cli.Context) error {
			o := demo.Options{Out: stdout, Color: colored(stdout)}
			if !c.IsSet("servers") {
				o.Orthanc, o.TokenLifetime, o.Once = c.String("orthanc"), c.Duration("token-lifetime"), c.Bool("once")
				o.Start = func(ctx context.Context, path string) (*demo.Running, error) { return startForDemo(ctx, path, stderr) }
				return demo.Run(c.Context, o)
			}
			for _, flag := range []string{"orthanc", "once"} {
				if c.IsSet(flag) {
					return &usageError{"--" + flag + " has no meaning with --servers", "remove one of them"}
				}
			}
			if c.String("servers") == "" {
				return &usageError{"--servers is empty", "name the folder for what your gateway needs"}
			}
			if c.IsSet("token-lifetime") {
				o.TokenLifetime = c.Duration("token-lifetime")
			}
			return demo.Serve(c.Context, c.String("servers"), o)
		},
	}
}
