package gateway_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/token"
)

// follows lets the gateway reload by itself, as the run command does.
func (h *harness) follows() {
	ctx, cancel := context.WithCancel(context.Background())
	var following sync.WaitGroup
	following.Go(func() { h.gw.Follow(ctx, func() { _, _ = h.reload() }) })
	h.t.Cleanup(following.Wait)
	h.t.Cleanup(cancel)
}

// broken waits until the status names what is wrong with a file.
func (h *harness) broken(key string) {
	h.t.Helper()
	eventually(h.t, "the status says that "+key+" is broken", func() bool {
		return strings.Contains(h.gw.Status().ReloadError, key)
	})
}

func TestRenewedCertificateOfTheProxyIsShownToNewConnections(t *testing.T) {
	t.Parallel()
	cert, key := pair(t, testPKI().leaf(time.Now().Add(time.Hour), "127.0.0.1"))
	h := newHarness(t, setup{proxy: "tls_cert = \"front.pem\"\ntls_key = \"front-key.pem\"", files: map[string][]byte{"front.pem": cert, "front-key.pem": key}})
	h.follows()
	connect := func() *tls.Conn {
		c := tls.Client(dial(t, h.addr), &tls.Config{InsecureSkipVerify: true})
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return c
	}
	shown := func(c *tls.Conn) string { return string(c.ConnectionState().PeerCertificates[0].Raw) }
	old := connect()
	cert, key = pair(t, testPKI().leaf(time.Now().Add(time.Hour), "127.0.0.1"))
	h.write("front.pem", string(cert[:len(cert)/2]))
	h.broken("proxy.tls_cert")
	if shown(connect()) != shown(old) {
		t.Error("a half-written certificate has changed what is shown")
	}
	h.write("front.pem", string(cert))
	h.write("front-key.pem", string(key))
	eventually(t, "the renewed certificate is shown", func() bool { return shown(connect()) != shown(old) })
	eventually(t, "the status is well again", func() bool { return h.gw.Status().ReloadError == "" })
	if _, err := io.WriteString(old, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(old), nil)
	if err != nil {
		t.Fatalf("a connection under the old certificate: %v", err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest { // no proxy request, and answered all the same
		t.Errorf("got %d on a connection under the old certificate, want 400", resp.StatusCode)
	}
}

func TestRenewedCAFileOfARuleIsTrusted(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{files: map[string][]byte{"up.pem": newPKI().pem}})
	h.follows()
	h.get("/studies").problem(t, 502, "upstream_tls")
	h.write("up.pem", string(testPKI().pem))
	eventually(t, "the server is trusted", func() bool { return h.get("/studies").status == 200 })
	h.write("up.pem", "-----BEGIN CERTIFICATE-----\nMIIB")
	h.broken("rule[0].ca_file")
	h.get("/studies").want(t, 200)
	h.write("up.pem", string(newPKI().pem))
	eventually(t, "the server is trusted no more, on kept connections either", func() bool { return h.get("/studies").status == 502 })
	if n := h.idp.TokenRequests(); n != 1 {
		t.Errorf("got %d token requests, want 1: the profile has not changed", n)
	}
}

func TestRenewedCAFileOfAProfileCostsNoToken(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	h.follows()
	h.waitFresh("main")
	h.write("idp.pem", "")
	h.broken("profile.main.ca_file")
	h.write("idp.pem", string(h.idp.CAPEM())+string(testPKI().pem))
	eventually(t, "the file is taken up", func() bool { return h.gw.Status().ReloadError == "" })
	h.get("/studies").want(t, 200)
	if p := h.profile("main"); p.Acquisitions != 1 || p.State != token.Fresh || h.idp.TokenRequests() != 1 {
		t.Errorf("got %+v and %d token requests, want the token of before", p.Status, h.idp.TokenRequests())
	}
}
