//go:build e2e

package e2e

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// recorder is an HTTPS server that reads requests with a parser of its own, below any HTTP library, which knows one way
// only to write a request (RFC 9112 without what it merely tolerates). What departs from that is a breach.
type recorder struct {
	authority string // localhost:PORT
	answer    func(recorded) string

	mu          sync.Mutex
	connections int
	requests    []recorded
	faults      []string
}

// recorded is one request as it arrived.
type recorded struct {
	method, target string
	fields         []string // "Name: value"
	body           string
	whole          bool // the body arrived to its end
	sni            string
}

// values returns what arrived under a header name.
func (r recorded) values(name string) []string {
	var all []string
	for _, field := range r.fields {
		if got, value, _ := strings.Cut(field, ": "); strings.EqualFold(got, name) {
			all = append(all, value)
		}
	}
	return all
}

// echo answers with the request's target, so that a client sees which request an answer belongs to.
func echo(r recorded) string {
	if r.method == "HEAD" {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(r.target))
	}
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(r.target), r.target)
}

// hangUp at the end of an answer ends the connection.
const hangUp = "\x00hang up"

// startRecorder starts a recorder with a certificate for localhost. An answer of nil is echo.
func startRecorder(t *testing.T, p *pki, answer func(recorded) string) *recorder {
	t.Helper()
	return startRecorderWith(t, &tls.Config{Certificates: []tls.Certificate{p.leaf(t, nil)}}, answer)
}

// startRecorderWith is startRecorder for other TLS settings; nil is none at all.
func startRecorderWith(t *testing.T, conf *tls.Config, answer func(recorded) string) *recorder {
	t.Helper()
	if answer == nil {
		answer = echo
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &recorder{authority: fmt.Sprintf("localhost:%d", l.Addr().(*net.TCPAddr).Port), answer: answer}
	var running sync.WaitGroup
	open := map[net.Conn]struct{}{} // guarded by s.mu
	t.Cleanup(func() {
		_ = l.Close()
		s.mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		s.mu.Unlock()
		running.Wait()
	})
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.connections++
			open[c] = struct{}{}
			s.mu.Unlock()
			running.Go(func() {
				s.serve(c, conf)
				_ = c.Close()
				s.mu.Lock()
				delete(open, c)
				s.mu.Unlock()
			})
		}
	})
	return s
}

func (s *recorder) url() string { return "https://" + s.authority + "/" }

func (s *recorder) serve(c net.Conn, conf *tls.Config) {
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	sni := ""
	if conf != nil {
		secure := tls.Server(c, conf)
		if secure.Handshake() != nil {
			return
		}
		c, sni = secure, secure.ConnectionState().ServerName
	}
	r := bufio.NewReaderSize(c, 1<<20)
	for {
		request, err := readStrictly(r)
		if errors.Is(err, io.EOF) {
			return
		}
		request.sni = sni
		s.mu.Lock()
		s.requests = append(s.requests, request)
		if _, fault := errors.AsType[breach](err); fault {
			s.faults = append(s.faults, err.Error())
		}
		s.mu.Unlock()
		if err != nil {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			return
		}
		answer, end := strings.CutSuffix(s.answer(request), hangUp)
		if _, err := io.WriteString(c, answer); err != nil || end {
			return
		}
	}
}

// breach is a request that nobody should send.
type breach string

func (f breach) Error() string { return string(f) }

var (
	strictLine  = regexp.MustCompile("^([A-Z]+) (/[!-\"$-~]*) HTTP/1\\.1$")
	strictField = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+: ?[^\\x00-\\x08\\x0a-\\x1f\\x7f]*$")
	strictChunk = regexp.MustCompile(`^[0-9A-Fa-f]{1,8}$`)
	strictSize  = regexp.MustCompile(`^(0|[1-9][0-9]{0,18})$`)
)

