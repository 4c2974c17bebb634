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

// G: 401 while the body comes without a gate; what crosses the window meanwhile.
func TestUploadThatCrossesTheWindowAfterA401(t *testing.T) {
	k := newKeeper(t, false)
	h := newHarness(t, setup{up: k.double, token: `max_backoff = "1s"`})
	store(t, h, 200) // learns that it never continues
	k.uploads(t, 1)
	k.revoke()
	h.idp.RevokeAll()
	c := secure(t, h.addr, h.authority(), "", h.roots())
	fmt.Fprintf(c, "POST /studies HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n", h.authority())
	block := strings.Repeat("a", 1040000)
	fmt.Fprintf(c, "%x\r\n%s\r\n", len(block), block)
	go func() {
		time.Sleep(100 * time.Millisecond)
		for range 20 {
			fmt.Fprintf(c, "%x\r\n%s\r\n", 16000, block[:16000])
		}
		_, _ = io.WriteString(c, "0\r\n\r\n")
	}()
	a := read(c)
	t.Logf("%d %s %q", a.status, a.header.Get("X-Gateway-Error"), a.body)
}

// K: Content-Length with Transfer-Encoding, late surplus, 1xx flood.
func TestOddFramingOfAnswersIsNotReused(t *testing.T) {
	for name, row := range map[string]struct {
		raw    string
		status int
		body   string
		reuse  bool
	}{
		"CL and TE":       {"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2;ext=1\r\nok\r\n0\r\nX-T: 1\r\n\r\n", 200, "ok", false},
		"two TE":          {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 502, "", false},
		"CL differ":       {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!", 502, "", false},
		"surplus":         {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 200, "ok", false},
		"204 with body":   {"HTTP/1.1 204 No\r\nContent-Length: 4\r\n\r\nevil", 204, "", false},
		"HTTP/1.0 TE":     {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nok", 200, "ok", false},
		"1xx flood":       {strings.Repeat("HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n", 20000), 502, "", false},
		"1xx then answer": {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 H\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok", false},
		"status 099":      {"HTTP/1.1 099 No\r\nContent-Length: 0\r\n\r\n", 502, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			var second atomic.Int64
			up := raws(t, goodTLS(), func(c net.Conn, br *bufio.Reader) {
				if _, err := http.ReadRequest(br); err != nil {
					return
				}
				go func() { _, _ = io.WriteString(c, row.raw) }()
				if _, err := http.ReadRequest(br); err == nil {
					second.Add(1)
				}
			})
			h := newHarness(t, setup{up: up})
			a, err := h.try("GET", h.up.url+"/", nil)
			if err != nil || a.status != row.status || row.status < 300 && a.body != row.body {
				t.Errorf("%+v %v", a, err)
			}
			_, _ = h.try("GET", h.up.url+"/", nil)
			if second.Load() != 0 {
				t.Logf("the connection was used again")
			}
		})
	}
}
