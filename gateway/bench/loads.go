package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"
)

// cell is how long one load of small requests runs with one peer in one round.
func (b *bench) cell() time.Duration {
	if b.options.quick {
		return 100 * time.Millisecond
	}
	return time.Second
}

// peers starts all peers before one upstream; mitmproxy too if it is wanted.
func (b *bench) peers(ctx context.Context, withMitmproxy bool) ([]peer, error) {
	upstream, err := b.startUpstream()
	if err != nil {
		return nil, err
	}
	_, provider, err := b.startProvider(time.Hour)
	if err != nil {
		return nil, err
	}
	r, err := b.relayPeer(upstream)
	if err != nil {
		return nil, err
	}
	n, err := b.nginxPeer(ctx, upstream)
	if err != nil {
		return nil, err
	}
	g, _, err := b.gatewayPeer(ctx, gatewaySettings{upstreams: []string{upstream}, provider: provider})
	if err != nil {
		return nil, err
	}
	peers := []peer{b.directPeer(upstream), r, n, g}
	if b.options.base != "" {
		old, _, err := b.gatewayPeer(ctx, gatewaySettings{
			name: base, binary: b.options.base, upstreams: []string{upstream}, provider: provider,
		})
		if err != nil {
			return nil, err
		}
		peers = append(peers, old)
	}
	if withMitmproxy {
		m, err := b.mitmproxyPeer(ctx, upstream)
		if err != nil {
			return nil, err
		}
		peers = append(peers, m)
	}
	return slices.DeleteFunc(peers, func(p peer) bool { return p.name == "" }), nil
}

// runSmall runs small QIDO-RS requests, each on a new connection, which is Orthanc's pattern, and on kept ones.
func runSmall(ctx context.Context, b *bench) error {
	peers, err := b.peers(ctx, !b.options.quick)
	if err != nil {
		return err
	}
	clients := []int{1, 16, 64}
	if b.options.quick {
		clients = []int{1, 16}
	}
	var loads []*load
	for _, kind := range []string{jobNewConnection, jobKeepAlive} {
		for _, n := range clients {
			l := &load{
				group: "small", name: smallName(kind, n), peers: names(peers),
				job: job{Kind: kind, Clients: n, Duration: b.cell()},
			}
			if n != 16 { // mitmproxy is too slow to be worth more of the time
				l.peers = slices.DeleteFunc(l.peers, func(name string) bool { return name == mitmproxy })
			}
			loads = append(loads, l)
		}
	}
	return b.interleave(ctx, b.options.rounds, loads, peers)
}

func smallName(kind string, clients int) string { return fmt.Sprintf("%s, %d", kind, clients) }

// The bulk loads.
const (
	wadoLength  = "WADO-RS, with length"
	wadoChunked = "WADO-RS, chunked"
	stowLength  = "STOW-RS, with length"
	stowChunked = "STOW-RS, chunked"
)

// memoryRow is the memory that a peer has taken at most in all bulk transfers.
type memoryRow struct {
	Peer string
	KiB  int
}

// runBulk moves large bodies both ways.
func runBulk(ctx context.Context, b *bench) error {
	peers, err := b.peers(ctx, false)
	if err != nil {
		return err
	}
	bulk := func(name, kind string, chunked bool) *load {
		return &load{
			group: "bulk", name: name, peers: names(peers),
			job: job{Kind: kind, Clients: 1, Bytes: b.options.size, Chunked: chunked},
		}
	}
	loads := []*load{
		bulk(wadoLength, jobDownload, false), bulk(wadoChunked, jobDownload, true),
		bulk(stowLength, jobUpload, false), bulk(stowChunked, jobUpload, true),
	}
	if err := b.interleave(ctx, b.options.rounds, loads, peers); err != nil {
		return err
	}
	for _, p := range peers {
		if p.process == nil {
			continue
		}
		peak, err := p.process.memory("VmHWM")
		if err != nil {
			return err
		}
		b.memory = append(b.memory, memoryRow{p.name, peak})
	}
	return nil
}

// idleRow is the memory of a gateway with idle connections: medians over the rounds.
type idleRow struct {
	Connections   int
	PerConnection float64 // KiB
	Total         float64 // KiB
}

// idleRounds is lower than the usual number: ten thousand handshakes take long, and memory is steady.
const idleRounds = 3

// settle is how long connections are idle before the memory is read.
const settle = 2 * time.Second

