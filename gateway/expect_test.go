package gateway_test

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// uploadAttempt is one upload as a keeper saw it.
type uploadAttempt struct {
	expect string
	status int
	body   int64 // bytes of it, after the framing
	sum    [sha256.Size]byte
}

// keeper is a server that answers 401 to tokens that it does not like without
// closing the connection or reading the body first, as nginx and Envoy do.
type keeper struct {
	*double
	continues bool  // it answers 100 (Continue)
	fails     bool  // it answers 417 to Expect
	refuseNew bool  // it likes no token that it has not seen
	late      int64 // so much of a body it reads before it answers 401

	mu       sync.Mutex
	bad      map[string]bool
	newest   string // the token that it last saw
	heads    int    // requests that have begun
	attempts []uploadAttempt
}

func newKeeper(t *testing.T, continues bool) *keeper {
	t.Helper()
	k := &keeper{continues: continues, bad: map[string]bool{}}
	k.double = newRaw(t, goodTLS(), func(c net.Conn, br *bufio.Reader) {
		for k.serve(c, br) {
		}
	})
	return k
}

func (k *keeper) serve(c net.Conn, br *bufio.Reader) bool {
	r, err := http.ReadRequest(br)
	if err != nil {
		return false
	}
	a := uploadAttempt{expect: r.Header.Get("Expect"), status: 200}
	k.mu.Lock()
	k.heads++
	if token := r.Header.Get("Authorization"); token != k.newest {
		k.bad[token] = k.refuseNew
		k.newest = token
	}
	if k.bad[k.newest] {
		a.status = 401
	} else if k.fails && a.expect != "" {
		a.status = 417
	}
	k.mu.Unlock()
	hash := sha256.New()
	if a.status == 401 {
		a.body, _ = io.CopyN(hash, r.Body, k.late)
	}
	answer := fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Length: 2\r\n\r\nok", a.status, http.StatusText(a.status))
	if a.status != 200 {
		_, _ = io.WriteString(c, answer)
	} else if a.expect != "" && k.continues {
		_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
	}
	rest, err := io.Copy(hash, r.Body)
	a.body += rest
	hash.Sum(a.sum[:0])
	k.mu.Lock()
	k.attempts = append(k.attempts, a)
	k.mu.Unlock()
	if a.status == 200 && err == nil {
		_, _ = io.WriteString(c, answer)
	}
	return err == nil
}

// revoke makes the token that was last used a bad one.
func (k *keeper) revoke() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.bad[k.newest] = true
}

// begun waits until n requests have begun.
func (k *keeper) begun(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d requests at the server", n), func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.heads >= n
	})
}

// uploads returns the attempts so far, once there are n of them, and forgets them.
func (k *keeper) uploads(t *testing.T, n int) []uploadAttempt {
	t.Helper()
	eventually(t, fmt.Sprintf("%d attempts at the server", n), func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.attempts) >= n
	})
	k.mu.Lock()
	defer k.mu.Unlock()
	all := k.attempts
	k.attempts = nil
	if len(all) != n {
		t.Fatalf("got %d attempts, want %d: %+v", len(all), n, all)
	}
	return all
}

const studySize = 32 << 20

var largeStudy = sync.OnceValue(func() string {
	b := make([]byte, studySize)
	source := rand.NewChaCha8([32]byte{})
	_, _ = source.Read(b)
	return string(b)
})

// wantWhole fails the test unless the attempt stored all of the study.
func (a uploadAttempt) wantWhole(t *testing.T) {
	t.Helper()
	if a.status != 200 || a.body != studySize || a.sum != sha256.Sum256([]byte(largeStudy())) {
		t.Errorf("got %d with %d bytes, want the whole study stored", a.status, a.body)
	}
}

// store uploads the study in chunks.
func store(t *testing.T, h *harness, status int) {
	t.Helper()
	h.request("POST", "/studies", struct{ io.Reader }{strings.NewReader(largeStudy())}).want(t, status)
}

// A STOW-RS of any size survives a revoked token, without being buffered.
func TestLargeUploadSurvivesARevokedToken(t *testing.T) {
	t.Parallel()
	for name, continues := range map[string]bool{"server that answers 100": true, "server that never does": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newKeeper(t, continues)
			h := newHarness(t, setup{up: k.double, token: `max_backoff = "1s"`})
			h.get("/").want(t, 200) // has the token accepted
			k.revoke()
			store(t, h, 200)
			all := k.uploads(t, 3)[1:]
			if all[0].status != 401 || all[0].body > 1<<20 || all[0].expect == "" {
				t.Errorf("first attempt: got %d with Expect %q and %d bytes of the body, want it refused with no more than a window", all[0].status, all[0].expect, all[0].body)
			}
			all[1].wantWhole(t)
		})
	}
}

// A credential that the server has not seen goes first, alone.
func TestLargeUploadWaitsUntilANewTokenIsAccepted(t *testing.T) {
	t.Parallel()
	k := newKeeper(t, true)
	h := newHarness(t, setup{up: k.double})
	store(t, h, 200)
	k.uploads(t, 1)[0].wantWhole(t)
	k.mu.Lock()
	k.refuseNew = true
	k.mu.Unlock()
	h.idp.RevokeAll()
	k.revoke()
	store(t, h, 401)
	all := k.uploads(t, 2)
	if all[1].expect == "" || all[1].body != 0 {
		t.Errorf("the new token: got Expect %q and %d bytes of the body, want it refused before the first", all[1].expect, all[1].body)
	}
}

