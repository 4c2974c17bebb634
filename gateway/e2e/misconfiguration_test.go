//go:build e2e

package e2e

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestWrongSecretIsNamedAndNotShown(t *testing.T) {
	t.Parallel()
	u := startArchive(t, 5*time.Minute)
	g := startGateway(t, u, basicLogin, clientSecret+"-expired")
	o := startClient(t, u, g, g.bundle)
	for range 10 {
		_, err := o.find("anyone")
		if answer, ok := errors.AsType[statusError](err); !ok || answer.status != http.StatusInternalServerError {
			t.Fatalf("QIDO-RS: got %v, want Orthanc's 500 for its server's 503", err)
		}
	}
	if log := o.process.output(t); !strings.Contains(log, "HTTP status 503") {
		t.Error("Orthanc's log does not say 503")
	}
	if seen := u.server.seen(); len(seen) > 0 {
		t.Errorf("%d requests have reached the protected server without a token", len(seen))
	}
	if granted, refused := u.provider.tokenRequests(t); granted != 0 || refused < 1 || refused > 3 {
		t.Errorf("the provider granted %d token requests and refused %d, want none and 1 to 3", granted, refused)
	}

	profile := g.profile(t)
	if profile.State != "unavailable" || !strings.Contains(profile.LastError.Message+profile.LastError.Hint, "client_secret") {
		t.Errorf("got %+v in the status API, want the state unavailable and client_secret named", profile)
	}
	if err := g.warned(t, profileName, "client_secret"); err != nil {
		t.Error(err)
	}
	if _, err := get(loopbackClient, g.admin+"/readyz"); err == nil {
		t.Error("/readyz: got 200, want 503: no profile is usable")
	}
}

func TestClientThatDistrustsTheCAIsNamed(t *testing.T) {
	t.Parallel()
	u := startArchive(t, 5*time.Minute)
	g := startGateway(t, u, basicLogin, clientSecret)
	o := startClient(t, u, g, newPKI(t).caFile)
	if _, err := o.find("anyone"); err == nil {
		t.Fatal("Orthanc has accepted a certificate of a CA that it does not know")
	}
	eventually(t, 10*time.Second, func() error {
		return g.warned(t, "does not trust this CA", "HttpsCACertificates")
	})
	if seen := u.server.seen(); len(seen) > 0 {
		t.Errorf("%d requests have reached the protected server", len(seen))
	}
}
