package token_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

// entraRefusal is an error answer of Entra that repeats what it was sent.
func entraRefusal(oauth, code string) string {
	return fmt.Sprintf(`{"error":"%s","error_description":"%s: %s %s %s. Trace ID: x\r\nTimestamp: 2026-11-23 12:00:00Z","error_codes":[1],"error_uri":"https://login.test/error?%s"}`,
		oauth, code, planted, clientSecret, federatedToken, planted)
}

func TestAzureAADSTSCodesNameTheKey(t *testing.T) {
	for _, row := range []struct {
		oauth, code string
		status      int
		want        token.Error // Status and Description are the row's; Code is oauth if empty; Hint is a part
	}{
		{"invalid_client", "AADSTS7000215", 401, token.Error{Class: token.Permanent, Code: "secret_wrong", Key: "client_secret", Hint: "not Secret ID"}},
		{"invalid_client", "AADSTS7000222", 401, token.Error{Class: token.Permanent, Code: "secret_expired", Key: "client_secret", Hint: "has expired"}},
		{"unauthorized_client", "AADSTS700016", 400, token.Error{Class: token.Permanent, Key: "client_id", Hint: "is not an application of this tenant"}},
		{"invalid_client", "AADSTS7000229", 401, token.Error{Class: token.Permanent, Key: "client_id", Hint: "service principal"}},
		{"unauthorized_client", "AADSTS7000112", 400, token.Error{Class: token.Permanent, Key: "client_id", Hint: "disabled"}},
		{"invalid_request", "AADSTS90002", 400, token.Error{Class: token.Permanent, Code: "tenant_unknown", Key: "tenant_id", Hint: "no such tenant"}},
		{"invalid_request", "AADSTS900023", 400, token.Error{Class: token.Permanent, Code: "tenant_unknown", Key: "tenant_id", Hint: "neither the id nor a domain"}},
		{"invalid_scope", "AADSTS1002012", 400, token.Error{Class: token.Permanent, Key: "scopes", Hint: "/.default"}},
		{"invalid_scope", "AADSTS70011", 400, token.Error{Class: token.Permanent, Key: "scopes", Hint: "/.default"}},
		{"invalid_resource", "AADSTS500011", 400, token.Error{Class: token.Permanent, Code: "provider_answer", Key: "scopes", Hint: "audience"}},
		{"invalid_client", "AADSTS700027", 401, token.Error{Class: token.Permanent, Key: "cert_file", Hint: "not registered"}},
		{"invalid_client", "AADSTS1000502", 401, token.Error{Class: token.Permanent, Code: "certificate_expired", Key: "cert_file", Hint: "has expired"}},
		{"invalid_client", "AADSTS7000214", 401, token.Error{Class: token.Permanent, Key: "cert_file", Hint: "revoked"}},
		{"invalid_client", "AADSTS700024", 401, token.Error{Class: token.Transient, Hint: "the clocks agree, so a federated token must have expired"}},
		{"invalid_client", "AADSTS70021", 401, token.Error{Class: token.Permanent, Key: "token_file", Hint: "issuer, subject and audience"}},
		{"invalid_client", "AADSTS700211", 401, token.Error{Class: token.Permanent, Key: "token_file", Hint: "issuer"}},
		{"invalid_client", "AADSTS700212", 401, token.Error{Class: token.Permanent, Key: "token_file", Hint: "audience"}},
		{"invalid_client", "AADSTS700213", 401, token.Error{Class: token.Permanent, Key: "token_file", Hint: "subject"}},
		{"access_denied", "AADSTS53003", 400, token.Error{Class: token.Permanent, Key: "client_id", Hint: "Conditional Access"}},
		{"invalid_grant", "AADSTS50196", 400, token.Error{Class: token.Throttled, RetryAfter: 5 * time.Minute, Hint: "too often"}},
		{"invalid_grant", "AADSTS50196", 503, token.Error{Class: token.Throttled, RetryAfter: 5 * time.Minute, Hint: "too often"}},
		// A code that nobody knows, one that only begins like a known one, one in a 5xx.
		{"invalid_client", "AADSTS1234567", 401, token.Error{Class: token.Permanent, Key: "client_secret", Hint: "check client_id and client_secret"}},
		{"invalid_client", "AADSTS7002131", 401, token.Error{Class: token.Permanent, Key: "client_secret", Hint: "check client_id and client_secret"}},
		{"temporarily_unavailable", "AADSTS90033", 503, token.Error{Class: token.Transient, Hint: "problem of its own"}},
		{"invalid_client", "AADSTS7000215", 500, token.Error{Class: token.Transient, Hint: "problem of its own"}},
	} {
		t.Run(fmt.Sprint(row.code, " ", row.status), func(t *testing.T) {
			e := entra(t, answers(row.status, nil, entraRefusal(row.oauth, row.code)))
			got := failure(t.Context(), t, build(t, e.azureSecret()))
			if !strings.Contains(got.Hint, row.want.Hint) {
				t.Errorf("hint %q, want %q in it", got.Hint, row.want.Hint)
			}
			want := row.want
			if want.Code == "" {
				want.Code = row.oauth
			}
			want.Hint, want.Status, want.Description = got.Hint, row.status, row.code
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if n := len(e.posts()); n != 1 {
				t.Errorf("%d token requests, want 1", n)
			}
		})
	}
}

