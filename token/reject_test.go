package token_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"orthanc-dicomweb-oauth/token"
)

func TestHundredRejectsOfOneTokenAcquireOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, issues(time.Second, time.Hour))
		if _, err := s.Token(t.Context()); err != nil {
			t.Fatal(err)
		}
		var upstream sync.WaitGroup
		for range 100 {
			upstream.Go(func() {
				if !s.Reject(1) {
					t.Error("Reject promised no other token")
				}
				got, err := s.Token(t.Context())
				if err != nil || got.Generation() != 2 {
					t.Errorf("Token: %v, %v, want generation 2", got, err)
				}
			})
		}
		upstream.Wait()
		if n := len(p.calls()); n != 2 {
			t.Errorf("%d acquisitions, want 2", n)
		}
	})
}

func TestLateRejectOfAnOlderTokenDropsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, issues(0, time.Hour))
		synctest.Wait()
		s.Reject(1)
		synctest.Wait()
		time.Sleep(time.Minute) // past the limit of one in 30 s
		for range 10 {
			if !s.Reject(1) {
				t.Error("Reject of an old token advised against the new one")
			}
			synctest.Wait()
			if got := atOnce(t, s).Generation(); got != 2 {
				t.Fatalf("generation %d, want 2", got)
			}
		}
		if n := len(p.calls()); n != 2 {
			t.Errorf("%d acquisitions, want 2", n)
		}
		if got := s.Status().State; got != token.Fresh {
			t.Errorf("state %q, want fresh", got)
		}
	})
}

func TestThirtySecondsOf401sAcquireOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, issues(0, time.Hour))
		synctest.Wait()
		again := 0
		for range 300 {
			got, err := s.Token(t.Context())
			if err != nil {
				t.Fatalf("Token: %v", err)
			}
			if s.Reject(got.Generation()) {
				again++
			}
			synctest.Wait()
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if n := len(p.calls()); n != 2 || again != 1 {
			t.Errorf("%d acquisitions and %d repeats, want 2 and 1", n, again)
		}
		// After 30 s another one is allowed.
		if !s.Reject(2) {
			t.Error("Reject after 30 s promised no other token")
		}
		synctest.Wait()
		if n := len(p.calls()); n != 3 {
			t.Errorf("%d acquisitions, want 3", n)
		}
	})
}

// The rejected token is dropped at once; whoever comes meanwhile waits for the
// new one. When the provider gives none, the old one comes back: the upstream
// that refused it may not be the only one, and another may accept it.
func TestRejectedTokenComesBackWhenNoOtherCanBeHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, once(issues(0, time.Hour), func(ctx context.Context, call int) (token.Token, error) {
			time.Sleep(5 * time.Second)
			return fails(permanent)(ctx, call)
		}))
		synctest.Wait()
		if !s.Reject(1) {
			t.Fatal("Reject promised no other token")
		}
		if s.Peek() != nil {
			t.Error("the rejected token is served while another one is asked for")
		}
		began := time.Now()
		got, err := s.Token(t.Context())
		if err != nil || got.Generation() != 1 || time.Since(began) != 5*time.Second {
			t.Errorf("Token: %v, %v after %v, want generation 1 after 5s", got, err, time.Since(began))
		}
		if state := s.Status().State; state != token.Stale {
			t.Errorf("state %q, want stale", state)
		}
		if s.Reject(1) || len(p.calls()) != 2 {
			t.Errorf("a second Reject asks the provider again: %d calls", len(p.calls()))
		}
	})
}

func TestRejectDuringARefreshWaitsForThatRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, once(issues(0, time.Hour), issues(5*time.Second, time.Hour)))
		for len(p.calls()) < 2 {
			time.Sleep(time.Second)
		}
		s.Reject(1)
		got, err := s.Token(t.Context())
		if err != nil || got.Generation() != 2 || len(p.calls()) != 2 {
			t.Errorf("Token: %v, %v after %d acquisitions, want generation 2 after 2", got, err, len(p.calls()))
		}
	})
}

func TestThreeFreshTokensRefusedInARowAreNotTheTokensFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, issues(0, time.Hour))
		state := func(want token.State) {
			t.Helper()
			if got := s.Status().State; got != want {
				t.Fatalf("state %q, want %q", got, want)
			}
		}
		refuse := func() {
			t.Helper()
			got, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for range 5 { // the same token refused five times counts once
				s.Reject(got.Generation())
			}
			synctest.Wait()
			time.Sleep(31 * time.Second)
		}
		synctest.Wait()
		refuse()
		refuse()
		state(token.Fresh)
		refuse()
		state(token.RejectedAll)
		before := len(p.calls())
		for range 300 { // still one acquisition per 30 s at most
			if got, err := s.Token(t.Context()); err == nil {
				s.Reject(got.Generation())
			}
			synctest.Wait()
			time.Sleep(time.Second)
		}
		if n := len(p.calls()) - before; n > 11 {
			t.Errorf("%d acquisitions in 5 min of 401s, want one each 30 s at most", n)
		}
		state(token.RejectedAll)
		s.Accept()
		state(token.Fresh)
		time.Sleep(31 * time.Second)
		refuse()
		refuse()
		state(token.Fresh) // counted anew
	})
}

// While the limit keeps a refused token in use, each further 401 is the same news.
func TestOneTokenRefusedOftenCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := open(t, issues(0, time.Hour))
		synctest.Wait()
		s.Reject(1)
		synctest.Wait()
		for range 20 {
			s.Reject(2)
			time.Sleep(time.Second)
		}
		if got := s.Status().State; got != token.Fresh {
			t.Errorf("state %q after two refused tokens, want fresh", got)
		}
	})
}

func TestAcceptBetweenRejectsResetsTheCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := open(t, issues(0, time.Hour))
		synctest.Wait()
		for range 10 {
			s.Reject(atOnce(t, s).Generation())
			synctest.Wait()
			s.Accept()
			time.Sleep(31 * time.Second)
		}
		if got := s.Status().State; got != token.Fresh {
			t.Errorf("state %q, want fresh", got)
		}
	})
}

func TestGenerationsNeverGoBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := open(t, func(ctx context.Context, call int) (token.Token, error) {
			if call%3 == 0 {
				return fails(transient)(ctx, call)
			}
			return issues(time.Second, 10*time.Second)(ctx, call)
		})
		var last uint64
		for i := range 2000 {
			got, err := s.Token(t.Context())
			if err == nil {
				if got.Generation() < last {
					t.Fatalf("generation %d after %d", got.Generation(), last)
				}
				last = got.Generation()
				if i%50 == 0 {
					s.Reject(last)
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		if last < 20 {
			t.Errorf("reached generation %d only", last)
		}
	})
}
