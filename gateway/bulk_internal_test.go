package gateway

import (
	"io"
	"net"
	"sync"
	"testing"
)

// When the server has answered early, net/http reads the rest of the request,
// while the goroutine that sends it may still ask what is ahead. The race detector
// is what fails here.
func TestOthersMayAskWhatIsAhead(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	c := &bulkConn{Conn: server}
	c.reading.Store(true)
	var all sync.WaitGroup
	all.Go(func() {
		defer client.Close()
		_, _ = client.Write(make([]byte, 3*bulkSize))
	})
	all.Go(func() {
		if n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, c, make([]byte, 1000)); n != 3*bulkSize {
			t.Errorf("got %d bytes, want %d", n, 3*bulkSize)
		}
	})
	for range 1000 {
		if n := c.ahead(); n < 0 || n > bulkRoom {
			t.Fatalf("got %d bytes ahead", n)
		}
	}
	all.Wait()
	if n := c.ahead(); n != 0 {
		t.Errorf("got %d bytes ahead of the end, want none", n)
	}
}
