package gateway_test

import (
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/gateway/demo"
	"orthanc-dicomweb-oauth/token"
)

func TestHundredFirstRequestsCauseOneTokenRequest(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{before: (*demo.IdentityProvider).Hang})
	var ok atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		parallel(100, func(int) {
			if a, err := h.try("GET", h.up.url+"/studies", nil); err == nil && a.status == 200 {
				ok.Add(1)
			}
		})
	}()
	eventually(t, "all wait for the token", func() bool { return h.gw.Status().InFlight == 100 })
	if h.up.connections() != 0 {
		t.Error("the server was dialled before there was a credential")
	}
	h.idp.Recover()
	<-done
	if n := ok.Load(); n != 100 {
		t.Errorf("%d of 100 requests got their answer", n)
	}
	if n := h.idp.TokenRequests(); n != 1 {
		t.Errorf("got %d token requests, want 1", n)
	}
}

// limited answers with a token that lives for some seconds.
func limited(seconds int) func(*demo.IdentityProvider) {
	return func(p *demo.IdentityProvider) {
		p.Answer(200, http.Header{"Content-Type": {"application/json"}},
			`{"access_token":"short-lived-4711","token_type":"Bearer","expires_in":`+strconv.Itoa(seconds)+`}`)
	}
}

func TestDeadProviderIsNoticedOnlyWhenTheTokenEnds(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{before: limited(4), token: "max_attempts = 1"})
	h.get("/").want(t, 200)
	h.idp.Answer(500, nil, "provider-internal-4711")
	var failed atomic.Int64
	parallel(10, func(int) {
		for range 100 {
			if a, err := h.try("GET", h.up.url+"/studies", nil); err != nil || a.status != 200 {
				failed.Add(1)
			}
		}
	})
	if n := failed.Load(); n != 0 && h.gw.Status().Profiles[0].State != token.Unusable {
		t.Errorf("%d of 1000 requests failed while the token was good", n)
	}
	state := func() token.State { return h.gw.Status().Profiles[0].State }
	eventually(t, "the refresh fails", func() bool { return state() != token.Fresh })
	if state() == token.Stale {
		h.get("/").want(t, 200)
	}
	eventually(t, "the token ends", func() bool { return state() == token.Unusable })
	before := len(h.up.all())
	for range 20 {
		a := h.get("/studies")
		p := a.problem(t, 503, "token_unavailable")
		if p.Profile != "main" || p.Rule != "dicom" || !strings.Contains(p.Detail, `profile "main"`) || p.Hint == "" {
			t.Errorf("got %+v, want profile, rule and hint", p)
		}
		if strings.Contains(a.body, "provider-internal-4711") {
			t.Error("the provider's text is shown")
		}
		if n, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || n < 1 || n > 70 {
			t.Errorf("got Retry-After %q", a.header.Get("Retry-After"))
		}
	}
	if n := len(h.up.all()); n != before {
		t.Errorf("%d requests left without a credential", n-before)
	}
	h.idp.Recover()
	eventually(t, "it recovers by itself", func() bool { return state() == token.Fresh })
	h.get("/").want(t, 200)
	for _, out := range []string{h.log.String(), h.audit.String()} {
		for _, secret := range []string{"provider-internal-4711", "short-lived-4711"} {
			if strings.Contains(out, secret) {
				t.Errorf("%s is logged", secret)
			}
		}
	}
}

