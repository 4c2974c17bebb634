package gateway_test

import (
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// clientSecret is a credential of the client's own, in each row that sends one.
const clientSecret = "client-own-credential"

// abuse is something hostile that a client writes into its tunnel to the good
// server. {good} and {evil} stand for host:port of two servers that can both be
// reached; only good has a rule.
type abuse struct {
	name string
	raw  string
	sni  string // "": as it should be
	bare bool   // no TLS in the tunnel

	// What must come of it: the gateway's own refusal, and nothing anywhere; or,
	// with status 0, a request to good that carries exactly our credential.
	status int
	code   string

	// goproxy is what its own loop does wrong in this row, if anything.
	goproxy string
}

// What can be wrong with what comes of a row.
const (
	forwarded    = "the request was forwarded"
	dialled      = "another server was dialled"
	leaked       = "our credential at another server"
	clientLeaked = "the client's credential at the server"
	inClear      = "our credential in clear"
)

// chunked is the head of an upload without the rest.
const chunked = "POST / HTTP/1.1\r\nHost: {good}\r\nTransfer-Encoding: chunked\r\n"

var abuses = []abuse{
	{name: "Host is another", raw: "GET / HTTP/1.1\r\nHost: {evil}\r\n\r\n", status: 421, code: "authority_mismatch", goproxy: leaked},
	{name: "Host is another port", raw: "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", status: 421, code: "authority_mismatch"},
	{name: "absolute-form to another", raw: "GET https://{evil}/ HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 421, code: "authority_mismatch", goproxy: leaked},
	{name: "absolute-form to another and back", raw: "GET https://{evil}@{good}/ HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 400, code: "bad_request", goproxy: forwarded},
	{name: "absolute-form to itself", raw: "GET https://{good}/ HTTP/1.1\r\nHost: {good}\r\n\r\n"},
	{name: "absolute-form to itself, Host is another", raw: "GET https://{good}/ HTTP/1.1\r\nHost: {evil}\r\n\r\n"}, // RFC 9112 section 3.2.2: Host is ignored
	{name: "absolute-form in clear to itself", raw: "GET http://{good}/ HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 421, code: "authority_mismatch", goproxy: forwarded},
	{name: "absolute-form in clear to another", raw: "GET http://{evil}/ HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 421, code: "authority_mismatch", goproxy: leaked},
	{name: "SNI is another", sni: "evil.test", raw: "GET / HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 421, code: "authority_mismatch", goproxy: forwarded},
	{name: "Authorization of its own", raw: "GET / HTTP/1.1\r\nHost: {good}\r\nAuthorization: Bearer " + clientSecret + "\r\n\r\n"},
	{name: "two Authorizations of its own", raw: "GET / HTTP/1.1\r\nHost: {good}\r\nAuthorization: Bearer " + clientSecret + "\r\nauthorization: Basic " + clientSecret + "\r\n\r\n"},
	{name: "Connection names Authorization", raw: "GET / HTTP/1.1\r\nHost: {good}\r\nConnection: authorization\r\n\r\n"},
	{name: "Connection names Authorization among others", raw: "GET / HTTP/1.1\r\nHost: {good}\r\nConnection: x, Authorization\r\nX: " + clientSecret + "\r\nAuthorization: Bearer " + clientSecret + "\r\nProxy-Authorization: Basic " + clientSecret + "\r\n\r\n", goproxy: clientLeaked},
	{name: "no TLS in the tunnel", bare: true, raw: "GET / HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 400, code: "bad_request", goproxy: inClear},
	{name: "two Hosts", raw: "GET / HTTP/1.1\r\nHost: {good}\r\nHost: {evil}\r\n\r\n", status: 400, code: "bad_request"},
	{name: "no Host", raw: "GET / HTTP/1.1\r\nAccept: */*\r\n\r\n", status: 400, code: "bad_request"},
	{name: "no Host in HTTP/1.0", raw: "GET / HTTP/1.0\r\n\r\n", status: 400, code: "bad_request"},
	{name: "userinfo in Host", raw: "GET / HTTP/1.1\r\nHost: {good}@{evil}\r\n\r\n", status: 400, code: "bad_request", goproxy: leaked},
	{name: "slash in Host", raw: "GET / HTTP/1.1\r\nHost: {evil}/{good}\r\n\r\n", status: 400, code: "bad_request", goproxy: leaked},
	{name: "fragment in Host", raw: "GET / HTTP/1.1\r\nHost: {evil}#{good}\r\n\r\n", status: 400, code: "bad_request", goproxy: leaked},
	{name: "dot segment", raw: "GET /a/../b HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 400, code: "bad_request", goproxy: forwarded},
	{name: "dot segment, encoded", raw: "GET /a/%2e%2E/b HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 400, code: "bad_request", goproxy: forwarded},
	{name: "dot segment, encoded twice", raw: "GET /a/%252e%252e/b HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 400, code: "bad_request", goproxy: forwarded},
	{name: "dot segment behind an encoded slash", raw: "GET /a%2f..%2fb HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 400, code: "bad_request", goproxy: forwarded},
	{name: "target is no path", raw: "GET a HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 400, code: "bad_request"},
	{name: "target is an asterisk", raw: "OPTIONS * HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 400, code: "bad_request"},
	{name: "target has a fragment", raw: "GET /a#b HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 400, code: "bad_request", goproxy: forwarded},
	{name: "TRACE", raw: "TRACE / HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 405, code: "method_not_allowed", goproxy: forwarded},
	{name: "OPTIONS", raw: "OPTIONS / HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 405, code: "method_not_allowed", goproxy: forwarded},
	{name: "method in lower case", raw: "get / HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 405, code: "method_not_allowed", goproxy: forwarded},
	{name: "CONNECT to another in the tunnel", raw: "CONNECT {evil} HTTP/1.1\r\nHost: {evil}\r\n\r\n", status: 421, code: "authority_mismatch", goproxy: leaked},
	{name: "CONNECT to itself in the tunnel", raw: "CONNECT {good} HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 400, code: "bad_request", goproxy: forwarded},
	{name: "header line folded", raw: "GET / HTTP/1.1\r\nHost: {good}\r\nX-A: 1\r\n Authorization: Bearer " + clientSecret + "\r\n\r\n"},
	{name: "first header line folded", raw: "GET / HTTP/1.1\r\n Host: {evil}\r\nHost: {good}\r\n\r\n", status: 400, code: "bad_request"},
	{name: "space before the colon", raw: "GET / HTTP/1.1\r\nHost: {good}\r\nAuthorization : Bearer " + clientSecret + "\r\n\r\n", status: 400, code: "bad_request"},
	{name: "chunked and a length", raw: chunked + "Content-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n"},
	{name: "two lengths", raw: "POST / HTTP/1.1\r\nHost: {good}\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nhello", status: 400, code: "bad_request"},
	{name: "length is no number", raw: "POST / HTTP/1.1\r\nHost: {good}\r\nContent-Length: +5\r\n\r\nhello", status: 400, code: "bad_request"},
	{name: "unknown transfer coding", raw: "POST / HTTP/1.1\r\nHost: {good}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", status: 400, code: "bad_request"},
	{name: "large header", raw: "GET / HTTP/1.1\r\nHost: {good}\r\nX-A: " + strings.Repeat("a", 256<<10) + "\r\n\r\n", status: 400, code: "bad_request", goproxy: forwarded},
	{name: "NUL in a header", raw: "GET / HTTP/1.1\r\nHost: {good}\r\nX-A: a\x00b\r\n\r\n", status: 400, code: "bad_request"},
	{name: "NUL in the target", raw: "GET /a\x00b HTTP/1.1\r\nHost: {good}\r\n\r\n", status: 400, code: "bad_request"},
	{name: "HTTP/2 without asking", raw: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", status: 400, code: "bad_request"},
	{name: "no HTTP at all", raw: "\x00\x01\x02\r\n\r\n", status: 400, code: "bad_request"},
}

// arena is a proxy between the raw client and two servers.
type arena struct {
	addr       string
	roots      *x509.CertPool
	good, evil *double
}

// fill puts the servers' names into a row.
func (a *arena) fill(text string) string {
	return strings.NewReplacer("{good}", a.good.authority(), "{evil}", a.evil.authority()).Replace(text)
}

// violations plays a row and returns what is wrong with what came of it.
func (a *arena) violations(t *testing.T, row abuse) []string {
	t.Helper()
	goodBefore, evilBefore := len(a.good.all()), len(a.evil.all())
	dialledBefore, belowBefore := a.evil.connections(), len(a.good.below())
	var c net.Conn
	if row.bare {
		c = connect(t, a.addr, a.good.authority())
	} else {
		c = secure(t, a.addr, a.good.authority(), row.sni, a.roots)
	}
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	got := talk(c, a.fill(row.raw))

	var wrong []string
	if row.status != 0 {
		if _, complaint := got.asProblem(row.status, row.code); complaint != "" {
			wrong = append(wrong, complaint)
		}
		if row.status == 405 && got.header.Get("Allow") != "GET, HEAD, POST, PUT, DELETE" {
			wrong = append(wrong, "Allow is "+got.header.Get("Allow"))
		}
	} else if got.status != 200 {
		wrong = append(wrong, fmt.Sprintf("got %d %s %v, want 200", got.status, got.body, got.err))
	}
	arrived := a.good.all()[goodBefore:]
	if row.status != 0 && len(arrived) > 0 {
		wrong = append(wrong, forwarded)
	}
	for _, r := range arrived {
		if credential := r.header["Authorization"]; len(credential) != 1 || !strings.HasPrefix(credential[0], "Bearer ") {
			wrong = append(wrong, fmt.Sprintf("%d credentials at the server", len(credential)))
		}
		for name, values := range r.header {
			if name != "X-A" && slices.ContainsFunc(values, func(v string) bool { return strings.Contains(v, clientSecret) }) {
				wrong = append(wrong, clientLeaked)
			}
		}
		if r.host != a.good.authority() {
			wrong = append(wrong, "the server was called "+r.host)
		}
	}
	if a.evil.connections() > dialledBefore {
		wrong = append(wrong, dialled)
	}
	for _, r := range a.evil.all()[evilBefore:] {
		if r.header.Get("Authorization") != "" {
			wrong = append(wrong, leaked)
		}
	}
	if text := a.good.below() + a.evil.below(); strings.Contains(text[min(belowBefore, len(text)):], "Authorization: ") {
		wrong = append(wrong, inClear)
	}
	return wrong
}

func TestAbuseInsideTheTunnel(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	evil := newDouble(t, nil)
	a := &arena{h.addr, h.roots(), h.up, evil}
	for _, row := range abuses {
		t.Run(row.name, func(t *testing.T) {
			for _, wrong := range a.violations(t, row) {
				t.Error(wrong)
			}
		})
	}
	for _, out := range []string{h.log.String(), h.audit.String()} {
		if strings.Contains(out, clientSecret) {
			t.Error("the client's credential is logged")
		}
	}
}

// A body that breaks off in the middle of its framing never looks whole to the
// server, and the client learns that it is the one to blame.
func TestBrokenChunkIsTheClientsFault(t *testing.T) {
	t.Parallel()
	whole := make(chan bool, 1)
	up := script(t, goodTLS(), func(c net.Conn, r *http1) {
		_, err := io.Copy(io.Discard, r.Body)
		whole <- err == nil
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	h := newHarness(t, setup{up: up})
	a := h.raw(chunked + "\r\n5\r\nhello\r\nzz\r\n0\r\n\r\n")
	if <-whole {
		t.Error("the server saw a whole body")
	}
	a.problem(t, 400, "bad_request")
}
