package gateway_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/gateway/demo"
)

// redirectTo makes a provider's token endpoint redirect.
func redirectTo(url string, status int) func(*demo.IdentityProvider) {
	return func(p *demo.IdentityProvider) { p.Answer(status, http.Header{"Location": {url + "/token"}}, "") }
}

// closed is a port that nobody listens on.
func closed(t *testing.T) string {
	t.Helper()
	ln := listen(t)
	ln.Close()
	return ln.Addr().String()[strings.LastIndex(ln.Addr().String(), ":")+1:]
}

// What is wrong with the server has a code of its own, and nothing that the
// server or net/http says is repeated.
func TestUpstreamErrors(t *testing.T) {
	t.Parallel()
	p := testPKI()
	secret := "the-server-says-" + patient
	valid := time.Now().Add(time.Hour)
	raw := func(conf *tls.Config, text string) func(t *testing.T) string {
		return func(t *testing.T) string { return script(t, conf, says(text)).url }
	}
	for _, row := range []struct {
		name   string
		url    func(t *testing.T) string
		code   string
		detail string // a part of it
	}{
		{"port refused", func(t *testing.T) string { return "https://localhost:" + closed(t) }, "upstream_unreachable", "refused"},
		{"no such name", func(*testing.T) string { return "https://no-such-host.invalid" }, "upstream_unreachable", "DNS"},
		{"unknown authority", raw(serverTLS(newPKI().leaf(valid, "localhost")), "x"), "upstream_tls", "authority is unknown"},
		{"certificate expired", raw(serverTLS(p.leaf(time.Now().Add(-time.Hour), "localhost")), "x"), "upstream_tls", "expired on "},
		{"another name", raw(serverTLS(p.leaf(valid, "evil.test")), "x"), "upstream_tls", "another name"},
		{"no TLS on the port", raw(nil, "HTTP/1.1 400 Bad Request\r\n\r\n"), "upstream_tls", "does not speak TLS"},
		{"TLS 1.1 only", raw(&tls.Config{Certificates: goodTLS().Certificates, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, "x"), "upstream_tls", "version"},
		{"a client certificate is wanted", raw(&tls.Config{Certificates: goodTLS().Certificates, ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12}, "x"), "upstream_tls", "handshake"},
		{"a client certificate is wanted, TLS 1.3", raw(&tls.Config{Certificates: goodTLS().Certificates, ClientAuth: tls.RequireAnyClientCert}, "x"), "upstream_tls", "certificate"},
		{"end before an answer", raw(goodTLS(), ""), "upstream_protocol", "closed before an answer"},
		{"end in the head", raw(goodTLS(), "HTTP/1.1 200 OK\r\nX-A: "+secret), "upstream_protocol", "closed"},
		{"no HTTP", raw(goodTLS(), secret+"\r\n\r\n"), "upstream_protocol", ""},
		{"a status that is none", raw(goodTLS(), "HTTP/1.1 "+secret+" x\r\n\r\n"), "upstream_protocol", ""},
		{"a header that is none", raw(goodTLS(), "HTTP/1.1 200 OK\r\n"+secret+"\r\n\r\n"), "upstream_protocol", ""},
		{"two lengths", raw(goodTLS(), "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), "upstream_protocol", ""},
		{"HTTP/2", raw(goodTLS(), "\x00\x00\x12\x04\x00\x00\x00\x00\x00"), "upstream_protocol", ""},
		{"another protocol", raw(goodTLS(), "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"), "upstream_protocol", ""},
		{"endless head", raw(goodTLS(), "HTTP/1.1 200 OK\r\n"+strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 400)), "upstream_protocol", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			url := row.url(t)
			h := newHarness(t, setup{url: url + "/", proxy: `header_timeout = "2s"`})
			a, err := h.try("GET", url+"/studies?PatientName="+patient, nil)
			if err != nil {
				t.Fatal(err)
			}
			if p := a.problem(t, 502, row.code); !strings.Contains(p.Detail, row.detail) || p.Rule != "dicom" || p.Profile != "main" {
				t.Errorf("got %+v, want a detail with %q", p, row.detail)
			}
			if strings.Contains(a.body, patient) || strings.Contains(h.log.String(), patient) {
				t.Errorf("the server's own words or the query are repeated: %s\n%s", a.body, h.log)
			}
			if want := `"code":"` + row.code + `"`; !strings.Contains(h.log.String(), want) {
				t.Errorf("log lacks %s:\n%s", want, h.log)
			}
			wadoAnswer, err := h.try("GET", url+"/studies/1", nil, wado)
			if err != nil {
				t.Fatal(err)
			}
			wadoAnswer.empty(t, 502)
		})
	}
}

// Nothing of a request, and so no credential, is sent before the server's
// certificate is verified.
func TestUntrustedServerSeesNothing(t *testing.T) {
	t.Parallel()
	up := newDoubleWith(t, serverTLS(newPKI().leaf(time.Now().Add(time.Hour), "localhost")), nil)
	h := newHarness(t, setup{up: up})
	h.get("/").problem(t, 502, "upstream_tls")
	if up.connections() == 0 || len(up.all()) != 0 {
		t.Errorf("got %d connections and %d requests, want connections only", up.connections(), len(up.all()))
	}
}

func TestServerThatHangsUpOnKeptConnections(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: script(t, goodTLS(), says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))})
	for range 20 {
		h.get("/").want(t, 200)
	}
	if n := len(h.up.all()); n != 20 {
		t.Errorf("got %d requests at the server, want 20", n)
	}
}

