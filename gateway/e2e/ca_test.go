//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"testing"
	"time"
)

// ca runs a command below ca on the gateway's folder while it runs, and returns the fingerprints of the CA that signs and
// of the one that waits.
func (g *gateway) ca(t *testing.T, command string) (signs, waits string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, gatewayBinary, "ca", command, "--json", "--config", g.config)
	cmd.Env = []string{"E2E_CLIENT_SECRET=" + g.secret}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ca %s: %v\n%s", command, err, out)
	}
	type authority struct {
		Fingerprint string `json:"fingerprint_sha256"`
	}
	var shown struct {
		authority

		Waiting authority
	}
	if err := json.Unmarshal(out, &shown); err != nil {
		t.Fatal(err)
	}
	return shown.Fingerprint, shown.Waiting.Fingerprint
}

// signing returns the fingerprint of the CA that the status API names.
func (g *gateway) signing() (string, error) {
	body, err := get(loopbackClient, g.admin+"/dicomweb-oauth/status")
	if err != nil {
		return "", err
	}
	var status struct {
		CA struct {
			Fingerprint string `json:"fingerprint_sha256"`
		}
	}
	return status.CA.Fingerprint, json.Unmarshal(body, &status)
}

// issuer returns the name of the CA whose leaf the gateway presents.
func (g *gateway) issuer(t *testing.T, url string) string {
	t.Helper()
	client := g.client(t) // with the bundle as it is now
	defer client.CloseIdleConnections()
	var name string
	client.Transport.(*http.Transport).TLSClientConfig.VerifyConnection = func(c tls.ConnectionState) error {
		name = c.PeerCertificates[0].Issuer.CommonName
		return nil
	}
	if _, err := get(client, url+"studies"); err != nil {
		t.Fatal(err)
	}
	return name
}

// The CA is replaced twice, so that what Orthanc trusted at first is gone in the end. At each moment Orthanc's QIDO-RS works,
// and neither Orthanc nor the gateway is started again.
func TestCAIsReplacedUnderARunningOrthanc(t *testing.T) {
	t.Parallel()
	s := startStack(t, 5*time.Minute, basicLogin)
	works := func(when string) {
		t.Helper()
		if _, err := s.orthanc.find("anyone"); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	works("before")
	first, _ := s.gateway.ca(t, "show")
	issuers := map[string]bool{s.gateway.issuer(t, s.server.url): true}
	for round := 1; round <= 2; round++ {
		old, next := s.gateway.ca(t, "rotate")
		if next == "" || next == old {
			t.Fatalf("rotate: got %q, want another CA that waits", next)
		}
		works("after rotate, at once")
		if now, err := s.gateway.signing(); err != nil || now != old {
			t.Fatalf("after rotate: %s signs, %v; want the old one, %s", now, err, old)
		}
		if signs, _ := s.gateway.ca(t, "activate"); signs != next {
			t.Fatalf("activate: got %s, want %s", signs, next)
		}
		works("after activate, at once")
		eventually(t, 20*time.Second, func() error {
			works("while the gateway takes up the new CA")
			if now, err := s.gateway.signing(); err != nil || now != next {
				return errors.Join(err, fmt.Errorf("%s signs, want %s", now, next))
			}
			return nil
		})
		works("with the new CA")
		if name := s.gateway.issuer(t, s.server.url); issuers[name] {
			t.Errorf("a leaf of the old CA %s is still presented", name)
		} else {
			issuers[name] = true
		}
	}
	if last, _ := s.gateway.ca(t, "show"); last == first {
		t.Error("the first CA still signs")
	}
	for _, p := range []*process{s.orthanc.process, s.gateway.process} {
		select {
		case <-p.ended:
			t.Errorf("%s has ended", p.name)
		default:
		}
	}

	// What all this has made of the folder is good for a start.
	s.gateway.process.terminate(t)
	s.gateway.start(t)
	s.gateway.waitReady(t)
	works("after a start of the gateway")
	s.server.wantOnlyAdmitted(t)
}
