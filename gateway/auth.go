package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

const (
	// guessEvery paces the answers to wrong proxy passwords, over all clients.
	// The right password never waits.
	guessEvery = 100 * time.Millisecond
	// guessWait is the longest that one wrong guess waits for its answer.
	guessWait = 5 * time.Second
	// maxHeld bounds the wrong guesses that wait.
	maxHeld = 256
)

// proxyAuth decides who may use the proxy at all.
type proxyAuth struct {
	allow    []netip.Prefix
	username string
	password token.SecretSource

	places *atomic.Int64 // the count of connections
	held   atomic.Int64  // wrong guesses that wait

	mu   sync.Mutex
	next time.Time // when the next wrong guess is answered
}

func newProxyAuth(p rules.Proxy, places *atomic.Int64) (*proxyAuth, error) {
	if _, err := p.Password.Read(); err != nil {
		return nil, fmt.Errorf("proxy.password: %w", err)
	}
	return &proxyAuth{allow: p.AllowClients, username: p.Username, password: p.Password, places: places}, nil
}

// admits reports whether clients may come from this address.
func (a *proxyAuth) admits(remote string) bool {
	if len(a.allow) == 0 {
		return true
	}
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return false
	}
	ip := ap.Addr().Unmap().WithZone("")
	for _, prefix := range a.allow {
		if prefix.Contains(ip) {
			return true
		}
	}
	return false
}

// keeps reports whether requests may go on in a tunnel that was opened under
// other settings. Its password is not asked for again.
func (a *proxyAuth) keeps(t *tunnel) bool {
	return (a.username == "" || a.username == t.user) && (len(a.allow) == 0 || a.admits(net.JoinHostPort(t.client, "0")))
}

// same reports whether both admit the same clients; a may be nil.
func (a *proxyAuth) same(b *proxyAuth) bool {
	return a != nil && a.username == b.username && slices.Equal(a.allow, b.allow) && reflect.DeepEqual(a.password, b.password)
}

// user checks Proxy-Authorization (RFC 7617) and returns the user's name. It
// holds back the answer to a wrong guess.
func (a *proxyAuth) user(ctx context.Context, h http.Header) (string, bool) {
	if a.username == "" {
		return "", true
	}
	scheme, encoded, _ := strings.Cut(h.Get("Proxy-Authorization"), " ")
	if scheme == "" {
		return "", false
	}
	password, err := a.password.Read()
	given, decodeErr := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	want := sha256.Sum256([]byte(a.username + ":" + password.Reveal()))
	have := sha256.Sum256(given)
	equal := subtle.ConstantTimeCompare(want[:], have[:]) == 1
	if equal && err == nil && decodeErr == nil && strings.EqualFold(scheme, "Basic") {
		return a.username, true
	}
	a.holdBack(ctx)
	return "", false
}

// holdBack waits before a wrong guess is answered. Meanwhile the guess takes no
// place of other clients; when too many wait already, none is held back longer.
func (a *proxyAuth) holdBack(ctx context.Context) {
	defer a.held.Add(-1)
	if a.held.Add(1) > maxHeld {
		return
	}
	a.places.Add(-1)
	defer a.places.Add(1)
	a.mu.Lock()
	now := time.Now()
	if a.next.Before(now) {
		a.next = now
	}
	a.next = a.next.Add(guessEvery)
	wait := min(a.next.Sub(now), guessWait)
	if wait == guessWait {
		a.next = now.Add(guessWait)
	}
	a.mu.Unlock()
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
}
