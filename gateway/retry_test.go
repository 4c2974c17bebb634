package gateway_test

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// stallTime is the stall_timeout of these tests: what they do takes several of
// it in all, but never as much without a byte.
const stallTime = 400 * time.Millisecond

// paced calls step every quarter of the stall time until it returns false.
func paced(step func() bool) {
	ticker := time.NewTicker(stallTime / 4)
	defer ticker.Stop()
	for step() {
		<-ticker.C
	}
}

// slowBody gives n chunks of a byte, paced.
func slowBody(n int) io.Reader {
	r, w := io.Pipe()
	go func() {
		sent := 0
		paced(func() bool {
			if sent == n {
				w.Close()
				return false
			}
			sent++
			_, err := w.Write([]byte("x"))
			return err == nil
		})
	}()
	return r
}

// refuseFirst answers 401 to the first request without reading its body.
func refuseFirst(h http.HandlerFunc) http.HandlerFunc {
	var requests atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 1 {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h(w, r)
	}
}

// The second attempt after a 401 has the same time as a first one: its answer
// may take longer than stall_timeout, and its upload too while it moves.
func TestSecondAttemptIsNotCutWhileItMoves(t *testing.T) {
	t.Parallel()
	slow := setup{proxy: `stall_timeout = "400ms"`}
	t.Run("answer that takes its time", func(t *testing.T) {
		t.Parallel()
		s := slow
		s.up = newDouble(t, refuseFirst(func(http.ResponseWriter, *http.Request) {
			waited := 0
			paced(func() bool { waited++; return waited < 10 })
		}))
		newHarness(t, s).get("/").want(t, 200)
	})
	t.Run("upload that takes its time", func(t *testing.T) {
		t.Parallel()
		s := slow
		s.up = newDouble(t, refuseFirst(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil || string(body) != strings.Repeat("x", 10) {
				t.Errorf("got %q, %v", body, err)
			}
		}))
		newHarness(t, s).request("POST", "/studies", slowBody(10)).want(t, 200)
	})
}

// A server may begin its answer before it has read the whole upload.
func TestUploadGoesOnBehindAnEarlyAnswer(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{proxy: `stall_timeout = "400ms"`, up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		body, err := io.ReadAll(r.Body)
		if err != nil || len(body) != 10 {
			t.Errorf("got %d bytes, %v", len(body), err)
		}
		_, _ = io.WriteString(w, "stored")
	})})
	h.request("POST", "/studies", slowBody(10)).want(t, 200)
}

// An early answer to an upload that pauses is passed at once, not when the
// client goes on.
func TestEarlyAnswerDoesNotWaitForAPausingClient(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex() // else it would wait itself
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	})})
	r, w := io.Pipe()
	defer w.Close()
	go func() { _, _ = w.Write([]byte("some")) }()
	h.request("POST", "/studies", r).want(t, 413)
}
