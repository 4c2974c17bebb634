//go:build e2e

package e2e

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// atOnce runs f n times, some at once.
func atOnce(n, some int, f func(i int)) {
	var all sync.WaitGroup
	free := make(chan struct{}, some)
	for i := range n {
		free <- struct{}{}
		all.Go(func() {
			defer func() { <-free }()
			f(i)
		})
	}
	all.Wait()
}

// randomName is a host name that nobody has asked for before.
func randomName() string { return fmt.Sprintf("n%016x", rand.Uint64()) }

// A hundred thousand names that no rule knows, and two thousand that a wildcard does, leave nothing behind.
func TestAttackA13FloodOfNames(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorder(t, p, nil)
	a := startArena(t, "", p.inject("archive", s.url(), "")+p.inject("all", "https://*.example.test/", ""))

	flood := func(n int) {
		const conns, atATime = 8, 50
		var all sync.WaitGroup
		for range conns {
			c := a.dial(t)
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			all.Go(func() {
				defer c.Close()
				w, r := bufio.NewWriterSize(c, 32<<10), bufio.NewReader(c)
				for range n / conns / atATime {
					for range atATime {
						name := randomName()
						fmt.Fprintf(w, "CONNECT %s.test:443 HTTP/1.1\r\nHost: %s.test:443\r\n\r\n", name, name)
					}
					if err := w.Flush(); err != nil {
						t.Error(err)
						return
					}
					for range atATime {
						if wrong := nextReply(r, http.MethodGet).is(403, "no_rule"); wrong != "" { // a refused CONNECT has a body
							t.Error(wrong)
							return
						}
					}
				}
			})
		}
		all.Wait()
	}
	flood(50_000)
	halfway := residentMemory(t, a)
	flood(50_000)
	if after := residentMemory(t, a); after > halfway+12 {
		t.Errorf("with 50,000 names more the gateway has grown from %d to %d MiB", halfway, after)
	}

	name := func(t *testing.T) {
		host := randomName() + ".example.test"
		c, err := net.Dial("tcp", a.addr)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		fmt.Fprintf(c, "CONNECT %s:443 HTTP/1.1\r\nHost: %s:443\r\n\r\n", host, host)
		br := bufio.NewReader(c)
		for line := ""; line != "\r\n"; {
			if line, err = br.ReadString('\n'); err != nil {
				t.Error(err)
				return
			}
		}
		secure := tls.Client(c, &tls.Config{RootCAs: a.roots, ServerName: host})
		if wrong := talk(secure, "TRACE / HTTP/1.1\r\nHost: "+host+"\r\n\r\n").is(405, "method_not_allowed"); wrong != "" {
			t.Error(wrong)
		}
	}
	atOnce(1000, 8, func(int) { name(t) })
	before := residentMemory(t, a)
	atOnce(1000, 8, func(int) { name(t) })
	after := residentMemory(t, a)
	t.Logf("resident %d MiB after 50,000 unknown names, %d and %d after 1,000 and 2,000 below the wildcard", halfway, before, after)
	if after > before+12 {
		t.Errorf("with 1,000 leaves more the gateway has grown from %d to %d MiB", before, after)
	}
	eventually(t, patience, func() error {
		if n := openFiles(t, a); n > 24 {
			return fmt.Errorf("%d descriptors are open", n)
		}
		return nil
	})
	if wrong := talk(a.tunnel(t, s.authority), "GET / HTTP/1.1\r\nHost: "+s.authority+"\r\n\r\n").is(200, ""); wrong != "" {
		t.Errorf("after the flood: %s", wrong)
	}
}

// Clients that say nothing, half of something, or all of it slowly, are let go, wherever they stop; and the others are
// served meanwhile.
func TestAttackA15SlowAndSilentClients(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorder(t, p, nil)
	a := startArena(t, "header_timeout = \"2s\"\nidle_timeout = \"2s\"\nstall_timeout = \"2s\"\nmax_connections = 512", p.inject("archive", s.url(), ""))
	idle := openFiles(t, a)
	head := "GET / HTTP/1.1\r\nHost: " + s.authority + "\r\n"
	ways := map[string]func() net.Conn{
		"silent before CONNECT":      func() net.Conn { return a.dial(t) },
		"half a CONNECT":             func() net.Conn { return send(a.dial(t), "CONNECT localho") },
		"CONNECT without its end":    func() net.Conn { return send(a.dial(t), "CONNECT "+s.authority+" HTTP/1.1\r\nHost: x\r\n") },
		"silent after CONNECT":       func() net.Conn { return a.connect(t, s.authority) },
		"half a ClientHello":         func() net.Conn { return send(a.connect(t, s.authority), "\x16\x03\x01\x02\x00\x01") },
		"silent after the handshake": func() net.Conn { return a.tunnel(t, s.authority) },
		"half a request":             func() net.Conn { return send(a.tunnel(t, s.authority), head+"X-A: ") },
		"silent after a request": func() net.Conn {
			c := a.tunnel(t, s.authority)
			if wrong := talk(c, head+"\r\n").is(200, ""); wrong != "" {
				t.Error(wrong)
			}
			return c
		},
		"half a body": func() net.Conn {
			return send(a.tunnel(t, s.authority), "POST /half HTTP/1.1\r\nHost: "+s.authority+"\r\nContent-Length: 100\r\n\r\nhello")
		},
		"half a refused body": func() net.Conn {
			return send(a.tunnel(t, s.authority), "TRACE /half HTTP/1.1\r\nHost: "+s.authority+"\r\nContent-Length: 100\r\n\r\nhello")
		},
		"half a chunk": func() net.Conn {
			return send(a.tunnel(t, s.authority), "POST /half HTTP/1.1\r\nHost: "+s.authority+"\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhello")
		},
		"a byte now and then on the front": func() net.Conn { return drip(t, a.dial(t), "CONNECT "+s.authority+" HTTP/1.1\r\nX-A: ") },
		"a byte now and then inside":       func() net.Conn { return drip(t, a.tunnel(t, s.authority), head+"X-A: ") },
	}
	type stopped struct {
		name string
		conn net.Conn
	}
	var all []stopped
	for name, open := range ways {
		for range 5 {
			all = append(all, stopped{name, open()})
		}
	}
	if wrong := talk(a.tunnel(t, s.authority), head+"\r\n").is(200, ""); wrong != "" {
		t.Errorf("with %d such clients: %s", len(all), wrong)
	}
	atOnce(len(all), len(all), func(i int) {
		c := all[i]
		_ = c.conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, c.conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection is kept", c.name)
		}
		_ = c.conn.Close()
	})
	eventually(t, patience, func() error {
		if n := openFiles(t, a); n > idle+4 {
			return fmt.Errorf("%d descriptors are open, %d at first", n, idle)
		}
		return nil
	})
	for _, r := range s.seen() {
		if r.target == "/half" && r.whole {
			t.Error("half a body reached the server as a whole one")
		}
	}
	s.wantOurs(t)
}

