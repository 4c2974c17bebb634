package token_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

func TestSourceAcquiresBeforeTheFirstRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, issues(2*time.Second, time.Hour))
		if s.Peek() != nil {
			t.Error("Peek gave a token before there was one")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		got := atOnce(t, s)
		if s.Peek() != got {
			t.Error("Peek and Token differ")
		}
		time.Sleep(time.Minute)
		if got.Age() != time.Minute {
			t.Errorf("Age is %v, want 1m", got.Age())
		}
		r := &http.Request{Header: http.Header{"Authorization": {"Basic x", "Basic y"}}}
		if err := got.Apply(r); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(http.Header{"Authorization": {"Bearer token-1"}}, r.Header); diff != "" {
			t.Errorf("header (-want +got):\n%s", diff)
		}
		if n := len(p.calls()); n != 1 {
			t.Errorf("%d acquisitions, want 1", n)
		}
	})
}

// The skew is a tenth of the life, at most 10 s: up to there the token is
// served, from there on it is not, however badly it is needed.
func TestNoTokenIsHandedOutAtOrAfterItsEnd(t *testing.T) {
	for _, row := range []struct{ life, end time.Duration }{
		{time.Second, 900 * time.Millisecond},
		{10 * time.Second, 9 * time.Second},
		{time.Minute, 54 * time.Second},
		{5 * time.Minute, 5*time.Minute - 10*time.Second},
		{time.Hour, time.Hour - 10*time.Second},
		{24 * time.Hour, 24*time.Hour - 10*time.Second},
	} {
		t.Run(row.life.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _ := open(t, once(issues(0, row.life), fails(transient)))
				synctest.Wait()
				time.Sleep(row.end - 1)
				if got := atOnce(t, s); got.Generation() != 1 {
					t.Fatalf("generation %d, want 1", got.Generation())
				}
				time.Sleep(time.Nanosecond)
				if got, err := s.Token(t.Context()); err == nil {
					t.Errorf("got generation %d at its end, want none", got.Generation())
				}
				if s.Peek() != nil {
					t.Error("Peek gave a token at its end")
				}
			})
		})
	}
}

// A slow provider's token is already used up in part when it comes.
func TestLifeCountsFromBeforeTheRequest(t *testing.T) {
	for _, row := range []struct {
		name   string
		answer func(context.Context, int) (token.Token, error)
		end    time.Duration
	}{
		{"with an expiry", issues(8*time.Second, time.Minute), 54 * time.Second},
		{"without one", func(ctx context.Context, call int) (token.Token, error) {
			_ = pause(ctx, 8*time.Second)
			return token.Token{Value: token.NewSecret("x")}, nil
		}, 5*time.Minute - 10*time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _ := open(t, once(row.answer, fails(transient)))
				began := time.Now()
				if _, err := s.Token(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Until(began.Add(row.end - 1)))
				atOnce(t, s)
				time.Sleep(time.Nanosecond)
				_ = refused(t, s)
			})
		})
	}
}

func TestMissingExpiryGetsTheDefaultLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, func(context.Context, int) (token.Token, error) {
			return token.Token{Value: token.NewSecret("x")}, nil
		})
		synctest.Wait()
		if got, want := atOnce(t, s).Expires.Sub(p.calls()[0]), 5*time.Minute; got != want {
			t.Errorf("life is %v, want %v", got, want)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		atOnce(t, s)
		// Renewed in the half of its life, or a tenth of the life earlier.
		if n := len(p.calls()); n < 24 || n > 31 {
			t.Errorf("%d acquisitions in an hour, want one each 2m to 2m30s", n)
		}
	})
}

func TestTokenIsRenewedAheadOfItsEndWithoutRequests(t *testing.T) {
	for _, row := range []struct{ life, earliest, latest time.Duration }{
		{time.Hour, 49 * time.Minute, 55 * time.Minute},                               // buffer of 5 min
		{8 * time.Minute, 4*time.Minute - 48*time.Second, 4 * time.Minute},            // half of the life
		{10 * time.Second, 4 * time.Second, 5 * time.Second},                          // half of the life
		{24 * time.Hour, 21*time.Hour + 31*time.Minute, 24*time.Hour - 5*time.Minute}, // buffer of 5 min
	} {
		t.Run(row.life.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, p := open(t, issues(0, row.life))
				time.Sleep(row.latest + 1)
				synctest.Wait()
				calls := p.calls()
				if len(calls) < 2 {
					t.Fatal("not renewed")
				}
				if after := calls[1].Sub(calls[0]); after < row.earliest || after > row.latest {
					t.Errorf("renewed after %v, want %v to %v", after, row.earliest, row.latest)
				}
				if got := atOnce(t, s).Generation(); got != uint64(len(calls)) {
					t.Errorf("generation %d, want %d", got, len(calls))
				}
			})
		})
	}
}

