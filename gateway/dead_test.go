package gateway_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
)

// A server that dies is noticed at once, even while the client pauses in its
// upload; and a client that goes on pausing is let go.
func TestDeadServerIsNoticedWhileTheClientPauses(t *testing.T) {
	t.Parallel()
	up := script(t, goodTLS(), func(c net.Conn, r *http.Request) {
		_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		_, _ = io.ReadFull(r.Body, make([]byte, 4))
	})
	for name, head := range map[string]string{
		"chunked":     "Transfer-Encoding: chunked\r\n\r\n4\r\n",
		"with length": "Content-Length: 100\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t, setup{up: up})
			c := secure(t, h.addr, h.authority(), "", h.roots())
			fmt.Fprintf(c, "POST /studies HTTP/1.1\r\nHost: %s\r\n%ssome", h.authority(), head)
			read(c).problem(t, 502, "upstream_protocol")
			if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
				t.Errorf("after the answer got %d bytes and %v, want the end of the connection", n, err)
			}
		})
	}
}
