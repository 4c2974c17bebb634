package gateway_test

import (
	"fmt"
	"strings"
	"testing"
)

// A credential that is not a bearer token takes its own header, and still
// nothing of the client's own leaves.
func TestAPIKeyTakesThePlaceOfTheClientsCredentials(t *testing.T) {
	t.Parallel()
	up := newDouble(t, nil)
	const key = "api-key-4711"
	h := newHarness(t, setup{up: up, more: fmt.Sprintf(`
[[rule]]
name = "keyed"
url = "%s/keyed/"
profile = "keyed"
ca_file = "up.pem"
allow_networks = ["127.0.0.0/8", "::1/128"]
[profile.keyed]
type = "api_key"
header = "X-Dicom-Key"
key = "%s"
`, up.url, key)})
	h.raw("GET /keyed/studies HTTP/1.1\r\nHost: {good}\r\nConnection: x-dicom-key\r\nX-Dicom-Key: "+clientSecret+
		"\r\nx-dicom-key: 2\r\nAuthorization: Bearer "+clientSecret+"\r\n\r\n").want(t, 200)
	r := up.last(t)
	if got := r.header["X-Dicom-Key"]; len(got) != 1 || got[0] != key {
		t.Errorf("got %d keys at the server, want ours alone", len(got))
	}
	if got := r.header["Authorization"]; got != nil {
		t.Error("the client's own Authorization left")
	}
	if out := h.log.String() + h.audit.String(); strings.Contains(out, key) || strings.Contains(out, clientSecret) {
		t.Error("a key is logged")
	}
}
