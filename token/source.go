package token

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// firstBackoff is the pause after a first failure; each further one doubles it.
	firstBackoff = time.Second
	// rejectEvery is the shortest time between two acquisitions that an
	// upstream's 401 causes.
	rejectEvery = 30 * time.Second
	// rejectedAfter is how many fresh tokens in a row an upstream refuses before
	// the source says that the token is not the problem.
	rejectedAfter = 3
	// maxRetryAfter bounds what a provider can ask for: a wrong or hostile
	// Retry-After must not end service until the next restart.
	maxRetryAfter = time.Hour
	// permanentFactor stretches the pause after a permanent failure while no
	// request asks: somebody may have mended the cause, and a gateway that is
	// not ready gets no requests that could find out.
	permanentFactor = 5
)

// State is the condition of a source, as the admin API shows it.
type State string

// The states of a [Source].
const (
	Cold        State = "cold"        // nothing asked yet
	Fresh       State = "fresh"       // usable token
	Stale       State = "stale"       // refresh failing, token still usable
	Unusable    State = "unavailable" // no usable token
	RejectedAll State = "rejected"    // the upstream refused three fresh tokens in a row
)

// Source keeps the token of one profile fresh. Requests only read; a background
// goroutine asks the provider ahead of the token's end. At most one acquisition
// is under way at any time. Create it with [NewSource], end it with
// [Source.Close]. All methods are safe for concurrent use.
type Source struct {
	acquirer Acquirer
	life     Lifecycle
	log      *slog.Logger

	ctx   context.Context // ends with Close
	stop  context.CancelFunc
	tasks sync.WaitGroup

	token      atomic.Pointer[Token] // nil: none, or rejected
	rejections atomic.Int32          // fresh tokens refused in a row

	mu           sync.Mutex
	flight       *flight     // the acquisition under way, or nil
	timer        *time.Timer // the next acquisition in the background
	resting      bool        // it does nothing
	failure      *Error      // of the last acquisition; nil after success
	notBefore    time.Time   // no acquisition before, after a failure
	failures     int         // in a row
	generation   uint64
	refused      *Token    // dropped after a 401; comes back if no other can be had
	lastReject   time.Time // when a 401 last caused an acquisition
	lastRejected uint64    // the generation that was refused last
	lastRefresh  time.Time
	lastFailure  *Failure
	acquisitions uint64
	failed       uint64
	took         Durations
}

// Failure is a failed acquisition and when it happened.
type Failure struct {
	Err *Error
	At  time.Time
}

// flight is one acquisition that any number of callers wait for.
type flight struct {
	done  chan struct{} // closed when token or err is set
	token *Token
	err   *Unavailable
}

// NewSource starts a source. It begins to acquire at once, so that the first
// request finds a token. The logger should carry the profile's name.
func NewSource(a Acquirer, life Lifecycle, log *slog.Logger) *Source {
	s := &Source{acquirer: a, life: life, log: log}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.start()
	return s
}

// Rest ends the renewal in the background, for a source that no new request will
// use. Requests that still do get their token as before.
func (s *Source) Rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resting = true
}

// Close ends the source, waits for its goroutines and closes the connections that
// its acquirer keeps. Callers that wait in [Source.Token] get an error.
func (s *Source) Close() {
	s.stop()
	s.mu.Lock()
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	s.tasks.Wait()
	if a, ok := s.acquirer.(idleCloser); ok {
		a.CloseIdleConnections()
	}
}