// With a usable token, no state of the provider is ever seen by a request.
func TestUsableTokenIsServedWhateverTheProviderDoes(t *testing.T) {
	for name, then := range map[string]func(context.Context, int) (token.Token, error){
		"hangs":            hangs,
		"is unreachable":   fails(transient),
		"refuses":          fails(permanent),
		"throttles":        fails(throttled(10 * time.Minute)),
		"asks to wait 0 s": fails(throttled(0)),
		"fails some odd way": func(context.Context, int) (token.Token, error) {
			return token.Token{}, errors.New("odd")
		},
		"answers with expired tokens": func(_ context.Context, call int) (token.Token, error) {
			return issue(call, -time.Minute), nil
		},
		"fails slowly": func(ctx context.Context, call int) (token.Token, error) {
			if err := pause(ctx, 9*time.Second); err != nil {
				return token.Token{}, err
			}
			return fails(transient)(ctx, call)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _ := open(t, once(issues(0, time.Hour), then))
				synctest.Wait()
				began := time.Now()
				for time.Since(began) < time.Hour-10*time.Second {
					if got := atOnce(t, s).Generation(); got != 1 {
						t.Fatalf("generation %d, want 1", got)
					}
					time.Sleep(time.Second)
				}
				_ = refused(t, s)
			})
		})
	}
}

func TestDeadProviderIsNotNoticedUntilTheTokenEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := open(t, once(issues(0, time.Hour), fails(transient)))
		synctest.Wait()
		thousand := func(check func(*token.Token, error) string) {
			t.Helper()
			var callers sync.WaitGroup
			for range 1000 {
				callers.Go(func() {
					asked := time.Now()
					got, err := s.Token(t.Context())
					if problem := check(got, err); problem != "" {
						t.Error(problem)
					}
					if waited := time.Since(asked); waited != 0 {
						t.Errorf("waited %v", waited)
					}
				})
			}
			callers.Wait()
		}
		time.Sleep(59 * time.Minute)
		if got := s.Status().State; got != token.Stale {
			t.Errorf("state %q, want %q", got, token.Stale)
		}
		thousand(func(_ *token.Token, err error) string {
			if err != nil {
				return fmt.Sprintf("Token: %v while the token lives", err)
			}
			return ""
		})
		time.Sleep(time.Minute)
		// A flight may just be under way, then the callers wait for it. Look
		// when none is.
		for s.Status().State != token.Unusable {
			time.Sleep(time.Second)
		}
		_ = refused(t, s)
		thousand(func(_ *token.Token, err error) string {
			u, ok := errors.AsType[*token.Unavailable](err)
			if !ok || u.RetryAfter <= 0 || u.RetryAfter > 66*time.Second || u.Cause == nil {
				return fmt.Sprintf("Token: %+v, want *Unavailable with RetryAfter in (0, 66s] and a cause", err)
			}
			return ""
		})
	})
}

func TestTokenOfTenSecondsNeverFailsARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, issues(500*time.Millisecond, 10*time.Second))
		if _, err := s.Token(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 1200 {
			atOnce(t, s)
			time.Sleep(100 * time.Millisecond)
		}
		if n := len(p.calls()); n < 23 || n > 31 {
			t.Errorf("%d acquisitions in 2 min, want one each 4 to 5 s", n)
		}
	})
}

func TestAlreadyExpiredAnswerIsAnError(t *testing.T) {
	for _, life := range []time.Duration{-time.Hour, -time.Second, 0, 1} {
		synctest.Test(t, func(t *testing.T) {
			s, _ := open(t, func(_ context.Context, call int) (token.Token, error) {
				issued := issue(call, life)
				time.Sleep(time.Second)
				return issued, nil
			})
			u := refused(t, s)
			if u.Cause == nil || u.Cause.Code != "provider_answer" || !strings.Contains(u.Cause.Hint, "clock") {
				t.Errorf("life %v: %+v, want provider_answer with a hint at the clocks", life, u.Cause)
			}
		})
	}
}