func TestAzureClockSkewIsTold(t *testing.T) {
	for name, row := range map[string]struct {
		date time.Duration
		want string
	}{
		"ahead":  {-7 * time.Minute, "ahead of the provider's"},
		"behind": {7 * time.Minute, "behind the provider's"},
		"agree":  {0, "the clocks agree"},
	} {
		t.Run(name, func(t *testing.T) {
			e := entra(t, func(w http.ResponseWriter, r *http.Request) {
				date := http.Header{"Date": {time.Now().Add(row.date).UTC().Format(http.TimeFormat)}}
				answers(401, date, entraRefusal("invalid_client", "AADSTS700024"))(w, r)
			})
			got := failure(t.Context(), t, build(t, e.azureCertificate(t)))
			if got.Class != token.Transient || !strings.Contains(got.Hint, row.want) {
				t.Errorf("%+v, want transient and %q in the hint", got, row.want)
			}
			if row.date != 0 && !strings.Contains(got.Hint, " 7m0s ") && !strings.Contains(got.Hint, " 7m1s ") && !strings.Contains(got.Hint, " 6m59s ") {
				t.Errorf("hint %q, want the difference in it", got.Hint)
			}
		})
	}
}

// Without a code that is known, the key is the type's own proof.
func TestAzureRefusedClientNamesItsProof(t *testing.T) {
	e := entra(t, answers(401, nil, entraRefusal("invalid_client", "no code")))
	for name, settings := range e.azureTypes(t) {
		want := map[string]string{"azure_client_secret": "client_secret", "azure_client_certificate": "cert_file", "azure_workload_identity": "token_file"}[name]
		got := failure(t.Context(), t, build(t, settings))
		if got.Class != token.Permanent || got.Code != "invalid_client" || got.Key != want || !strings.Contains(got.Hint, "check client_id and "+want) {
			t.Errorf("%s: %+v, want %s", name, got, want)
		}
	}
}

func TestAzureUnknownTenantIsToldByDiscovery(t *testing.T) {
	e := serve(t, answers(400, nil, entraRefusal("invalid_tenant", "AADSTS90002")))
	for name, settings := range e.azureTypes(t) {
		got := failure(t.Context(), t, build(t, settings))
		if got.Class != token.Permanent || got.Key != "tenant_id" || got.Description != "AADSTS90002" {
			t.Errorf("%s: %+v, want a permanent error of tenant_id", name, got)
		}
	}
	if n := len(e.posts()); n != 0 {
		t.Errorf("%d token requests, want none", n)
	}
}

