//go:build e2e

package e2e

import (
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// A client that wants the token to go elsewhere, or to send another one, gets neither. curl is that client: unlike Go's, it
// sends what it is told.
func TestHostileRequestsAreRefusedOrHarmless(t *testing.T) {
	t.Parallel()
	curl := program(t, "curl")
	u := startUpstream(t, 5*time.Minute, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	g := startGateway(t, u, basicLogin, clientSecret)
	g.waitReady(t)
	studies := u.server.url + "studies"
	origin := strings.TrimSuffix(u.server.url, "/dicom-web/")
	host := strings.TrimPrefix(origin, "https://")

	// The status, that of CONNECT (000 without one), and the gateway's own error code.
	const format = "%{http_code} %{http_connect} %header{x-gateway-error}"
	for _, row := range []struct {
		name string
		args []string
		want string // the beginning of what curl reports; empty where only the protected server's silence counts
	}{
		{"foreign Host", []string{"-H", "Host: evil.test", studies}, "421 200 authority_mismatch"},
		{"absolute-form target of another host", []string{"--request-target", "https://evil.test/dicom-web/studies", studies}, "421 200 authority_mismatch"},
		{"absolute-form target of another port", []string{"--request-target", "https://localhost:1/dicom-web/studies", studies}, "421 200 authority_mismatch"},
		{"CONNECT to another host than SNI and Host", []string{"--connect-to", host + ":evil.test:443", studies}, "000 403"},
		{"SNI of another host", []string{"--insecure", "--connect-to", "evil.test:443:" + host, "https://evil.test/dicom-web/studies"}, ""},
		{"path outside of the rule", []string{origin + "/admin/"}, "403 200 no_rule"},
		{"dot segments", []string{"--path-as-is", u.server.url + "../admin/"}, "400 200 bad_request"},
		{"encoded dot segments", []string{u.server.url + "%2e%2e/admin/"}, "400 200 bad_request"},
		{"plaintext in the tunnel", []string{"--proxytunnel", "http://" + host + "/dicom-web/studies"}, ""},
		{"plaintext without a tunnel", []string{"http://" + host + "/dicom-web/studies"}, "403 000"},
		{"its own Authorization", []string{"-H", "Authorization: Bearer client", studies}, "200 200"},
		{"two of them", []string{"-H", "Authorization: Bearer client", "-H", "authorization: Basic Y2xpZW50", studies}, "200 200"},
		{"Authorization named as hop-by-hop", []string{"-H", "Connection: close, authorization", studies}, "200 200"},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := len(u.server.seen())
			args := append([]string{
				"-q", "--silent", "--max-time", "20", "--output", "/dev/null", "--write-out", format,
				"--noproxy", "", "--proxy", g.proxy, "--cacert", g.bundle,
			}, row.args...)
			report, err := exec.Command(curl, args...).Output()
			if !strings.HasPrefix(string(report), row.want) {
				t.Errorf("curl %q: got %q (%v), want %q", row.args, report, err, row.want)
			}
			want := 0
			if strings.HasPrefix(row.want, "200 ") {
				want = 1
			}
			if got := len(u.server.seen()) - before; got != want {
				t.Errorf("%d requests have reached the protected server, want %d", got, want)
			}
		})
	}
	u.server.wantOnlyAdmitted(t)
}
