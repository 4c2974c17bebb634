package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A client that leaves before the answer ends its request at the server too.
func TestRequestEndsWhenItsClientLeaves(t *testing.T) {
	t.Parallel()
	arrived, ended := make(chan struct{}), make(chan struct{})
	h := newHarness(t, setup{up: newDouble(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		select {
		case <-r.Context().Done():
			close(ended)
		case <-time.After(2 * patience):
		}
	})})
	c := secure(t, h.addr, h.authority(), "", h.roots())
	fmt.Fprintf(c, "GET /studies HTTP/1.1\r\nHost: %s\r\n\r\n", h.authority())
	<-arrived
	c.Close()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the server still works for a client that has left")
	}
	eventually(t, "an audit record that says so", func() bool { return strings.Contains(h.audit.String(), `"client_gone"`) })
}

// Requests sent before the answers to those ahead of them are answered in their
// order, however long each answer takes.
func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		if took, err := time.ParseDuration(r.URL.RawQuery); err == nil {
			select {
			case <-time.After(took):
			case <-r.Context().Done():
			}
		}
		_, _ = io.WriteString(w, r.URL.RawQuery)
	})})
	c := secure(t, h.addr, h.authority(), "", h.roots())
	br := bufio.NewReader(c)
	times := []string{"0s", "1ms", "18ms", "19ms", "20ms", "21ms", "22ms", "60ms"}
	for round := range 20 {
		for _, took := range times[round%2:] { // all at once, or each after the one before
			fmt.Fprintf(c, "GET /studies?%s HTTP/1.1\r\nHost: %s\r\n\r\n", took, h.authority())
			if round%3 == 0 {
				readInOrder(t, br, took)
			}
		}
		for _, took := range times[round%2:] {
			if round%3 != 0 {
				readInOrder(t, br, took)
			}
		}
	}
}

func readInOrder(t *testing.T, br *bufio.Reader, want string) {
	t.Helper()
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a := readAnswer(resp); a.status != 200 || a.body != want {
		t.Fatalf("got %d %q, want 200 %q", a.status, a.body, want)
	}
}
