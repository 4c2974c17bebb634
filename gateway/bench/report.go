package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/template"
	"time"
)

// pageTemplate is docs/benchmarks.md but for its numbers.
//
//go:embed benchmarks.md.tmpl
var pageTemplate string

// soakFile is a table that comes from elsewhere. The page includes it where it exists.
const soakFile = "gateway/bench/soak.md"

// promise is a figure that must hold.
type promise struct {
	Figure   string
	Reach    string
	Measured string
	Holds    string // "yes", "no", or "" where it was not measured
}

// page is what the template gets.
type page struct {
	Machine  [][2]string
	Took     time.Duration
	Rounds   int
	Size     string
	Promises []promise
	Small    []smallTable
	Bulk     []bulkTable
	Memory   []memoryRow
	Idle     []idleRow
	Config   []configRow
	Provider []providerRow
	Revoked  []revokedRow
	Orthanc  []orthancTableRow
	Soak     string
}

type smallTable struct {
	Kind string
	Rows []smallRow
}

type smallRow struct {
	Clients             int
	Peer                string
	PerSecond, ToDirect string
	P50, P99            string
	CPU, OursToOther    string
}

type bulkTable struct {
	Name string
	Rows []bulkRow
}

type bulkRow struct {
	Peer                                   string
	Throughput, ToDirect, OursToOther, CPU string
}

type configRow struct{ What, Few, Many, Ratio string }

type providerRow struct{ Provider, P50, P99 string }

type orthancTableRow struct {
	Load                 string
	RTT                  int64
	Without, With, Ratio string
	JobWithout, JobWith  string
}

// write writes the page, and shows the promises.
func (b *bench) write(ctx context.Context) error {
	p := b.page()
	p.Machine = machine(ctx)
	for _, promise := range p.Promises {
		if promise.Holds != "" {
			b.say("%-3s %s: %s (%s)", promise.Holds, promise.Figure, promise.Measured, promise.Reach)
		}
	}
	text, err := render(p)
	if err != nil || b.options.out == "" {
		return err
	}
	if err := os.WriteFile(b.options.out, text, 0o644); err != nil { //nolint:gosec // a page for everyone
		return err
	}
	b.say("wrote %s", b.options.out)
	return nil
}

func render(p page) ([]byte, error) {
	t, err := template.New("page").Parse(pageTemplate)
	if err != nil {
		return nil, fmt.Errorf("parse template: %w", err)
	}
	var text bytes.Buffer
	if err := t.Execute(&text, p); err != nil {
		return nil, fmt.Errorf("write page: %w", err)
	}
	return text.Bytes(), nil
}

func (b *bench) page() page {
	p := page{
		Took: b.took.Round(time.Second), Rounds: b.options.rounds, Size: bytesText(b.options.size),
		Promises: b.promises(), Memory: b.memory, Idle: b.idle, Revoked: b.revoked,
	}
	p.Small, p.Bulk = b.smallTables(), b.bulkTables()
	for _, name := range []string{manyRules, manyProfiles} {
		if l := b.find("config", name); l != nil {
			what := map[string]string{manyRules: "10 rules / 10,000 rules", manyProfiles: "1 profile / 1,000 profiles"}[name]
			p.Config = append(p.Config, configRow{
				what, microseconds(l.median(few, timePerRequest)), microseconds(l.median(many, timePerRequest)),
				decimal(l.ratio(many, few, timePerRequest)),
			})
		}
	}
	if l := b.find("provider", firstByte); l != nil {
		for _, name := range []string{alive, dead} {
			p.Provider = append(p.Provider, providerRow{name, microseconds(l.median(name, p50)), microseconds(l.median(name, p99))})
		}
	}
	for _, r := range b.orthancs {
		row := orthancTableRow{
			Load: r.Load, RTT: r.RTT.Milliseconds(), Without: milliseconds(median(slices.Clone(r.Without))),
			With: milliseconds(median(slices.Clone(r.With))), Ratio: decimal(r.ratio()),
		}
		if r.Load != orthancQIDO {
			row.JobWithout, row.JobWith = milliseconds(median(slices.Clone(r.JobWithout))), milliseconds(median(slices.Clone(r.JobWith)))
		}
		p.Orthanc = append(p.Orthanc, row)
	}
	if soak, err := os.ReadFile(soakFile); err == nil {
		p.Soak = strings.TrimSpace(string(soak))
	} else if !errors.Is(err, fs.ErrNotExist) {
		b.say("no soak table: %v", err)
	}
	return p
}

