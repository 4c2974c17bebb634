package gateway_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// dial opens a raw connection to the proxy.
func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// connect opens a CONNECT tunnel.
func connect(t testing.TB, addr, authority string) net.Conn {
	t.Helper()
	c := dial(t, addr)
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", authority, authority)
	head := readHead(t, c)
	if !strings.HasPrefix(head, "HTTP/1.1 200 ") && !strings.HasPrefix(head, "HTTP/1.0 200 ") {
		t.Fatalf("got %q to CONNECT %s, want 200", head, authority)
	}
	return c
}

// readHead reads to the end of an HTTP head and not a byte further.
func readHead(t testing.TB, c net.Conn) string {
	t.Helper()
	var head []byte
	for one := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); {
		if _, err := io.ReadFull(c, one); err != nil {
			t.Fatalf("read head after %q: %v", head, err)
		}
		head = append(head, one[0])
	}
	return string(head)
}

// secure opens a CONNECT tunnel and TLS in it; sni "" is the authority's host.
func secure(t testing.TB, addr, authority, sni string, roots *x509.CertPool) *tls.Conn {
	t.Helper()
	host, _, _ := net.SplitHostPort(authority)
	conf := clientTLS(roots)
	conf.ServerName = strings.TrimSuffix(strings.ToLower(host), ".")
	if sni != "" {
		conf.ServerName = sni
		conf.InsecureSkipVerify = true // a client that attacks does not verify
	}
	c := tls.Client(connect(t, addr, authority), conf)
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func (h *harness) roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(h.ca.Certificate())
	return roots
}

// raw sends bytes inside a tunnel to the rule's server and reads one answer.
func (h *harness) raw(text string) answer {
	h.t.Helper()
	c := secure(h.t, h.addr, h.authority(), "", h.roots())
	return talk(c, strings.ReplaceAll(text, "{good}", h.authority()))
}

// talk writes and reads one answer. What cannot be written is what the other
// side did not want to read.
func talk(c net.Conn, text string) answer {
	go func() { _, _ = io.WriteString(c, text) }()
	return read(c)
}

func read(c net.Conn) answer {
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return answer{err: err}
	}
	return readAnswer(resp)
}

// problem is an answer of the gateway's own (RFC 9457).
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Code      string `json:"code"`
	Rule      string `json:"rule"`
	Profile   string `json:"profile"`
	Hint      string `json:"hint"`
	RequestID string `json:"request_id"`
}

// problem fails the test unless the answer is this problem, complete.
func (a answer) problem(t testing.TB, status int, code string) problem {
	t.Helper()
	p, complaint := a.asProblem(status, code)
	if complaint != "" {
		t.Error(complaint)
	}
	return p
}

// asProblem says what is wrong with a as this problem.
func (a answer) asProblem(status int, code string) (p problem, complaint string) {
	if a.err != nil || a.status != status || a.header.Get("X-Gateway-Error") != code {
		return p, fmt.Sprintf("got %d %s (%q, %v), want %d %s", a.status, a.header.Get("X-Gateway-Error"), a.body, a.err, status, code)
	}
	if got := a.header.Get("Content-Type"); got != "application/problem+json" {
		return p, fmt.Sprintf("got Content-Type %q", got)
	}
	d := json.NewDecoder(strings.NewReader(a.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return p, fmt.Sprintf("%v: %s", err, a.body)
	}
	if p.Status != status || p.Code != code || p.Title == "" || !strings.HasSuffix(p.Type, ":"+code) || p.RequestID == "" {
		return p, "incomplete problem " + a.body
	}
	if retry := a.header.Get("Retry-After"); (retry == "") != (status != http.StatusServiceUnavailable) {
		return p, fmt.Sprintf("got Retry-After %q with %d", retry, status)
	}
	return p, ""
}
