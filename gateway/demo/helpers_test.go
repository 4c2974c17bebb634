package demo_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"testing"

	"orthanc-dicomweb-oauth/gateway/demo"
)

// httpClient trusts one CA only.
func httpClient(t *testing.T, caPEM []byte) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(caPEM) {
		t.Fatal("no certificate in the CA's PEM")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func newProvider(t *testing.T, o demo.ProviderOptions) *demo.IdentityProvider {
	t.Helper()
	p := demo.NewIdentityProvider(o)
	t.Cleanup(p.Close)
	return p
}

func newServer(t *testing.T, o demo.ServerOptions) *demo.Server {
	t.Helper()
	s := demo.NewServer(o)
	t.Cleanup(s.Close)
	return s
}

// response is an answer that was read to its end.
type response struct {
	status int
	header http.Header
	body   []byte
}

func (r response) json(t *testing.T) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(r.body, &v); err != nil {
		t.Fatalf("parse %q: %v", r.body, err)
	}
	return v
}

func send(t *testing.T, c *http.Client, method, url string, body io.Reader, header http.Header) response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(r.Header, header)
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatalf("read answer: %v", err)
	}
	return response{answer.StatusCode, answer.Header, text}
}

// requestToken posts a form to the token endpoint. Without user the client secret is left to the form.
func requestToken(t *testing.T, p *demo.IdentityProvider, user, password string, form url.Values) response {
	t.Helper()
	header := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	if user != "" {
		r := http.Request{Header: header}
		r.SetBasicAuth(url.QueryEscape(user), url.QueryEscape(password))
	}
	return send(t, httpClient(t, p.CAPEM()), "POST", p.TokenEndpoint(), strings.NewReader(form.Encode()), header)
}

// accessToken gets a token with these scopes.
func accessToken(t *testing.T, p *demo.IdentityProvider, scopes ...string) string {
	t.Helper()
	r := requestToken(t, p, p.ClientID(), p.ClientSecret(),
		url.Values{"grant_type": {"client_credentials"}, "scope": {strings.Join(scopes, " ")}})
	token, _ := r.json(t)["access_token"].(string)
	if r.status != 200 || token == "" {
		t.Fatalf("got %d %s, want a token", r.status, r.body)
	}
	return token
}

// multipartOf makes a STOW-RS body.
func multipartOf(t *testing.T, files ...[]byte) (body *bytes.Buffer, header http.Header) {
	t.Helper()
	body = new(bytes.Buffer)
	w := multipart.NewWriter(body)
	for _, file := range files {
		part, err := w.CreatePart(textproto.MIMEHeader{"Content-Type": {"application/dicom"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := part.Write(file); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return body, http.Header{"Content-Type": {`multipart/related; type="application/dicom"; boundary=` + w.Boundary()}}
}