// Whatever the provider says instead of a token, the client learns which key to
// look at, and nothing of the provider's text.
func TestProviderThatGivesNoToken(t *testing.T) {
	t.Parallel()
	const said = "provider-internal-4711"
	asJSON := http.Header{"Content-Type": {"application/json"}}
	for _, row := range []struct {
		name string
		fail func(*demo.IdentityProvider)
		hint string
	}{
		{"wrong secret", func(p *demo.IdentityProvider) { p.SetClientSecret("another") }, "profile.main.client_secret"},
		{"down", func(p *demo.IdentityProvider) { p.Down(30 * time.Second) }, "asks to wait"},
		{"gone", (*demo.IdentityProvider).Close, "token_endpoint"},
		{"nonsense", func(p *demo.IdentityProvider) { p.Answer(200, nil, "<html>"+said) }, "not JSON"},
		{"empty", func(p *demo.IdentityProvider) { p.Answer(200, asJSON, "") }, ""},
		{"token with a line break", func(p *demo.IdentityProvider) {
			p.Answer(200, asJSON, `{"access_token":"a\r\nX-Evil: `+said+`","token_type":"Bearer"}`)
		}, "characters"},
		{"another token type", func(p *demo.IdentityProvider) {
			p.Answer(200, asJSON, `{"access_token":"`+said+`","token_type":"mac"}`)
		}, "token_type"},
		{"a token that is over", func(p *demo.IdentityProvider) {
			p.Answer(200, asJSON, `{"access_token":"`+said+`","token_type":"Bearer","expires_in":-1}`)
		}, "expires_in"},
		{"unknown scope", func(p *demo.IdentityProvider) {
			p.Answer(400, asJSON, `{"error":"invalid_scope","error_description":"`+said+`"}`)
		}, "profile.main.scopes"},
		{"an error that nobody knows", func(p *demo.IdentityProvider) {
			p.Answer(400, asJSON, `{"error":"`+said+`","error_description":"`+said+`","error_uri":"https://`+said+`"}`)
		}, "token_endpoint"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var old string
			h := newHarness(t, setup{token: "max_attempts = 1\nrequest_timeout = \"2s\"", before: func(p *demo.IdentityProvider) {
				old = p.ClientSecret()
				if row.name != "wrong secret" {
					row.fail(p)
				}
			}})
			if row.name == "wrong secret" {
				h = newHarness(t, setup{token: "max_attempts = 1", profile: `audience = "x"`, before: func(p *demo.IdentityProvider) {
					old = p.ClientSecret()
					p.Answer(401, asJSON, `{"error":"invalid_client","error_description":"`+said+`"}`)
				}})
			}
			a := h.get("/studies?PatientName=" + patient)
			p := a.problem(t, 503, "token_unavailable")
			if p.Profile != "main" || !strings.Contains(p.Hint+p.Detail, row.hint) {
				t.Errorf("got %+v, want a hint with %q", p, row.hint)
			}
			for _, secret := range []string{said, old, patient} {
				if strings.Contains(a.body, secret) || strings.Contains(h.log.String(), secret) {
					t.Errorf("%q is shown:\n%s\n%s", secret, a.body, h.log)
				}
			}
			h.get("/studies/1", wado).empty(t, 503)
			if len(h.up.all()) != 0 {
				t.Error("a request left without a credential")
			}
		})
	}
}

// Who waits for a hanging provider may give up, and the others do not notice.
func TestClientThatGivesUpWaiting(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{before: (*demo.IdentityProvider).Hang})
	c := secure(t, h.addr, h.authority(), "", h.roots())
	_, _ = c.Write([]byte("GET / HTTP/1.1\r\nHost: " + h.authority() + "\r\n\r\n"))
	eventually(t, "the request waits", func() bool { return h.gw.Status().InFlight == 1 })
	c.Close()
	eventually(t, "the request has ended", func() bool { return h.gw.Status().InFlight == 0 })
	h.idp.Recover()
	h.get("/").want(t, 200)
	if n := len(h.up.all()); n != 1 {
		t.Errorf("got %d requests at the server, want only that of the one who waited", n)
	}
}

// The token is renewed ahead of its end, unseen by the requests.
func TestTokenIsRenewedAhead(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{provider: demo.ProviderOptions{TokenLifetime: 2 * time.Second}})
	for h.idp.TokenRequests() < 3 {
		h.get("/").want(t, 200)
	}
	if tokens := unique(h.up.credentials()); len(tokens) < 2 {
		t.Errorf("got %d tokens at the server, want several", len(tokens))
	}
}

func unique(list []string) map[string]bool {
	set := map[string]bool{}
	for _, s := range list {
		set[s] = true
	}
	return set
}