func (b *bench) smallTables() []smallTable {
	var tables []smallTable
	for _, kind := range []string{jobNewConnection, jobKeepAlive} {
		t := smallTable{Kind: kind}
		for _, clients := range []int{1, 16, 64} {
			l := b.find("small", smallName(kind, clients))
			if l == nil {
				continue
			}
			for _, peer := range l.peers {
				row := smallRow{
					Clients: clients, Peer: peer,
					PerSecond: whole(l.median(peer, perSecond)), ToDirect: decimal(l.ratio(peer, direct, perSecond)),
					P50: microseconds(l.median(peer, p50)), P99: microseconds(l.median(peer, p99)), CPU: "-", OursToOther: "-",
				}
				if peer != direct {
					row.CPU = microseconds(l.median(peer, cpuPerRequest))
				}
				if peer != gateway {
					row.OursToOther = decimal(l.ratio(gateway, peer, perSecond))
				}
				t.Rows = append(t.Rows, row)
			}
		}
		if t.Rows != nil {
			tables = append(tables, t)
		}
	}
	return tables
}

func (b *bench) bulkTables() []bulkTable {
	var tables []bulkTable
	for _, name := range bulkNames() {
		l := b.find("bulk", name)
		if l == nil {
			continue
		}
		t := bulkTable{Name: name}
		for _, peer := range l.peers {
			row := bulkRow{
				Peer: peer, Throughput: whole(l.median(peer, throughput) / 1e6), ToDirect: decimal(l.ratio(peer, direct, throughput)),
				CPU: "-", OursToOther: "-",
			}
			if peer != direct {
				row.CPU = decimal(l.median(peer, cpuPerByte) * 1e9)
			}
			if peer != gateway {
				row.OursToOther = decimal(l.ratio(gateway, peer, throughput))
			}
			t.Rows = append(t.Rows, row)
		}
		tables = append(tables, t)
	}
	return tables
}

func bulkNames() []string { return []string{wadoLength, wadoChunked, stowLength, stowChunked} }

// timePerRequest is how long a request takes where so many clients keep the gateway busy.
func timePerRequest(s sample) float64 { return s.Seconds / float64(s.Requests) }

// ratio is the median of the time without the gateway divided by the time with it, round by round.
func (r *orthancRow) ratio() float64 {
	var values []float64
	for i := range r.With {
		values = append(values, r.Without[i]/r.With[i])
	}
	return median(values)
}

// jobs returns with / without of a load's whole job at no added round-trip time.
func (b *bench) jobs(load string) []float64 {
	for _, r := range b.orthancs {
		if r.Load != load || r.RTT != 0 {
			continue
		}
		var values []float64
		for i := range r.JobWith {
			values = append(values, r.JobWith[i]/r.JobWithout[i])
		}
		return []float64{median(values)}
	}
	return nil
}