func TestAzureOddAnswersShowNothing(t *testing.T) {
	in := func(v string) http.Header { return http.Header{"Retry-After": {v}} }
	good := func(member string) string {
		return `{"access_token":"` + accessToken + `","token_type":"Bearer"` + member + `}`
	}
	for _, row := range []struct {
		name   string
		status int
		header http.Header
		body   string
		want   token.Error // Status is the row's; Hint is a part
	}{
		{name: "empty", status: 200, want: token.Error{Hint: "not JSON"}},
		{name: "HTML", status: 200, header: http.Header{"Content-Type": {"text/html"}}, body: "<html>" + planted + accessToken, want: token.Error{Hint: "captive portal"}},
		{name: "truncated", status: 200, body: good("")[:40], want: token.Error{Hint: "not JSON"}},
		{name: "2 MiB", status: 200, body: good(`,"x":"` + strings.Repeat("x", 2<<20) + `"`), want: token.Error{Hint: "larger than"}},
		{name: "2 MiB of error", status: 400, body: `{"error":"` + strings.Repeat(planted, 1<<17) + `"}`, want: token.Error{Hint: "larger than"}},
		{name: "an array", status: 200, body: `["` + planted + `"]`, want: token.Error{Hint: "not an object"}},
		{name: "no access_token", status: 200, body: `{"token_type":"Bearer","id_token":"` + accessToken + `"}`, want: token.Error{Hint: "no access_token"}},
		{name: "CR and LF in the token", status: 200, body: `{"access_token":"` + accessToken + `\r\nX-Evil: 1","token_type":"Bearer","expires_in":3599}`, want: token.Error{Hint: "characters"}},
		{name: "DPoP", status: 200, body: `{"access_token":"` + accessToken + `","token_type":"DPoP","expires_in":3599}`, want: token.Error{Class: token.Permanent, Hint: "DPoP"}},
		{name: "a date as expires_in", status: 200, body: good(`,"expires_in":"` + planted + `"`), want: token.Error{Hint: "expires_in"}},
		{name: "a negative expires_in", status: 200, body: good(`,"expires_in":-5`), want: token.Error{Hint: "expires_in"}},
		{name: "redirect", status: 307, header: http.Header{"Location": {"https://elsewhere.test/" + planted}}, body: planted, want: token.Error{Hint: "never followed"}},
		{name: "429", status: 429, header: in("90"), body: planted, want: token.Error{Class: token.Throttled, RetryAfter: 90 * time.Second, Hint: "asks to wait"}},
		{name: "503 with a wait", status: 503, header: in("30"), body: planted, want: token.Error{Class: token.Throttled, RetryAfter: 30 * time.Second, Hint: "asks to wait"}},
		{name: "503", status: 503, body: planted, want: token.Error{Hint: "problem of its own"}},
		{name: "404", status: 404, body: planted, want: token.Error{Class: token.Permanent, Key: "authority_host", Hint: "check authority_host"}},
		{name: "a challenge as of Arc", status: 401, header: http.Header{"Www-Authenticate": {"Basic realm=/etc/" + planted}}, body: planted, want: token.Error{Class: token.Permanent, Hint: "check client_id"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := entra(t, answers(row.status, row.header, row.body))
			for name, settings := range e.azureTypes(t) {
				got := failure(t.Context(), t, build(t, settings))
				want := row.want
				if !strings.Contains(got.Hint, want.Hint) {
					t.Errorf("%s: hint %q, want %q in it", name, got.Hint, want.Hint)
				}
				if strings.Contains(got.Hint, "token_endpoint") {
					t.Errorf("%s: hint %q names a key that the type does not have", name, got.Hint)
				}
				if row.status == 401 {
					want.Key = got.Key
				}
				want.Code, want.Status, want.Hint = "provider_answer", row.status, got.Hint
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s: error (-want +got):\n%s", name, diff)
				}
				wantHidden(t, &got, federatedToken)
			}
			if n := len(e.posts()); n != 3 {
				t.Errorf("%d token requests, want 3: the SDK's retries are off", n)
			}
		})
	}
}