// A server may close a kept connection at the moment at which the next upload is
// sent on it. Orthanc does not try again, so the gateway does.
func TestUploadOnAConnectionThatTheServerHasClosedIsSentAgain(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"POST", "PUT", "DELETE"} {
		var mu sync.Mutex
		seen := map[string]int{} // connection -> requests
		var bodies []string
		h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			mu.Lock()
			seen[r.RemoteAddr]++
			again := seen[r.RemoteAddr] > 1
			if !again {
				bodies = append(bodies, string(body))
			}
			mu.Unlock()
			if r.Header.Values("Idempotency-Key") != nil {
				t.Error("the entry for Transport went out")
			}
			if again {
				panic(http.ErrAbortHandler) // closes without an answer
			}
		})})
		h.request(method, "/studies", strings.NewReader("first")).want(t, 200)
		h.request(method, "/studies", strings.NewReader("second")).want(t, 200)
		mu.Lock()
		if got := strings.Join(bodies, " "); got != "first second" || len(seen) != 2 {
			t.Errorf("%s: got %q on %d connections, want both bodies whole, each on its own", method, got, len(seen))
		}
		mu.Unlock()
	}
}

func TestSlowUpstreamTimesOut(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	h := newHarness(t, setup{
		proxy: `response_timeout = "200ms"`,
		up: newDouble(t, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-release
		}),
	})
	defer close(release)
	h.get("/").problem(t, 504, "upstream_timeout")
	h.request("POST", "/", strings.NewReader("hello")).problem(t, 504, "upstream_timeout")
	h.get("/", wado).empty(t, 504)
}

// Each direction may stand still for stall_timeout, and no longer.
func TestStalledTransfersEnd(t *testing.T) {
	t.Parallel()
	const stall = `stall_timeout = "300ms"`
	head := "POST / HTTP/1.1\r\nHost: {good}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
	gone := func(t *testing.T, h *harness, a answer, sign string) {
		t.Helper()
		if a.err == nil {
			t.Errorf("got %d %q, want a cut", a.status, a.body)
		}
		ctx, cancel := contextWithPatience()
		defer cancel()
		_ = h.stop(ctx)
		if !strings.Contains(h.audit.String(), sign) {
			t.Errorf("audit lacks %s: %s", sign, h.audit)
		}
	}
	t.Run("the client stops sending", func(t *testing.T) {
		t.Parallel()
		whole := make(chan error, 1)
		h := newHarness(t, setup{proxy: stall, up: newDouble(t, func(_ http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(io.Discard, r.Body)
			whole <- err
		})})
		gone(t, h, h.raw(head), `"outcome":"cut","reason":"client_stalled"`)
		if <-whole == nil {
			t.Error("the server saw a whole body")
		}
	})
	t.Run("the server stops sending", func(t *testing.T) {
		t.Parallel()
		h := newHarness(t, setup{proxy: stall, up: script(t, goodTLS(), func(c net.Conn, _ *http1) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
			_, _ = c.Read(make([]byte, 1))
		})})
		a := h.raw("GET / HTTP/1.1\r\nHost: {good}\r\n\r\n")
		if a.body != "half" {
			t.Errorf("got %q before the end, want what had arrived", a.body)
		}
		gone(t, h, a, `"outcome":"cut"`)
	})
	t.Run("the server stops reading", func(t *testing.T) {
		t.Parallel()
		release := make(chan struct{})
		defer close(release)
		h := newHarness(t, setup{proxy: stall, up: script(t, goodTLS(), func(c net.Conn, r *http1) {
			_, _ = io.ReadFull(r.Body, make([]byte, 1))
			<-release // reading no more
		})})
		a := h.request("POST", "/", io.LimitReader(zeros{}, 64<<20))
		a.problem(t, 504, "upstream_timeout")
	})
	t.Run("the client stops reading", func(t *testing.T) {
		t.Parallel()
		ended := make(chan struct{})
		h := newHarness(t, setup{proxy: stall, up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(w, io.LimitReader(zeros{}, 1<<30))
			close(ended)
		})})
		c := secure(t, h.addr, h.authority(), "", h.roots())
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", h.authority())
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("the transfer goes on for a client that reads nothing")
		}
	})
	t.Run("the client reads no small answer", func(t *testing.T) {
		t.Parallel()
		h := newHarness(t, setup{proxy: stall, up: newDouble(t, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Repeat("a", 3000)) // net/http writes it when the handler has ended
		})})
		c := secure(t, h.addr, h.authority(), "", h.roots())
		_ = c.NetConn().(*net.TCPConn).SetReadBuffer(1) // as small as can be, so that the answers soon have no room
		_ = c.SetDeadline(time.Now().Add(2 * patience)) // crypto/tls itself tries for five seconds to say that it ends
		request := []byte("GET / HTTP/1.1\r\nHost: " + h.authority() + "\r\nX: " + strings.Repeat("a", 8<<10) + "\r\n\r\n")
		for {
			if _, err := c.Write(request); err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("the connection of a client that reads nothing is kept")
				}
				return
			}
		}
	})
	t.Run("slow but steady goes on", func(t *testing.T) {
		t.Parallel()
		h := newHarness(t, setup{proxy: stall, up: newDouble(t, func(w http.ResponseWriter, _ *http.Request) {
			tick := time.NewTicker(60 * time.Millisecond)
			defer tick.Stop()
			for range 12 {
				<-tick.C
				_, _ = io.WriteString(w, "x")
				_ = http.NewResponseController(w).Flush()
			}
		})})
		if a := h.get("/").want(t, 200); len(a.body) != 12 {
			t.Errorf("got %d bytes, want 12", len(a.body))
		}
	})
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
