//go:build e2e

package e2e

import (
	"errors"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"
)

// burst sends n requests, 20 at a time. It returns the errors and the longest time that one took.
func (g *gateway) burst(t *testing.T, u *upstream, n int) (failed []error, slowest time.Duration) {
	t.Helper()
	client := g.client(t)
	client.Transport.(*http.Transport).MaxIdleConnsPerHost = 20
	var mu sync.Mutex
	var wg sync.WaitGroup
	free := make(chan struct{}, 20)
	for range n {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			started := time.Now()
			_, err := get(client, u.server.url+"studies")
			mu.Lock()
			defer mu.Unlock()
			slowest = max(slowest, time.Since(started))
			if err != nil {
				failed = append(failed, err)
			}
		})
	}
	wg.Wait()
	return failed, slowest
}

// One token request serves a hundred first requests. While the provider hangs, a thousand requests use the token that is
// there and none of them waits; when its life is over, each gets 503.
func TestTokenIsSharedAndOutlivesItsProvider(t *testing.T) {
	// Not in parallel: a thousand requests must fit into half a lifetime.
	u := startUpstream(t, shortLifetime, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("[]"))
	}))
	g := startGateway(t, u, basicLogin, clientSecret)
	if failed, _ := g.burst(t, u, 100); failed != nil {
		t.Fatalf("%d of 100 first requests failed: %v", len(failed), failed[0])
	}
	if granted, refused := u.provider.tokenRequests(t); granted != 1 || refused != 0 {
		t.Errorf("%d token requests granted and %d refused, want 1 and 0", granted, refused)
	}

	u.provider.process.signal(syscall.SIGSTOP)
	defer u.provider.process.signal(syscall.SIGCONT)
	eventually(t, shortLifetime, func() error {
		if left := time.Until(g.profile(t).ExpiresAt); left > shortLifetime/2-time.Second/2 {
			return errors.New("the refresh is not due yet")
		}
		return nil
	})
	failed, slowest := g.burst(t, u, 1000)
	if failed != nil {
		t.Errorf("%d of 1,000 requests failed: %v", len(failed), failed[0])
	}
	if slowest > 2*time.Second { // whoever waits for the provider waits 10 s
		t.Errorf("the slowest of 1,000 requests took %v", slowest)
	}
	t.Logf("slowest of 1,000 requests with the provider hanging: %v", slowest)

	eventually(t, 2*shortLifetime, func() error {
		if g.profile(t).State == "stale" || g.profile(t).State == "fresh" {
			return errors.New("the token is still usable")
		}
		return nil
	})
	failed, _ = g.burst(t, u, 100)
	if len(failed) != 100 {
		t.Errorf("%d of 100 requests failed without a usable token, want all", len(failed))
	}
	for _, err := range failed {
		var status statusError
		if !errors.As(err, &status) || status.status != http.StatusServiceUnavailable {
			t.Fatalf("got %v, want status 503", err)
		}
	}
	u.server.wantOnlyAdmitted(t)
}
