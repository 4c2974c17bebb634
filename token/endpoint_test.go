package token_test

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"orthanc-dicomweb-oauth/token"
)

// What must never be seen in an error.
const (
	clientSecret = "s3cr3t-of-the-client"
	accessToken  = "access-token-of-the-provider"
	planted      = "text-in-the-providers-answer"
)

// endpoint is a token server on loopback, with verified TLS.
type endpoint struct {
	*httptest.Server
	ca token.File // trusts it

	mu       sync.Mutex
	received []received
}

// received is a request as it was on the wire.
type received struct {
	Method, Path string
	Header       http.Header
	Form         url.Values // of the body
	Query        string
}

func serve(t *testing.T, handler http.HandlerFunc) *endpoint {
	t.Helper()
	e := &endpoint{ca: file(t, nil)}
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		form, _ := url.ParseQuery(string(body))
		e.mu.Lock()
		e.received = append(e.received, received{r.Method, r.URL.Path, r.Header.Clone(), form, r.URL.RawQuery})
		e.mu.Unlock()
		handler(w, r)
	}))
	e.Config.ErrorLog = log.New(io.Discard, "", 0)
	e.StartTLS()
	t.Cleanup(e.Close)
	e.ca = file(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.Certificate().Raw}))
	return e
}

// requests returns what the server has received.
func (e *endpoint) requests() []received {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]received(nil), e.received...)
}

// settings are a profile for the server, to be changed by the test.
func (e *endpoint) settings() *token.ClientCredentials {
	c := &token.ClientCredentials{OAuthClient: token.OAuthClient{
		TokenEndpoint: e.URL + "/token", ClientID: "client", ClientSecret: token.SecretValue(token.NewSecret(clientSecret)),
	}}
	c.CAFile = e.ca
	return c
}

// answers is a token server that says the same to all.
func answers(status int, header http.Header, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		maps.Copy(w.Header(), header)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

const goodAnswer = `{"access_token":"` + accessToken + `","token_type":"Bearer","expires_in":3600}`

// file writes content to a new file.
func file(t *testing.T, content []byte) token.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return token.File(path)
}

func build(t *testing.T, c token.Settings) token.Acquirer {
	t.Helper()
	a, err := c.Acquirer(token.Env{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// acquire makes one attempt, which must succeed.
func acquire(t *testing.T, c token.Settings) token.Token {
	t.Helper()
	got, err := build(t, c).Acquire(t.Context())
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	wantHidden(t, got, accessToken)
	return got
}

// failure makes one attempt, which must fail with an *Error that shows nothing
// of what was sent or received.
func failure(ctx context.Context, t *testing.T, a token.Acquirer) token.Error {
	t.Helper()
	got, err := a.Acquire(ctx)
	if err == nil {
		t.Fatalf("Acquire gave a token that expires at %v, want an error", got.Expires)
	}
	if !got.Value.Empty() {
		t.Error("a token beside the error")
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		wantHidden(t, e, clientSecret, url.QueryEscape(clientSecret), accessToken, planted)
	}
	wantHidden(t, &token.Unavailable{Cause: networkCause(err)}, clientSecret, accessToken, planted)
	e, ok := errors.AsType[*token.Error](err)
	if !ok {
		t.Fatalf("Acquire: %T %v, want *token.Error", err, err)
	}
	return *e
}

func networkCause(err error) *token.Error {
	e, _ := errors.AsType[*token.Error](err)
	return e
}
