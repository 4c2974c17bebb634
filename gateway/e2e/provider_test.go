//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// clientSecret has characters that mean something in a form, in Basic authentication or in JSON, behind a part that
	// has none, by which it is found wherever it should not be.
	clientSecret     = clientSecretPart + `+/%41&=~"\`
	clientSecretPart = "planted-Secret-0x5ec"

	// resource is what the provider's tokens are for, and the only audience that the protected server accepts.
	resource = "https://dicom.example.test"
)

// provider is the authorization server. It keeps its port, but not its signing key, when it is started again.
type provider struct {
	issuer  string
	jwks    string // where its keys are
	pki     *pki
	argv    []string
	process *process
}

// startProvider starts it with tokens that live so long, and further options of provider.mjs.
func startProvider(t *testing.T, pki *pki, lifetime time.Duration, more ...string) *provider {
	t.Helper()
	node := program(t, "node")
	installed(t, "node_modules/oidc-provider/package.json")
	ports := freePorts(t, 2)
	p := &provider{
		issuer: fmt.Sprintf("https://localhost:%d", ports[0]),
		jwks:   fmt.Sprintf("https://localhost:%d/jwks", ports[0]),
		pki:    pki,
		argv: []string{
			node, "provider.mjs", "--port", strconv.Itoa(ports[0]), "--mtls-port", strconv.Itoa(ports[1]), "--cert", pki.certFile, "--key", pki.keyFile,
			"--ttl", strconv.Itoa(int(lifetime.Seconds())), "--resource", resource,
		},
	}
	p.argv = append(p.argv, more...)
	p.start(t)
	return p
}

func (p *provider) start(t *testing.T) {
	t.Helper()
	p.process = start(t, "oidc-provider", []string{"CLIENT_SECRET=" + clientSecret}, p.argv...)
	p.process.ready(t, func() error {
		_, err := get(p.pki.client(), p.jwks)
		return err
	})
}

// tokenRequests returns how many of them the provider has granted and refused since its start.
func (p *provider) tokenRequests(t *testing.T) (granted, refused int) {
	t.Helper()
	body, err := get(p.pki.client(), p.issuer+"/test/tokens")
	var counts struct{ Granted, Refused int }
	if err = errors.Join(err, json.Unmarshal(body, &counts)); err != nil {
		t.Fatal(err)
	}
	return counts.Granted, counts.Refused
}

// token gets an access token as the gateway should, for the tests that have no gateway.
func (p *provider) token(t *testing.T) string {
	t.Helper()
	form := url.Values{
		"grant_type": {"client_credentials"}, "client_id": {"post"}, "client_secret": {clientSecret},
		"scope": {"dicom"}, "resource": {resource},
	}
	req, err := http.NewRequest(http.MethodPost, p.issuer+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	body, err := do(p.pki.client(), req)
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err = errors.Join(err, json.Unmarshal(body, &answer)); err != nil {
		t.Fatal(err)
	}
	return answer.AccessToken
}
