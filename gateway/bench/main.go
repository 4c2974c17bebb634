// Command bench measures the gateway side by side with its peers and writes docs/benchmarks.md: `make bench`.
//
// One program plays every part that is not under test. It starts itself again for each of them, so that each is a process
// with CPU time of its own: the client, the DICOMweb server, the identity provider, the delaying forwarder, and the bare
// TLS-to-TLS copy. The gateway, nginx, mitmproxy and Orthanc run as their own programs. All is on loopback, on Linux.
//
// A round runs every peer of one load, one after the other, each round beginning with another peer. What is told are medians
// over the rounds; a ratio is the median of the ratios within each round.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// defaultOut is where the page goes.
const defaultOut = "docs/benchmarks.md"

// options are the command line.
type options struct {
	rounds int
	size   int64 // of a bulk body, in bytes
	quick  bool
	loads  []string // which groups to run; empty runs all
	bin    string   // the gateway's binary; empty builds it
	base   string   // another binary of it, to compare with; empty for none
	out    string   // where the page goes; empty writes none
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == roleArgument {
		exit(playRole(os.Args[2], os.Args[3]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := parseOptions(os.Args[1:])
	if err == nil {
		err = run(ctx, o)
	}
	exit(err)
}

func exit(err error) {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseOptions(arguments []string) (options, error) {
	var o options
	var loads string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.rounds, "rounds", 5, "`how often` each load runs with each peer")
	f.Int64Var(&o.size, "size", 1_000_000_000, "`bytes` of a bulk body")
	f.BoolVar(&o.quick, "quick", false, "one short round that only shows that all works: no mitmproxy, no Orthanc, no page")
	f.StringVar(&loads, "loads", "", "only these `groups`, with commas: "+strings.Join(groupNames(), ","))
	f.StringVar(&o.bin, "bin", "", "measure this gateway `binary` instead of building one")
	f.StringVar(&o.base, "base", "", "run small and bulk with this `binary` of the gateway too, as the peer \"base\"")
	f.StringVar(&o.out, "out", defaultOut, "write the page to this `file`; empty writes none. With -loads it goes to standard output instead")
	if err := f.Parse(arguments); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	if loads != "" {
		o.loads = strings.Split(loads, ",")
		if o.out == defaultOut { // a page with gaps is for the eye only
			o.out = "/dev/stdout"
		}
	}
	for _, name := range o.loads {
		if !slices.Contains(groupNames(), name) {
			return o, fmt.Errorf("unknown load %q; there are %s", name, strings.Join(groupNames(), ", "))
		}
	}
	if o.rounds < 1 || o.size < 1 {
		return o, errors.New("-rounds and -size must be positive")
	}
	if o.quick {
		o.rounds, o.size, o.out = 1, min(o.size, 16<<20), ""
	}
	return o, nil
}

// group is a part of the benchmark that can be selected.
type group struct {
	name string
	slow bool // left out by -quick
	run  func(context.Context, *bench) error
}

func groups() []group {
	return []group{
		{name: "small", run: runSmall},
		{name: "bulk", run: runBulk},
		{name: "idle", run: runIdle},
		{name: "config", run: runConfig},
		{name: "provider", run: runProvider},
		{name: "revoked", run: runRevoked},
		{name: "orthanc", run: runOrthanc, slow: true},
	}
}

func groupNames() []string {
	var names []string
	for _, g := range groups() {
		names = append(names, g.name)
	}
	return names
}

// run measures and writes the page.
func run(ctx context.Context, o options) (err error) {
	started := time.Now()
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	for _, g := range groups() {
		if len(o.loads) > 0 && !slices.Contains(o.loads, g.name) || o.quick && g.slow {
			continue
		}
		b.say("%s", g.name)
		if failure := g.run(ctx, b); failure != nil { // the others are worth having
			err = errors.Join(err, fmt.Errorf("%s: %w", g.name, failure))
			b.say("  failed: %v", failure)
		}
		b.stopAll()
		if ctx.Err() != nil {
			return err
		}
	}
	b.took = time.Since(started)
	b.say("took %v", b.took.Round(time.Second))
	if o.quick {
		return err
	}
	return errors.Join(err, b.write(ctx))
}
