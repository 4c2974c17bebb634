package token_test

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"orthanc-dicomweb-oauth/token"
)

// TestInvariantsHoldForAnyProviderAndAnyCallers runs a provider and callers of
// random behaviour and checks at every step: at most one acquisition is under
// way, no token is handed out at or after its end, a usable token comes at once,
// no call comes before Retry-After, generations never go back.
//
// A seed fixes what provider and callers do. The jitter of the source and the
// order of goroutines stay free, so run a failing seed more than once.
func TestInvariantsHoldForAnyProviderAndAnyCallers(t *testing.T) {
	const seeds = 300
	var total struct{ calls, served, rejects int }
	for seed := range uint64(seeds) {
		synctest.Test(t, func(t *testing.T) {
			w := &world{t: t, seed: seed}
			w.run()
			total.calls += w.called
			total.served += w.served
			total.rejects += w.rejects
		})
		if t.Failed() {
			t.Fatalf("seed %d of %d", seed, seeds)
		}
	}
	t.Logf("%d calls to the provider, %d tokens served, %d rejects", total.calls, total.served, total.rejects)
	if total.calls < 10*seeds || total.served < 50*seeds || total.rejects < seeds {
		t.Error("the test tests too little")
	}
}

// world is a provider, a source and its callers, and what is known of them.
type world struct {
	t      *testing.T
	seed   uint64
	source *token.Source

	mu        sync.Mutex
	provider  *rand.Rand // what the provider does; used under mu
	busy      bool
	called    int
	notBefore time.Time            // no call may begin before
	ends      map[string]time.Time // of each issued token, as the provider sees it
	skewed    map[string]time.Time // up to where it has to be served
	newest    uint64               // generation that some caller has got
	usable    time.Time            // the newest token must be served up to here
	rejects   int                  // calls of Reject that have begun
	latest    string               // token that was issued last
	closed    bool
	served    int
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	w.t.Errorf("seed %d: "+format, append([]any{w.seed}, args...)...)
}

func (w *world) run() {
	w.provider = rand.New(rand.NewPCG(w.seed, 0))
	w.ends, w.skewed = map[string]time.Time{}, map[string]time.Time{}
	closeAfter := time.Duration(w.provider.Int64N(int64(time.Hour)))
	w.source = token.NewSource(w, token.DefaultLifecycle(), slog.New(slog.DiscardHandler))
	var callers sync.WaitGroup
	for caller := range uint64(4) {
		r := rand.New(rand.NewPCG(w.seed, caller+1))
		callers.Go(func() { w.call(r) })
	}
	if w.seed%4 == 0 { // close in the midst of it
		time.Sleep(closeAfter)
		w.mu.Lock()
		w.closed, w.usable = true, time.Time{}
		w.rejects++ // nothing is promised any more to who is asking
		w.mu.Unlock()
		w.source.Close()
		callers.Wait()
		return
	}
	callers.Wait()
	w.source.Close()
}

