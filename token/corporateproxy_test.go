package token_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"orthanc-dicomweb-oauth/token"
)

// A corporate proxy that does not let through is named itself, not the provider
// behind it.
func TestFailingUpstreamProxyIsNamed(t *testing.T) {
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusProxyAuthRequired)
	}))
	defer refusing.Close()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for name, address := range map[string]string{"asks for a password": refusing.URL, "is down": gone.URL} {
		t.Run(name, func(t *testing.T) {
			proxy, err := url.Parse(address)
			if err != nil {
				t.Fatal(err)
			}
			c := &token.ClientCredentials{OAuthClient: token.OAuthClient{
				TokenEndpoint: "https://login.test/token", ClientID: "client", ClientSecret: token.SecretValue(token.NewSecret(clientSecret)),
			}}
			a, err := c.Acquirer(token.Env{Proxy: proxy})
			if err != nil {
				t.Fatal(err)
			}
			got := failure(t.Context(), t, a)
			if got.Class != token.Transient || got.Code != "provider_unreachable" || got.Key != "" || !strings.Contains(got.Hint, "upstream_proxy") {
				t.Errorf("got %+v, want a transient failure that names upstream_proxy", got)
			}
		})
	}
}

// Entra's error codes teach generic clients too, by keys that they have.
func TestEntraCodesNameKeysOfTheGenericClient(t *testing.T) {
	for code, key := range map[string]string{"AADSTS90002": "token_endpoint", "AADSTS7000222": "client_secret", "AADSTS70021": ""} {
		e := serve(t, answers(http.StatusBadRequest, nil, `{"error":"invalid_request","error_description":"`+code+`: planted words"}`))
		a, err := e.settings().Acquirer(token.Env{})
		if err != nil {
			t.Fatal(err)
		}
		got := failure(t.Context(), t, a)
		if got.Key != key || got.Description != code || strings.Contains(got.Hint, "planted") {
			t.Errorf("%s: got %+v, want key %q", code, got, key)
		}
	}
}
