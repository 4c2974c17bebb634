package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// BenchmarkKeptConnection sends small QIDO-RS requests on one connection, over
// TLS on both legs. Client and server are in the same process, and count.
func BenchmarkKeptConnection(b *testing.B) {
	answer := strings.Repeat(`{"00080005":{"vr":"CS"}},`, 80)
	h := newHarness(b, setup{up: newDouble(b, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/dicom+json")
		_, _ = io.WriteString(w, answer)
	})})
	c := secure(b, h.addr, h.authority(), "", h.roots())
	br := bufio.NewReader(c)
	request := []byte(fmt.Sprintf("GET /studies?limit=1 HTTP/1.1\r\nHost: %s\r\nAccept: */*\r\n\r\n", h.authority()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(request); err != nil {
			b.Fatal(err)
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); n != int64(len(answer)) || err != nil {
			b.Fatal(n, err)
		}
	}
}
