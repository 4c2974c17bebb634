package token_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/token"
)

// provider is a fake identity provider: answer is the script of a test. Every
// test that uses it also checks that no two acquisitions are under way at once.
type provider struct {
	t      *testing.T
	answer func(ctx context.Context, call int) (token.Token, error)

	mu    sync.Mutex
	busy  bool
	began []time.Time
}

func (p *provider) Acquire(ctx context.Context) (token.Token, error) {
	p.mu.Lock()
	if p.busy {
		p.t.Errorf("acquisition %d began while another was under way", len(p.began)+1)
	}
	p.busy = true
	p.began = append(p.began, time.Now())
	call := len(p.began)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.busy = false
	}()
	return p.answer(ctx, call)
}

// calls returns when each call to the provider began.
func (p *provider) calls() []time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]time.Time(nil), p.began...)
}

// issue is a token that lives for life from now on.
func issue(call int, life time.Duration) token.Token {
	return token.Token{Value: token.NewSecret(fmt.Sprintf("token-%d", call)), Expires: time.Now().Add(life)}
}

// issues answers every call after latency with a token of the given life.
func issues(latency, life time.Duration) func(context.Context, int) (token.Token, error) {
	return func(ctx context.Context, call int) (token.Token, error) {
		issued := issue(call, life)
		if err := pause(ctx, latency); err != nil {
			return token.Token{}, err
		}
		return issued, nil
	}
}

// fails answers every call at once with a copy of e.
func fails(e token.Error) func(context.Context, int) (token.Token, error) {
	return func(context.Context, int) (token.Token, error) {
		failure := e
		return token.Token{}, &failure
	}
}

// hangs answers no call.
func hangs(ctx context.Context, _ int) (token.Token, error) {
	<-ctx.Done()
	return token.Token{}, ctx.Err()
}

// once lets the first call go to first, and all others to then.
func once(first, then func(context.Context, int) (token.Token, error)) func(context.Context, int) (token.Token, error) {
	return func(ctx context.Context, call int) (token.Token, error) {
		if call == 1 {
			return first(ctx, call)
		}
		return then(ctx, call)
	}
}

var (
	transient = token.Error{Class: token.Transient, Code: "provider_unreachable"}
	permanent = token.Error{Class: token.Permanent, Code: "invalid_client", Key: "client_secret"}
)

func throttled(wait time.Duration) token.Error {
	return token.Error{Class: token.Throttled, Code: "provider_answer", Status: 429, RetryAfter: wait}
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// open starts a source with the default lifecycle that ends with the test.
func open(t *testing.T, answer func(context.Context, int) (token.Token, error)) (*token.Source, *provider) {
	t.Helper()
	p := &provider{t: t, answer: answer}
	s := token.NewSource(p, token.DefaultLifecycle(), slog.New(slog.DiscardHandler))
	t.Cleanup(s.Close)
	return s, p
}

// atOnce asks for a token, which must come without a wait and without an error.
func atOnce(t *testing.T, s *token.Source) *token.Token {
	t.Helper()
	asked := time.Now()
	got, err := s.Token(t.Context())
	if err != nil {
		t.Fatalf("Token: %v, want a token", err)
	}
	if waited := time.Since(asked); waited != 0 {
		t.Fatalf("Token waited %v, want no wait", waited)
	}
	return got
}

// refused asks for a token, which must be refused with a time to come back.
func refused(t *testing.T, s *token.Source) *token.Unavailable {
	t.Helper()
	got, err := s.Token(t.Context())
	u, ok := errors.AsType[*token.Unavailable](err)
	if !ok {
		t.Fatalf("Token: %v, %v, want an *Unavailable", got, err)
	}
	if u.RetryAfter <= 0 {
		t.Fatalf("Unavailable.RetryAfter is %v, want more than 0", u.RetryAfter)
	}
	return u
}
