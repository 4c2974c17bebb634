package token_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

func TestGoogleExternalAccountExchangesTheSubjectToken(t *testing.T) {
	inJSON, _ := json.Marshal(map[string]string{"id_token": googleSubject})
	asJSON := map[string]any{"type": "json", "subject_token_field_name": "id_token"}
	for _, row := range []struct {
		name   string
		source func(t *testing.T, base string) map[string]any
		gets   int
	}{
		{name: "file", source: func(t *testing.T, _ string) map[string]any {
			return map[string]any{"file": string(file(t, []byte(googleSubject+"\n")))}
		}},
		{name: "JSON file", source: func(t *testing.T, _ string) map[string]any {
			return map[string]any{"file": string(file(t, inJSON)), "format": asJSON}
		}},
		{name: "url", gets: 1, source: func(_ *testing.T, base string) map[string]any {
			return map[string]any{"url": base + "/text?resource=a", "headers": map[string]string{"X-Source": planted}}
		}},
		{name: "url with JSON", gets: 1, source: func(_ *testing.T, base string) map[string]any {
			return map[string]any{"url": base + "/json", "format": asJSON, "headers": map[string]string{"X-Source": planted}}
		}},
	} {
		for _, impersonate := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, impersonation %v", row.name, impersonate), func(t *testing.T) {
				mux := http.NewServeMux()
				mux.HandleFunc("GET /text", answers(200, http.Header{"Content-Type": {"text/plain"}}, googleSubject+"\n"))
				mux.HandleFunc("GET /json", answers(200, nil, string(inJSON)))
				mux.HandleFunc("POST /sts", answers(200, nil, stsAnswer))
				mux.HandleFunc("POST /impersonate", func(w http.ResponseWriter, r *http.Request) {
					answers(200, nil, fmt.Sprintf(`{"accessToken":%q,"expireTime":%q}`, accessToken, time.Now().Add(30*time.Minute).UTC().Format(time.RFC3339)))(w, r)
				})
				e := serve(t, mux.ServeHTTP)
				impersonation, want, life, stsScope := "", stsToken, 3599*time.Second, googleScope
				if impersonate {
					impersonation, want, life, stsScope = e.URL+"/impersonate", accessToken, 30*time.Minute, platformScope
				}
				content := externalAccount(e.URL+"/sts", impersonation, row.source(t, e.URL))
				if impersonate {
					content["service_account_impersonation"] = map[string]any{"token_lifetime_seconds": 1800}
				}
				s := googleSettings(t, "google_external_account", func(g *token.GoogleExternalAccount) {
					g.CAFile, g.CredentialsFile = e.ca, googleJSON(t, content)
				})
				s.Check(func(key, problem, _ string) { t.Errorf("Check: %s %s", key, problem) })
				a := build(t, s)
				for range 2 { // the subject token is fetched anew, too
					before := time.Now()
					got, err := a.Acquire(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if got.Value.Reveal() != want {
						t.Errorf("token %q, want %q", got.Value.Reveal(), want)
					}
					if lives := got.Expires.Sub(before); lives < life-3*time.Second || lives > life+time.Second {
						t.Errorf("lives %v, want %v", lives, life)
					}
				}
				requests := e.requests()
				each := row.gets + 1
				if impersonate {
					each++
				}
				if len(requests) != 2*each {
					t.Fatalf("%d requests, want %d", len(requests), 2*each)
				}
				if row.gets == 1 {
					if got := requests[0]; got.Header.Get("X-Source") != planted || got.Header.Get("Authorization") != "" {
						t.Errorf("the subject token was asked for with %v", got.Header)
					}
					requests = requests[1:]
				}
				form := url.Values{
					"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
					"audience": {googleAudience}, "scope": {stsScope}, "subject_token": {googleSubject}, "subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"},
				}
				if diff := cmp.Diff(form, requests[0].Form); diff != "" || requests[0].Path != "/sts" {
					t.Errorf("%s (-want +got):\n%s", requests[0].Path, diff)
				}
				if !impersonate {
					return
				}
				second := requests[1]
				if second.Path != "/impersonate" || second.Header.Get("Authorization") != "Bearer "+stsToken {
					t.Errorf("%s with %q, want the federated token", second.Path, second.Header.Get("Authorization"))
				}
				var asked struct {
					Lifetime string
					Scope    []string
				}
				for body := range second.Form { // JSON, seen as a form
					_ = json.Unmarshal([]byte(body), &asked)
				}
				if asked.Lifetime != "1800s" || len(asked.Scope) != 1 || asked.Scope[0] != googleScope {
					t.Errorf("asked for %+v, want the profile's scopes for 1800 s", asked)
				}
			})
		}
	}
}

