package gateway

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxAnswerHead bounds the head of an upstream's answer, interim ones included.
	maxAnswerHead = 256 << 10
	// continueTime is how long an upload waits for a 100 (Continue) that may never
	// come (RFC 9110 section 10.1.1).
	continueTime = 500 * time.Millisecond
	// writeGrace is how long an answer that is complete waits for the end of its request.
	writeGrace = 50 * time.Millisecond
)

// Why an exchange with an upstream ended.
var (
	errStale        = errors.New("the kept connection was closed by the server")
	errHeadTooLarge = errors.New("the head of the answer is too large")
	errNotSent      = errors.New("the server answered before it took the body")
	errHeader       = errors.New("a header value has a line break")
)

// upstreamConn is one connection to an upstream. It carries one exchange at a
// time; between them it lies in its pool.
type upstreamConn struct {
	up    *upstream
	place place
	raw   net.Conn        // below TLS
	sys   syscall.RawConn // of raw; nil: it has none
	conn  net.Conn        // a *secureConn, or a *bulkConn where there is no TLS
	low   *bulkConn       // of conn
	br    *bufio.Reader
	left  int64 // what may still be read of a head
	one   [1]byte

	mu       sync.Mutex
	answered bool // the head of the answer is here: the wait for it is over

	served    int // exchanges so far
	idleSince time.Time
}

func newUpstreamConn(u *upstream, p place, raw, conn net.Conn) *upstreamConn {
	c := &upstreamConn{up: u, place: p, raw: raw, conn: conn}
	if s, ok := raw.(syscall.Conn); ok {
		c.sys, _ = s.SyscallConn()
	}
	switch conn := conn.(type) {
	case *secureConn:
		c.low = conn.low
	case *bulkConn:
		c.low = conn
	}
	c.br = bufio.NewReader(headLimit{c})
	return c
}

// headLimit reads the connection, as much as c.left allows.
type headLimit struct{ c *upstreamConn }

// Read implements [io.Reader].
func (l headLimit) Read(p []byte) (int, error) {
	if l.c.left <= 0 {
		return 0, errHeadTooLarge
	}
	if int64(len(p)) > l.c.left {
		p = p[:l.c.left]
	}
	n, err := l.c.conn.Read(p)
	l.c.left -= int64(n)
	return n, err
}

// close ends the connection, from any goroutine.
func (c *upstreamConn) close() { c.raw.Close() }

// settle takes in what the server sends unasked after the handshake, such as
// session tickets, so that later a quiet connection can be told from one that
// has ended.
func (c *upstreamConn) settle(ctx context.Context) {
	defer context.AfterFunc(ctx, c.close)()
	_ = c.conn.SetReadDeadline(time.Now().Add(continueTime))
	if n, _ := c.conn.Read(c.one[:]); n > 0 {
		c.close() // bytes that belong to no answer
	}
	_ = c.conn.SetReadDeadline(time.Time{})
}

// surplus reports whether the connection has ended, or bytes of it that belong
// to no answer have been taken in already, here or by TLS. It does not wait.
func (c *upstreamConn) surplus() bool {
	if c.br.Buffered() > 0 {
		return true
	}
	c.low.dry.Store(true)
	n, err := c.conn.Read(c.one[:])
	c.low.dry.Store(false)
	return n > 0 || !errors.Is(err, os.ErrDeadlineExceeded)
}

// gate holds an upload back until the server has said that it wants the body.
type gate struct {
	after int64         // so many bytes go through before
	open  chan struct{} // closed by a 100 (Continue)
	shut  chan struct{} // closed by an answer that makes the body useless

	// of the reading goroutine
	continued bool // there was a 100 (Continue)
	decided   bool // open or shut

	timedOut atomic.Bool // the wait was in vain
}

func newGate(after int64) *gate {
	return &gate{after: after, open: make(chan struct{}), shut: make(chan struct{})}
}

// decide opens the gate or shuts it, once.
func (g *gate) decide(open bool) {
	switch {
	case g == nil || g.decided:
	case open:
		close(g.open)
	default:
		close(g.shut)
	}
	if g != nil {
		g.decided = true
	}
}

// pass waits at the gate.
func (g *gate) pass() error {
	timer := time.NewTimer(continueTime)
	defer timer.Stop()
	select {
	case <-g.open:
		return nil
	case <-g.shut:
		return errNotSent
	case <-timer.C:
		g.timedOut.Store(true)
		return nil
	}
}

