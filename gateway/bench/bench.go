package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// bench is one run. It is used by one goroutine.
type bench struct {
	options   options
	dir       string // all files of the run; removed at its end
	pki       pki
	secret    string // the end of every token
	instances string // folder of the DICOM files that the upstream serves
	binary    string // the gateway
	http      *http.Client
	processes []*process
	started   int // processes so far
	took      time.Duration

	loads    []*load
	memory   []memoryRow
	idle     []idleRow
	revoked  []revokedRow
	orthancs []orthancRow
}

func newBench(ctx context.Context, o options) (b *bench, err error) {
	b = &bench{options: o, binary: o.bin}
	if b.dir, err = os.MkdirTemp("", "gateway-bench-"); err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if err := os.Chmod(b.dir, 0o711); err != nil { // nginx's workers are of another user, and open what is in it
		return b, err
	}
	if b.pki, err = newPKI(b.dir); err != nil {
		return b, err
	}
	conf, err := clientConfig(b.pki.CAFile, "localhost")
	if err != nil {
		return b, err
	}
	b.http = &http.Client{Timeout: 10 * time.Minute, Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
	for len(b.secret) < 1200 {
		b.secret += rand.Text()
	}
	b.instances = filepath.Join(b.dir, "instances")
	if err := os.Mkdir(b.instances, 0o700); err != nil {
		return b, err
	}
	if b.binary == "" {
		b.say("building the gateway")
		b.binary = filepath.Join(b.dir, "orthanc-dicomweb-oauth")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.binary, "orthanc-dicomweb-oauth")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return b, fmt.Errorf("build the gateway: %w\n%s", err, out)
		}
	}
	for _, path := range []*string{&b.binary, &b.options.base} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil { // the programs run in another folder
			return b, err
		}
	}
	return b, nil
}

// close ends all processes and removes all files.
func (b *bench) close() error {
	b.stopAll()
	return os.RemoveAll(b.dir)
}

// stopAll ends all processes.
func (b *bench) stopAll() {
	var all sync.WaitGroup
	for _, p := range b.processes {
		all.Go(p.stop)
	}
	all.Wait()
	b.processes = nil
}

// say shows progress.
func (b *bench) say(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", arguments...)
}

// startUpstream starts the DICOMweb server.
func (b *bench) startUpstream() (address string, err error) {
	_, address, err = b.startServer("upstream", upstreamSettings{PKI: b.pki, Secret: b.secret, Instances: b.instances})
	return local(address), err
}

// startProvider starts the identity provider.
func (b *bench) startProvider(lifetime time.Duration) (p *process, address string, err error) {
	p, address, err = b.startServer("provider", providerSettings{PKI: b.pki, Secret: b.secret, Lifetime: lifetime})
	return p, local(address), err
}

// local is an address by the name that the certificates carry.
func local(address string) string { return strings.Replace(address, "127.0.0.1", "localhost", 1) }

// numeric is the opposite of local, to dial without a resolver.
func numeric(address string) string { return strings.Replace(address, "localhost", "127.0.0.1", 1) }

// peer is one way from the client to the upstream.
type peer struct {
	name    string
	target  target
	process *process // nil: there is nothing in between
}

// sample is one run of one load with one peer.
type sample struct {
	outcome

	CPU float64 // seconds of the peer's process
}

// jobLimit is how long a job may take before it counts as stuck.
const jobLimit = 3 * time.Minute

// do runs a job with a peer. It calls atGo, if that is not nil, when the client is warm.
func (b *bench) do(ctx context.Context, p peer, j job, atGo func() error) (s sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, jobLimit)
	defer cancel()
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s with %d clients through %s: %w", j.Kind, j.Clients, p.name, errors.Join(ctx.Err(), err))
		}
	}()
	if err := ctx.Err(); err != nil {
		return s, err
	}
	j.Target = p.target
	client, err := b.startRole("client", j)
	if err != nil {
		return s, err
	}
	defer func() { // a client is not kept
		client.stop()
		b.processes = slices.DeleteFunc(b.processes, func(o *process) bool { return o == client })
	}()
	defer context.AfterFunc(ctx, client.stop)()
	var warm string
	if err := client.read(&warm); err != nil {
		return s, err
	}
	if atGo != nil {
		if err := atGo(); err != nil {
			return s, err
		}
	}
	cpu := func() (float64, error) { return 0, nil }
	if p.process != nil {
		cpu = p.process.cpu
	}
	before, err := cpu()
	if err != nil {
		return s, err
	}
	if _, err := fmt.Fprintln(client.in, "go"); err != nil {
		return s, err
	}
	if err := client.read(&s.outcome); err != nil {
		return s, err
	}
	after, err := cpu()
	s.CPU = after - before
	return s, err
}

// load is one thing that is measured with several peers, over all rounds.
type load struct {
	group   string
	name    string
	job     job
	peers   []string            // in the order of the table
	samples map[string][]sample // by peer, one for each round
}

// interleave runs each load with each of its peers, round after round. Each round begins with another peer, so that none
// always follows the same one.
func (b *bench) interleave(ctx context.Context, rounds int, loads []*load, peers []peer) error {
	for _, l := range loads {
		l.samples = make(map[string][]sample)
	}
	for round := range rounds {
		b.say("  round %d of %d", round+1, rounds)
		for _, l := range loads {
			for i := range peers {
				p := peers[(i+round)%len(peers)]
				if !slices.Contains(l.peers, p.name) {
					continue
				}
				s, err := b.do(ctx, p, l.job, nil)
				if err != nil {
					return err
				}
				l.samples[p.name] = append(l.samples[p.name], s)
			}
		}
	}
	b.loads = append(b.loads, loads...)
	return nil
}

// has says whether the load was measured with this peer.
func (l *load) has(peer string) bool { return len(l.samples[peer]) > 0 }

// median is the median of a figure of a peer over the rounds.
func (l *load) median(peer string, figure func(sample) float64) float64 {
	var values []float64
	for _, s := range l.samples[peer] {
		values = append(values, figure(s))
	}
	return median(values)
}

// ratio is the median over the rounds of a figure of one peer divided by that of another.
func (l *load) ratio(peer, other string, figure func(sample) float64) float64 {
	var values []float64
	for i, s := range l.samples[peer] {
		values = append(values, figure(s)/figure(l.samples[other][i]))
	}
	return median(values)
}

// median sorts its argument. Of nothing it is zero.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	middle := len(values) / 2
	if len(values)%2 == 1 {
		return values[middle]
	}
	return (values[middle-1] + values[middle]) / 2
}

// The figures of a sample.
func perSecond(s sample) float64     { return float64(s.Requests) / s.Seconds }
func throughput(s sample) float64    { return float64(s.Bytes) / s.Seconds }
func cpuPerRequest(s sample) float64 { return s.CPU / float64(s.Requests) }
func cpuPerByte(s sample) float64    { return s.CPU / float64(s.Bytes) }
func p50(s sample) float64           { return s.P50 }
func p99(s sample) float64           { return s.P99 }

// find returns the load of a group with a name, or nil if it has not run.
func (b *bench) find(group, name string) *load {
	i := slices.IndexFunc(b.loads, func(l *load) bool { return l.group == group && l.name == name })
	if i < 0 {
		return nil
	}
	return b.loads[i]
}

func names(peers []peer) []string {
	var names []string
	for _, p := range peers {
		names = append(names, p.name)
	}
	return names
}
