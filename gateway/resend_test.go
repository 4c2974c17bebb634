package gateway_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// raws starts a TLS (or plain) server; serve gets each connection.
func raws(t *testing.T, conf *tls.Config, serve func(c net.Conn, br *bufio.Reader)) *double {
	d := &double{}
	ln := listen(t)
	if conf != nil {
		ln = tls.NewListener(ln, conf)
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	d.url = "https://localhost:" + port
	if conf == nil {
		d.url = "http://localhost:" + port
	}
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	t.Cleanup(func() { ln.Close() })
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			d.conns++
			d.mu.Unlock()
			all.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				serve(c, bufio.NewReader(c))
			})
		}
	})
	return d
}

// B: a kept connection that gave 100 (Continue), took the whole body and died.
func TestRequestIsNotResentAfterAnInterimAnswer(t *testing.T) {
	var taken atomic.Int64
	up := raws(t, goodTLS(), func(c net.Conn, br *bufio.Reader) {
		for n := 0; ; n++ {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if r.Method == "POST" {
				_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
				if b, err := io.ReadAll(r.Body); err == nil && string(b) == "stored twice" {
					taken.Add(1)
				}
				if n > 0 {
					return
				}
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	h := newHarness(t, setup{up: up})
	h.get("/")
	a := h.request("POST", "/studies", struct{ io.Reader }{strings.NewReader("stored twice")})
	if taken.Load() != 1 {
		t.Errorf("got %d; the server took the body %d times though it had begun to answer", a.status, taken.Load())
	}
}

// C: the connection is used again after 101.
func TestConnectionIsNotReusedAfter101(t *testing.T) {
	var after atomic.Int64
	up := raws(t, goodTLS(), func(c net.Conn, br *bufio.Reader) {
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if r.Header.Get("Authorization") != "" {
			after.Add(1)
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nin other!")
	})
	h := newHarness(t, setup{up: up})
	h.get("/")
	a := h.get("/")
	if after.Load() != 0 {
		t.Errorf("a request with its credential went into a connection after 101: %d %q", a.status, a.body)
	}
}

// D: a whole early 200 cuts the upload, and the client is told 200.
func TestUploadGoesOnBehindAWholeEarlyAnswer(t *testing.T) {
	got := make(chan string, 1)
	up := raws(t, goodTLS(), func(c net.Conn, br *bufio.Reader) {
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			if r.Method == "POST" {
				b, err := io.ReadAll(r.Body)
				got <- fmt.Sprintf("%d bytes, %v", len(b), err)
			}
		}
	})
	h := newHarness(t, setup{up: up})
	h.get("/")
	c := secure(t, h.addr, h.authority(), "", h.roots())
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 10\r\n\r\n", h.authority())
	a := make(chan answer, 1)
	go func() { a <- read(c) }()
	for range 10 {
		time.Sleep(30 * time.Millisecond)
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Log("client's write:", err)
		}
	}
	t.Logf("client: %+v", <-a)
	if g := <-got; g != "10 bytes, <nil>" {
		t.Errorf("the server, which reads on, got %s", g)
	}
}

// E: a POST that is no DICOMweb goes out twice.
func TestPlainPostIsCarriedOutOnce(t *testing.T) {
	var taken atomic.Int64
	up := raws(t, nil, func(c net.Conn, br *bufio.Reader) {
		for n := 0; ; n++ {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.ReadAll(r.Body)
			if r.Method == "POST" {
				taken.Add(1)
				if n > 0 {
					return // dies after the work
				}
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	port := up.url[strings.LastIndex(up.url, ":"):]
	h := newHarness(t, setup{more: "[[rule]]\nname = \"plain\"\nurl = \"http://localhost" + port + "/\"\naction = \"pass\"\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n"})
	if a, err := h.try("GET", up.url+"/", nil); err != nil || a.status != 200 {
		t.Fatal(a, err)
	}
	a, err := h.try("POST", up.url+"/charge", strings.NewReader("once"))
	if taken.Load() != 1 {
		t.Errorf("got %d %v; the POST was carried out %d times", a.status, err, taken.Load())
	}
}
