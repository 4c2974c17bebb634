package token_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

func TestAnswersThatAreGoodEnough(t *testing.T) {
	for _, row := range []struct {
		name, body string
		header     http.Header
	}{
		{name: "as in the RFC", body: goodAnswer},
		{name: "bearer in lower case", body: `{"access_token":"` + accessToken + `","token_type":"bearer"}`},
		{name: "BEARER", body: `{"access_token":"` + accessToken + `","token_type":"BEARER"}`},
		{name: "labelled as text", body: goodAnswer, header: http.Header{"Content-Type": {"text/plain; charset=utf-8"}}},
		{name: "labelled as a form", body: goodAnswer, header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}},
		{name: "not labelled", body: goodAnswer, header: http.Header{"Content-Type": nil}},
		{name: "white space around it", body: "\r\n " + goodAnswer + "\n"},
		{name: "members that nobody knows", body: `{"ext_expires_in":3599,"not_before_policy":0,"x":{"y":[1]},"access_token":"` + accessToken + `","token_type":"Bearer"}`},
		{name: "an error that is null", body: `{"access_token":"` + accessToken + `","token_type":"Bearer","error":null}`},
		{name: "a refresh token that is a number, which nobody needs", body: `{"access_token":"` + accessToken + `","token_type":"Bearer","refresh_token":1}`},
		{name: "members that encoding/json takes for others", body: `{"access_token":"` + accessToken + `","token_type":"Bearer","access_to\u212Aen":"` + planted + `\r\n"}`},
		{name: "a refresh token of null", body: `{"access_token":"` + accessToken + `","token_type":"Bearer","refresh_token":null}`},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := serve(t, answers(200, row.header, row.body))
			got, err := build(t, e.settings()).Acquire(t.Context())
			if err != nil || got.Value.Reveal() != accessToken {
				t.Errorf("token %q, %v, want %q", got.Value.Reveal(), err, accessToken)
			}
		})
	}
}

