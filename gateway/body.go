package gateway

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

// replayWindow is how much of a request's body is kept, so that the request can
// be sent again after a 401: so much, and at most one read more.
const replayWindow = 1 << 20

// Errors of an attempt's body that is not the client's fault.
var (
	errDetached = errors.New("request body belongs to a later attempt")
	errLost     = errors.New("request body is no longer there from its first byte")
)

// requestBody is a client's request body as it is read once from the client and
// sent once or more to the upstream. The first window is kept until the body
// turns out to be larger.
type requestBody struct {
	src    io.Reader
	moved  func()       // called after each read from the client
	ahead  func() bool  // more can be read from src at once; nil: not known
	bytes  atomic.Int64 // read from the client
	inRead atomic.Bool  // waiting for the client right now
	atEOF  atomic.Bool  // the client has sent all of it

	reading sync.Mutex // held while src is read: by the newest attempt, or by one before it that still waits

	mu     sync.Mutex // guards what follows; never held while waiting
	kept   []byte
	lost   bool  // more than the window was read: no replay
	err    error // the end of src, io.EOF or worse
	reader *attemptBody
}

// attemptBody is the body of one attempt. Only the newest one gets bytes.
type attemptBody struct {
	b    *requestBody
	next int64 // how many bytes this attempt has got
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

// whole reports whether all of the body is kept.
func (b *requestBody) whole() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.lost && errors.Is(b.err, io.EOF)
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
	if n, known, err := a.readKept(p); known {
		return n, err
	}
	b := a.b
	b.reading.Lock()
	defer b.reading.Unlock()
	if n, known, err := a.readKept(p); known { // an earlier attempt was waiting for these bytes
		return n, err
	}
	b.inRead.Store(true)
	n, err := b.src.Read(p)
	for err == nil && n < len(p) && b.ahead != nil && b.ahead() {
		var more int
		more, err = b.src.Read(p[n:])
		n += more
	}
	b.inRead.Store(false)
	b.moved()
	return a.took(p[:n], err)
}

// readKept reads what the client has sent before; known is false when only the
// client can tell what comes next.
func (a *attemptBody) readKept(p []byte) (n int, known bool, err error) {
	b := a.b
	b.mu.Lock()
	defer b.mu.Unlock()
	total := b.bytes.Load()
	switch {
	case b.reader != a:
		return 0, true, errDetached
	case a.next < total && b.lost:
		return 0, true, errLost
	case a.next < total:
		n = copy(p, b.kept[a.next:])
		a.next += int64(n)
		return n, true, nil
	}
	return 0, b.err != nil, b.err
}

// took notes what came from the client. If this is no longer the newest
// attempt, the bytes are kept for that one.
func (a *attemptBody) took(p []byte, err error) (int, error) {
	b := a.b
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes.Add(int64(len(p)))
	if !b.lost {
		if b.reader == a && len(b.kept)+len(p) > replayWindow {
			b.kept, b.lost = nil, true
		} else {
			b.kept = append(b.kept, p...) // beyond the window only this once: the newest attempt has not had it
		}
	}
	if err != nil {
		b.err = err
		b.atEOF.Store(errors.Is(err, io.EOF))
	}
	if b.reader != a {
		return 0, errDetached
	}
	a.next += int64(len(p))
	return len(p), err
}

// Close implements [io.Closer]. The client's body stays open for a later attempt.
func (a *attemptBody) Close() error { return nil }