// runIdle counts the memory of kept connections that do nothing, in a fresh gateway for each count.
func runIdle(ctx context.Context, b *bench) error {
	counts, rounds, wait := []int{1000, 10_000}, min(idleRounds, b.options.rounds), settle
	if b.options.quick {
		counts, wait = []int{100}, 0
	}
	counts = slices.DeleteFunc(counts, func(n int) bool {
		err := allows(n)
		if err != nil {
			b.say("  left out: %d connections: %v", n, err)
		}
		return err != nil
	})
	per, total := make(map[int][]float64), make(map[int][]float64)
	for round := range rounds {
		b.say("  round %d of %d", round+1, rounds)
		for _, n := range counts {
			before, after, err := b.idleMemory(ctx, n, wait)
			if err != nil {
				return err
			}
			per[n] = append(per[n], float64(after-before)/float64(n))
			total[n] = append(total[n], float64(after))
		}
	}
	for _, n := range counts {
		b.idle = append(b.idle, idleRow{n, median(per[n]), median(total[n])})
	}
	return nil
}

// idleMemory returns a gateway's resident memory in KiB before and with n idle connections.
func (b *bench) idleMemory(ctx context.Context, n int, wait time.Duration) (before, after int, err error) {
	upstream, err := b.startUpstream()
	if err != nil {
		return 0, 0, err
	}
	defer b.stopAll()
	_, provider, err := b.startProvider(time.Hour)
	if err != nil {
		return 0, 0, err
	}
	p, _, err := b.gatewayPeer(ctx, gatewaySettings{upstreams: []string{upstream}, provider: provider, maxConnections: n + 100})
	if err != nil {
		return 0, 0, err
	}
	if before, err = p.process.memory("VmRSS"); err != nil {
		return 0, 0, err
	}
	_, err = b.do(ctx, p, job{Kind: jobIdle, Clients: n}, func() (err error) {
		time.Sleep(wait)
		after, err = p.process.memory("VmRSS")
		return err
	})
	return before, after, err
}

// allows says whether a process may have so many connections. Go programs take all that the hard limit gives.
func allows(connections int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit of file descriptors: %w", err)
	}
	if want := uint64(connections + 200); limit.Max < want {
		return fmt.Errorf("a process may open %d files, and needs %d: raise the hard limit (ulimit -Hn)", limit.Max, want)
	}
	return nil
}

// The loads that compare a gateway with another one.
const (
	manyRules    = "rules"
	manyProfiles = "profiles"
	firstByte    = "first byte"
)

// The peers of these: the gateway with little, and with much.
const (
	few  = "few"
	many = "many"
)

// runConfig compares gateways that know much with gateways that know little.
func runConfig(ctx context.Context, b *bench) error {
	rules, profiles := [2]int{10, 10_000}, 1000
	if b.options.quick {
		rules, profiles = [2]int{10, 200}, 20
	}
	for _, c := range []struct {
		name      string
		few, many gatewaySettings
	}{
		{manyRules, gatewaySettings{rules: rules[0]}, gatewaySettings{rules: rules[1]}},
		{manyProfiles, gatewaySettings{rules: profiles, profiles: 1}, gatewaySettings{rules: profiles, profiles: profiles}},
	} {
		upstream, err := b.startUpstream()
		if err != nil {
			return err
		}
		_, provider, err := b.startProvider(time.Hour)
		if err != nil {
			return err
		}
		var peers []peer
		c.few.name, c.many.name = few, many
		for _, s := range []gatewaySettings{c.few, c.many} {
			s.upstreams, s.provider = []string{upstream}, provider
			p, _, err := b.gatewayPeer(ctx, s)
			if err != nil {
				return fmt.Errorf("%s %s: %w", s.name, c.name, err)
			}
			peers = append(peers, p)
		}
		l := &load{
			group: "config", name: c.name, peers: []string{few, many},
			job: job{Kind: jobKeepAlive, Clients: 16, Duration: b.cell()},
		}
		if err := b.interleave(ctx, 2*b.options.rounds, []*load{l}, peers); err != nil {
			return err
		}
		b.stopAll()
	}
	return nil
}

// tokenLife is that of the tokens of the provider that dies, for each round. The gateway renews a token at half of its life at
// the earliest, so the other half is the time to measure.
const tokenLife = 8 * time.Second

// The peers of the provider's death.
const (
	alive = "alive"
	dead  = "dead"
)