// Acquire is the provider.
func (w *world) Acquire(ctx context.Context) (token.Token, error) {
	w.mu.Lock()
	began := time.Now()
	if w.busy {
		w.fail("call %d began while another was under way", w.called+1)
	}
	if began.Before(w.notBefore) {
		w.fail("call %d began %v too early", w.called+1, w.notBefore.Sub(began))
	}
	w.busy = true
	w.called++
	r := w.provider
	latency := pick(r, 0, 0, time.Duration(r.Int64N(int64(12*time.Second))), time.Duration(r.IntN(12))*time.Second)
	life := pick(r, time.Second, 10*time.Second, 5*time.Minute, time.Hour, time.Second+time.Duration(r.Int64N(int64(2*time.Hour))))
	wait := pick(r, 0, time.Duration(r.IntN(200))*time.Second, 120*time.Second, 2*time.Hour)
	kind := r.IntN(10)
	w.mu.Unlock()

	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.busy = false
	}()
	if kind == 9 {
		return hangs(ctx, 0)
	}
	if err := pause(ctx, latency); err != nil {
		return token.Token{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	switch kind {
	case 5: // answers nonsense, or a token of no life
		if wait == 0 {
			return token.Token{}, errors.New("odd")
		}
		return token.Token{Value: token.NewSecret("expired"), Expires: began.Add(-wait)}, nil
	case 6, 7, 8:
		class := token.Class(kind - 6)
		hold := min(wait, time.Hour)
		if class == token.Permanent {
			hold = max(hold, time.Minute)
		}
		w.notBefore = now.Add(hold)
		return token.Token{}, &token.Error{Class: class, Code: class.String(), RetryAfter: wait}
	}
	w.usable = time.Time{} // a newer token replaces the older one, even if it ends earlier
	issued := issue(w.called, 0)
	w.latest = issued.Value.Reveal()
	issued.Expires = began.Add(life)
	if r.IntN(10) == 0 {
		issued.Expires, life = time.Time{}, 5*time.Minute
	}
	w.ends[issued.Value.Reveal()] = began.Add(life)
	w.skewed[issued.Value.Reveal()] = began.Add(life - min(10*time.Second, life/10))
	return issued, nil
}

// call is one caller.
func (w *world) call(r *rand.Rand) {
	var comeBack time.Duration
	for range 80 {
		// On the whole second, at any time, at once, or exactly when told to.
		time.Sleep(pick(r, 0, comeBack, comeBack, time.Duration(r.IntN(30))*time.Second, time.Duration(r.Int64N(int64(2*time.Minute))), time.Duration(r.IntN(20))*time.Minute))
		w.mu.Lock()
		closed := w.closed
		w.mu.Unlock()
		if closed {
			return
		}
		got, err := w.ask(r)
		comeBack = 0
		if u, ok := errors.AsType[*token.Unavailable](err); ok {
			comeBack = u.RetryAfter
		}
		if err != nil {
			continue
		}
		switch r.IntN(12) {
		case 0, 1:
			generation := got.Generation() - uint64(r.IntN(2))
			w.mu.Lock()
			w.rejects++
			if generation == w.newest {
				w.usable = time.Time{}
			}
			w.mu.Unlock()
			w.source.Reject(generation)
		case 2:
			w.source.Accept()
		case 3:
			_ = w.source.Status()
		}
	}
}

// ask calls Token and checks what came.
func (w *world) ask(r *rand.Rand) (*token.Token, error) {
	ctx, cancel := w.t.Context(), context.CancelFunc(func() {})
	timeout := pick(r, 0, time.Minute, time.Duration(1+r.Int64N(int64(20*time.Second))))
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
	}
	defer cancel()

	w.mu.Lock()
	asked, newest, rejects := time.Now(), w.newest, w.rejects
	must := asked.Before(w.usable)
	w.mu.Unlock()
	got, err := w.source.Token(ctx)
	now := time.Now()

	w.mu.Lock()
	defer w.mu.Unlock()
	waited := now.Sub(asked)
	if must && w.rejects == rejects && (err != nil || waited != 0) {
		w.fail("a usable token came after %v with %v", waited, err)
	}
	if timeout > 0 && waited > timeout || waited > 20*time.Second {
		w.fail("waited %v, with a timeout of %v", waited, timeout)
	}
	if err != nil {
		u, ok := errors.AsType[*token.Unavailable](err)
		if !ok && !errors.Is(err, context.DeadlineExceeded) || ok && u.Cause != nil && u.RetryAfter <= 0 {
			w.fail("odd error %+v", err)
		}
		return nil, err
	}
	w.served++
	end, known := w.ends[got.Value.Reveal()]
	if !known || !now.Before(end) {
		w.fail("token %q handed out %v after its end", got.Value.Reveal(), now.Sub(end))
	}
	if got.Generation() < newest {
		w.fail("generation %d after %d", got.Generation(), newest)
	}
	if got.Generation() > w.newest {
		w.newest = got.Generation()
		if got.Value.Reveal() == w.latest {
			w.usable = w.skewed[w.latest]
		}
	}
	if w.rejects > rejects { // somebody may just have rejected this very token
		w.usable = time.Time{}
	}
	return got, nil
}

func pick(r *rand.Rand, from ...time.Duration) time.Duration { return from[r.IntN(len(from))] }
