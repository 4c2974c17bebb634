package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/gateway/demo"
)

// A connection whose upload was answered before its body was read is either
// said to close or good for the next request; it never just ends.
func TestUnreadUploadsDoNotBreakTheConnection(t *testing.T) {
	t.Parallel()
	early := newDouble(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(413) })
	for name, row := range map[string]struct {
		s      setup
		path   string
		status int
	}{
		"no token":       {setup{token: "max_attempts = 1", before: func(p *demo.IdentityProvider) { p.Down(0) }}, "/studies", 503},
		"refused":        {setup{}, "/a/%2e%2e/b", 400},
		"answered early": {setup{up: early}, "/studies", 413},
	} {
		h := newHarness(t, row.s)
		for i := range 60 {
			method := []string{"PUT", "POST"}[i%2]
			a, err := h.try(method, h.up.url+row.path, strings.NewReader("hello"))
			if err != nil {
				t.Errorf("%s: request %d: %v", name, i, err)
				break
			}
			if a.status != row.status || a.err != nil {
				t.Errorf("%s: got %d %v, want %d", name, a.status, a.err, row.status)
			}
		}
	}
}

// Who sends the head of an upload and waits is answered: at once where the body
// is announced as large or as asked for, else after a short time.
func TestRefusalDoesNotWaitForTheBody(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	for framing, within := range map[string]time.Duration{
		"Content-Length: 5":                         patience,
		"Transfer-Encoding: chunked":                patience,
		"Content-Length: 5000000":                   time.Second,
		"Expect: 100-continue\r\nContent-Length: 5": time.Second,
	} {
		c := secure(t, h.addr, h.authority(), "", h.roots())
		_ = c.SetDeadline(time.Now().Add(within))
		if _, complaint := talk(c, "POST /a/../b HTTP/1.1\r\nHost: "+h.authority()+"\r\n"+framing+"\r\n\r\n").asProblem(400, "bad_request"); complaint != "" {
			t.Errorf("%s: %s", framing, complaint)
		}
	}
	if len(h.up.all()) != 0 {
		t.Error("a refused request was forwarded")
	}
}

// The server's verdict on a large upload arrives while the upload is under way.
func TestEarlyAnswerReachesAnUploadingClient(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadFull(r.Body, make([]byte, 10))
		w.WriteHeader(413)
		_, _ = io.WriteString(w, "too large")
	})})
	c := secure(t, h.addr, h.authority(), "", h.roots())
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 50000000\r\n\r\n%s", h.authority(), strings.Repeat("a", 1000))
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	if a := read(c).want(t, 413); a.body != "too large" {
		t.Errorf("got %q", a.body)
	}
}

// A server may give a whole answer and read on. The upload then goes on too, and
// its client is not told that it is over before it is.
func TestUploadGoesOnBehindAWholeEarlyAnswer(t *testing.T) {
	t.Parallel()
	for name, early := range map[string]string{
		"with a body":                     okAnswer,
		"without":                         "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"with a body, to be closed later": "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
		"without, to be closed later":     "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := make(chan error, 1)
			up := newRaw(t, goodTLS(), func(c net.Conn, br *bufio.Reader) {
				r, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, early)
				body, err := io.ReadAll(r.Body)
				if err == nil && string(body) != "xxxx" {
					err = fmt.Errorf("%q", body)
				}
				got <- err
			})
			h := newHarness(t, setup{up: up})
			h.request("POST", "/studies", slowBody(4)).want(t, 200)
			select {
			case err := <-got:
				if err != nil {
					t.Errorf("the server, which reads on, got %v, want the whole body", err)
				}
			case <-time.After(patience):
				t.Error("the server has got no upload")
			}
		})
	}
}

// A server that gives a whole answer and goes away, without having said that it
// would, has not stored the study.
func TestWholeEarlyAnswerIsNoSuccessIfTheUploadBreaks(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"empty": 0, "small": 2, "large": 100_000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := newRaw(t, goodTLS(), func(c net.Conn, br *bufio.Reader) {
				r, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("a", size))
				_, _ = io.ReadFull(r.Body, make([]byte, 4<<20))
			})
			h := newHarness(t, setup{up: up})
			c := secure(t, h.addr, h.authority(), "", h.roots())
			go func() {
				fmt.Fprintf(c, "POST /studies HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", h.authority(), studySize)
				_, _ = io.WriteString(c, largeStudy())
			}()
			if a := read(c); a.status < 500 && a.err == nil {
				t.Errorf("got a whole %d with %d bytes, though the study did not arrive", a.status, len(a.body))
			}
		})
	}
}

// A server that says that it closes, and does so before the end of an upload that
// it has accepted, needed no more of it.
func TestServerMayCloseWhenItHasEnough(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: newRaw(t, goodTLS(), func(c net.Conn, br *bufio.Reader) {
		if r, err := http.ReadRequest(br); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nenough")
			_, _ = io.ReadFull(r.Body, make([]byte, 1<<20))
		}
	})})
	c := secure(t, h.addr, h.authority(), "", h.roots())
	go func() {
		fmt.Fprintf(c, "POST /studies HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", h.authority(), studySize)
		_, _ = io.WriteString(c, largeStudy())
	}()
	if a := read(c).want(t, 200); a.body != "enough" {
		t.Errorf("got %q", a.body)
	}
}
