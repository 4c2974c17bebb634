//go:build e2e

package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

const gibibyte = 1 << 30

// randomGibibyte is the same at each call.
func randomGibibyte() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{}), gibibyte) }

func digest(r io.Reader) (string, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%d bytes, sha256 %x", n, h.Sum(nil)), err
}

// What is larger than the gateway's memory passes in both directions: nothing keeps a whole body.
func TestGibibyteStreamsInSmallMemory(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, 5*time.Minute, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.Copy(w, randomGibibyte())
			return
		}
		got, err := digest(r.Body)
		_, _ = fmt.Fprint(w, got, err)
	}))
	g := startGateway(t, u, basicLogin, clientSecret)
	g.waitReady(t)
	client := g.client(t)
	want, err := digest(randomGibibyte())
	if err != nil {
		t.Fatal(err)
	}

	// A reader of unknown length, so the body is chunked, as Orthanc's.
	req, err := http.NewRequest(http.MethodPost, u.server.url+"studies", struct{ io.Reader }{randomGibibyte()})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := do(client, req); err != nil || string(got) != want+"<nil>" {
		t.Errorf("STOW-RS: got %s, %v; want %s", got, err, want)
	}

	resp, err := client.Get(u.server.url + "studies/1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	got, err := digest(resp.Body)
	_ = resp.Body.Close() // it is read, or has failed
	if err != nil || got != want {
		t.Errorf("WADO-RS: got %s, %v; want %s", got, err, want)
	}
	u.server.wantOnlyAdmitted(t)
	peak := g.process.peakMemory(t)
	t.Logf("peak memory of the gateway: %d MiB", peak>>20)
	if peak > 64<<20 {
		t.Errorf("the gateway has taken %d MiB of memory, want 64 at most", peak>>20)
	}
}

// client is a client of the gateway, as far as Go can be one.
func (g *gateway) client(t *testing.T) *http.Client {
	t.Helper()
	proxy, err := url.Parse(g.proxy)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := os.ReadFile(g.bundle)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundle)
	return &http.Client{Timeout: 5 * time.Minute, Transport: &http.Transport{
		Proxy:              http.ProxyURL(proxy),
		TLSClientConfig:    &tls.Config{RootCAs: pool},
		DisableCompression: true,
	}}
}

// peakMemory returns the largest resident set that the process has had, in bytes.
func (p *process) peakMemory(t *testing.T) int {
	t.Helper()
	return p.status(t, "VmHWM:") << 10
}

// status returns a number of the kernel's page about the process: VmRSS and the like are in KiB.
func (p *process) status(t *testing.T, field string) int {
	t.Helper()
	page, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(page), "\n"+field)
	var number int
	if _, err := fmt.Sscan(line, &number); err != nil {
		t.Fatalf("no %s in %s: %v", field, page, err)
	}
	return number
}
