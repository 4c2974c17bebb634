//go:build e2e

package e2e

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"
)

// The admin API tests a server with the token of the running gateway, and shows none of it.
func TestServerIsTestedThroughTheAdminAPI(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, 5*time.Minute, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/dicom+json")
		_, _ = w.Write([]byte("[]"))
	}))
	g := startGateway(t, u, basicLogin, clientSecret)
	g.waitReady(t)
	req, err := http.NewRequest(http.MethodPost, g.admin+"/dicomweb-oauth/servers/archive/test", nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := do(loopbackClient, req)
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Name  string
		OK    bool
		Steps []struct{ Step, Detail string }
	}
	if err := json.Unmarshal(body, &report); err != nil {
		t.Fatal(err)
	}
	var steps string
	for _, s := range report.Steps {
		steps += s.Step + " "
	}
	if !report.OK || report.Name != "archive" || steps != "dns tcp tls token query " {
		t.Errorf("got %s", body)
	}
	if granted, _ := u.provider.tokenRequests(t); granted != 1 {
		t.Errorf("%d token requests, want the one of the running gateway", granted)
	}
	g.wantNoSecret(t, u.server, string(body))
}
