// Package audit writes one record per proxied request. A record holds nothing
// about a patient: no query, no UID (at most its keyed hash), no header. Writing never blocks the
// request path: a sink that cannot keep up loses records, and they are counted.
package audit

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Record is one request. Durations are in milliseconds unless the name says otherwise.
type Record struct {
	Time           time.Time `json:"time"`
	RequestID      string    `json:"request_id"`
	Client         string    `json:"client"`
	ProxyUser      string    `json:"proxy_user,omitempty"`
	Method         string    `json:"method"`
	Authority      string    `json:"authority"`
	Route          string    `json:"route,omitempty"`
	Transaction    string    `json:"transaction,omitempty"`
	StudyHash      string    `json:"study_hash,omitempty"` // of [StudyHash]
	Rule           string    `json:"rule,omitempty"`
	Profile        string    `json:"profile,omitempty"`
	Status         int       `json:"status"`
	UpstreamStatus int       `json:"upstream_status,omitempty"`
	RequestBytes   int64     `json:"request_bytes"`
	ResponseBytes  int64     `json:"response_bytes"`
	Duration       float64   `json:"duration_ms"`
	FirstByte      float64   `json:"first_byte_ms,omitempty"`
	TokenAge       float64   `json:"token_age_seconds,omitempty"`
	Attempts       int       `json:"attempts,omitempty"`
	Outcome        Outcome   `json:"outcome"`
	Reason         string    `json:"reason,omitempty"` // the problem code, when the gateway answered itself
	// Detail and Hint are for the status page, and not in the audit: what a
	// problem code means here, and what to change.
	Detail string `json:"-"`
	Hint   string `json:"-"`
}

// Failed reports whether the request did not bring what its client asked for.
func (r *Record) Failed() bool {
	return r.Status >= 400 || r.Outcome != Forwarded && r.Outcome != Tunnelled
}

// Absent reports whether the server said no more than that it has not the study,
// or the part of one, that the request names.
func (r *Record) Absent() bool {
	return r.Outcome == Forwarded && r.UpstreamStatus == 404 && strings.Contains(r.Route, "{}")
}

// Outcome is how a request ended.
type Outcome string

// The outcomes of a request.
const (
	Forwarded  Outcome = "forwarded"   // the upstream's answer was passed on whole
	Refused    Outcome = "refused"     // the gateway answered itself
	Cut        Outcome = "cut"         // the answer broke off
	ClientGone Outcome = "client_gone" // the client left before the answer
	Tunnelled  Outcome = "tunnelled"   // bytes were copied unseen
)

const (
	// queue is how many records may wait for a slow sink.
	queue = 4096
	// pace is how long a record may wait for others: waking the writer for each
	// one cost a busy gateway a sixth of its requests per second.
	pace = 50 * time.Millisecond
	// piece is how much is written at once; a pipe takes so much without mixing
	// it with what others write (POSIX's PIPE_BUF on Linux).
	piece = 4096
)

// Log writes records to one sink. The nil Log drops everything. It is safe for
// concurrent use.
type Log struct {
	wake    chan struct{} // the first of some records waits, or Close was called
	reopen  chan chan error
	lost    atomic.Uint64
	written atomic.Uint64
	failure atomic.Pointer[error] // of the last write; nil: it worked
	done    sync.WaitGroup
	path    string // "" when the sink is not a file of ours
	out     io.Writer
	torn    bool // what was written last is not a whole line
	lines   bytes.Buffer
	spare   []Record // what held waiting before

	mu      sync.Mutex
	waiting []Record
	closed  bool
}

// Counts tell how a [Log] fares.
type Counts struct {
	Written, Lost uint64
	// Err is why the last write failed; nil if it did not.
	Err error
}

// Open returns a Log for target: "stdout", "stderr", "off" (nil) or a file that
// is appended to, mode 0600.
func Open(target string) (*Log, error) {
	l := &Log{wake: make(chan struct{}, 1), reopen: make(chan chan error)}
	switch target {
	case "off":
		return nil, nil
	case "stdout":
		l.out = os.Stdout
	case "stderr":
		l.out = os.Stderr
	default:
		l.path = target
		f, err := openFile(target)
		if err != nil {
			return nil, err
		}
		l.out, l.torn = f, endsTorn(f)
	}
	l.done.Go(l.run)
	return l, nil
}

// New returns a Log that writes to w.
func New(w io.Writer) *Log {
	l := &Log{wake: make(chan struct{}, 1), reopen: make(chan chan error), out: w}
	l.done.Go(l.run)
	return l
}

func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open audit file: %w", err)
	}
	return f, nil
}

// endsTorn reports whether the file ends in the middle of a line, as a crash or
// a full disk leaves it.
func endsTorn(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return false
	}
	r, err := os.Open(f.Name())
	if err != nil {
		return false
	}
	defer r.Close()
	last := make([]byte, 1)
	_, err = r.ReadAt(last, info.Size()-1)
	return err == nil && last[0] != '\n'
}

// Write queues a record, or counts it as lost when the queue is full.
func (l *Log) Write(r Record) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.waiting) >= queue {
		l.lost.Add(1)
		return
	}
	if l.waiting = append(l.waiting, r); len(l.waiting) == 1 {
		l.rouse()
	}
}

// rouse wakes the writer, if it is not awake.
func (l *Log) rouse() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Lost returns how many records could not be written.
func (l *Log) Lost() uint64 {
	if l == nil {
		return 0
	}
	return l.lost.Load()
}

// Counts returns how many records were written and lost, and why.
func (l *Log) Counts() Counts {
	if l == nil {
		return Counts{}
	}
	c := Counts{Written: l.written.Load(), Lost: l.lost.Load()}
	if err := l.failure.Load(); err != nil {
		c.Err = *err
	}
	return c
}

