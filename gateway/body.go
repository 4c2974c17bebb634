package gateway

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

// replayWindow is how much of a request's body is kept, so that the request can
// be sent again after a 401.
const replayWindow = 1 << 20

var errDetached = errors.New("request body belongs to a later attempt")

// requestBody is a client's request body as it is read once from the client and
// sent once or twice to the upstream. The first window is kept until the body
// turns out to be larger.
type requestBody struct {
	src    io.Reader
	watch  *watchdog
	bytes  atomic.Int64 // read from the client
	inRead atomic.Bool  // waiting for the client right now
	atEOF  atomic.Bool  // the client has sent all of it

	mu     sync.Mutex
	kept   []byte
	lost   bool  // more than the window was read: no replay
	err    error // the end of src, io.EOF or worse
	reader *attemptBody
}

// attemptBody is the body of one attempt. Only the newest one reads.
type attemptBody struct {
	b    *requestBody
	next int // index into kept
}

// attempt returns the body for a new attempt, from its first byte. It fails
// when a part is gone. An earlier attempt gets no further byte.
func (b *requestBody) attempt() (io.ReadCloser, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lost {
		return nil, false
	}
	b.reader = &attemptBody{b: b}
	return b.reader, true
}

// replayable reports whether another attempt would have the whole body.
func (b *requestBody) replayable() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.lost
}

// failure returns why the client's body broke off; nil if it did not.
func (b *requestBody) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if errors.Is(b.err, io.EOF) {
		return nil
	}
	return b.err
}

// Read implements [io.Reader].
func (a *attemptBody) Read(p []byte) (int, error) {
	b := a.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reader != a {
		return 0, errDetached
	}
	if !b.lost && a.next < len(b.kept) {
		n := copy(p, b.kept[a.next:])
		a.next += n
		b.watch.touch()
		return n, nil
	}
	if b.err != nil {
		return 0, b.err
	}
	b.inRead.Store(true)
	n, err := b.src.Read(p)
	b.inRead.Store(false)
	b.bytes.Add(int64(n))
	b.watch.touch()
	if !b.lost {
		if len(b.kept)+n > replayWindow {
			b.kept, b.lost = nil, true
		} else {
			b.kept = append(b.kept, p[:n]...)
			a.next += n
		}
	}
	if err != nil {
		b.err = err
		b.atEOF.Store(err == io.EOF)
	}
	return n, err
}

// Close implements [io.Closer]. The client's body stays open for a later attempt.
func (a *attemptBody) Close() error { return nil }
