package main

import (
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A connection costs what it would over the distance: one round trip before its first byte leaves, and one for each question.
func TestForwarderDelaysConnectionAndEachRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := delayed(t, 50*time.Millisecond)
		wantRoundTrip(t, c, 100*time.Millisecond)
		wantRoundTrip(t, c, 50*time.Millisecond)
	})
}

// Who opens a connection ahead of need has paid for its handshake by then, if not for all of it, for a part.
func TestForwarderDelaysNoHandshakeThatIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := delayed(t, 50*time.Millisecond)
		time.Sleep(20 * time.Millisecond)
		wantRoundTrip(t, c, 80*time.Millisecond)
		c = delayed(t, 50*time.Millisecond)
		time.Sleep(time.Second)
		wantRoundTrip(t, c, 50*time.Millisecond)
	})
}

// Much that is sent at once arrives at once: the delay limits no bandwidth.
func TestForwarderLimitsNoBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := delayed(t, 50*time.Millisecond)
		const size = 10 << 20
		go func() { _, _ = c.Write(make([]byte, size)) }()
		started := time.Now()
		if _, err := io.ReadFull(c, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(started); took != 100*time.Millisecond {
			t.Errorf("10 MiB and back took %v, want 100 ms", took)
		}
	})
}

// delayed is a connection to a server that sends back what it gets, through the forwarder.
func delayed(t *testing.T, rtt time.Duration) net.Conn {
	t.Helper()
	client, accepted := net.Pipe()
	dialled, server := net.Pipe()
	var running sync.WaitGroup
	running.Go(func() { forwardDelayed(new(pieces), accepted, dialled, rtt) })
	running.Go(func() { _, _ = io.Copy(server, server) })
	t.Cleanup(func() {
		for _, c := range []net.Conn{client, accepted, dialled, server} {
			_ = c.Close()
		}
		running.Wait()
	})
	return client
}

func wantRoundTrip(t *testing.T, c net.Conn, want time.Duration) {
	t.Helper()
	started := time.Now()
	if _, err := c.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took != want {
		t.Errorf("the round trip took %v, want %v", took, want)
	}
}