// send sends a request and returns the head of its answer, whose body must be
// closed. Interim answers are taken in; trailers are not passed on. A body goes
// out beside the answer, which may come before its end. ctx ends the exchange,
// at any time, by ending the connection. The error is errStale if a kept
// connection gave no byte of an answer.
func (c *upstreamConn) send(ctx context.Context, req *http.Request, g *gate, wrote func()) (*http.Response, error) {
	stop := context.AfterFunc(ctx, c.close)
	resp, err := c.exchange(req, g, wrote, stop)
	if err != nil {
		g.decide(false)
		stop()
		c.close()
		if cause := ctx.Err(); cause != nil {
			return nil, cause
		}
	}
	return resp, err
}

func (c *upstreamConn) exchange(req *http.Request, g *gate, wrote func(), stop func() bool) (*http.Response, error) {
	kept := c.served > 0 || !c.idleSince.IsZero()
	c.served++
	c.left = maxAnswerHead
	c.awaiting(true)
	head, err := c.head(req, g)
	if err != nil {
		return nil, err
	}
	_, writeErr := c.conn.Write(*head)
	heads.Put(head)
	var written chan error // nil: there is no body
	switch {
	case req.Body == nil || writeErr != nil:
		c.await()
	default:
		written = make(chan error, 1)
		body := req.Body // req may get another one, for the next attempt, while this one still goes out
		go func() {
			err := c.writeBody(req, body, g)
			if err == nil || !errors.Is(err, errClient) {
				c.await() // an answer may be on its way even if the server takes no more
			} else {
				c.close()
			}
			wrote()
			written <- err
		}()
	}
	var resp *http.Response
	for {
		if _, err := c.br.Peek(1); err != nil {
			if kept && resp == nil && !isTimeout(err) {
				return nil, errStale
			}
			return nil, err
		}
		if resp, err = http.ReadResponse(c.br, req); err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusContinue && (resp.StatusCode < 102 || resp.StatusCode > 199) {
			break
		}
		if g != nil && resp.StatusCode == http.StatusContinue {
			g.continued = true
			g.decide(true)
		}
	}
	g.decide(resp.StatusCode >= 200 && resp.StatusCode < 300) // some servers answer while they read on
	c.awaiting(false)
	c.left = math.MaxInt64
	if n := resp.ContentLength; n < 0 || n > bulkSize/2 {
		c.low.reading.Store(true)
	}
	answer := &answerBody{c: c, body: resp.Body, written: written, stop: stop, success: resp.StatusCode < 300}
	// Chunks in HTTP/1.0 leave the end in doubt (RFC 9112 section 6.1), and net/http hides them.
	answer.keep = resp.ProtoAtLeast(1, 1) && !resp.Close && resp.StatusCode >= 200 && writeErr == nil
	resp.Body = answer
	if resp.ContentLength == 0 && !answer.uploading() {
		answer.finish(true)
	}
	return resp, nil
}

// await begins the wait for the answer, which may take response_timeout after
// the whole request.
func (c *upstreamConn) await() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.answered {
		_ = c.conn.SetReadDeadline(time.Now().Add(c.up.limits.ResponseTimeout))
	}
}