func TestAnswersThatNoTokenServerShouldGive(t *testing.T) {
	for _, row := range []struct {
		name, body, hint string
		header           http.Header
		status           int // 0: 200
		class            token.Class
	}{
		{name: "empty", body: ``, hint: "not JSON"},
		{name: "HTML", body: `<html>` + planted, header: http.Header{"Content-Type": {"text/html"}}, hint: "captive portal or TLS-inspecting proxy"},
		{name: "truncated JSON", body: goodAnswer[:len(goodAnswer)-9], hint: "not JSON"},
		{name: "two values", body: goodAnswer + goodAnswer, hint: "not JSON"},
		{name: "2 MiB", body: `{"access_token":"` + strings.Repeat("x", 2<<20) + `","token_type":"Bearer"}`, hint: "larger than"},
		{name: "a JSON array", body: `[` + goodAnswer + `]`, hint: "not an object"},
		{name: "a JSON string", body: `"` + planted + `"`, hint: "not an object"},
		{name: "null", body: `null`, hint: "no access_token"},
		{name: "no access_token", body: `{"id_token":"` + accessToken + `","token_type":"Bearer"}`, hint: "no access_token"},
		{name: "an empty access_token", body: `{"access_token":"","token_type":"Bearer"}`, hint: "no access_token"},
		{name: "a number as access_token", body: `{"access_token":1,"token_type":"Bearer"}`, hint: "no access_token"},
		{name: "CR and LF in the access_token", body: `{"access_token":"` + accessToken + `\r\nX-Evil: 1","token_type":"Bearer"}`, hint: "characters that no bearer token may have"},
		{name: "a space in the access_token", body: `{"access_token":"` + accessToken + ` b","token_type":"Bearer"}`, hint: "characters that no bearer token may have"},
		{name: "NUL in the access_token", body: `{"access_token":"` + accessToken + `\u0000","token_type":"Bearer"}`, hint: "characters that no bearer token may have"},
		{name: "an umlaut in the access_token", body: `{"access_token":"` + accessToken + `ä","token_type":"Bearer"}`, hint: "characters that no bearer token may have"},
		{name: "no token_type", body: `{"access_token":"` + accessToken + `"}`, hint: "token_type", class: token.Permanent},
		{name: "DPoP", body: `{"access_token":"` + accessToken + `","token_type":"DPoP"}`, hint: "turn DPoP or proof of possession off", class: token.Permanent},
		{name: "a number as token_type", body: `{"access_token":"` + accessToken + `","token_type":1}`, hint: "token_type", class: token.Permanent},
		{name: "moved, 302", status: 302, header: http.Header{"Location": {"/" + planted}}, hint: "never followed"},
		{name: "not modified", status: 304, hint: "never followed"},
	} {
		t.Run(row.name, func(t *testing.T) {
			status := row.status
			if status == 0 {
				status = 200
			}
			e := serve(t, answers(status, row.header, row.body))
			got := failure(t.Context(), t, build(t, e.settings()))
			if !strings.Contains(got.Hint, row.hint) {
				t.Errorf("hint %q, want %q in it", got.Hint, row.hint)
			}
			got.Hint = ""
			if diff := cmp.Diff(token.Error{Class: row.class, Code: "provider_answer", Status: status}, got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestConnectionThatBreaksWithinTheAnswerIsTransient(t *testing.T) {
	e := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write([]byte(goodAnswer))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	if got := failure(t.Context(), t, build(t, e.settings())); got.Class != token.Transient || got.Code != "provider_unreachable" {
		t.Errorf("%+v, want a transient provider_unreachable", got)
	}
}

func TestRedirectIsNeverFollowed(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		second := serve(t, answers(200, nil, goodAnswer))
		first := serve(t, answers(status, http.Header{"Location": {second.URL + "/token?" + planted}}, planted))
		for _, auth := range []string{"client_secret_basic", "client_secret_post"} {
			c := first.settings()
			c.ClientAuth = auth
			want := token.Error{
				Class: token.Transient, Code: "provider_answer", Status: status,
				Hint: "the provider answers with a redirect, which is never followed; give its final URL",
			}
			if diff := cmp.Diff(want, failure(t.Context(), t, build(t, c))); diff != "" {
				t.Errorf("%d, %s (-want +got):\n%s", status, auth, diff)
			}
		}
		c := first.settings()
		c.TokenEndpoint, c.Issuer = "", first.URL
		failure(t.Context(), t, build(t, c))
		if n := len(second.requests()); n != 0 {
			t.Errorf("%d: the second server got %d requests, want none", status, n)
		}
		if n := len(first.requests()); n != 3 {
			t.Errorf("%d: the first server got %d requests, want 3", status, n)
		}
	}
}

func TestRefusalsNameTheClassAndTheKey(t *testing.T) {
	refusal := func(code string) string {
		return `{"error":"` + code + `","error_description":"` + planted + ` ` + clientSecret + `","error_uri":"https://` + planted + `"}`
	}
	in := func(v string) http.Header { return http.Header{"Retry-After": {v}} }
	const permanent, transient, throttled = token.Permanent, token.Transient, token.Throttled
	for _, row := range []struct {
		name   string
		status int
		header http.Header
		body   string
		want   token.Error // Status is taken from the row; Hint is a part
	}{
		{name: "invalid_client", status: 401, body: refusal("invalid_client"), want: token.Error{Class: permanent, Code: "invalid_client", Key: "client_secret", Hint: "check client_id and client_secret, which may be wrong or expired"}},
		{name: "invalid_client with 400", status: 400, body: refusal("invalid_client"), want: token.Error{Class: permanent, Code: "invalid_client", Key: "client_secret", Hint: "check client_id and client_secret"}},
		{name: "invalid_scope", status: 400, body: refusal("invalid_scope"), want: token.Error{Class: permanent, Code: "invalid_scope", Key: "scopes", Hint: "check scopes"}},
		{name: "invalid_target", status: 400, body: refusal("invalid_target"), want: token.Error{Class: permanent, Code: "invalid_target", Key: "resource", Hint: "check resource and audience"}},
		{name: "invalid_grant", status: 400, body: refusal("invalid_grant"), want: token.Error{Class: permanent, Code: "invalid_grant", Hint: "refused the grant"}},
		{name: "invalid_request", status: 400, body: refusal("invalid_request"), want: token.Error{Class: permanent, Code: "invalid_request", Hint: "parameter"}},
		{name: "unauthorized_client", status: 400, body: refusal("unauthorized_client"), want: token.Error{Class: permanent, Code: "unauthorized_client", Key: "client_id", Hint: "enable service accounts"}},
		{name: "unsupported_grant_type", status: 400, body: refusal("unsupported_grant_type"), want: token.Error{Class: permanent, Code: "unsupported_grant_type", Key: "token_endpoint", Hint: "check token_endpoint"}},
		{name: "access_denied", status: 403, body: refusal("access_denied"), want: token.Error{Class: permanent, Code: "access_denied", Key: "client_id", Hint: "denies access"}},
		{name: "temporarily_unavailable", status: 400, body: refusal("temporarily_unavailable"), want: token.Error{Class: transient, Code: "temporarily_unavailable", Hint: "temporarily unavailable"}},
		{name: "slow_down", status: 400, body: refusal("slow_down"), want: token.Error{Class: throttled, Code: "slow_down", Hint: "asks to wait"}},
		{name: "an error with 200", status: 200, body: refusal("invalid_client"), want: token.Error{Class: permanent, Code: "invalid_client", Key: "client_secret", Hint: "check client_id"}},
		{name: "an error beside a token", status: 200, body: `{"error":"invalid_scope","access_token":"` + accessToken + `","token_type":"Bearer"}`, want: token.Error{Class: permanent, Code: "invalid_scope", Key: "scopes", Hint: "check scopes"}},
		{name: "a code that nobody knows is not shown", status: 400, body: refusal(planted), want: token.Error{Class: permanent, Code: "provider_answer", Key: "token_endpoint", Hint: "check token_endpoint"}},
		{name: "a code that is no string", status: 400, body: `{"error":{"code":"` + planted + `"}}`, want: token.Error{Class: permanent, Code: "provider_answer", Key: "token_endpoint", Hint: "check token_endpoint"}},
		{name: "401 with no words", status: 401, body: planted, want: token.Error{Class: permanent, Code: "provider_answer", Key: "client_secret", Hint: "check client_id and client_secret"}},
		{name: "404", status: 404, body: `<h1>` + planted, want: token.Error{Class: permanent, Code: "provider_answer", Key: "token_endpoint", Hint: "check token_endpoint"}},
		{name: "request timeout", status: 408, want: token.Error{Class: transient, Code: "provider_answer"}},
		{name: "201 is no success", status: 201, body: goodAnswer, want: token.Error{Class: permanent, Code: "provider_answer", Key: "token_endpoint", Hint: "check token_endpoint"}},
		{name: "429 with seconds", status: 429, header: in("120"), body: planted, want: token.Error{Class: throttled, Code: "provider_answer", RetryAfter: 2 * time.Minute, Hint: "asks to wait"}},
		{name: "429 with a code", status: 429, header: in("3"), body: refusal("temporarily_unavailable"), want: token.Error{Class: throttled, Code: "temporarily_unavailable", RetryAfter: 3 * time.Second, Hint: "asks to wait"}},
		{name: "429 without", status: 429, want: token.Error{Class: throttled, Code: "provider_answer", Hint: "asks to wait"}},
		{name: "429 with nonsense", status: 429, header: in(planted), want: token.Error{Class: throttled, Code: "provider_answer", Hint: "asks to wait"}},
		{name: "429 with a negative time", status: 429, header: in("-5"), want: token.Error{Class: throttled, Code: "provider_answer", Hint: "asks to wait"}},
		{name: "429 with a date that is over", status: 429, header: in("Sun, 06 Nov 1994 08:49:37 GMT"), want: token.Error{Class: throttled, Code: "provider_answer", Hint: "asks to wait"}},
		{name: "429 with a month", status: 429, header: in("2592000"), want: token.Error{Class: throttled, Code: "provider_answer", RetryAfter: time.Hour, Hint: "asks to wait"}},
		{name: "429 with more than an int64", status: 429, header: in("99999999999999999999"), want: token.Error{Class: throttled, Code: "provider_answer", RetryAfter: time.Hour, Hint: "asks to wait"}},
		{name: "503 with seconds", status: 503, header: in("30"), want: token.Error{Class: throttled, Code: "provider_answer", RetryAfter: 30 * time.Second, Hint: "asks to wait"}},
		{name: "503 without", status: 503, body: planted, want: token.Error{Class: transient, Code: "provider_answer", Hint: "problem of its own"}},
		{name: "500", status: 500, body: planted, want: token.Error{Class: transient, Code: "provider_answer", Hint: "problem of its own"}},
		{name: "500 that blames the client", status: 500, body: refusal("invalid_client"), want: token.Error{Class: transient, Code: "invalid_client", Hint: "problem of its own"}},
		{name: "502 with a wait", status: 502, header: in("9"), want: token.Error{Class: transient, Code: "provider_answer", RetryAfter: 9 * time.Second, Hint: "problem of its own"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := serve(t, answers(row.status, row.header, row.body))
			got := failure(t.Context(), t, build(t, e.settings()))
			if !strings.Contains(got.Hint, row.want.Hint) || got.Hint == "" {
				t.Errorf("hint %q, want %q in it", got.Hint, row.want.Hint)
			}
			row.want.Hint, row.want.Status = got.Hint, row.status
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if n := len(e.requests()); n != 1 {
				t.Errorf("%d requests, want 1: a failure is not repeated with another client_auth", n)
			}
		})
	}
}

func TestRetryAfterAsADate(t *testing.T) {
	for _, status := range []int{429, 503} {
		e := serve(t, func(w http.ResponseWriter, r *http.Request) {
			answers(status, http.Header{"Retry-After": {time.Now().Add(90 * time.Second).UTC().Format(http.TimeFormat)}}, "")(w, r)
		})
		got := failure(t.Context(), t, build(t, e.settings()))
		if got.Class != token.Throttled || got.RetryAfter < 60*time.Second || got.RetryAfter > 90*time.Second {
			t.Errorf("%d: %v for %v, want throttled for 90 s", status, got.Class, got.RetryAfter)
		}
	}
}