// runProvider compares a gateway whose provider hangs, with a token that is due to be renewed but still usable, to one
// whose provider is well. A provider that is stopped still takes connections and never answers: nothing takes longer.
func runProvider(ctx context.Context, b *bench) error {
	upstream, err := b.startUpstream()
	if err != nil {
		return err
	}
	life := time.Duration(b.options.rounds) * tokenLife
	if b.options.quick {
		life = 6 * time.Second // the half of it to wait, and the other half is plenty
	}
	_, well, err := b.startProvider(time.Hour)
	if err != nil {
		return err
	}
	stopped, hanging, err := b.startProvider(life)
	if err != nil {
		return err
	}
	a, _, err := b.gatewayPeer(ctx, gatewaySettings{name: alive, upstreams: []string{upstream}, provider: well})
	if err != nil {
		return err
	}
	d, admin, err := b.gatewayPeer(ctx, gatewaySettings{name: dead, upstreams: []string{upstream}, provider: hanging})
	if err != nil {
		return err
	}
	if err := stopped.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("stop the provider: %w", err)
	}
	left := func() (time.Duration, error) {
		status, err := b.gatewayStatus(ctx, admin)
		if err != nil || len(status.Profiles) != 1 {
			return 0, errors.Join(err, errors.New("no status of the profile"))
		}
		return time.Duration(status.Profiles[0].ExpiresInSeconds * float64(time.Second)), nil
	}
	if err := d.process.ready(ctx, func() error {
		if l, err := left(); err != nil || l > life/2-time.Second/2 {
			return errors.Join(err, errors.New("the token is not due to be renewed"))
		}
		return nil
	}); err != nil {
		return err
	}
	l := &load{
		group: "provider", name: firstByte, peers: []string{alive, dead},
		job: job{Kind: jobKeepAlive, Clients: 1, Duration: b.cell()},
	}
	if err := b.interleave(ctx, b.options.rounds, []*load{l}, []peer{a, d}); err != nil {
		return err
	}
	if rest, err := left(); err != nil || rest <= 0 {
		return errors.Join(err, fmt.Errorf("the token ended %v before the measurement", -rest))
	}
	return nil
}

// revokedRow is what became of an upload whose token had been revoked.
type revokedRow struct {
	Scenario string
	Status   int
	Lost     int64 // bytes that the client sent, and that no accepted request brought
}

// revokedSize is the size of the upload.
const revokedSize = 32 << 20

// The scenarios of the revoked token.
const (
	neverUsed    = "token not used before"
	acceptedLast = "token accepted a moment before"
)

// runRevoked uploads with a token that the upstream has just begun to refuse, in a fresh gateway each.
func runRevoked(ctx context.Context, b *bench) error {
	for _, scenario := range []string{neverUsed, acceptedLast} {
		row, err := b.revokedUpload(ctx, scenario)
		if err != nil {
			return err
		}
		b.revoked = append(b.revoked, row)
		b.say("  %s: status %d, %d bytes lost", row.Scenario, row.Status, row.Lost)
	}
	return nil
}

func (b *bench) revokedUpload(ctx context.Context, scenario string) (row revokedRow, err error) {
	row.Scenario = scenario
	upstream, err := b.startUpstream()
	if err != nil {
		return row, err
	}
	defer b.stopAll()
	_, provider, err := b.startProvider(time.Hour)
	if err != nil {
		return row, err
	}
	p, _, err := b.gatewayPeer(ctx, gatewaySettings{upstreams: []string{upstream}, provider: provider})
	if err != nil {
		return row, err
	}
	j := job{Kind: jobUnauthorized, Clients: 1, Bytes: revokedSize, Chunked: true, Warm: scenario == acceptedLast}
	s, err := b.do(ctx, p, j, func() error {
		var issued int64
		if err := b.control(ctx, "GET", provider, "/bench/issued", &issued); err != nil {
			return err
		}
		return b.control(ctx, "POST", upstream, fmt.Sprintf("/bench/revoke?%d", issued+1), nil)
	})
	if err != nil {
		return row, err
	}
	var seen observation
	if err := b.control(ctx, "GET", upstream, "/bench/observation", &seen); err != nil {
		return row, err
	}
	row.Status, row.Lost = s.Status, s.Bytes
	if seen.Bytes == s.Bytes && seen.CRC == s.CRC {
		row.Lost = 0
	}
	return row, nil
}
