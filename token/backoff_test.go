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

func TestWrongSecretIsTriedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, fails(permanent))
		for range 600 {
			if u := refused(t, s); u.Cause == nil || u.Cause.Code != "invalid_client" || u.RetryAfter > 66*time.Second {
				t.Fatalf("Unavailable %+v, want cause invalid_client and at most 66 s", u)
			}
			time.Sleep(time.Second)
		}
		if n := len(p.calls()); n < 9 || n > 10 {
			t.Errorf("%d acquisitions in 10 min at 1 request/s, want about 10", n)
		}
		for i, gap := range gaps(p.calls()) {
			if gap < time.Minute {
				t.Errorf("acquisition %d came %v after the one before, want a minute at least", i+2, gap)
			}
		}
	})
}

// Without requests a permanent failure is looked at again all the same, since
// nobody sends requests to a gateway that is not ready; but seldom.
func TestPermanentFailureIsRetriedSeldomWithoutRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, func(ctx context.Context, call int) (token.Token, error) {
			if call > 3 {
				return issue(call, time.Hour), nil
			}
			return fails(permanent)(ctx, call)
		})
		time.Sleep(17 * time.Minute)
		synctest.Wait()
		atOnce(t, s)
		for i, gap := range gaps(p.calls()) {
			if gap < 5*time.Minute || gap > 330*time.Second {
				t.Errorf("acquisition %d came %v after the one before, want 5 min to 5 min 30 s", i+2, gap)
			}
		}
	})
}

// With requests it is looked at once a minute, also while a token is usable.
func TestRequestsBringAMendedProviderBackSooner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, func(ctx context.Context, call int) (token.Token, error) {
			if call == 2 {
				return fails(permanent)(ctx, call)
			}
			return issue(call, time.Hour), nil
		})
		for len(p.calls()) < 2 {
			time.Sleep(time.Second)
		}
		for range 68 {
			atOnce(t, s)
			time.Sleep(time.Second)
		}
		if got := atOnce(t, s).Generation(); got != 2 {
			t.Errorf("generation %d a minute after the failure, want 2", got)
		}
	})
}

func TestTransientFailureIsRecoveredFromWithoutRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s, _ := open(t, func(ctx context.Context, call int) (token.Token, error) {
			if time.Since(began) < 10*time.Minute {
				return fails(transient)(ctx, call)
			}
			return issue(call, time.Hour), nil
		})
		time.Sleep(10*time.Minute - 1)
		if s.Peek() != nil {
			t.Fatal("a token from a dead provider")
		}
		time.Sleep(70 * time.Second)
		synctest.Wait()
		atOnce(t, s)
	})
}

// Dead from the first refresh of a 1 h token on: it is asked again and again,
// but ever less, and no request notices.
func TestDeadProviderIsAskedLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, once(issues(0, time.Hour), fails(transient)))
		synctest.Wait()
		began := time.Now()
		for time.Since(began) < 59*time.Minute+40*time.Second {
			atOnce(t, s)
			time.Sleep(time.Second)
		}
		// 3 calls per acquisition. The refresh begins 5 to 11 min before the
		// end: 7 acquisitions in the first minute, then one a minute.
		if n := len(p.calls()) - 1; n < 24 || n > 54 {
			t.Errorf("%d calls, want about 30 (24 to 54)", n)
		}
	})
}

func TestHangingProviderIsAskedLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, hangs)
		for range 600 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := s.Token(ctx)
			cancel()
			if err == nil {
				t.Fatal("a token from a hanging provider")
			}
			time.Sleep(time.Second)
		}
		if n := len(p.calls()); n > 40 {
			t.Errorf("%d calls in 10 to 20 min, want at most 40", n)
		}
		if u := s.Status().LastFailure; u == nil || u.Err.Code != "provider_timeout" {
			t.Errorf("last failure %+v, want provider_timeout", u)
		}
	})
}

// Who waits for the first token gets it from the second attempt: one hiccup is
// no error. And nobody waits longer than twice the request timeout.
func TestAcquisitionRetriesWithinItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, once(fails(transient), issues(0, time.Hour)))
		asked := time.Now()
		if _, err := s.Token(t.Context()); err != nil {
			t.Fatalf("Token: %v", err)
		}
		if waited := time.Since(asked); waited <= 0 || waited > time.Second {
			t.Errorf("waited %v, want the pause before a second attempt", waited)
		}
		if n := len(p.calls()); n != 2 {
			t.Errorf("%d calls, want 2", n)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, hangs)
		asked := time.Now()
		_ = refused(t, s)
		if waited := time.Since(asked); waited > 20*time.Second {
			t.Errorf("waited %v, want at most 20 s", waited)
		}
		if n := len(p.calls()); n > 3 {
			t.Errorf("%d calls, want 3 at most", n)
		}
	})
	// A provider that hangs once has not used up the time for the second attempt.
	synctest.Test(t, func(t *testing.T) {
		s, _ := open(t, once(hangs, issues(0, time.Hour)))
		asked := time.Now()
		if _, err := s.Token(t.Context()); err != nil {
			t.Fatalf("Token: %v", err)
		}
		if waited := time.Since(asked); waited < 10*time.Second || waited > 11*time.Second {
			t.Errorf("waited %v, want one request timeout and a pause", waited)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, fails(transient))
		_ = refused(t, s)
		if n := len(p.calls()); n != 3 {
			t.Errorf("%d calls in one acquisition, want 3", n)
		}
	})
}

