package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"orthanc-dicomweb-oauth/rules"
)

// clientConn is one connection from a client, as an [http.Server] of ours sees
// it: the TCP connection on the front, the TLS inside a tunnel on the inner one.
type clientConn struct {
	net.Conn
	// low is what lies below the TLS inside a tunnel; nil on the front.
	low *bulkConn
	// tunnel is the CONNECT that led here; nil on the front.
	tunnel *tunnel
	// overloaded: accepted beyond the limit, only to be told so.
	overloaded bool
	// onMalformed is asked for the answer to a request that net/http refuses.
	onMalformed func(c *clientConn) []byte

	lastRead atomic.Int64 // reads end then, whatever other deadline is set; Unix nanoseconds, 0: no such time

	handling atomic.Bool // a handler of ours owns the answer
	eof      atomic.Bool // the client ended the connection
	release  func()      // called once, on Close
	once     sync.Once
}

// tunnel is one accepted CONNECT whose TLS we ended.
type tunnel struct {
	authority  rules.Authority // made once; all that follows reads this
	sni        string
	client     string
	user       string
	overloaded bool
	requests   atomic.Int64
}

type connKey struct{}

// withConn makes the connection known to the requests on it.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

func connOf(ctx context.Context) *clientConn {
	c, _ := ctx.Value(connKey{}).(*clientConn)
	return c
}

// Read implements [net.Conn].
func (c *clientConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
			c.eof.Store(true)
		}
	}
	return n, err
}

// endReads lets the rest of a request that has been answered arrive until then,
// no longer. A deadline would not do: net/http clears it when it has interrupted a read.
func (c *clientConn) endReads(by time.Time) {
	c.lastRead.Store(by.UnixNano())
	_ = c.SetReadDeadline(by)
}

// SetReadDeadline implements [net.Conn].
func (c *clientConn) SetReadDeadline(t time.Time) error {
	if last := c.lastRead.Load(); last != 0 && (t.IsZero() || t.UnixNano() > last) {
		t = time.Unix(0, last)
	}
	return c.Conn.SetReadDeadline(t)
}

// malformedMark is how the head of net/http's own answers to requests that it
// cannot parse ends. They bypass every handler and go out in one write.
var malformedMark = []byte("\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")

// Write implements [net.Conn]. It replaces net/http's plain answer to a
// malformed request by ours, so that clients see one form of error only.
func (c *clientConn) Write(p []byte) (int, error) {
	if !c.handling.Load() && c.onMalformed != nil && bytes.HasPrefix(p, []byte("HTTP/1.1 ")) && bytes.Contains(p, malformedMark) {
		if _, err := c.Conn.Write(c.onMalformed(c)); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// ahead reports whether something can be read at once.
func (c *clientConn) ahead() bool { return c.low != nil && c.low.ahead() >= maxRecord }

// bulk tells whether a large body comes in.
func (c *clientConn) bulk(on bool) {
	if c.low != nil {
		c.low.reading.Store(on)
	}
}

// cork begins to gather what is written; uncork must follow, at once.
func (c *clientConn) cork() {
	if c.low != nil {
		c.low.cork()
	}
}

func (c *clientConn) uncork() error {
	if c.low == nil {
		return nil
	}
	return c.low.uncork()
}

// CloseWrite half-closes, so that a client reads our last answer before the end.
func (c *clientConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Close implements [net.Conn].
func (c *clientConn) Close() error {
	if c.release != nil {
		c.once.Do(c.release)
	}
	if c.low != nil && c.eof.Load() {
		return c.low.Close() // nobody reads the end of TLS, which costs a twentieth of a short connection
	}
	return c.Conn.Close()
}

// connState follows the connections of both servers.
func (g *Gateway) connState(nc net.Conn, state http.ConnState) {
	c, ok := nc.(*clientConn)
	if !ok {
		return
	}
	switch state {
	case http.StateIdle:
		c.handling.Store(false)
		c.lastRead.Store(0)
	case http.StateClosed:
		if c.tunnel != nil && c.tunnel.requests.Load() == 0 && c.eof.Load() && !g.Draining() {
			g.certificateRefused(c.tunnel, "it ended the connection after the TLS handshake without sending a request")
		}
	}
}

// maxStrangers bounds the connections of clients that are not admitted: they are
// told so, but take no place of those that are.
const maxStrangers = 16

// countingListener bounds the connections. Those a little beyond the limit are
// taken and told so; those far beyond are closed at once.
func (g *Gateway) countingListener(ln net.Listener) net.Listener {
	return &countingListener{Listener: ln, g: g}
}

type countingListener struct {
	net.Listener
	g    *Gateway
	told time.Time // when a failure was logged last
}

// tellEvery is the shortest time between two log lines about connections that
// cannot be accepted.
const tellEvery = time.Minute

// Accept implements [net.Listener]. Only the one loop of the front calls it.
func (l *countingListener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			// net/http tries again, mostly for want of file descriptors, but says so
			// only in a log that we discard.
			if !errors.Is(err, net.ErrClosed) && time.Since(l.told) > tellEvery {
				l.told = time.Now()
				l.g.log.Error("connections cannot be accepted, trying on", "err", err, "hint", "raise the limit of open files, LimitNOFILE under systemd")
			}
			return nil, err
		}
		snap := l.g.current.Load()
		limit := int64(snap.config.Proxy.MaxConnections)
		count, hard := &l.g.stats.connections, limit+max(16, limit/8)
		if !snap.auth.admits(nc.RemoteAddr().String()) {
			count, hard = &l.g.stats.strangers, maxStrangers
		}
		n := count.Add(1)
		if n > hard {
			count.Add(-1)
			l.g.stats.refused(string(overloaded))
			nc.Close()
			continue
		}
		if snap.frontTLS != nil {
			nc = tls.Server(nc, snap.frontTLS) // shakes hands at the first read, under header_timeout
		}
		return &clientConn{
			Conn: nc, overloaded: n > limit, onMalformed: l.g.malformed,
			release: func() { count.Add(-1) },
		}, nil
	}
}

// handoff is the listener through which terminated tunnels reach the inner server.
type handoff struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHandoff() *handoff {
	return &handoff{conns: make(chan net.Conn), done: make(chan struct{})}
}

// put gives a connection to the inner server, or closes it when that has ended.
func (h *handoff) put(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		c.Close()
	}
}

// Accept implements [net.Listener].
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements [net.Listener].
func (h *handoff) Addr() net.Addr { return &net.TCPAddr{} }

// prefixConn reads what was read ahead before it goes on with the connection.
type prefixConn struct {
	net.Conn
	prefix io.Reader
}

// Read implements [net.Conn].
func (c *prefixConn) Read(p []byte) (int, error) { return c.prefix.Read(p) }

// CloseWrite half-closes.
func (c *prefixConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// replayConn returns c with what a parser has read ahead put back before it.
func replayConn(c net.Conn, ahead []byte) net.Conn {
	if len(ahead) == 0 {
		return c
	}
	return &prefixConn{c, io.MultiReader(bytes.NewReader(bytes.Clone(ahead)), c)}
}
