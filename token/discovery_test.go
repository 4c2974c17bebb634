package token_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

const (
	openIDPath = "/.well-known/openid-configuration"
	oauthPath  = "/.well-known/oauth-authorization-server"
)

// issuer is a server that answers by path; "ISSUER" in a body stands for its
// URL. A missing path is 404.
func issuer(t *testing.T, bodies map[string]string) (*endpoint, *token.ClientCredentials) {
	t.Helper()
	var e *endpoint
	e = serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, ok := bodies[r.URL.Path]
		if !ok {
			answers(404, nil, "<h1>"+planted+"</h1>")(w, r)
			return
		}
		answers(200, nil, strings.ReplaceAll(body, "ISSUER", e.URL))(w, r)
	})
	c := e.settings()
	c.TokenEndpoint, c.Issuer = "", e.URL
	return e, c
}

func paths(e *endpoint) []string {
	var all []string
	for _, r := range e.requests() {
		all = append(all, r.Method+" "+r.Path)
	}
	return all
}

func document(methods string) string {
	return `{"issuer":"ISSUER","token_endpoint":"ISSUER/here/token"` + methods + `}`
}

func TestDiscoveryFindsTheEndpointAndTheWayToSendTheSecret(t *testing.T) {
	for _, row := range []struct {
		name, methods, configured string
		post                      bool
	}{
		{name: "nothing listed means basic"},
		{name: "basic is preferred", methods: `["client_secret_post","client_secret_basic"]`},
		{name: "post where only that is listed", methods: `["client_secret_post"]`, post: true},
		{name: "post where basic is not listed", methods: `["private_key_jwt","client_secret_post"]`, post: true},
		{name: "what is configured comes first", methods: `["client_secret_post"]`, configured: "client_secret_basic"},
		{name: "also the other way round", methods: `["client_secret_basic"]`, configured: "client_secret_post", post: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			methods := ""
			if row.methods != "" {
				methods = `,"token_endpoint_auth_methods_supported":` + row.methods
			}
			e, c := issuer(t, map[string]string{openIDPath: document(methods), "/here/token": goodAnswer})
			c.ClientAuth = row.configured
			acquire(t, c)
			if diff := cmp.Diff([]string{"GET " + openIDPath, "POST /here/token"}, paths(e)); diff != "" {
				t.Fatalf("requests (-want +got):\n%s", diff)
			}
			last := e.requests()[1]
			if post := last.Form.Has("client_secret"); post != row.post || post == (last.Header.Get("Authorization") != "") {
				t.Errorf("secret in the body: %v, want %v; Authorization %q", post, row.post, last.Header.Get("Authorization"))
			}
			if got := e.requests()[0].Header.Get("Accept"); got != "application/json" {
				t.Errorf("Accept %q", got)
			}
		})
	}
}