// Token returns a usable token. It never waits while there is one, whatever
// state the provider is in. Else it waits for the one acquisition under way, or
// returns an [*Unavailable] at once while a failure is remembered. It returns
// ctx's error when ctx ends first; the acquisition goes on for the others.
func (s *Source) Token(ctx context.Context) (*Token, error) {
	now := time.Now()
	if t := s.token.Load(); t.usable(now) {
		if t.due(now) {
			s.refresh()
		}
		return t, nil
	}
	f, unavailable := s.join()
	if unavailable != nil {
		return nil, unavailable
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if f.err != nil {
		if t := s.token.Load(); t.usable(time.Now()) {
			return t, nil // a refused one that came back
		}
		return nil, f.err
	}
	return f.token, nil
}

// Peek returns the token if there is a usable one, else nil. It never waits and
// asks for nothing.
func (s *Source) Peek() *Token {
	if t := s.token.Load(); t.usable(time.Now()) {
		return t
	}
	return nil
}

// Reject tells that an upstream answered 401 to the token of this generation,
// and reports whether another one is worth a try. The token is dropped and
// acquired anew, once for all who report the same generation, and at most
// every 30 s; a late report about an older token drops nothing. If no new token
// can be had, the old one comes back: another upstream may accept it.
func (s *Source) Reject(generation uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.token.Load()
	if t == nil || t.generation != generation {
		return true
	}
	if s.lastRejected != generation {
		s.lastRejected = generation
		s.rejections.Add(1)
	}
	now := time.Now()
	if now.Before(s.notBefore) || !s.lastReject.IsZero() && now.Sub(s.lastReject) < rejectEvery {
		return false
	}
	s.lastReject = now
	s.token.Store(nil)
	s.refused = t
	s.log.Warn("upstream refused the token, acquiring a new one")
	s.start()
	return true
}

// Accept tells that an upstream accepted the token.
func (s *Source) Accept() {
	if s.rejections.Load() != 0 {
		s.rejections.Store(0)
	}
}

// refresh starts an acquisition in the background if one is allowed now.
func (s *Source) refresh() {
	if !s.mu.TryLock() {
		return // somebody is at it
	}
	defer s.mu.Unlock()
	now := time.Now()
	if t := s.token.Load(); !now.Before(s.notBefore) && (t == nil || t.due(now)) {
		s.start()
	}
}

// join returns the acquisition to wait for, or why there is none.
func (s *Source) join() (*flight, *Unavailable) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	switch t := s.token.Load(); {
	case t.usable(now): // it arrived in between
		done := make(chan struct{})
		close(done)
		return &flight{done: done, token: t}, nil
	case s.flight != nil:
	case s.ctx.Err() != nil:
		return nil, &Unavailable{}
	case now.Before(s.notBefore):
		return nil, &Unavailable{RetryAfter: s.notBefore.Sub(now), Cause: s.failure}
	default:
		s.start()
	}
	return s.flight, nil
}

// start begins an acquisition unless one is under way. The caller holds mu.
func (s *Source) start() {
	if s.flight != nil || s.ctx.Err() != nil {
		return
	}
	f := &flight{done: make(chan struct{})}
	s.flight = f
	s.tasks.Go(func() {
		t, err := s.acquire()
		s.land(f, t, err)
	})
}

// acquire makes up to MaxAttempts calls. The whole takes at most twice the
// request timeout: whoever waits for it is Orthanc, with 60 s for everything.
func (s *Source) acquire() (*Token, *Error) {
	ctx, cancel := context.WithTimeout(s.ctx, 2*s.life.RequestTimeout)
	defer cancel()
	backoff := firstBackoff / 2
	for attempt := 1; ; attempt++ {
		began := time.Now()
		asked := time.Now()
		t, err := s.attempt(ctx)
		s.count(err, time.Since(asked))
		if err == nil {
			return s.lifetime(t, began)
		}
		wait := max(err.RetryAfter, jitter(backoff))
		deadline, _ := ctx.Deadline()
		if err.Class == Permanent || attempt >= s.life.MaxAttempts || time.Now().Add(wait).After(deadline) {
			return nil, err
		}
		s.log.Debug("token request failed, trying again", "code", err.Code, "attempt", attempt, "wait", wait.String())
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, err
		}
		backoff *= 2
	}
}

func (s *Source) attempt(ctx context.Context) (Token, *Error) {
	ctx, cancel := context.WithTimeout(ctx, s.life.RequestTimeout)
	defer cancel()
	t, err := s.acquirer.Acquire(ctx)
	if err == nil {
		return t, nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		e.RetryAfter = min(e.RetryAfter, maxRetryAfter)
		e.tellClock()
		return Token{}, e
	}
	return Token{}, networkError(err)
}

func (s *Source) count(err *Error, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acquisitions++
	s.took.add(took)
	if err != nil {
		s.failed++
	}
}

// lifetime works out when the token is renewed and until when it is used.
func (s *Source) lifetime(t Token, began time.Time) (*Token, *Error) {
	now := time.Now()
	t.acquired = now
	life := s.life.DefaultLifetime
	if !t.Expires.IsZero() {
		life = t.Expires.Sub(began)
	}
	t.Expires = began.Add(life) // with a monotonic reading, whatever it came with
	t.end = deadlineAt(t.Expires.Add(-min(10*time.Second, life/10)))
	if !t.usable(now) {
		return nil, &Error{
			Class: Transient, Code: "provider_answer",
			Hint: "the token was already expired when it came; check the clocks of this machine and of the provider",
		}
	}
	t.refresh = deadlineAt(t.Expires.Add(-min(s.life.RefreshBuffer, life/2) - rand.N(life/10+1)))
	t.prepared = NewSecret(t.authorization())
	return &t, nil
}