// A server that never answers 100 costs one wait, not one for each upload.
func TestServerThatNeverContinuesIsNotAskedAgain(t *testing.T) {
	t.Parallel()
	k := newKeeper(t, false)
	h := newHarness(t, setup{up: k.double})
	store(t, h, 200)
	store(t, h, 200)
	all := k.uploads(t, 2)
	all[0].wantWhole(t)
	all[1].wantWhole(t)
	if all[0].expect == "" || all[1].expect != "" {
		t.Errorf("got Expect %q, then %q; want it the first time only", all[0].expect, all[1].expect)
	}
}

// A server may refuse the expectation itself (RFC 9110 section 15.5.18).
func TestUploadIsSentAgainWithoutExpect(t *testing.T) {
	t.Parallel()
	k := newKeeper(t, false)
	k.fails = true
	h := newHarness(t, setup{up: k.double})
	store(t, h, 200)
	all := k.uploads(t, 2)
	if all[0].status != 417 || all[1].expect != "" {
		t.Errorf("got %+v, want 417 and another attempt without Expect", all)
	}
	all[1].wantWhole(t)
}

// What fits into the window needs no question.
func TestSmallUploadIsNotHeldBack(t *testing.T) {
	t.Parallel()
	k := newKeeper(t, false)
	h := newHarness(t, setup{up: k.double})
	h.request("POST", "/studies", strings.NewReader("small")).want(t, 200)
	if a := k.uploads(t, 1)[0]; a.expect != "" || a.body != 5 {
		t.Errorf("got %+v, want no Expect", a)
	}
}

// The client's own 100 does not wait for the server's.
func TestHeldBackUploadIsContinuedAtOnce(t *testing.T) {
	t.Parallel()
	k := newKeeper(t, false)
	h := newHarness(t, setup{up: k.double})
	c := secure(t, h.addr, h.authority(), "", h.roots())
	br := bufio.NewReader(c)
	began := time.Now()
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: %s\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", h.authority(), studySize)
	line, err := textproto.NewReader(br).ReadLine()
	if err != nil || line != "HTTP/1.1 100 Continue" || time.Since(began) > 400*time.Millisecond {
		t.Fatalf("got %q %v after %v, want 100 at once", line, err, time.Since(began))
	}
	_, _ = br.ReadString('\n')
	if _, err := io.WriteString(c, largeStudy()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	readAnswer(resp).want(t, 200)
	k.uploads(t, 1)[0].wantWhole(t)
}

// nearlyTheWindow is a part of the study that the gateway keeps; with two bytes more
// it does not.
const nearlyTheWindow = 1<<20 - 1

// beginStore begins an upload of the study that goes on until nearly the window is
// full, to a server that never continues and no longer likes the token, as it says
// when it has got so much; goOn sends the rest. before is called before that.
func beginStore(t *testing.T, h *harness, k *keeper, before func()) (c net.Conn, goOn func()) {
	t.Helper()
	store(t, h, 200) // learns that it never continues, so that nothing is held back
	k.uploads(t, 1)
	k.revoke()
	k.late = nearlyTheWindow
	before()
	c = secure(t, h.addr, h.authority(), "", h.roots())
	fmt.Fprintf(c, "POST /studies HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", h.authority(), studySize)
	if _, err := io.WriteString(c, largeStudy()[:nearlyTheWindow]); err != nil {
		t.Fatal(err)
	}
	return c, func() { _, _ = io.WriteString(c, largeStudy()[nearlyTheWindow:]) }
}

// wantStoredInTheEnd fails the test unless one attempt was refused, and the other
// one stored all of the study.
func (k *keeper) wantStoredInTheEnd(t *testing.T) {
	t.Helper()
	all := k.uploads(t, 2)
	slices.SortFunc(all, func(a, b uploadAttempt) int { return a.status - b.status }) // they may end in any order
	all[0].wantWhole(t)
	if all[1].status != 401 {
		t.Errorf("got %d to the other attempt, want 401", all[1].status)
	}
}

// Once the second attempt has begun, its upload may outgrow the window.
func TestSecondAttemptGoesOnBeyondTheWindow(t *testing.T) {
	t.Parallel()
	k := newKeeper(t, false)
	h := newHarness(t, setup{up: k.double})
	c, goOn := beginStore(t, h, k, func() {})
	k.begun(t, 3) // the first store and two attempts
	go goOn()
	read(c).want(t, 200)
	k.wantStoredInTheEnd(t)
}

// While a new token is acquired the upload may outgrow the window; all the same it
// is sent again whole. Or it has done so before: then the server's 401 is the answer,
// not an error of the gateway's own.
func TestUploadMayOutgrowTheWindowDuringARenewal(t *testing.T) {
	t.Parallel()
	k := newKeeper(t, false)
	h := newHarness(t, setup{up: k.double})
	c, goOn := beginStore(t, h, k, h.idp.Hang)
	eventually(t, "the provider is asked for a new token", func() bool { return h.idp.TokenRequests() == 2 })
	go goOn()
	h.idp.Recover()
	a := read(c)
	if a.status == 200 {
		k.wantStoredInTheEnd(t)
	} else if a.want(t, 401); a.body != "ok" {
		t.Errorf("got %q, want the server's own answer", a.body)
	}
}