// promises compares what was measured with what must hold.
func (b *bench) promises() []promise {
	var all []promise
	least := func(figure string, values []float64, reach float64) {
		all = append(all, judge(figure, fmt.Sprintf("at least %s", decimal(reach)), values, slices.Min, func(v float64) bool { return v >= reach }))
	}
	most := func(figure string, values []float64, reach float64) {
		all = append(all, judge(figure, fmt.Sprintf("at most %s", decimal(reach)), values, slices.Max, func(v float64) bool { return v <= reach }))
	}
	orthanc := func(rtt time.Duration, load string) (without []float64) {
		for i := range b.orthancs {
			if r := &b.orthancs[i]; r.RTT == rtt && r.Load == load {
				without = append(without, r.ratio())
			}
		}
		return without
	}
	const far = 50 * time.Millisecond
	least("real Orthanc, QIDO-RS at 50 ms RTT: time without gateway / with", orthanc(far, orthancQIDO), 2.7)
	least("real Orthanc, 50 single-instance retrieves at 50 ms RTT: time without gateway / with", orthanc(far, orthancRetrieve), 2.3)
	for _, load := range []string{orthancQIDO, orthancStow27, orthancStow100} {
		var with []float64
		for _, ratio := range orthanc(0, load) {
			with = append(with, 1/ratio)
		}
		figure := "real Orthanc, " + load + " at 0 ms RTT: time with gateway / without"
		if load != orthancQIDO {
			most(figure+", the whole job as Orthanc's user sees it", b.jobs(load), 1.15)
			figure += ", until the server has answered"
		}
		most(figure, with, 1.15)
	}
	small := func(kind string, clients int) []float64 {
		return b.ratios("small", []string{smallName(kind, clients)}, nginx, perSecond)
	}
	least("new connection per request, 1 client: requests/s, ours / nginx", small(jobNewConnection, 1), 1)
	least("new connection per request, 16 clients: requests/s, ours / nginx", small(jobNewConnection, 16), 1)
	least("keep-alive, 16 clients: requests/s, ours / nginx", small(jobKeepAlive, 16), 0.9)
	least("keep-alive, 64 clients: requests/s, ours / nginx", small(jobKeepAlive, 64), 0.9)
	least("bulk: throughput, ours / nginx, the least of the four", b.ratios("bulk", bulkNames(), nginx, throughput), 1.1)
	toRelay := b.ratios("bulk", bulkNames(), relayed, throughput)
	least("bulk: throughput, ours / bare TLS copy, mean of the four", mean(toRelay), 1)
	least("bulk: throughput, ours / bare TLS copy, the least of the four", toRelay, 0.92)
	most("bulk: CPU per byte, ours / bare TLS copy, mean of the four", mean(b.ratios("bulk", bulkNames(), relayed, cpuPerByte)), 0.95)
	peak := slices.IndexFunc(b.memory, func(r memoryRow) bool { return r.Peer == gateway })
	if peak >= 0 {
		most("peak RSS over all bulk transfers, MiB", []float64{float64(b.memory[peak].KiB) / 1024}, 32)
	} else {
		most("peak RSS over all bulk transfers, MiB", nil, 32)
	}
	var idle []float64
	for _, r := range b.idle {
		if r.Connections == 10_000 {
			idle = append(idle, r.PerConnection)
		}
	}
	most("RSS per idle kept-alive connection at 10,000, KiB", idle, 38)
	all = append(all, b.revokedPromise())
	for _, c := range []struct{ name, figure string }{
		{manyRules, "time per request with 10,000 rules / with 10"}, {manyProfiles, "time per request with 1,000 profiles / with 1"},
	} {
		var ratio []float64
		if l := b.find("config", c.name); l != nil {
			ratio = append(ratio, l.ratio(many, few, timePerRequest))
		}
		most(c.figure, ratio, 1.05)
	}
	return append(all, b.providerPromise())
}

// judge makes a promise of the worst of some values.
func judge(figure, reach string, values []float64, worst func([]float64) float64, holds func(float64) bool) promise {
	p := promise{Figure: figure, Reach: reach, Measured: "not measured"}
	if len(values) > 0 {
		p.Measured, p.Holds = decimal(worst(values)), yes(holds(worst(values)))
	}
	return p
}

func yes(holds bool) string {
	if holds {
		return "yes"
	}
	return "no"
}

// mean is empty for nothing.
func mean(values []float64) []float64 {
	if len(values) == 0 {
		return nil
	}
	var sum float64
	for _, v := range values {
		sum += v
	}
	return []float64{sum / float64(len(values))}
}

