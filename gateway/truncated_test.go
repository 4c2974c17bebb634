package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A broken answer is broken for the client too: never whole, never empty.
func TestTruncatedAnswersAreCut(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string]string{
		"shorter than its length":           "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
		"nothing of its length":             "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
		"chunked without an end":            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
		"chunked, cut in a chunk":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf",
		"chunked, no chunk":                 "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"chunked, garbage for a chunk":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
		"error shorter than its length":     "HTTP/1.1 500 Oh\r\nContent-Length: 100\r\n\r\nhalf",
		"a large one, cut after one window": "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("a", 300000),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, setup{up: script(t, goodTLS(), says(raw))})
			a, err := h.try("GET", h.up.url+"/", nil)
			if err == nil && a.err == nil {
				t.Errorf("got a whole answer: %d, %d bytes", a.status, len(a.body))
			}
			ctx, cancel := contextWithPatience()
			defer cancel()
			_ = h.stop(ctx)
			if !strings.Contains(h.audit.String(), `"outcome":"cut"`) {
				t.Errorf("the audit does not say so: %s", h.audit)
			}
		})
	}
}

// Where an answer's framing is odd, what the client gets is what RFC 9112 section
// 6.3 reads in it; and where its end is in doubt, nothing that follows on the
// connection is taken for the next answer.
func TestConnectionIsNotUsedAgainAfterOddFraming(t *testing.T) {
	t.Parallel()
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	for name, row := range map[string]struct {
		raw    string
		status int
		body   string
		reused bool
	}{
		"a length and chunks, which count":     {"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2;ext=1\r\nok\r\n0\r\nX-T: 1\r\n\r\n", 200, "ok", true},
		"interim answers, which have no body":  {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n" + okAnswer, 200, "ok", true},
		"more than its length":                 {okAnswer + evil, 200, "ok", false},
		"more than its chunks":                 {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + evil, 200, "ok", false},
		"a body behind 204":                    {"HTTP/1.1 204 No Content\r\nContent-Length: 45\r\n\r\n" + evil, 204, "", false},
		"chunks in HTTP/1.0, which knows none": {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nok", 200, "ok", false},
		"two transfer codings":                 {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 502, "", false},
		"chunks inside another coding":         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n2\r\nok\r\n0\r\n\r\n", 502, "", false},
		"two lengths that differ":              {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!", 502, "", false},
		"a status that ends no request":        {"HTTP/1.1 099 No\r\nContent-Length: 0\r\n\r\n", 502, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var reused atomic.Int64
			up := newRaw(t, goodTLS(), func(c net.Conn, br *bufio.Reader) {
				for next := row.raw; ; next = okAnswer {
					if _, err := http.ReadRequest(br); err != nil {
						return
					}
					if next == okAnswer {
						reused.Add(1)
					}
					_, _ = io.WriteString(c, next)
				}
			})
			h := newHarness(t, setup{up: up})
			for range 2 {
				switch a := h.get("/"); {
				case row.status == 502:
					a.problem(t, 502, "upstream_protocol")
				case a.want(t, row.status).body != row.body:
					t.Errorf("got %q, want %q", a.body, row.body)
				}
			}
			if got := reused.Load() > 0; got != row.reused {
				t.Errorf("the connection was used again: %t, want %t", got, row.reused)
			}
		})
	}
}

// An answer without any framing ends with its connection, which cannot be told
// from a cut; it is passed on.
func TestAnswerUntilTheEndOfTheConnection(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: script(t, goodTLS(), func(c net.Conn, _ *http.Request) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nall of it")
	})})
	if a := h.get("/").want(t, 200); a.body != "all of it" {
		t.Errorf("got %q", a.body)
	}
}

func TestAnswerIsPassedOnAsItArrives(t *testing.T) {
	t.Parallel()
	next := make(chan struct{})
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "4")
		for range 4 {
			_, _ = io.WriteString(w, "x")
			_ = http.NewResponseController(w).Flush()
			<-next
		}
	})})
	c := secure(t, h.addr, h.authority(), "", h.roots())
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", h.authority())
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		if n, err := io.ReadFull(resp.Body, make([]byte, 1)); n != 1 {
			t.Fatalf("byte %d: %v", i, err)
		}
		next <- struct{}{}
	}
}

func TestUploadIsPassedOnAsItArrives(t *testing.T) {
	t.Parallel()
	got := make(chan byte)
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		for one := make([]byte, 1); ; {
			if _, err := io.ReadFull(r.Body, one); err != nil {
				return
			}
			got <- one[0]
		}
	})})
	c := secure(t, h.addr, h.authority(), "", h.roots())
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n", h.authority())
	for _, letter := range "abc" {
		fmt.Fprintf(c, "1\r\n%c\r\n", letter)
		select {
		case b := <-got:
			if rune(b) != letter {
				t.Errorf("got %c, want %c", b, letter)
			}
		case <-time.After(patience):
			t.Fatal("a byte does not arrive before the next one is sent")
		}
	}
	_, _ = io.WriteString(c, "0\r\n\r\n")
	read(c).want(t, 200)
}

// Orthanc's peers wait a second for a 100 that does not come.
func TestExpectIsAnsweredAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	})})
	c := secure(t, h.addr, h.authority(), "", h.roots())
	br := bufio.NewReader(c)
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: %s\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", h.authority())
	if line, err := br.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("got %q %v before the body, want 100", line, err)
	}
	_, _ = br.ReadString('\n')
	_, _ = io.WriteString(c, "hello")
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a := readAnswer(resp).want(t, 200); a.body != "hello" {
		t.Errorf("got %q", a.body)
	}
	if got := h.up.last(t).header.Get("Expect"); got != "" {
		t.Errorf("Expect reached the server")
	}
}

// A refusal comes instead of the 100, so that a large body is not sent for nothing.
func TestExpectIsAnsweredByTheRefusal(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	h.raw("OPTIONS / HTTP/1.1\r\nHost: {good}\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n").problem(t, 405, "method_not_allowed")
}
