package main

import (
	"context"
	"encoding/json"
	"net"
	"sync"
	"time"
)

// delaySettings are those of the forwarder.
type delaySettings struct {
	To  string        // host:port
	RTT time.Duration // half of it is added to each direction
}

// delayWindow bounds what the forwarder holds of one direction, in chunks of at most 64 KiB. Even if each chunk is one TLS
// record, these are 16 MiB in 25 ms: the delay limits no throughput that Orthanc comes near.
const delayWindow = 1024

// playDelay forwards TCP connections and makes the upstream as far away as the round-trip time says.
func playDelay(settings []byte) error {
	var s delaySettings
	if err := json.Unmarshal(settings, &s); err != nil {
		return err
	}
	ln, err := listenLoopback()
	if err != nil {
		return err
	}
	return serveRole(ln, func(ln net.Listener) error { return serveDelayed(ln, s) })
}

func serveDelayed(ln net.Listener, s delaySettings) error {
	pool := new(pieces)
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = c.Close() }()
			var d net.Dialer
			if up, err := d.DialContext(context.Background(), "tcp", s.To); err == nil { // the process ends with the benchmark
				forwardDelayed(pool, c, up, s.RTT)
				_ = up.Close()
			}
		}()
	}
}

// forwardDelayed forwards a connection that has just been accepted, until both directions have ended.
//
// The kernel has completed the TCP handshake with the client before we see the connection, so it cost the client nothing. Over
// a real distance it costs one round trip, and the client's first byte leaves only after that. So what the client sends
// within the first round-trip time is taken as sent at the end of it. A byte sent later waits for half a round trip only: a
// client that opens connections ahead of need gains from that here as it would over a real distance.
//
// Slow start, loss and bandwidth are not modelled.
func forwardDelayed(pool *pieces, client, up net.Conn, rtt time.Duration) {
	established := time.Now().Add(rtt)
	var back sync.WaitGroup
	back.Go(func() { copyDelayed(pool, client, up, rtt/2, time.Time{}) })
	copyDelayed(pool, up, client, rtt/2, established)
	back.Wait()
}

// pieces pools the forwarder's buffers.
type pieces struct{ pool sync.Pool }

func (p *pieces) get() *[64 << 10]byte {
	if b, ok := p.pool.Get().(*[64 << 10]byte); ok {
		return b
	}
	return new([64 << 10]byte)
}

// copyDelayed passes on what arrives, and the end, after delay. What arrives before the time notBefore counts as arrived
// then.
func copyDelayed(pool *pieces, dst, src net.Conn, delay time.Duration, notBefore time.Time) {
	type chunk struct {
		due time.Time
		buf *[64 << 10]byte
		n   int
	}
	queue := make(chan chunk, delayWindow)
	go func() {
		defer close(queue)
		for {
			buf := pool.get()
			n, err := src.Read(buf[:])
			arrived := time.Now()
			if arrived.Before(notBefore) {
				arrived = notBefore
			}
			queue <- chunk{arrived.Add(delay), buf, n}
			if err != nil {
				return
			}
		}
	}()
	for c := range queue {
		time.Sleep(time.Until(c.due))
		if _, err := dst.Write(c.buf[:c.n]); err != nil {
			_ = src.Close() // ends the reader
			break
		}
		pool.pool.Put(c.buf)
	}
	if half, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	for range queue { //nolint:revive // lets the reader end
	}
}