// ratios returns ours divided by another's, for each of the loads that has run with both.
func (b *bench) ratios(group string, loads []string, other string, figure func(sample) float64) []float64 {
	var values []float64
	for _, name := range loads {
		if l := b.find(group, name); l != nil && l.has(other) {
			values = append(values, l.ratio(gateway, other, figure))
		}
	}
	return values
}

func (b *bench) revokedPromise() promise {
	p := promise{
		Figure: "STOW-RS of 32 MB, chunked, token revoked, upstream keeps the connection: answer; client bytes lost",
		Reach:  "200; 0", Measured: "not measured",
	}
	for _, r := range b.revoked {
		if r.Scenario == neverUsed {
			p.Measured, p.Holds = fmt.Sprintf("%d; %d", r.Status, r.Lost), yes(r.Status == 200 && r.Lost == 0)
		}
	}
	return p
}

// providerNoise is what a first byte may take longer, in the median and relative to the living provider, for it to count as
// no added time: a request that waited for the provider would take seconds.
const providerNoise = 0.05

func (b *bench) providerPromise() promise {
	p := promise{
		Figure: "added time of a first byte while the provider is dead and the token usable, median", Reach: "none", Measured: "not measured",
	}
	if l := b.find("provider", firstByte); l != nil {
		ratio := l.ratio(dead, alive, p50)
		p.Measured = fmt.Sprintf("%+.0f µs (%+.0f %%)", (l.median(dead, p50)-l.median(alive, p50))*1e6, (ratio-1)*100)
		p.Holds = yes(ratio <= 1+providerNoise)
	}
	return p
}

// machine tells what the benchmark ran on.
func machine(ctx context.Context) [][2]string {
	output := func(name string, arguments ...string) string {
		if path, err := exec.LookPath(name); err == nil {
			out, _ := exec.CommandContext(ctx, path, arguments...).CombinedOutput() // some say it with an error code
			line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
			return line
		}
		return "not installed"
	}
	fileValue := func(path, key string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			return "unknown"
		}
		_, value, _ := strings.Cut(string(text), key)
		value, _, _ = strings.Cut(value, "\n")
		return strings.TrimSpace(strings.TrimLeft(value, " \t:"))
	}
	orthanc := output("Orthanc", "--version")
	if orthanc == "not installed" {
		orthanc = output("/usr/sbin/Orthanc", "--version")
	}
	ram := fileValue("/proc/meminfo", "MemTotal")
	var kibibytes float64
	if _, err := fmt.Sscan(ram, &kibibytes); err == nil {
		ram = fmt.Sprintf("%.0f GiB", kibibytes/(1<<20))
	}
	return [][2]string{
		{"CPU", fmt.Sprintf("%s, %d cores", fileValue("/proc/cpuinfo", "model name"), runtime.NumCPU())},
		{"RAM", ram},
		{"Kernel", "Linux " + fileValue("/proc/sys/kernel/osrelease", "")},
		{"Go", strings.TrimPrefix(runtime.Version(), "go")},
		{"OpenSSL", strings.TrimPrefix(output("openssl", "version"), "OpenSSL ")},
		{"nginx", strings.TrimPrefix(output("nginx", "-v"), "nginx version: nginx/")},
		{"Orthanc", strings.TrimPrefix(orthanc, "Orthanc ")},
		{"mitmproxy", strings.TrimPrefix(output("mitmdump", "--version"), "Mitmproxy: ")},
	}
}

// How numbers are written.

func decimal(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "-"
	}
	if v >= 10 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func whole(v float64) string {
	text := fmt.Sprintf("%.0f", v)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func microseconds(seconds float64) string { return whole(seconds * 1e6) }

func milliseconds(seconds float64) string {
	if seconds < 0.1 {
		return fmt.Sprintf("%.1f", seconds*1e3)
	}
	return whole(seconds * 1e3)
}

func bytesText(n int64) string {
	if n%1_000_000_000 == 0 {
		return fmt.Sprintf("%d GB", n/1_000_000_000)
	}
	return fmt.Sprintf("%s MB", whole(float64(n)/1e6))
}