// The SDK itself refuses an answer without expires_in, and takes whole seconds only.
func TestAzureLifeAsEntraMaySpellIt(t *testing.T) {
	for member, want := range map[string]time.Duration{
		``: 0, `,"expires_in":null`: 0, `,"expires_in":0`: 0,
		`,"expires_in":"3599"`: 3599 * time.Second, `,"expires_in":3599.0`: 3599 * time.Second, `,"expires_in":1e300`: 24 * time.Hour,
	} {
		e := entra(t, answers(200, nil, `{"access_token":"`+accessToken+`","token_type":"bearer"`+member+`}`))
		got, err := build(t, e.azureSecret()).Acquire(t.Context())
		if err != nil {
			t.Errorf("%s: %v", member, err)
			continue
		}
		if life := time.Until(got.Expires); got.Expires.IsZero() != (want == 0) || want != 0 && (life > want || life < want-5*time.Second) {
			t.Errorf("%s: expires at %v, want in %v", member, got.Expires, want)
		}
	}
}

func TestAzureBadDiscoveryIsRefusedBeforeTheSecretIsSent(t *testing.T) {
	for _, row := range []struct{ name, document, hint string }{
		{"another issuer", entraDocument("https://evil.test", "https://evil.test"), "not one of Microsoft Entra"},
		{"no token endpoint", `{"issuer":"x","authorization_endpoint":"` + planted + `"}`, "not one of Microsoft Entra"},
		{"an array", `["` + planted + `"]`, "not one of Microsoft Entra"},
		{"members that are no strings", `{"issuer":1,"token_endpoint":["` + planted + `"]}`, "not one of Microsoft Entra"},
		{"token endpoint in clear", "HTTP", "is not https"},
		{"HTML", "<html>" + planted, "captive portal"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var e *endpoint
			e = serve(t, func(w http.ResponseWriter, r *http.Request) {
				document := row.document
				if document == "HTTP" {
					document = entraDocument(e.URL, "http://"+r.Host)
				}
				answers(200, nil, document)(w, r)
			})
			for name, settings := range e.azureTypes(t) {
				if got := failure(t.Context(), t, build(t, settings)); !strings.Contains(got.Hint, row.hint) {
					t.Errorf("%s: %+v, want %q in the hint", name, got, row.hint)
				}
			}
			if n := len(e.posts()); n != 0 {
				t.Errorf("%d token requests, want none", n)
			}
		})
	}
}

func TestAzureDeadAndSlowProvider(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	slow := entra(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	untrusted := entra(t, numbered())
	for _, row := range []struct {
		name   string
		change func(*token.AzureClientSecret)
		want   token.Error
	}{
		{"connection refused", func(c *token.AzureClientSecret) { c.AuthorityHost = "https://" + l.Addr().String() }, token.Error{Code: "provider_unreachable", Key: "authority_host"}},
		{"slow", func(*token.AzureClientSecret) {}, token.Error{Code: "provider_timeout", Key: "authority_host"}},
		{"not trusted", func(c *token.AzureClientSecret) { c.AuthorityHost = untrusted.URL; c.CAFile = "" }, token.Error{Code: "provider_tls", Key: "ca_file"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := slow.azureSecret()
			row.change(c)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			got := failure(ctx, t, build(t, c))
			if got.Class != token.Transient || got.Code != row.want.Code || got.Key != row.want.Key || strings.Contains(got.Hint, "token_endpoint") {
				t.Errorf("%+v, want %+v", got, row.want)
			}
		})
	}
}

// The whole way: what a source logs and says of each type shows neither what
// was sent nor what came.
func TestAzureSourceShowsNothingOfTheExchange(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"success":                       numbered(),
		"refusal":                       answers(401, nil, entraRefusal("invalid_client", "AADSTS7000215")),
		"body that the SDK would quote": answers(200, nil, `{"access_token":"`+accessToken+`","token_type":"Bearer","expires_in":"`+planted+`"}`),
	} {
		e := entra(t, answer)
		for typ, settings := range e.azureTypes(t) {
			t.Run(name+", "+typ, func(t *testing.T) {
				var log bytes.Buffer
				life := token.DefaultLifecycle()
				life.MaxAttempts = 1
				s := token.NewSource(build(t, settings), life, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				_, err := s.Token(ctx)
				s.Close()
				for _, v := range []any{log.String(), err, s.Status(), settings} {
					wantHidden(t, v, clientSecret, url.QueryEscape(clientSecret), accessToken, planted, federatedToken)
				}
				if log.Len() == 0 {
					t.Error("nothing was logged")
				}
			})
		}
	}
}
