package gateway

import (
	"context"
	"sync"
)

// inflight counts the requests and tunnels under way, so that a stop can wait
// for them. Make it with newInflight.
type inflight struct {
	mu      sync.Mutex
	n       int
	stopped bool
	zero    chan struct{} // closed when stopped and n is 0

	ended context.Context // over when what is left is to be cut
	cut   context.CancelFunc
}

func newInflight() *inflight {
	f := &inflight{zero: make(chan struct{})}
	f.ended, f.cut = context.WithCancel(context.Background())
	return f
}

// enter reports whether new work may begin; leave must follow.
func (f *inflight) enter() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return false
	}
	f.n++
	return true
}

func (f *inflight) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n--; f.n == 0 && f.stopped {
		close(f.zero)
	}
}

func (f *inflight) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

// drain lets nothing new begin and returns a channel that is closed when all
// that had begun has ended.
func (f *inflight) drain() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.stopped {
		f.stopped = true
		if f.n == 0 {
			close(f.zero)
		}
	}
	return f.zero
}

func (f *inflight) draining() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stopped
}