func TestUnavailableUnwrapsToItsCause(t *testing.T) {
	cause := permanent
	err := fmt.Errorf("profile: %w", &token.Unavailable{RetryAfter: time.Second, Cause: &cause})
	if e, ok := errors.AsType[*token.Error](err); !ok || e.Code != "invalid_client" {
		t.Errorf("cause is %v", e)
	}
	if _, ok := errors.AsType[*token.Error](&token.Unavailable{}); ok {
		t.Error("an Unavailable without cause unwraps to one")
	}
	if got := (&token.Unavailable{}).Error(); got != "no usable token" {
		t.Errorf("text %q", got)
	}
}

func TestStatusTellsTheStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := false
		var mu sync.Mutex
		set := func(d bool) { mu.Lock(); dead = d; mu.Unlock() }
		s, p := open(t, func(ctx context.Context, call int) (token.Token, error) {
			if err := pause(ctx, time.Second); err != nil {
				return token.Token{}, err
			}
			mu.Lock()
			defer mu.Unlock()
			if dead {
				return fails(transient)(ctx, call)
			}
			return issue(call, time.Hour), nil
		})
		state := func(want token.State) token.Status {
			t.Helper()
			synctest.Wait()
			got := s.Status()
			if got.State != want {
				t.Fatalf("state %q, want %q", got.State, want)
			}
			return got
		}
		if diff := cmp.Diff(token.Status{State: token.Cold}, state(token.Cold)); diff != "" {
			t.Errorf("cold (-want +got):\n%s", diff)
		}

		time.Sleep(time.Second)
		first := state(token.Fresh)
		want := token.Status{State: token.Fresh, ExpiresAt: time.Now().Add(time.Hour), LastRefresh: time.Now(), Acquisitions: 1}
		if diff := cmp.Diff(want, first); diff != "" {
			t.Errorf("fresh (-want +got):\n%s", diff)
		}

		set(true)
		time.Sleep(59 * time.Minute)
		stale := state(token.Stale)
		if stale.LastFailure == nil || stale.LastFailure.Err.Code != "provider_unreachable" || time.Since(stale.LastFailure.At) > 70*time.Second {
			t.Errorf("stale without its last failure: %+v", stale.LastFailure)
		}
		if stale.Failures == 0 || stale.Acquisitions != stale.Failures+1 || stale.ExpiresAt != first.ExpiresAt || stale.LastRefresh != first.LastRefresh {
			t.Errorf("stale: %+v", stale)
		}

		time.Sleep(2 * time.Minute)
		if got := state(token.Unusable); !got.ExpiresAt.IsZero() || got.LastRefresh != first.LastRefresh {
			t.Errorf("unavailable: %+v", got)
		}

		set(false)
		time.Sleep(2 * time.Minute)
		again := state(token.Fresh)
		if again.LastFailure == nil || again.Acquisitions != uint64(len(p.calls())) {
			t.Errorf("fresh again: %+v after %d calls, want the night's failure kept", again, len(p.calls()))
		}
	})
}

func TestColdFailureIsUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := open(t, fails(permanent))
		synctest.Wait()
		got := s.Status()
		if got.State != token.Unusable || got.LastFailure == nil || got.Failures != 1 {
			t.Errorf("status %+v, want unavailable after one failure", got)
		}
	})
}

// What the log says of a source's life holds neither tokens nor noise.
func TestSourceLogsItsLifeWithoutTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p := &provider{t: t, answer: func(ctx context.Context, call int) (token.Token, error) {
			if call%2 == 0 {
				return fails(token.Error{Class: token.Permanent, Code: "invalid_scope", Status: 400, Key: "scopes", Hint: "check scopes"})(ctx, call)
			}
			issued := issue(call, time.Hour)
			issued.Warning = "fewer scopes"
			return issued, nil
		}}
		s := token.NewSource(p, token.DefaultLifecycle(), slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		synctest.Wait()
		s.Reject(atOnce(t, s).Generation())
		time.Sleep(10 * time.Minute)
		s.Close()
		text := log.String()
		for _, want := range []string{
			`"msg":"token acquired"`, `"warning":"fewer scopes"`, `"level":"WARN","msg":"token not acquired","code":"invalid_scope","class":"permanent","key":"scopes","hint":"check scopes"`,
			`"status":400`, `"msg":"upstream refused the token, acquiring a new one"`,
		} {
			if !strings.Contains(text, want) {
				t.Errorf("log has no %s:\n%s", want, text)
			}
		}
		if strings.Contains(text, "token-1") {
			t.Errorf("log has the token:\n%s", text)
		}
	})
}