// send writes and returns the connection.
func send(c net.Conn, text string) net.Conn {
	_, _ = io.WriteString(c, text)
	return c
}

// drip writes a beginning, and then a byte each tenth of a second for as long as it can.
func drip(t *testing.T, c net.Conn, begin string) net.Conn {
	send(c, begin)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			<-tick.C
			if _, err := io.WriteString(c, "a"); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = c.Close()
		<-ended
	})
	return c
}

// Beyond max_connections a client is told so, and beyond that let go at once; those that were there go on, and places
// that are free again are given away.
func TestAttackA15FloodOfConnections(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorder(t, p, nil)
	const limit = 40
	a := startArena(t, fmt.Sprintf("max_connections = %d\nheader_timeout = \"20s\"", limit), p.inject("archive", s.url(), ""))
	idle := openFiles(t, a)
	request := "GET / HTTP/1.1\r\nHost: " + s.authority + "\r\n\r\n"
	var places []net.Conn
	for range limit {
		places = append(places, a.tunnel(t, s.authority))
	}
	next := a.tunnel(t, s.authority)
	got := talk(next, request)
	if wrong := got.is(503, "overloaded"); wrong != "" || got.header.Get("Retry-After") == "" {
		t.Errorf("one too many: %s, Retry-After %q", wrong, got.header.Get("Retry-After"))
	}
	var flood []net.Conn
	for range 400 {
		flood = append(flood, a.dial(t))
	}
	eventually(t, patience, func() error {
		if n := openFiles(t, a); n > idle+limit+24 {
			return fmt.Errorf("%d descriptors are open with a limit of %d connections", n, limit)
		}
		return nil
	})
	for i, c := range places {
		if wrong := talk(c, request).is(200, ""); wrong != "" {
			t.Fatalf("place %d: %s", i, wrong)
		}
	}
	for _, c := range append(flood, places[:10]...) {
		_ = c.Close()
	}
	_ = next.Close()
	eventually(t, patience, func() error { // until it has seen the flood end, newcomers may be reset
		if wrong := talk(a.dial(t), "GET http://unknown.test/ HTTP/1.1\r\nHost: unknown.test\r\n\r\n").is(403, "no_rule"); wrong != "" {
			return errors.New(wrong)
		}
		if wrong := talk(a.tunnel(t, s.authority), request).is(200, ""); wrong != "" {
			return errors.New(wrong)
		}
		return nil
	})
	s.wantOurs(t)
}

// A head that does not end costs the gateway a fixed window, on the front as inside.
func TestAttackA15EndlessHeaders(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorder(t, p, nil)
	a := startArena(t, "", p.inject("archive", s.url(), ""))
	lines := strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 64)
	for _, begin := range []struct {
		name string
		open func() net.Conn
		head string
	}{
		{"front", func() net.Conn { return a.dial(t) }, "CONNECT " + s.authority + " HTTP/1.1\r\nHost: x\r\n"},
		{"inside", func() net.Conn { return a.tunnel(t, s.authority) }, "GET / HTTP/1.1\r\nHost: " + s.authority + "\r\n"},
	} {
		var conns []net.Conn
		for range 20 {
			conns = append(conns, begin.open())
		}
		atOnce(len(conns), 10, func(i int) {
			c := conns[i]
			answered := make(chan reply, 1)
			go func() { answered <- nextReply(bufio.NewReader(c), http.MethodGet) }()
			_, err := io.WriteString(c, begin.head)
			written := 0
			for written < 16<<20 && err == nil {
				var n int
				n, err = io.WriteString(c, lines)
				written += n
			}
			if err == nil {
				t.Errorf("%s: %d MiB of headers were read", begin.name, written>>20)
			}
			if got := <-answered; got.err == nil && got.status != 400 {
				t.Errorf("%s: got %d, want 400 or an end", begin.name, got.status)
			}
			_ = c.Close()
		})
	}
	if n := residentMemory(t, a); n > 64 {
		t.Errorf("the gateway has grown to %d MiB", n)
	}
	if n := len(s.seen()); n > 0 {
		t.Errorf("%d requests have reached the server", n)
	}
}
