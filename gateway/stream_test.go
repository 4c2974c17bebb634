package gateway_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/gateway/demo"
)

// bigStudy is the size of a streamed study.
const bigStudy = 256 << 20

// heapGrowth calls f and returns by how much the heap grew meanwhile, at most.
func heapGrowth(f func()) int64 {
	inUse := func() int64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse)
	}
	runtime.GC()
	before := inUse()
	var peak atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				peak.Store(max(peak.Load(), inUse()))
			case <-stop:
				return
			}
		}
	}()
	f()
	close(stop)
	<-stopped
	return peak.Load() - before
}

// realServer is a DICOMweb server that verifies tokens, and its gateway.
func realServer(t *testing.T) (*harness, *demo.Server) {
	t.Helper()
	var verify atomic.Pointer[demo.IdentityProvider]
	server := demo.NewServer(demo.ServerOptions{Discard: true, Verify: func(token string) error { return verify.Load().Verify(token) }})
	t.Cleanup(server.Close)
	h := newHarness(t, setup{
		url: server.URL(), before: func(p *demo.IdentityProvider) { verify.Store(p) },
		files: map[string][]byte{"up.pem": server.CAPEM()},
	})
	return h, server
}

// Nothing of a body is kept beyond fixed windows: a study of any size goes
// through whole, both ways, and the heap does not grow with it. Not parallel:
// the heap is measured.
func TestInvariant8BodiesAreNeverBuffered(t *testing.T) {
	h, server := realServer(t)
	h.client.Timeout = 0       // a busy machine may take its time
	const bound = bigStudy / 4 // the server's and the client's garbage is in the same heap, and the race detector slows its collection
	sent := sha256.New()
	body, length := demo.StreamBody(bigStudy)
	grown := heapGrowth(func() {
		a, err := h.try("POST", server.URL()+"studies", stream{io.TeeReader(body, sent)}, "Content-Type: "+demo.StreamContentType, "Accept: application/dicom+json")
		if err != nil {
			t.Fatal(err)
		}
		a.want(t, 200)
	})
	want := hex.EncodeToString(sent.Sum(nil))
	requests := server.Requests()
	if got := requests[len(requests)-1]; got.BodySHA256 != want || got.BodyBytes != length {
		t.Errorf("STOW-RS: got %d bytes %s, want %d %s", got.BodyBytes, got.BodySHA256, length, want)
	}
	if grown > bound {
		t.Errorf("STOW-RS: the heap grew by %d MiB, want at most %d", grown>>20, bound>>20)
	}

	study := int64(bigStudy)
	for _, framing := range []string{"", "&length=1"} {
		if framing != "" { // the same path again: enough to see its bytes
			study >>= 3
			body, length = demo.StreamBody(study)
			sent.Reset()
			_, _ = io.Copy(sent, body)
			want = hex.EncodeToString(sent.Sum(nil))
		}
		grown = heapGrowth(func() {
			r, err := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("%sstudies/1?bytes=%d%s", server.URL(), study, framing), nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Accept", strings.TrimPrefix(wado, "Accept: "))
			resp, err := h.client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got := sha256.New()
			n, err := io.Copy(got, resp.Body)
			if err != nil || n != length || hex.EncodeToString(got.Sum(nil)) != want {
				t.Errorf("WADO-RS%s: got %d bytes, %v, want %d with the same hash", framing, n, err, length)
			}
			if known := resp.ContentLength == length; known != (framing != "") {
				t.Errorf("WADO-RS%s: got Content-Length %d", framing, resp.ContentLength)
			}
		})
		if grown > bound {
			t.Errorf("WADO-RS%s: the heap grew by %d MiB, want at most %d", framing, grown>>20, bound>>20)
		}
	}
}