// Reopen opens the file anew, after it was moved away by log rotation. On
// failure the old file is kept. Without a file it does nothing. A sink that hangs
// is given ten seconds.
func (l *Log) Reopen() error {
	if l == nil || l.path == "" {
		return nil
	}
	result := make(chan error)
	select {
	case l.reopen <- result:
		return <-result
	case <-time.After(patience):
		return errHangs
	}
}

// patience is how long Reopen and Close wait for a sink that takes nothing.
const patience = 10 * time.Second

var errHangs = errors.New("the audit log's sink takes nothing")

// Close writes what is queued and ends the log; a sink that hangs is given ten
// seconds. What is written after it is lost; Reopen must not be called after it.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	l.closed = true
	l.rouse()
	l.mu.Unlock()
	ended := make(chan struct{})
	go func() { l.done.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(patience):
		return errHangs
	}
	if f, ok := l.out.(*os.File); ok && l.path != "" {
		return f.Close()
	}
	return nil
}

func (l *Log) run() {
	for {
		select {
		case <-l.wake:
			if l.flush() {
				return
			}
		case result := <-l.reopen:
			f, err := openFile(l.path)
			if err == nil {
				if old, ok := l.out.(*os.File); ok {
					old.Close()
				}
				l.out, l.torn = f, endsTorn(f)
			}
			result <- err
		}
	}
}

// flush writes what waits, after a pause in which more may come, and reports
// whether the log is closed.
func (l *Log) flush() (closed bool) {
	l.mu.Lock()
	closed = l.closed
	l.mu.Unlock()
	if !closed {
		select {
		case <-time.After(pace):
		case <-l.wake: // Close
		}
	}
	l.mu.Lock()
	records := l.waiting
	l.waiting, closed = l.spare, l.closed
	l.mu.Unlock()
	l.lines.Reset()
	encoder := json.NewEncoder(&l.lines)
	n := 0
	for i := range records {
		before := l.lines.Len()
		if err := encoder.Encode(&records[i]); err != nil {
			l.lines.Truncate(before)
			l.note(0, 1, err)
			continue
		}
		if n++; l.lines.Len() > piece && n > 1 {
			l.put(l.lines.Next(before), n-1)
			n = 1
		}
	}
	if n > 0 {
		l.put(l.lines.Bytes(), n)
	}
	clear(records)
	l.spare = records[:0]
	return closed
}

// put writes n whole lines in one piece, on lines of their own whatever became
// of what was written before.
func (l *Log) put(lines []byte, n int) {
	if l.torn {
		lines = append([]byte{'\n'}, lines...)
	}
	wrote, err := l.out.Write(lines)
	if wrote > 0 {
		whole := bytes.Count(lines[:wrote], []byte{'\n'})
		if l.torn {
			whole--
		}
		l.torn = lines[wrote-1] != '\n'
		l.note(whole, n-whole, err)
		return
	}
	l.note(0, n, err)
}

// note counts what was written and lost.
func (l *Log) note(written, lost int, err error) {
	l.written.Add(uint64(written))
	l.lost.Add(uint64(lost))
	if err != nil {
		l.failure.Store(&err)
	} else {
		l.failure.Store(nil)
	}
}

// StudyHash stands for the study of a path like .../studies/{uid}/...: the first 16
// bytes of the HMAC-SHA-256 of its Study Instance UID under the key, in hexadecimal.
// Records of one study have the same, and without the key nobody can tell which
// study that is. It is "" without a key, and for a path behind prefix that names no study.
func StudyHash(key []byte, prefix, path string) string {
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok || len(key) == 0 {
		return ""
	}
	_, uid, ok := strings.Cut("/"+rest, "/studies/")
	uid, _, _ = strings.Cut(uid, "/")
	if !ok || uid == "" {
		return ""
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(uid))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// words are the path segments of DICOMweb (PS3.18 chapters 10 and 11) that may
// be shown; any other segment may be a UID or a name.
var words = [...]string{
	"studies", "series", "instances", "frames", "rendered", "thumbnail", "metadata", "bulkdata", "pixeldata",
	"workitems", "subscribers", "capabilities", "bulk", "delete",
}

// Route returns path as a template in which every segment behind prefix that is
// no word of DICOMweb is {}: /dicom-web/studies/{}/series. Prefix comes from
// the config and is shown as it is.
func Route(prefix, path string) string {
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok {
		return prefix
	}
	var b strings.Builder
	b.WriteString(prefix)
	depth := 0
	for segment := range strings.SplitSeq(rest, "/") {
		if depth++; depth > 16 {
			b.WriteString("/…")
			break
		}
		if depth > 1 {
			b.WriteByte('/')
		}
		switch {
		case segment == "":
		case isWord(segment):
			b.WriteString(segment)
		default:
			b.WriteString("{}")
		}
	}
	return b.String()
}

func isWord(s string) bool {
	for _, w := range words {
		if w == s {
			return true
		}
	}
	return false
}

// Transaction names the DICOMweb transaction of a request by its method and
// route: QIDO-RS, WADO-RS, STOW-RS, DELETE; "" for anything else.
func Transaction(method, route string) string {
	last := route[strings.LastIndexByte(strings.TrimSuffix(route, "/"), '/')+1:]
	last = strings.TrimSuffix(last, "/")
	switch {
	case !strings.Contains(route, "studies") && !strings.Contains(route, "series") && !strings.Contains(route, "instances"):
		return ""
	case method == "POST":
		return "STOW-RS"
	case method == "DELETE":
		return "DELETE"
	case method != "GET" && method != "HEAD":
		return ""
	case last == "studies" || last == "series" || last == "instances":
		return "QIDO-RS"
	}
	return "WADO-RS"
}