// land publishes the result of an acquisition, wakes all who wait, and plans
// the next one.
func (s *Source) land(f *flight, t *Token, err *Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(f.done)
	s.flight = nil
	now := time.Now()
	refused := s.refused
	s.refused = nil
	if err == nil {
		s.generation++
		t.generation = s.generation
		f.token = t
		s.token.Store(t)
		s.failure, s.failures, s.notBefore, s.lastRefresh = nil, 0, time.Time{}, now
		s.log.Info("token acquired", "expires_at", t.Expires.UTC())
		if t.Warning != "" {
			s.log.Warn("token may not be enough", "warning", t.Warning)
		}
		s.plan(t.refresh.monotonic.Sub(now))
		return
	}
	if s.ctx.Err() != nil {
		f.err = &Unavailable{}
		return
	}
	if refused != nil {
		s.token.Store(refused) // other upstreams may well accept it
	}
	s.failures++
	hold := min(firstBackoff<<min(s.failures-1, 16), s.life.MaxBackoff)
	if err.Class == Permanent {
		hold = s.life.MaxBackoff
	}
	hold = max(hold+rand.N(hold/10+1), err.RetryAfter)
	s.failure, s.notBefore = err, now.Add(hold)
	s.lastFailure = &Failure{Err: err, At: now}
	f.err = &Unavailable{RetryAfter: hold, Cause: err}
	s.logFailure(err, hold, now)
	if err.Class == Permanent {
		hold *= permanentFactor
	}
	s.plan(hold)
}

func (s *Source) logFailure(err *Error, hold time.Duration, now time.Time) {
	level := slog.LevelError
	attrs := []slog.Attr{
		slog.String("code", err.Code), slog.String("class", err.Class.String()),
		slog.String("key", err.Key), slog.String("hint", err.Hint), slog.String("next_attempt_in", hold.Round(time.Millisecond).String()),
	}
	if err.Status != 0 {
		attrs = append(attrs, slog.Int("status", err.Status))
	}
	if err.Description != "" {
		attrs = append(attrs, slog.String("description", err.Description))
	}
	if t := s.token.Load(); t.usable(now) {
		level = slog.LevelWarn
		attrs = append(attrs, slog.Time("usable_until", t.end.wall.UTC()))
	}
	s.log.LogAttrs(s.ctx, level, "token not acquired", attrs...)
}

// plan sets the timer of the next background acquisition. The caller holds mu.
func (s *Source) plan(in time.Duration) {
	if s.timer != nil {
		s.timer.Stop()
	}
	s.timer = time.AfterFunc(in, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		now := time.Now() // a request may have been faster, and its result changed the plan
		if t := s.token.Load(); !s.resting && !now.Before(s.notBefore) && (t == nil || t.due(now)) {
			s.start()
		}
	})
}

// jitter returns between half of d and d, so that many gateways do not ask in step.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// Status is what an operator may know about a source.
type Status struct {
	State        State
	ExpiresAt    time.Time // zero: no token
	LastRefresh  time.Time // zero: never
	LastFailure  *Failure  // kept after success, so that the night can be told in the morning
	Acquisitions uint64    // calls to the provider
	Failures     uint64    // calls that failed
}

// durationBounds are the upper bounds of [Durations], in seconds.
var durationBounds = [...]float64{0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

// Durations returns how long the calls to the provider took.
func (s *Source) Durations() Durations {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.took
}

// Durations is a histogram of how long calls to a provider took.
type Durations struct {
	Count  uint64
	Sum    time.Duration
	counts [len(durationBounds)]uint64 // cumulative
}

func (d *Durations) add(took time.Duration) {
	d.Count++
	d.Sum += took
	for i, bound := range durationBounds {
		if took.Seconds() <= bound {
			d.counts[i]++
		}
	}
}

// Buckets returns how many calls took at most so many seconds, as a Prometheus
// histogram wants it.
func (d *Durations) Buckets() map[float64]uint64 {
	buckets := make(map[float64]uint64, len(durationBounds))
	for i, bound := range durationBounds {
		buckets[bound] = d.counts[i]
	}
	return buckets
}

// Status returns the source's condition now.
func (s *Source) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{
		State: Unusable, LastRefresh: s.lastRefresh, LastFailure: s.lastFailure,
		Acquisitions: s.acquisitions, Failures: s.failed,
	}
	t := s.token.Load()
	usable := t.usable(time.Now())
	if usable {
		st.ExpiresAt = t.Expires
	}
	switch {
	case s.rejections.Load() >= rejectedAfter:
		st.State = RejectedAll
	case usable && s.failure != nil:
		st.State = Stale
	case usable:
		st.State = Fresh
	case s.failure == nil && s.lastRefresh.IsZero():
		st.State = Cold
	}
	return st
}
