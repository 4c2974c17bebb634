package admin_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"orthanc-dicomweb-oauth/gateway/admin"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

func TestAdminURLIsReachableFromTheSameMachine(t *testing.T) {
	for listen, want := range map[string]string{
		"127.0.0.1:3129": "http://127.0.0.1:3129",
		"localhost:3129": "http://localhost:3129",
		"[::1]:3129":     "http://[::1]:3129",
		"10.0.0.7:3129":  "http://10.0.0.7:3129",
		"0.0.0.0:3129":   "http://127.0.0.1:3129",
		"[::]:3129":      "http://127.0.0.1:3129",
		":3129":          "http://127.0.0.1:3129",
	} {
		if got := admin.URL(rules.Admin{Listen: listen}); got != want {
			t.Errorf("%s: got %s, want %s", listen, got, want)
		}
	}
}

// serve serves the admin API of a stack on loopback and returns its base URL.
func (s *stack) serve(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(s.handler)
	t.Cleanup(server.Close)
	return server.URL
}

func TestReadyTellsTheStatesOfTheProfiles(t *testing.T) {
	s := start(t, "")
	s.until(t, "good", token.Fresh)
	s.until(t, "wrong", token.Unusable)
	base := s.serve(t)
	if got, err := admin.Ready(t.Context(), base); err != nil || got != "ready: good fresh, wrong unavailable" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := s.gateway.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Ready(t.Context(), base); err == nil || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("after the stop: got %v", err)
	}
}

func TestReadyIsAnErrorWithoutAGatewayThatServes(t *testing.T) {
	answer := func(status int, body string) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/readyz" {
				t.Errorf("asked for %s", r.URL)
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}))
		t.Cleanup(server.Close)
		return server.URL
	}
	for base, want := range map[string]string{
		"http://127.0.0.1:1": "the gateway does not answer at http://127.0.0.1:1: ",
		answer(http.StatusServiceUnavailable, `{"profiles":{"a":"unavailable"}}`): "not ready: no profile is usable: a unavailable",
		answer(http.StatusOK, "<html>"):                                           "is not the gateway: HTTP 200",
		answer(http.StatusNotFound, "{}"):                                         "is not the gateway: HTTP 404",
	} {
		if detail, err := admin.Ready(t.Context(), base); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, %v, want %q", detail, err, want)
		}
	}
}

func TestClientObservesAndTests(t *testing.T) {
	s := start(t, "username = \"operator\"\npassword_file = \"admin-password\"")
	s.until(t, "good", token.Fresh)
	s.until(t, "wrong", token.Unusable)
	settings := s.config.Admin
	settings.Listen = strings.TrimPrefix(s.serve(t), "http://")
	c := admin.NewClient(settings)
	seen, err := c.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, there := seen.Rules["archive"]; len(seen.Rules) != 3 || !there || got != (admin.Requests{}) || seen.UntrustedCA != 0 {
		t.Errorf("got %+v", seen)
	}
	report, err := c.Test(t.Context(), "broken")
	if err != nil || report.OK || report.Name != "broken" || len(report.Steps) == 0 {
		t.Errorf("got %+v, %v", report, err)
	}
	if _, err := c.Test(t.Context(), "closed"); err == nil || !strings.Contains(err.Error(), "409") {
		t.Errorf("a deny rule: got %v, want an error", err)
	}

	settings.Password = token.SecretValue(token.NewSecret("wrong"))
	if _, err := admin.NewClient(settings).Observe(t.Context()); err == nil || !strings.Contains(err.Error(), "another admin password") {
		t.Errorf("wrong password: got %v", err)
	}
	settings.Password = token.SecretFile("/no/such/file")
	if _, err := admin.NewClient(settings).Observe(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "admin.password: ") {
		t.Errorf("no password: got %v", err)
	}
}
