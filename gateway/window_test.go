package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func Test401PassesWhenTheBodyOutgrowsTheWindow(t *testing.T) {
	n := 0
	up := raws(t, goodTLS(), func(c net.Conn, br *bufio.Reader) {
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if r.Method == "POST" {
				if n++; n > 1 {
					fmt.Fprintf(c, "HTTP/1.1 401 No\r\nContent-Length: 12\r\n\r\nthe real 401")
					_, _ = io.Copy(io.Discard, r.Body)
					continue
				}
				_, _ = io.Copy(io.Discard, r.Body)
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	h := newHarness(t, setup{up: up})
	store(t, h, 200) // learns that it never continues
	h.idp.Hang()
	go func() { time.Sleep(500 * time.Millisecond); h.idp.Recover() }()
	c := secure(t, h.addr, h.authority(), "", h.roots())
	block := strings.Repeat("a", 1040000)
	go func() {
		fmt.Fprintf(c, "POST /studies HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n", h.authority())
		fmt.Fprintf(c, "%x\r\n%s\r\n", len(block), block)
		for range 20 {
			time.Sleep(20 * time.Millisecond)
			if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n", 16000, block[:16000]); err != nil {
				return
			}
		}
		_, _ = io.WriteString(c, "0\r\n\r\n")
	}()
	a := read(c)
	t.Logf("%d %s %q %v", a.status, a.header.Get("X-Gateway-Error"), a.body, a.err)
	if a.status == 502 {
		t.Error("the upstream said 401")
	}
}
