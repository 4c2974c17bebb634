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
)

// okAnswer is a whole answer after which the connection is kept.
const okAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// A server that has said 100 (Continue) has seen the request, and may have carried
// it out although it then ends the kept connection without an answer.
func TestUploadIsNotSentAgainAfterAnInterimAnswer(t *testing.T) {
	t.Parallel()
	var taken atomic.Int64
	up := newRaw(t, goodTLS(), func(c net.Conn, br *bufio.Reader) {
		for kept := false; ; kept = true {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if r.Method == "POST" {
				_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
				if body, err := io.ReadAll(r.Body); err == nil && string(body) == "a study" {
					taken.Add(1)
				}
				if kept {
					return
				}
			}
			_, _ = io.WriteString(c, okAnswer)
		}
	})
	h := newHarness(t, setup{up: up})
	h.get("/").want(t, 200)
	h.request("POST", "/studies", stream{strings.NewReader("a study")}).problem(t, 502, "upstream_protocol")
	if n := taken.Load(); n != 1 {
		t.Errorf("the server took the upload %d times, want once", n)
	}
}

// What goes out without a credential of ours may be any request, not only
// DICOMweb: if the kept connection ends without an answer, only what is idempotent
// is sent again (RFC 9110 section 9.2.2).
func TestForeignPostIsNotSentAgain(t *testing.T) {
	t.Parallel()
	var taken atomic.Int64
	up := newRaw(t, nil, func(c net.Conn, br *bufio.Reader) {
		for kept := false; ; kept = true {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			if r.Method != "GET" {
				taken.Add(1)
				if kept {
					return // after the work is done
				}
			}
			_, _ = io.WriteString(c, okAnswer)
		}
	})
	h := newHarness(t, setup{more: fmt.Sprintf(`
[[rule]]
name = "plain"
url = "%s/"
action = "pass"
methods = ["GET", "POST", "PATCH", "PUT", "DELETE"]
allow_networks = ["127.0.0.0/8", "::1/128"]
`, up.url)})
	for _, row := range []struct {
		method        string
		status, times int
	}{{"POST", 502, 1}, {"PATCH", 502, 1}, {"PUT", 200, 2}, {"DELETE", 200, 2}} {
		taken.Store(0)
		if a, err := h.try("GET", up.url+"/", nil); err != nil || a.status != 200 { // leaves a kept connection
			t.Fatal(a, err)
		}
		a, err := h.try(row.method, up.url+"/charge", strings.NewReader("now"))
		if err != nil || a.status != row.status || int(taken.Load()) != row.times {
			t.Errorf("%s: got %d %v, carried out %d times; want %d, %d times", row.method, a.status, err, taken.Load(), row.status, row.times)
		}
	}
}

// What a server says after 101 is in another protocol (RFC 9110 section 7.8), for
// which the gateway has not asked.
func TestConnectionIsNotUsedAgainAfter101(t *testing.T) {
	t.Parallel()
	var after atomic.Int64
	up := newRaw(t, goodTLS(), func(c net.Conn, br *bufio.Reader) {
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")
		if _, err := http.ReadRequest(br); err == nil {
			after.Add(1)
			_, _ = io.WriteString(c, okAnswer)
		}
	})
	h := newHarness(t, setup{up: up})
	for range 2 {
		h.get("/").problem(t, 502, "upstream_protocol")
	}
	if n := after.Load(); n != 0 {
		t.Errorf("%d requests, with their credential, went into a connection after 101", n)
	}
}
