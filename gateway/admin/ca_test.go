package admin_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/gateway/admin"
	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/token"
)

// endsIn returns a CA with so much of its life left.
func endsIn(t *testing.T, left time.Duration) *certs.CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(left),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{"ca.pem": {Type: "CERTIFICATE", Bytes: cert}, "ca-key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ca, err := certs.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// with serves the same config with another CA and audit log.
func (s *stack) with(t *testing.T, ca *certs.CA, records *audit.Log) *stack {
	t.Helper()
	g, err := gateway.New(gateway.Options{Config: s.config, CA: ca, Audit: records, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	o := *s
	o.gateway, o.ca = g, ca
	o.handler = admin.New(admin.Options{Gateway: g, Admin: s.config.Admin, Version: "1.2.3", Log: slog.New(slog.DiscardHandler)}).Handler
	return &o
}

func TestEndOfTheCAIsShownThirtyDaysAhead(t *testing.T) {
	plain := start(t, "")
	for left, want := range map[time.Duration]string{31 * 24 * time.Hour: "", 29*24*time.Hour + time.Hour: "in 29 days"} {
		s := plain.with(t, endsIn(t, left), nil)
		s.until(t, "good", token.Fresh)
		ca := decode[map[string]any](t, s.get(t, "/dicomweb-oauth/status"))["ca"].(map[string]any)
		shown, _ := ca["warning"].(string)
		w := s.get(t, "/readyz")
		ready, _ := decode[map[string]any](t, w)["ca_warning"].(string)
		for where, got := range map[string]string{"status": shown, "readyz": ready} {
			if (got != "") != (want != "") || !strings.Contains(got, want) {
				t.Errorf("%v before its end, %s says %q, want %q", left, where, got, want)
			}
		}
		if w.Code != http.StatusOK {
			t.Errorf("%v before its end: /readyz answers %d, want 200: requests are served", left, w.Code)
		}
	}
}

func TestLostAuditRecordsAreShown(t *testing.T) {
	plain := start(t, "")
	if got, ok := decode[map[string]any](t, plain.get(t, "/dicomweb-oauth/status"))["audit_lost"]; !ok || got != 0.0 {
		t.Errorf("audit_lost: got %v, want 0", got)
	}
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip(err)
	}
	records, err := audit.Open("/dev/full")
	if err != nil {
		t.Fatal(err)
	}
	s := plain.with(t, plain.ca, records)
	records.Write(audit.Record{})
	if err := records.Close(); err != nil {
		t.Fatal(err)
	}
	if got := decode[map[string]any](t, s.get(t, "/dicomweb-oauth/status"))["audit_lost"]; got != 1.0 {
		t.Errorf("audit_lost: got %v, want 1", got)
	}
}
