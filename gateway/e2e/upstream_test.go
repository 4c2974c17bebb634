//go:build e2e

package e2e

import (
	"errors"
	"net/http"
	"testing"
	"time"
)

// upstream is the far side of the gateway.
type upstream struct {
	pki      *pki
	provider *provider
	server   *server  // demands a token
	archive  *orthanc // what lies behind it: an Orthanc that knows of no token. Nil if it is another handler.
}

// startUpstream starts an authorization server and a protected server that hands on to the handler.
func startUpstream(t *testing.T, tokenLifetime time.Duration, inner http.Handler) *upstream {
	t.Helper()
	pki := newPKI(t)
	provider := startProvider(t, pki, tokenLifetime)
	return &upstream{pki: pki, provider: provider, server: startServer(t, provider, inner)}
}

// startArchive is startUpstream with an Orthanc behind the protected server.
func startArchive(t *testing.T, tokenLifetime time.Duration) *upstream {
	t.Helper()
	archive := startOrthanc(t, "Orthanc-archive", nil)
	u := startUpstream(t, tokenLifetime, forward(t, archive))
	u.archive = archive
	archive.ready(t)
	return u
}

// startDirectClient starts an Orthanc that reaches the protected server without a gateway, with fixed HTTP headers.
func startDirectClient(t *testing.T, u *upstream, headers map[string]string) *orthanc {
	t.Helper()
	o := startOrthanc(t, "Orthanc-direct", map[string]any{
		"HttpsCACertificates": u.pki.caFile,
		"DicomWeb":            dicomWebServer(map[string]any{"Url": u.server.url, "HttpHeaders": headers}),
	})
	o.ready(t)
	return o
}

// The tests of the gateway prove nothing unless the protected server turns everyone away who brings no token.
func TestProtectedServerDemandsToken(t *testing.T) {
	t.Parallel()
	u := startArchive(t, 5*time.Minute)
	for _, headers := range []map[string]string{{}, {"Authorization": "Bearer eyJhbGciOiJub25lIn0.e30."}} {
		_, err := startDirectClient(t, u, headers).find("anyone")
		if answer, ok := errors.AsType[statusError](err); !ok || answer.status != http.StatusUnauthorized {
			t.Errorf("QIDO-RS with the headers %v: got %v, want 401", headers, err)
		}
	}
	seen := u.server.seen()
	if len(seen) != 2 || seen[0].refused == nil || seen[1].refused == nil {
		t.Fatalf("got %+v, want two requests, both refused", seen)
	}
	if seen[0].authorization != nil {
		t.Errorf("Orthanc alone has sent %q; want no Authorization", seen[0].authorization)
	}
}

// With a token of the provider, Orthanc and the protected server work together without a gateway: what fails in the other
// tests fails because of the gateway.
func TestOrthancWithTokenNeedsNoGateway(t *testing.T) {
	t.Parallel()
	u := startArchive(t, 5*time.Minute)
	o := startDirectClient(t, u, map[string]string{"Authorization": "Bearer " + u.provider.token(t)})
	roundTrip(t, o, u.archive, daikonFiles(t))
	findAndDelete(t, o)
	u.server.wantOnlyAdmitted(t)
}