// awaiting begins or ends the time in which await has a meaning.
func (c *upstreamConn) awaiting(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered = !on
	if !on {
		_ = c.conn.SetReadDeadline(time.Time{})
	}
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// heads are buffers for request heads.
var heads = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// head writes the request's line and headers, with one framing of our own.
func (c *upstreamConn) head(req *http.Request, g *gate) (*[]byte, error) {
	p := heads.Get().(*[]byte)
	b := append((*p)[:0], req.Method...)
	b = append(b, ' ')
	if c.place.scheme == "http" && c.up.corporate != nil {
		b = append(b, "http://"...)
		b = append(b, c.place.authority.String()...)
	}
	b = append(b, req.URL.RequestURI()...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, req.Host...)
	b = append(b, "\r\n"...)
	if c.place.scheme == "http" && c.up.corporate != nil && c.up.corporate.User != nil {
		b = append(b, "Proxy-Authorization: "...)
		b = append(b, basicAuth(c.up.corporate)...)
		b = append(b, "\r\n"...)
	}
	for name, values := range req.Header {
		if name == "Content-Length" || name == "Transfer-Encoding" || name == "Host" {
			continue
		}
		for _, v := range values {
			if strings.IndexByte(v, '\n') >= 0 || strings.IndexByte(v, '\r') >= 0 || strings.IndexByte(v, 0) >= 0 {
				return nil, errHeader
			}
			b = append(append(append(append(b, name...), ": "...), v...), "\r\n"...)
		}
	}
	switch {
	case req.Body == nil && (req.Method == http.MethodPost || req.Method == http.MethodPut || req.Method == http.MethodPatch):
		b = append(b, "Content-Length: 0\r\n"...)
	case req.Body == nil:
	case req.ContentLength >= 0:
		b = append(strconv.AppendInt(append(b, "Content-Length: "...), req.ContentLength, 10), "\r\n"...)
	default:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	if g != nil {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	*p = append(b, "\r\n"...)
	return p, nil
}

// errClient wraps what goes wrong on the client's side of an upload.
var errClient = errors.New("the request's body broke off")

// writeBody sends the body, framed as its length is known or not.
func (c *upstreamConn) writeBody(req *http.Request, from io.Reader, g *gate) error {
	const before, after = 16, 2 // a chunk's line and its end
	large := req.ContentLength < 0 || req.ContentLength > smallBody
	var buf []byte
	if large {
		whole := bulkBuffers.Get().(*[bulkRoom]byte)
		defer bulkBuffers.Put(whole)
		buf = whole[:before+bulkSize+after]
	} else {
		small := copyBuffers.Get().(*[smallBody]byte)
		defer copyBuffers.Put(small)
		buf = small[:]
	}
	chunked := req.ContentLength < 0
	room := buf[before : len(buf)-after]
	var sent int64
	for {
		p := room
		if g != nil {
			if sent == g.after {
				if err := g.pass(); err != nil {
					return err
				}
				g = nil
			} else if hold := g.after - sent; int64(len(p)) > hold {
				p = p[:hold]
			}
		}
		n, err := from.Read(p)
		sent += int64(n)
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			return errors.Join(errClient, err)
		}
		if req.ContentLength >= 0 && (sent > req.ContentLength || end && sent < req.ContentLength) {
			return errors.Join(errClient, io.ErrUnexpectedEOF)
		}
		out := p[:n]
		if chunked {
			begin := before
			if n > 0 {
				line := append(strconv.AppendInt(make([]byte, 0, before), int64(n), 16), "\r\n"...)
				begin -= copy(buf[before-len(line):], line)
			}
			to := before + n
			if n > 0 {
				to += copy(buf[to:], "\r\n")
			}
			out = buf[begin:to]
			if end {
				out = append(out, "0\r\n\r\n"...)
			}
		}
		if len(out) > 0 {
			if _, err := c.conn.Write(out); err != nil {
				return err
			}
		}
		if end {
			return nil
		}
	}
}

// answerBody is the body of an answer. When it ends well, its connection goes
// back to the pool.
type answerBody struct {
	c       *upstreamConn
	body    io.ReadCloser
	written chan error // gives the end of the request's body; nil: it had none
	stop    func() bool
	keep    bool // the server lets the connection be used again
	success bool
	done    bool
}

// Read implements [io.Reader].
func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	switch {
	case errors.Is(err, io.EOF) && b.uploading():
		if err = b.await(); !errors.Is(err, io.EOF) {
			return 0, err // without its last bytes the answer is not whole
		}
	case err != nil:
		b.finish(errors.Is(err, io.EOF))
	}
	return n, err
}

// uploading reports whether the server has accepted a request that still goes
// out. Some servers answer first and read on: the upload is not over, and its
// client must not be told so, before all of it has gone out.
func (b *answerBody) uploading() bool {
	return b.success && !b.done && b.written != nil && len(b.written) == 0
}

// await waits for the end of the upload behind a whole answer. A server that has
// said that it would close the connection may do so when it has enough.
func (b *answerBody) await() error {
	if b.written != nil {
		err := <-b.written
		b.written = nil
		if b.finish(err == nil); err != nil && (b.keep || errors.Is(err, errClient)) {
			return io.ErrUnexpectedEOF
		}
	}
	return io.EOF
}

// ahead reports whether something can be read at once.
func (b *answerBody) ahead() bool { return !b.done && b.c.low.ahead() >= maxRecord }

// Close implements [io.Closer]. What has not been read is lost, and the
// connection with it.
func (b *answerBody) Close() error {
	b.finish(false)
	return nil
}

func (b *answerBody) finish(whole bool) {
	if b.done {
		return
	}
	b.done = true
	b.c.low.reading.Store(false)
	whole = whole && b.keep && b.c.br.Buffered() == 0
	whole = b.stop() && whole
	if !whole || b.written == nil {
		b.part(whole)
		return
	}
	select {
	case err := <-b.written:
		b.part(err == nil)
	default:
		go func() {
			timer := time.NewTimer(writeGrace)
			defer timer.Stop()
			select {
			case err := <-b.written:
				b.part(err == nil)
			case <-timer.C:
				b.part(false)
			}
		}()
	}
}

// part keeps the connection or ends it.
func (b *answerBody) part(keep bool) {
	if keep {
		b.c.up.put(b.c)
	} else {
		b.c.close()
	}
}