// readStrictly reads one request. The error is io.EOF where none begins, a breach where it is not as it should be, and
// another one where it breaks off.
func readStrictly(r *bufio.Reader) (recorded, error) {
	if _, err := r.Peek(1); err != nil {
		return recorded{}, io.EOF
	}
	var request recorded
	line, err := strictCRLF(r)
	if err != nil {
		return request, err
	}
	parts := strictLine.FindStringSubmatch(line)
	if parts == nil {
		return request, breach(fmt.Sprintf("request line %q", line))
	}
	request.method, request.target = parts[1], parts[2]
	for {
		if line, err = strictCRLF(r); err != nil {
			return request, err
		}
		if line == "" {
			break
		}
		if !strictField.MatchString(line) {
			return request, breach(fmt.Sprintf("header line %q", line))
		}
		request.fields = append(request.fields, line)
	}
	lengths, codings := request.values("Content-Length"), request.values("Transfer-Encoding")
	switch {
	case len(lengths)+len(codings) > 1:
		return request, breach(fmt.Sprintf("%s %s has %d lengths and %d transfer codings", request.method, request.target, len(lengths), len(codings)))
	case len(request.values("Host")) != 1:
		return request, breach(fmt.Sprintf("%s %s has %d Hosts", request.method, request.target, len(request.values("Host"))))
	case len(lengths) == 1:
		if !strictSize.MatchString(lengths[0]) {
			return request, breach(fmt.Sprintf("Content-Length %q", lengths[0]))
		}
		n, _ := strconv.ParseInt(lengths[0], 10, 64)
		body, err := io.ReadAll(io.LimitReader(r, n))
		if request.body = string(body); err == nil && int64(len(body)) < n {
			err = io.ErrUnexpectedEOF
		}
		request.whole = err == nil
		return request, broken(err)
	case len(codings) == 1:
		if codings[0] != "chunked" {
			return request, breach(fmt.Sprintf("Transfer-Encoding %q", codings[0]))
		}
		err := readStrictChunks(r, &request)
		request.whole = err == nil
		return request, err
	}
	request.whole = true
	return request, nil
}

func readStrictChunks(r *bufio.Reader, request *recorded) error {
	for {
		size, err := strictCRLF(r)
		if err != nil {
			return err
		}
		if !strictChunk.MatchString(size) {
			return breach(fmt.Sprintf("chunk size %q", size))
		}
		n, _ := strconv.ParseInt(size, 16, 64)
		data := make([]byte, n)
		if _, err := io.ReadFull(r, data); err != nil {
			return broken(err)
		}
		request.body += string(data)
		end, err := strictCRLF(r)
		if err != nil {
			return err
		}
		if end != "" {
			return breach(fmt.Sprintf("%q behind a chunk, or a trailer", end))
		}
		if n == 0 {
			return nil
		}
	}
}

// strictCRLF reads a line that ends with CR LF.
func strictCRLF(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", broken(err)
	}
	text, ok := strings.CutSuffix(line, "\r\n")
	if !ok || strings.ContainsAny(text, "\r\x00") {
		return "", breach(fmt.Sprintf("line %q", line))
	}
	return text, nil
}

// broken is the error of a request that has begun: its end is no end of the connection.
func broken(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// seen returns all requests that have arrived, whole or not.
func (s *recorder) seen() []recorded {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// dialled returns how many connections were opened.
func (s *recorder) dialled() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connections
}

// wantOurs fails the test if a request was not written as it should be, or did not carry the gateway's own credential
// once and none of the client's.
func (s *recorder) wantOurs(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		t.Errorf("the server got %s", f)
	}
	for _, r := range s.requests {
		if got := r.values("Authorization"); !slices.Equal(got, []string{"Bearer " + ownCredential}) {
			t.Errorf("%s %s: got Authorization %q at the server, want the gateway's own", r.method, r.target, got)
		}
		if strings.Contains(strings.Join(r.fields, "\n"), clientCredential) {
			t.Errorf("%s %s: the client's credential has reached the server: %q", r.method, r.target, r.fields)
		}
	}
}