func TestRetryAfterThatFitsIsWaitedForWithinTheAcquisition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, once(fails(throttled(7*time.Second)), issues(0, time.Hour)))
		if _, err := s.Token(t.Context()); err != nil {
			t.Fatalf("Token: %v", err)
		}
		if got := gaps(p.calls()); len(got) != 1 || got[0] != 7*time.Second {
			t.Errorf("pauses %v, want 7s", got)
		}
	})
}

func TestNoAttemptBeforeRetryAfter(t *testing.T) {
	for _, class := range []token.Class{token.Transient, token.Throttled, token.Permanent} {
		t.Run(class.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				answer := throttled(120 * time.Second)
				answer.Class = class
				s, p := open(t, fails(answer))
				began := time.Now()
				for time.Since(began) < 10*time.Minute {
					if u := refused(t, s); u.RetryAfter > 132*time.Second {
						t.Fatalf("RetryAfter %v, want at most 132s", u.RetryAfter)
					}
					time.Sleep(500 * time.Millisecond)
				}
				calls := p.calls()
				if n := len(calls); n < 5 || n > 6 {
					t.Errorf("%d calls in 10 min, want one each 120 s", len(calls))
				}
				for i, gap := range gaps(calls) {
					if gap < 120*time.Second {
						t.Errorf("call %d came %v after the one before, want 120 s at least", i+2, gap)
					}
				}
			})
		})
	}
}

// A 401 from the upstream must not be a way around the provider's wish; and the
// token that there is stays, for it may be good for all but that upstream.
func TestRejectDoesNotCutRetryAfterShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, once(issues(0, time.Hour), fails(throttled(120*time.Second))))
		for len(p.calls()) < 2 { // until the refresh was throttled
			time.Sleep(time.Second)
		}
		synctest.Wait()
		throttledAt := p.calls()[1]
		for time.Since(throttledAt) < 119*time.Second {
			if s.Reject(1) {
				t.Fatal("Reject promised another token while the provider asks to wait")
			}
			atOnce(t, s)
			time.Sleep(time.Second)
		}
		if n := len(p.calls()); n != 2 {
			t.Fatalf("%d calls, want 2", n)
		}
		time.Sleep(10 * time.Second)
		for i, gap := range gaps(p.calls()[1:]) {
			if gap < 120*time.Second {
				t.Errorf("call %d came %v after the one before, want 120 s at least", i+3, gap)
			}
		}
	})
}

// Clients come back exactly when they were told to. Then they and the timer in
// the background act at one instant; the provider still is asked once.
func TestPunctualClientsDoNotCutRetryAfterShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, fails(throttled(120*time.Second)))
		synctest.Wait()
		began := time.Now()
		var clients sync.WaitGroup
		for range 8 {
			clients.Go(func() {
				for time.Since(began) < 10*time.Hour {
					_, err := s.Token(t.Context())
					u, ok := errors.AsType[*token.Unavailable](err)
					if !ok {
						t.Errorf("Token: %v, want *Unavailable", err)
						return
					}
					time.Sleep(u.RetryAfter)
				}
			})
		}
		clients.Wait()
		for i, gap := range gaps(p.calls()) {
			if gap < 120*time.Second {
				t.Fatalf("call %d came %v after the one before, want 120 s at least", i+2, gap)
			}
		}
	})
}

// The same instant, but the provider is well again: whoever is second finds the
// token that the first one got.
func TestPunctualClientsDoNotAcquireTwice(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			s, p := open(t, once(fails(throttled(120*time.Second)), issues(0, time.Hour)))
			u := refused(t, s)
			var clients sync.WaitGroup
			for range 4 {
				clients.Go(func() {
					time.Sleep(u.RetryAfter)
					if got, err := s.Token(t.Context()); err != nil || got.Generation() != 1 {
						t.Errorf("Token: %v, %v, want generation 1", got, err)
					}
				})
			}
			clients.Wait()
			synctest.Wait()
			if n := len(p.calls()); n != 2 {
				t.Fatalf("%d calls, want 2", n)
			}
		})
	}
}

func TestHostileRetryAfterEndsAfterAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := open(t, once(fails(throttled(10000*time.Hour)), issues(0, time.Hour)))
		if u := refused(t, s); u.RetryAfter > 67*time.Minute {
			t.Errorf("RetryAfter %v, want an hour or little more", u.RetryAfter)
		}
		time.Sleep(67 * time.Minute)
		synctest.Wait()
		atOnce(t, s)
	})
}

// gaps returns the times between calls.
func gaps(calls []time.Time) []time.Duration {
	var between []time.Duration
	for i := 1; i < len(calls); i++ {
		between = append(between, calls[i].Sub(calls[i-1]))
	}
	return between
}