func TestDiscoveryFallsBackToOAuthMetadata(t *testing.T) {
	e, c := issuer(t, map[string]string{oauthPath: document(""), "/here/token": goodAnswer})
	acquire(t, c)
	if diff := cmp.Diff([]string{"GET " + openIDPath, "GET " + oauthPath, "POST /here/token"}, paths(e)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// RFC 8414 section 3.1 puts the well-known part between host and path.
func TestDiscoveryFallsBackToOAuthMetadataOfAnIssuerWithAPath(t *testing.T) {
	e, c := issuer(t, map[string]string{
		oauthPath + "/tenant": `{"issuer":"ISSUER/tenant","token_endpoint":"ISSUER/here/token"}`, "/here/token": goodAnswer,
	})
	c.Issuer = e.URL + "/tenant"
	if _, err := build(t, c).Acquire(t.Context()); err != nil {
		t.Errorf("Acquire: %v after %v", err, paths(e))
	}
}

func TestDiscoveryDocumentIsReadOnce(t *testing.T) {
	e, c := issuer(t, map[string]string{openIDPath: document(""), "/here/token": goodAnswer})
	a := build(t, c)
	for range 3 {
		if _, err := a.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"GET " + openIDPath, "POST /here/token", "POST /here/token", "POST /here/token"}, paths(e)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// A provider that moved its token endpoint is found again without a restart.
func TestMissingTokenEndpointForgetsTheDocument(t *testing.T) {
	bodies := map[string]string{openIDPath: document(""), "/here/token": goodAnswer}
	e, c := issuer(t, bodies)
	a := build(t, c)
	if _, err := a.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	delete(bodies, "/here/token")
	bodies["/there/token"] = goodAnswer
	bodies[openIDPath] = `{"issuer":"ISSUER","token_endpoint":"ISSUER/there/token"}`
	if got := failure(t.Context(), t, a); got.Status != 404 || got.Code != "provider_answer" {
		t.Errorf("%+v, want provider_answer with 404", got)
	}
	if _, err := a.Acquire(t.Context()); err != nil {
		t.Errorf("Acquire: %v, want a token from the new place", err)
	}
	want := []string{"GET " + openIDPath, "POST /here/token", "POST /here/token", "GET " + openIDPath, "POST /there/token"}
	if diff := cmp.Diff(want, paths(e)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestIssuerWithATrailingSlashKeepsIt(t *testing.T) {
	e, c := issuer(t, map[string]string{
		openIDPath: `{"issuer":"ISSUER/","token_endpoint":"ISSUER/here/token"}`, "/here/token": goodAnswer,
	})
	c.Issuer = e.URL + "/" // as at Auth0
	acquire(t, c)
	if diff := cmp.Diff([]string{"GET " + openIDPath, "POST /here/token"}, paths(e)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestBadDiscoveryDocumentsAreRefusedBeforeTheSecretIsSent(t *testing.T) {
	for _, row := range []struct {
		name, body string
		code, hint string
		class      token.Class
	}{
		{
			name: "another issuer", body: `{"issuer":"https://evil.test/` + planted + `","token_endpoint":"ISSUER/here/token"}`,
			code: "discovery_failed", class: token.Permanent, hint: "check issuer to the letter",
		},
		{name: "a slash too much", body: `{"issuer":"ISSUER/","token_endpoint":"ISSUER/here/token"}`, code: "discovery_failed", class: token.Permanent, hint: "a trailing slash counts"},
		{name: "no issuer", body: `{"token_endpoint":"ISSUER/here/token"}`, code: "discovery_failed", class: token.Permanent, hint: "check issuer"},
		{name: "no token endpoint", body: `{"issuer":"ISSUER"}`, code: "discovery_failed", class: token.Permanent, hint: "token_endpoint cannot be used"},
		{name: "a token endpoint in clear", body: `{"issuer":"ISSUER","token_endpoint":"http://127.0.0.1/token"}`, code: "discovery_failed", class: token.Permanent, hint: "in clear"},
		{name: "a file as token endpoint", body: `{"issuer":"ISSUER","token_endpoint":"file:///etc/passwd"}`, code: "discovery_failed", class: token.Permanent, hint: "token_endpoint cannot be used"},
		{name: "wrong types", body: `{"issuer":["` + planted + `"]}`, code: "discovery_failed", class: token.Permanent, hint: "wrong form"},
		{name: "an array", body: `["` + planted + `"]`, code: "discovery_failed", class: token.Permanent, hint: "wrong form"},
		{name: "HTML", body: `<html>` + planted, code: "provider_answer", class: token.Transient, hint: "not JSON"},
		{name: "nothing", body: ``, code: "provider_answer", class: token.Transient, hint: "not JSON"},
		{name: "too large", body: `{"a":"` + strings.Repeat("x", 1<<20) + `"}`, code: "provider_answer", class: token.Transient, hint: "larger than"},
	} {
		t.Run(row.name, func(t *testing.T) {
			e, c := issuer(t, map[string]string{openIDPath: row.body})
			got := failure(t.Context(), t, build(t, c))
			if got.Class != row.class || got.Code != row.code || !strings.Contains(got.Hint, row.hint) || row.code == "discovery_failed" && got.Key != "issuer" {
				t.Errorf("%+v, want %v %s at issuer with %q", got, row.class, row.code, row.hint)
			}
			if diff := cmp.Diff([]string{"GET " + openIDPath}, paths(e)); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFailuresOfDiscoveryNameTheIssuer(t *testing.T) {
	t.Run("no document", func(t *testing.T) {
		_, c := issuer(t, nil)
		got := failure(t.Context(), t, build(t, c))
		want := token.Error{Class: token.Permanent, Code: "discovery_failed", Status: 404, Key: "issuer", Hint: "check issuer: there is no discovery document below it"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("error (-want +got):\n%s", diff)
		}
	})
	for _, status := range []int{401, 403} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			e := serve(t, answers(status, nil, planted))
			c := e.settings()
			c.TokenEndpoint, c.Issuer = "", e.URL
			// No secret was sent, so it cannot be wrong.
			if got := failure(t.Context(), t, build(t, c)); got.Key != "issuer" || strings.Contains(got.Hint, "client_secret") {
				t.Errorf("%+v, want the key issuer", got)
			}
		})
	}
	t.Run("throttled", func(t *testing.T) {
		e := serve(t, answers(429, http.Header{"Retry-After": {"7"}}, planted))
		c := e.settings()
		c.TokenEndpoint, c.Issuer = "", e.URL
		if got := failure(t.Context(), t, build(t, c)); got.Class != token.Throttled || got.RetryAfter.Seconds() != 7 {
			t.Errorf("%+v, want throttled for 7 s", got)
		}
	})
	t.Run("unreachable", func(t *testing.T) {
		e, c := issuer(t, nil)
		e.Close()
		if got := failure(t.Context(), t, build(t, c)); got.Code != "provider_unreachable" || got.Key != "issuer" || strings.Contains(got.Hint, "token_endpoint") {
			t.Errorf("%+v, want provider_unreachable that names issuer only", got)
		}
	})
}
