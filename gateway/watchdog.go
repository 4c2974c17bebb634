package gateway

import (
	"sync"
	"sync/atomic"
	"time"
)

// watchdog calls fire when nothing has been touched for limit while it is
// started. It costs a touch no more than a clock reading. newWatchdog makes one
// that is paused. After stop has returned, fire does not run.
type watchdog struct {
	limit time.Duration
	fire  func()
	base  time.Time
	last  atomic.Int64 // nanoseconds since base

	mu    sync.Mutex // held while fire runs
	on    bool
	timer *time.Timer // nil: not started yet
}

func newWatchdog(limit time.Duration, fire func()) *watchdog {
	return &watchdog{limit: limit, fire: fire, base: time.Now()}
}

// start begins or resumes watching.
func (w *watchdog) start() {
	w.touch()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on = true
	if w.timer == nil {
		w.timer = time.AfterFunc(w.limit, w.check)
		return
	}
	w.timer.Reset(w.limit)
}

// touch tells that something moved.
func (w *watchdog) touch() { w.last.Store(int64(time.Since(w.base))) }

// stop pauses watching.
func (w *watchdog) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on = false
	if w.timer != nil {
		w.timer.Stop()
	}
}

func (w *watchdog) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on {
		return
	}
	idle := time.Since(w.base) - time.Duration(w.last.Load())
	if idle >= w.limit {
		w.fire()
		return
	}
	w.timer.Reset(w.limit - idle)
}
