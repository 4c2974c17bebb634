package gateway

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
)

const (
	// bulkSize is how much of a body one system call moves. TLS moves 16 KiB at a
	// time, so that gathering saves seven system calls of eight.
	bulkSize = 128 << 10
	// bulkRoom leaves room for the framing of that: chunks, and records of TLS.
	bulkRoom = bulkSize + 4<<10
	// maxRecord is the largest TLS record on the wire (RFC 5246 section 6.2.3).
	maxRecord = 5 + 16<<10 + 2048
)

// bulkBuffers are attached to connections only while a body moves.
var bulkBuffers = sync.Pool{New: func() any { return new([bulkRoom]byte) }}

// bulkConn lies below TLS. While a large body moves it reads many records at
// once, and between cork and uncork it gathers what is written. Deadlines,
// streaming and the order of bytes are as without it: it never waits to gather.
type bulkConn struct {
	net.Conn
	reading atomic.Bool // a large body comes in
	dry     atomic.Bool // reads give what is here already

	waiting atomic.Int64 // read - next, for ahead

	// of the reading goroutine
	in         *[bulkRoom]byte // nil: not attached
	next, read int             // what of in has not been given away

	mu     sync.Mutex // guards what follows, and the order of writes
	corked bool
	out    *[bulkRoom]byte // nil: not attached
	gather int             // bytes of out that wait
}

// Read implements [net.Conn].
func (c *bulkConn) Read(p []byte) (int, error) {
	if c.next == c.read {
		if c.dry.Load() {
			return 0, os.ErrDeadlineExceeded
		}
		if !c.reading.Load() || len(p) >= bulkRoom {
			c.detach()
			return c.Conn.Read(p)
		}
		if c.in == nil {
			c.in = bulkBuffers.Get().(*[bulkRoom]byte)
		}
		n, err := c.Conn.Read(c.in[:])
		c.next, c.read = 0, n
		if n == 0 {
			return 0, err
		} // an error beside bytes comes again with the next read
	}
	n := copy(p, c.in[c.next:c.read])
	c.next += n
	c.waiting.Store(int64(c.read - c.next))
	return n, nil
}

// detach gives the empty buffer back.
func (c *bulkConn) detach() {
	if c.in != nil {
		bulkBuffers.Put(c.in)
		c.in, c.next, c.read = nil, 0, 0
	}
}

// ahead returns how much has been read and not yet given away. Any goroutine may
// ask.
func (c *bulkConn) ahead() int { return int(c.waiting.Load()) }

// Write implements [net.Conn].
func (c *bulkConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.corked {
		return c.Conn.Write(p)
	}
	if c.gather+len(p) > bulkRoom {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	if len(p) > bulkRoom {
		return c.Conn.Write(p)
	}
	if c.out == nil {
		c.out = bulkBuffers.Get().(*[bulkRoom]byte)
	}
	c.gather += copy(c.out[c.gather:], p)
	return len(p), nil
}

// cork begins to gather what is written; uncork must follow, at once.
func (c *bulkConn) cork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = true
}

// uncork writes what was gathered.
func (c *bulkConn) uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = false
	err := c.flush()
	if c.out != nil {
		bulkBuffers.Put(c.out)
		c.out = nil
	}
	return err
}

func (c *bulkConn) flush() error {
	if c.gather == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.out[:c.gather])
	c.gather = 0
	return err
}

// CloseWrite half-closes.
func (c *bulkConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// secureConn is TLS over a [bulkConn].
type secureConn struct {
	*tls.Conn
	low *bulkConn
}

// Read implements [io.Reader]. It fills p from the records that have arrived;
// crypto/tls alone gives one at a time.
func (c *secureConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for err == nil && n < len(p) && c.low.ahead() >= maxRecord { // at least one more is whole: this does not wait
		var more int
		more, err = c.Conn.Read(p[n:])
		n += more
	}
	return n, err
}

// Write implements [io.Writer]: one system call for all records of p.
func (c *secureConn) Write(p []byte) (int, error) {
	if len(p) <= 16<<10 {
		return c.Conn.Write(p)
	}
	c.low.mu.Lock()
	outer := c.low.corked
	c.low.corked = true
	c.low.mu.Unlock()
	n, err := c.Conn.Write(p)
	if outer {
		return n, err
	}
	if flushErr := c.low.uncork(); err == nil {
		err = flushErr
	}
	return n, err
}

var _ io.ReadWriter = (*secureConn)(nil)