func TestGoogleImpersonatedLife(t *testing.T) {
	date := func(d time.Duration) http.Header {
		return http.Header{"Date": {time.Now().Add(d).UTC().Format(http.TimeFormat)}}
	}
	in := func(d time.Duration) string {
		return `,"expireTime":"` + time.Now().Add(d).UTC().Format(time.RFC3339Nano) + `"`
	}
	for _, row := range []struct {
		name   string
		header http.Header
		member string
		life   time.Duration // 0: not said
		bad    string
	}{
		{name: "an hour", member: in(time.Hour), life: time.Hour},
		{name: "the provider's clock is two hours ahead", header: date(2 * time.Hour), member: in(3 * time.Hour), life: time.Hour},
		{name: "the provider's clock is two hours behind", header: date(-2 * time.Hour), member: in(-time.Hour), life: time.Hour},
		{name: "an offset", member: `,"expireTime":"` + time.Now().Add(time.Hour).In(time.FixedZone("", 3600)).Format(time.RFC3339) + `"`, life: time.Hour},
		{name: "a month", member: in(30 * 24 * time.Hour), life: 24 * time.Hour},
		{name: "not said"},
		{name: "null", member: `,"expireTime":null`},
		{name: "over", member: in(-time.Minute), bad: "already expired"},
		{name: "no time", member: `,"expireTime":"` + planted + `"`, bad: "expireTime"},
		{name: "a number", member: `,"expireTime":3600`, bad: "expireTime"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, _ := googleFamilies[3].start(t, answers(200, row.header, `{"accessToken":"`+accessToken+`"`+row.member+`}`))
			if row.bad != "" {
				got := googleFailure(t.Context(), t, build(t, s))
				if got.Class != token.Transient || got.Code != "provider_answer" || !strings.Contains(got.Hint, row.bad) {
					t.Errorf("%+v, want %q", got, row.bad)
				}
				return
			}
			got := acquire(t, s)
			if row.life == 0 {
				if !got.Expires.IsZero() {
					t.Errorf("expires %v, want no expiry", got.Expires)
				}
				return
			}
			if lives := time.Until(got.Expires); lives > row.life || lives < row.life-5*time.Second {
				t.Errorf("lives %v, want %v", lives, row.life)
			}
		})
	}
}

func TestGoogleRefusedFederationNamesTheCause(t *testing.T) {
	oauth := func(code string) string {
		return `{"error":"` + code + `","error_description":"` + planted + googleSubject + `"}`
	}
	for _, row := range []struct {
		name                       string
		url, sts, impersonate      int // statuses
		urlBody, stsBody, impsBody string
		key, says                  string
		class                      token.Class
	}{
		{name: "subject 404", url: 404, key: "credentials_file", says: "no subject token at credential_source.url", class: token.Permanent},
		{name: "subject 403", url: 403, key: "credentials_file", says: "credential_source.headers", class: token.Permanent},
		{name: "subject 503", url: 503, says: "problem of its own"},
		{name: "subject empty", url: 200, urlBody: "\n", says: "the subject token is empty"},
		{name: "subject too large", url: 200, urlBody: strings.Repeat("x", 1<<20), says: "larger"},
		{name: "subject moved", url: 302, says: "redirect"},
		{name: "sts invalid_grant", sts: 400, stsBody: oauth("invalid_grant"), key: "credentials_file", says: "refused the subject token", class: token.Permanent},
		{name: "sts invalid_request", sts: 400, stsBody: oauth("invalid_request"), key: "credentials_file", says: "subject_token_type", class: token.Permanent},
		{name: "sts invalid_target", sts: 400, stsBody: oauth("invalid_target"), key: "credentials_file", says: "audience in credentials_file", class: token.Permanent},
		{name: "sts unauthorized_client", sts: 401, stsBody: oauth("unauthorized_client"), key: "credentials_file", says: "attribute condition", class: token.Permanent},
		{name: "sts 404", sts: 404, key: "credentials_file", says: "token_url in credentials_file", class: token.Permanent},
		{name: "impersonation 403", impersonate: 403, key: "credentials_file", says: "roles/iam.workloadIdentityUser", class: token.Permanent},
		{name: "impersonation 404", impersonate: 404, key: "credentials_file", says: "service_account_impersonation_url", class: token.Permanent},
		{name: "impersonation 400", impersonate: 400, key: "scopes", says: "token_lifetime_seconds", class: token.Permanent},
		{name: "impersonation 401", impersonate: 401, key: "credentials_file", says: "federated token", class: token.Permanent},
	} {
		t.Run(row.name, func(t *testing.T) {
			reply := func(status int, body, good string) http.HandlerFunc {
				if status == 0 {
					return answers(200, nil, good)
				}
				return answers(status, http.Header{"Location": {"/" + planted}}, body)
			}
			mux := http.NewServeMux()
			mux.HandleFunc("/subject", reply(row.url, row.urlBody, googleSubject))
			mux.HandleFunc("/sts", reply(row.sts, row.stsBody, stsAnswer))
			mux.HandleFunc("/impersonate", reply(row.impersonate, `{"error":{"message":"`+planted+stsToken+`"}}`, goodAnswer))
			e := serve(t, mux.ServeHTTP)
			got := googleFailure(t.Context(), t, build(t, googleSettings(t, "google_external_account", func(g *token.GoogleExternalAccount) {
				g.CAFile, g.CredentialsFile = e.ca, googleJSON(t, externalAccount(e.URL+"/sts", e.URL+"/impersonate", map[string]any{"url": e.URL + "/subject"}))
			})))
			if got.Class != row.class || got.Key != row.key || !strings.Contains(got.Hint, row.says) {
				t.Errorf("%+v, want %v, key %q, %q", got, row.class, row.key, row.says)
			}
		})
	}
}

