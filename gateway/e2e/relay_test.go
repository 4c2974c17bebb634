//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A relay passes TCP connections on to a server, with the faults that a test sets. It is ours, and not a module such as
// toxiproxy, because that would bring an HTTP API, a logger and a metrics client into go.mod for these few lines.
type relay struct {
	address string // localhost:PORT
	target  string

	mu       sync.Mutex
	fault    fault
	changed  chan struct{} // closed when the fault is replaced
	listener net.Listener  // nil while down
	pairs    map[*pair]struct{}
}

// fault is what happens to the bytes of both directions. The zero fault is none.
type fault struct {
	latency   time.Duration // each piece arrives so much later
	rate      int           // bytes per second
	hold      bool          // nothing arrives, and nobody is told
	reset     bool          // a connection is reset by its next byte
	cutAfter  int64         // a connection is reset by so many bytes in one direction
	slowClose time.Duration // the end of a stream arrives so much later than its last byte
	down      bool          // connections are refused, and the open ones reset
}

// startRelay starts a relay to a server of this machine, which need not listen yet.
func startRelay(t *testing.T, target string, f fault) *relay {
	t.Helper()
	r := &relay{
		address: fmt.Sprintf("localhost:%d", relayPort(t)), target: target,
		fault: fault{down: true}, changed: make(chan struct{}), pairs: make(map[*pair]struct{}),
	}
	r.set(t, f)
	t.Cleanup(func() { r.set(t, fault{down: true}) })
	return r
}

// relayPorts are the ports that relays have taken.
var relayPorts sync.Map

// relayPort returns a port that nobody takes while the relay is down: freePorts has another range.
func relayPort(t *testing.T) int {
	t.Helper()
	for {
		port := 10000 + rand.IntN(10000)
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		_ = l.Close()
		if _, taken := relayPorts.LoadOrStore(port, true); !taken {
			return port
		}
	}
}

// relayTo starts a relay to the server of a URL, and returns the URL with the relay's address in it.
func relayTo(t *testing.T, server string, f fault) (*relay, string) {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	r := startRelay(t, u.Host, f)
	u.Host = r.address
	return r, u.String()
}

// set replaces the fault, for the connections that there are too. It counts for cutAfter from here on.
func (r *relay) set(t *testing.T, f fault) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
	close(r.changed)
	r.changed = make(chan struct{})
	for p := range r.pairs {
		p.up.Store(0)
		p.back.Store(0)
		if f.down {
			p.reset()
		}
	}
	switch {
	case f.down && r.listener != nil:
		_ = r.listener.Close()
		r.listener = nil
	case !f.down && r.listener == nil:
		listener, err := net.Listen("tcp4", "127.0.0.1"+r.address[len("localhost"):])
		if err != nil {
			t.Fatal(err)
		}
		r.listener = listener
		go r.serve(listener)
	}
}

func (r *relay) now() (fault, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fault, r.changed
}

func (r *relay) serve(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			server, err := net.Dial("tcp4", r.target)
			if err != nil {
				abort(client)
				return
			}
			p := &pair{relay: r, client: client, server: server, ended: make(chan struct{})}
			r.mu.Lock()
			r.pairs[p] = struct{}{}
			if r.fault.down {
				p.reset()
			}
			r.mu.Unlock()
			var both sync.WaitGroup
			both.Go(func() { p.pump(server, client, &p.up) })
			both.Go(func() { p.pump(client, server, &p.back) })
			both.Wait()
			p.reset()
			r.mu.Lock()
			delete(r.pairs, p)
			r.mu.Unlock()
		}()
	}
}

// pair is one connection through the relay.
type pair struct {
	relay          *relay
	client, server net.Conn
	up, back       atomic.Int64 // bytes since the fault was set
	once           sync.Once
	ended          chan struct{}
}

// reset ends both sides with a RST, unless they have ended already.
func (p *pair) reset() {
	p.once.Do(func() {
		close(p.ended)
		abort(p.client)
		abort(p.server)
	})
}

func abort(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

func (p *pair) pump(dst, src net.Conn, passed *atomic.Int64) {
	buffer := make([]byte, 32<<10)
	for {
		piece := buffer
		if f, _ := p.relay.now(); f.rate > 0 {
			piece = buffer[:min(len(buffer), max(1, f.rate/50))]
		}
		n, readErr := src.Read(piece)
		f, changed := p.relay.now()
		for f.hold {
			if !p.wait(0, changed) {
				return
			}
			f, changed = p.relay.now()
		}
		if n > 0 {
			delay := f.latency
			if f.rate > 0 {
				delay += time.Duration(n) * time.Second / time.Duration(f.rate)
			}
			if !p.wait(delay, nil) {
				return
			}
			if f.reset || f.cutAfter > 0 && passed.Add(int64(n)) > f.cutAfter {
				p.reset()
				return
			}
			if _, err := dst.Write(piece[:n]); err != nil {
				p.reset()
				return
			}
		}
		if errors.Is(readErr, io.EOF) {
			if p.wait(f.slowClose, nil) {
				_ = dst.(*net.TCPConn).CloseWrite()
			}
			return
		}
		if readErr != nil {
			p.reset()
			return
		}
	}
}

// wait waits for the delay, or where there is a channel for that. It returns false when the connection has ended.
func (p *pair) wait(delay time.Duration, until <-chan struct{}) bool {
	var over <-chan time.Time
	if until == nil {
		if delay == 0 {
			return true
		}
		over = time.After(delay)
	}
	select {
	case <-over:
	case <-until:
	case <-p.ended:
		return false
	}
	return true
}
