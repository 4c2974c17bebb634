package gateway

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/rules"
)

// staleConn is a kept connection: its head is taken, its answer is the end, and a
// write of the body that was under way succeeds while it is closed, as the
// kernel's buffer lets it.
type staleConn struct {
	net.Conn
	mu     sync.Mutex
	past   bool
	writes int
	inBody chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (c *staleConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.past = !t.IsZero() && time.Until(t) < 0
	c.mu.Unlock()
	return nil
}

func (c *staleConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	past := c.past
	c.mu.Unlock()
	if past {
		return 0, os.ErrDeadlineExceeded
	}
	<-c.inBody
	return 0, io.EOF
}

func (c *staleConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.writes++
	n := c.writes
	c.mu.Unlock()
	if n == 2 {
		close(c.inBody)
		<-c.closed
		time.Sleep(20 * time.Millisecond) // the scheduler's choice
	}
	if n > 2 {
		return 0, net.ErrClosed
	}
	return len(p), nil
}
func (c *staleConn) Close() error { c.once.Do(func() { close(c.closed) }); return nil }

func TestStaleAttemptGetsNothingOfTheNextBody(t *testing.T) {
	got := make(chan string, 1)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			got <- "error " + err.Error()
			return
		}
		got <- string(b)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}()
	a, _ := rules.ParseAuthority(ln.Addr().String(), 80)
	p := place{"http", a}
	proxy := rules.Default().Proxy
	up := &upstream{limits: proxy, servers: map[place]*server{}, dial: func(ctx context.Context, n, addr string) (net.Conn, error) {
		time.Sleep(50 * time.Millisecond) // a handshake's time
		return new(net.Dialer).DialContext(ctx, n, addr)
	}}
	stale := &staleConn{inBody: make(chan struct{}), closed: make(chan struct{})}
	c := newUpstreamConn(up, p, stale, &bulkConn{Conn: stale})
	up.put(c)
	src, feed := io.Pipe()
	go func() {
		_, _ = io.WriteString(feed, strings.Repeat("a", 5))
		time.Sleep(10 * time.Millisecond)
		_, _ = io.WriteString(feed, strings.Repeat("b", 5))
		feed.Close()
	}()
	in := httptest.NewRequest("PUT", "/studies", src)
	ctx, cancel := context.WithCancelCause(t.Context())
	x := &exchange{in: in, ctx: ctx, cancel: cancel, authority: a, scheme: "http", snap: &snapshot{config: &rules.Config{Proxy: proxy}}}
	x.w = &responseWriter{ResponseWriter: httptest.NewRecorder(), x: x}
	x.answering = newWatchdog(time.Minute, func() {})
	x.body = &requestBody{src: in.Body, moved: x.moved}
	body, _ := x.body.attempt()
	req := &http.Request{Method: "PUT", URL: &url.URL{Opaque: "/studies"}, Header: http.Header{}, Host: a.String(), Body: body, ContentLength: -1}
	resp, err := x.exchangeWith(up, req, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if g := <-got; g != "aaaaabbbbb" {
		t.Errorf("the server got %q, ended cleanly, and said %d", g, resp.StatusCode)
	}
}