func TestGoogleSubjectTokenFileThatCannotBeRead(t *testing.T) {
	e := serve(t, answers(200, nil, stsAnswer))
	asJSON := map[string]any{"type": "json", "subject_token_field_name": "id_token"}
	for name, source := range map[string]map[string]any{
		"gone":          {"file": "/no/such/token"},
		"not JSON":      {"file": string(file(t, []byte(googleSubject))), "format": asJSON},
		"without field": {"file": string(file(t, []byte(`{"a":"`+googleSubject+`"}`))), "format": asJSON},
	} {
		got := googleFailure(t.Context(), t, build(t, googleSettings(t, "google_external_account", func(g *token.GoogleExternalAccount) {
			g.CAFile, g.CredentialsFile = e.ca, googleJSON(t, externalAccount(e.URL+"/sts", "", source))
		})))
		if got.Class != token.Transient || got.Code != "secret_unreadable" || got.Key != "credentials_file" || !strings.Contains(got.Hint, "subject token") {
			t.Errorf("%s: %+v, want secret_unreadable", name, got)
		}
	}
	if n := len(e.requests()); n != 0 {
		t.Errorf("%d requests, want none without a subject token", n)
	}
}

// Google's library would run it, with this variable set.
func TestGoogleExternalAccountRunsNoCommand(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a shell")
	}
	t.Setenv("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")
	e := serve(t, answers(200, nil, stsAnswer))
	ran := filepath.Join(t.TempDir(), "ran")
	source := map[string]any{"executable": map[string]any{"command": "/usr/bin/touch " + ran}}
	for _, extra := range []map[string]any{nil, {"file": string(file(t, []byte(googleSubject)))}} {
		maps.Copy(source, extra)
		got := googleFailure(t.Context(), t, build(t, googleSettings(t, "google_external_account", func(g *token.GoogleExternalAccount) {
			g.CAFile, g.CredentialsFile = e.ca, googleJSON(t, externalAccount(e.URL+"/sts", "", source))
		})))
		if got.Code != "secret_unreadable" || !strings.Contains(got.Hint, "credential_source.executable") {
			t.Errorf("%+v, want a refusal of the command", got)
		}
	}
	if _, err := os.Stat(ran); err == nil || len(e.requests()) != 0 {
		t.Errorf("the command ran, or %d requests were made", len(e.requests()))
	}
}

func TestGoogleInsecureHTTPOnLoopbackIsServed(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/subject", answers(200, nil, googleSubject))
	mux.HandleFunc("/sts", answers(200, nil, stsAnswer))
	s := plainServer(t, mux)
	settings := googleSettings(t, "google_external_account", func(g *token.GoogleExternalAccount) {
		g.InsecureHTTP, g.CredentialsFile = true, googleJSON(t, externalAccount(s+"/sts", "", map[string]any{"url": s + "/subject"}))
	})
	settings.Check(func(key, problem, _ string) { t.Errorf("Check: %s %s", key, problem) })
	// A proxy is for what is elsewhere: its loopback is another one.
	a, err := settings.Acquirer(token.Env{Proxy: &url.URL{Scheme: "http", Host: "proxy.test:8080"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.Acquire(t.Context()); err != nil || got.Value.Reveal() != stsToken {
		t.Errorf("Acquire: %v", err)
	}
}
