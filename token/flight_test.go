package token_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"orthanc-dicomweb-oauth/token"
)

func TestHundredFirstCallersShareOneAcquisition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, issues(300*time.Millisecond, time.Hour))
		var callers sync.WaitGroup
		for range 100 {
			callers.Go(func() {
				asked := time.Now()
				got, err := s.Token(t.Context())
				if err != nil {
					t.Errorf("Token: %v", err)
					return
				}
				if got.Generation() != 1 || got.Value.Reveal() != "token-1" {
					t.Errorf("got generation %d, %q, want the first token", got.Generation(), got.Value.Reveal())
				}
				if waited := time.Since(asked); waited != 300*time.Millisecond {
					t.Errorf("waited %v, want the provider's 300ms", waited)
				}
			})
		}
		callers.Wait()
		if n := len(p.calls()); n != 1 {
			t.Errorf("%d acquisitions, want 1", n)
		}
	})
}

// A failure is shared as well: none of the hundred starts a try of its own.
func TestHundredCallersShareOneFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, func(ctx context.Context, call int) (token.Token, error) {
			_ = pause(ctx, time.Second)
			return fails(permanent)(ctx, call)
		})
		var callers sync.WaitGroup
		for range 100 {
			callers.Go(func() {
				_, err := s.Token(t.Context())
				u, ok := errors.AsType[*token.Unavailable](err)
				if !ok || u.RetryAfter <= 0 || u.Cause == nil || u.Cause.Code != "invalid_client" {
					t.Errorf("Token: %+v, want *Unavailable with RetryAfter and cause invalid_client", err)
				}
			})
		}
		callers.Wait()
		if n := len(p.calls()); n != 1 {
			t.Errorf("%d acquisitions, want 1", n)
		}
	})
}

func TestCancelledCallerReturnsAtOnceAndLeavesTheFlightToTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, issues(5*time.Second, time.Hour))
		gone := errors.New("the client went away")
		var callers sync.WaitGroup
		var mu sync.Mutex
		var cancelled, served int
		for i := range 50 {
			callers.Go(func() {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if i%2 == 0 {
					time.AfterFunc(time.Second, func() { cancel(gone) })
				}
				asked := time.Now()
				_, err := s.Token(ctx)
				waited := time.Since(asked)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case errors.Is(err, gone) && waited == time.Second:
					cancelled++
				case err == nil && waited == 5*time.Second:
					served++
				default:
					t.Errorf("caller %d: %v after %v", i, err, waited)
				}
			})
		}
		callers.Wait()
		if cancelled != 25 || served != 25 || len(p.calls()) != 1 {
			t.Errorf("%d cancelled, %d served, %d acquisitions; want 25, 25, 1", cancelled, served, len(p.calls()))
		}
	})
}

// Even when all callers are gone the token is fetched: the next one finds it.
func TestFlightOutlivesItsLastCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, issues(5*time.Second, time.Hour))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Token(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Token: %v, want the deadline", err)
		}
		time.Sleep(4 * time.Second)
		synctest.Wait()
		atOnce(t, s)
		if n := len(p.calls()); n != 1 {
			t.Errorf("%d acquisitions, want 1", n)
		}
	})
}

func TestCloseReleasesWaitingCallersAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, hangs)
		var callers sync.WaitGroup
		for range 10 {
			callers.Go(func() {
				_, err := s.Token(t.Context())
				if _, ok := errors.AsType[*token.Unavailable](err); !ok {
					t.Errorf("Token: %v, want *Unavailable", err)
				}
			})
		}
		synctest.Wait()
		closed := time.Now()
		s.Close()
		callers.Wait()
		if took := time.Since(closed); took != 0 {
			t.Errorf("Close and its callers took %v, want no time", took)
		}
		if _, err := s.Token(t.Context()); err == nil {
			t.Error("Token after Close gave a token, want an error")
		}
		s.Close() // again does no harm
		time.Sleep(3 * time.Hour)
		if n := len(p.calls()); n != 1 {
			t.Errorf("%d acquisitions, want none after Close", n)
		}
	})
}

func TestClosedSourceAsksNoMore(t *testing.T) {
	for _, row := range []struct {
		name   string
		answer func(context.Context, int) (token.Token, error)
		after  time.Duration // of the start, Close is called
	}{
		{"while a refresh is planned", issues(0, time.Hour), time.Minute},
		{"while a failure is held", fails(transient), 10 * time.Minute},
		{"during the pause between two attempts", fails(transient), 100 * time.Millisecond},
		{"while a provider that ignores its context succeeds", func(_ context.Context, call int) (token.Token, error) {
			time.Sleep(5 * time.Second)
			return issue(call, time.Hour), nil
		}, time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, p := open(t, row.answer)
				time.Sleep(row.after)
				s.Close()
				before := len(p.calls())
				time.Sleep(3 * time.Hour)
				synctest.Wait()
				_, _ = s.Token(t.Context())
				s.Reject(1)
				synctest.Wait()
				if n := len(p.calls()); n != before {
					t.Errorf("%d acquisitions after Close, want none", n-before)
				}
			})
		})
	}
}
