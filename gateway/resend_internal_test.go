package gateway

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"orthanc-dicomweb-oauth/rules"
)

// staleConn is a kept connection that takes a request's head, and ends while the
// first part of the body is written. That write succeeds all the same, later, as
// the kernel's buffer lets it.
type staleConn struct {
	net.Conn // nil: only what follows is called
	writes   int
	inBody   chan struct{}
	closed   chan struct{}
	close    func()

	mu   sync.Mutex
	past bool // reads do not wait
}

func newStaleConn() *staleConn {
	c := &staleConn{inBody: make(chan struct{}), closed: make(chan struct{})}
	c.close = sync.OnceFunc(func() { close(c.closed) })
	return c
}

func (c *staleConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.past = !t.IsZero() && time.Until(t) < 0
	return nil
}

func (c *staleConn) Read([]byte) (int, error) {
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
	switch c.writes++; c.writes {
	case 1: // the head
	case 2:
		close(c.inBody)
		<-c.closed
		time.Sleep(time.Second) // until the next attempt waits for its connection
	default:
		return 0, net.ErrClosed
	}
	return len(p), nil
}

func (c *staleConn) Close() error {
	c.close()
	return nil
}

// The attempt whose kept connection has ended may still be writing when the next
// one begins: it gets nothing more of the body, of which the next one needs all.
func TestStaleAttemptTakesNothingFromTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		got := make(chan string, 1)
		go func() {
			defer far.Close()
			r, err := http.ReadRequest(bufio.NewReader(far))
			if err != nil {
				got <- err.Error()
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				body = append(body, err.Error()...)
			}
			got <- string(body)
			_, _ = io.WriteString(far, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}()
		a, err := rules.ParseAuthority("server.test", 80)
		if err != nil {
			t.Fatal(err)
		}
		proxy := rules.Default().Proxy
		up := &upstream{limits: proxy, servers: map[place]*server{}, dial: func(context.Context, string, string) (net.Conn, error) {
			time.Sleep(2 * time.Second) // so that the stale attempt goes on first
			return near, nil
		}}
		stale := newStaleConn()
		up.put(newUpstreamConn(up, place{"http", a}, stale, &bulkConn{Conn: stale}))

		upload, feed := io.Pipe()
		go func() {
			_, _ = io.WriteString(feed, "aaaaa")
			_, _ = io.WriteString(feed, "bbbbb")
			feed.Close()
		}()
		x := &exchange{authority: a, scheme: "http", snap: &snapshot{config: &rules.Config{Proxy: proxy}}}
		x.in = httptest.NewRequest("PUT", "/studies", upload)
		x.ctx, x.cancel = context.WithCancelCause(t.Context())
		x.answering = newWatchdog(time.Minute, func() {})
		x.body = &requestBody{src: x.in.Body, moved: x.moved}
		body, _ := x.body.attempt()
		req := &http.Request{
			Method: "PUT", URL: &url.URL{Opaque: "/studies"}, Header: http.Header{}, Host: a.String(), Body: body, ContentLength: -1,
		}
		resp, err := x.exchangeWith(up, req, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if text := <-got; text != "aaaaabbbbb" {
			t.Errorf("the server got %q and said %d, want the whole body", text, resp.StatusCode)
		}
	})
}

// An older attempt that still waits for the client reads once more than it should:
// that is for the newest attempt, beyond the window too.
func TestWhatAnOlderAttemptStillReadsIsForTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upload, feed := io.Pipe()
		defer upload.Close()
		b := &requestBody{src: upload, moved: func() {}}
		older, _ := b.attempt()
		read := make(chan error)
		go func() {
			_, err := io.Copy(io.Discard, older)
			read <- err
		}()
		part := strings.Repeat("a", replayWindow-1)
		_, _ = io.WriteString(feed, part)
		synctest.Wait() // the older attempt waits for more
		newest, _ := b.attempt()
		_, _ = io.WriteString(feed, "bc")
		if err := <-read; !errors.Is(err, errDetached) {
			t.Errorf("the older attempt got %v, want its end", err)
		}
		go func() {
			_, _ = io.WriteString(feed, "de")
			feed.Close()
		}()
		if got, err := io.ReadAll(newest); err != nil || string(got) != part+"bcde" {
			t.Errorf("the newest attempt got %d bytes, %v, want all %d", len(got), err, len(part)+4)
		}
	})
}
