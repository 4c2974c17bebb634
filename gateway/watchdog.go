package gateway

import (
	"sync/atomic"
	"time"
)

// watchdog calls fire when nothing has been touched for limit while it is
// started. It costs a touch no more than a clock reading. The zero value is not
// usable; newWatchdog makes one that is paused.
type watchdog struct {
	limit time.Duration
	fire  func()
	base  time.Time
	last  atomic.Int64 // nanoseconds since base
	on    atomic.Bool
	timer *time.Timer
}

func newWatchdog(limit time.Duration, fire func()) *watchdog {
	w := &watchdog{limit: limit, fire: fire, base: time.Now()}
	w.timer = time.AfterFunc(limit, w.check)
	w.timer.Stop()
	return w
}

// start begins or resumes watching.
func (w *watchdog) start() {
	w.touch()
	w.on.Store(true)
	w.timer.Reset(w.limit)
}

// touch tells that something moved.
func (w *watchdog) touch() { w.last.Store(int64(time.Since(w.base))) }

// stop pauses watching.
func (w *watchdog) stop() {
	w.on.Store(false)
	w.timer.Stop()
}

func (w *watchdog) check() {
	if !w.on.Load() {
		return
	}
	idle := time.Since(w.base) - time.Duration(w.last.Load())
	if idle >= w.limit {
		w.fire()
		return
	}
	w.timer.Reset(w.limit - idle)
}
