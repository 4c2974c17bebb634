package gateway

import "sync"

// inflight counts the requests and tunnels under way, so that a stop can wait
// for them. Make it with newInflight.
type inflight struct {
	mu      sync.Mutex
	n       int
	stopped bool
	zero    chan struct{} // closed when stopped and n is 0
	ended   chan struct{} // closed when what is left is to be cut
	once    sync.Once
}

func newInflight() *inflight {
	return &inflight{zero: make(chan struct{}), ended: make(chan struct{})}
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

// cut tells tunnels to end now.
func (f *inflight) cut() { f.once.Do(func() { close(f.ended) }) }
