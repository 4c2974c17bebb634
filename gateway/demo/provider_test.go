package demo_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"orthanc-dicomweb-oauth/gateway/demo"
)

func TestProviderIssuesTokensThatItsKeysVerify(t *testing.T) {
	p := newProvider(t, demo.ProviderOptions{Scopes: []string{"read", "write"}, TokenLifetime: 90 * time.Second})
	c := httpClient(t, p.CAPEM())
	discovery := send(t, c, "GET", p.Issuer()+"/.well-known/openid-configuration", nil, nil).json(t)
	if discovery["issuer"] != p.Issuer() || discovery["token_endpoint"] != p.TokenEndpoint() {
		t.Errorf("got discovery %v, want issuer %s and endpoint %s", discovery, p.Issuer(), p.TokenEndpoint())
	}
	var keys struct{ Keys []struct{ Kid, X, Y string } }
	if err := json.Unmarshal(send(t, c, "GET", discovery["jwks_uri"].(string), nil, nil).body, &keys); err != nil {
		t.Fatal(err)
	}
	point := []byte{4}
	for _, coordinate := range []string{keys.Keys[0].X, keys.Keys[0].Y} {
		b, err := base64.RawURLEncoding.DecodeString(coordinate)
		if err != nil {
			t.Fatal(err)
		}
		point = append(point, b...)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		t.Fatal(err)
	}

	answer := requestToken(t, p, p.ClientID(), p.ClientSecret(), url.Values{"grant_type": {"client_credentials"}})
	body := answer.json(t)
	if body["expires_in"] != 90.0 || body["token_type"] != "Bearer" || body["scope"] != "read write" {
		t.Errorf("got %v, want 90 s, Bearer, both scopes", body)
	}
	if got := answer.header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("got Cache-Control %q, want no-store", got)
	}
	token, err := jwt.Parse(body["access_token"].(string), func(token *jwt.Token) (any, error) {
		if token.Header["kid"] != keys.Keys[0].Kid {
			t.Errorf("got kid %v, want %s", token.Header["kid"], keys.Keys[0].Kid)
		}
		return key, nil
	}, jwt.WithValidMethods([]string{"ES256"}))
	if err != nil {
		t.Fatal(err)
	}
	claims := token.Claims.(jwt.MapClaims)
	for name, want := range map[string]any{"iss": p.Issuer(), "sub": "orthanc", "scope": "read write"} {
		if claims[name] != want {
			t.Errorf("claim %s: got %v, want %v", name, claims[name], want)
		}
	}
	if claims["jti"] == "" || claims["exp"].(float64)-claims["iat"].(float64) < 90 {
		t.Errorf("got claims %v, want a jti and a life of 90 s", claims)
	}
	if err := p.Verify(body["access_token"].(string)); err != nil {
		t.Errorf("got %v from Verify, want nil", err)
	}
}

func TestTokenEndpointAnswersPerRFC6749(t *testing.T) {
	const secret = "a+b c%2F:ü" // all that form-encoding must keep apart
	p := newProvider(t, demo.ProviderOptions{ClientID: "or:thanc", ClientSecret: secret})
	grant := url.Values{"grant_type": {"client_credentials"}}
	with := func(pairs ...string) url.Values {
		form := url.Values{}
		for i := 0; i < len(pairs); i += 2 {
			form.Add(pairs[i], pairs[i+1])
		}
		return form
	}
	for _, row := range []struct {
		name           string
		user, password string
		form           url.Values
		status         int
		code           string
	}{
		{"secret by basic, form-encoded", "or:thanc", secret, grant, 200, ""},
		{"secret by post", "", "", with("grant_type", "client_credentials", "client_id", "or:thanc", "client_secret", secret), 200, ""},
		{"known scope", "or:thanc", secret, with("grant_type", "client_credentials", "scope", "dicomweb"), 200, ""},
		{"unknown scope", "or:thanc", secret, with("grant_type", "client_credentials", "scope", "dicomweb admin"), 400, "invalid_scope"},
		{"wrong secret by basic", "or:thanc", "x", grant, 401, "invalid_client"},
		{"wrong secret by post", "", "", with("grant_type", "client_credentials", "client_id", "or:thanc", "client_secret", "x"), 401, "invalid_client"},
		{"unknown client", "someone", secret, grant, 401, "invalid_client"},
		{"no credential", "", "", with("grant_type", "client_credentials", "client_id", "or:thanc"), 401, "invalid_client"},
		{"secret in both places", "or:thanc", secret, with("grant_type", "client_credentials", "client_secret", secret), 400, "invalid_request"},
		{"another grant", "or:thanc", secret, with("grant_type", "password"), 400, "unsupported_grant_type"},
		{"no grant", "or:thanc", secret, with("scope", "dicomweb"), 400, "invalid_request"},
		{"a parameter twice", "or:thanc", secret, with("grant_type", "client_credentials", "scope", "dicomweb", "scope", "dicomweb"), 400, "invalid_request"},
	} {
		t.Run(row.name, func(t *testing.T) {
			answer := requestToken(t, p, row.user, row.password, row.form)
			code, _ := answer.json(t)["error"].(string)
			if answer.status != row.status || code != row.code {
				t.Errorf("got %d %q, want %d %q", answer.status, code, row.status, row.code)
			}
			challenge := answer.header.Get("WWW-Authenticate")
			if wanted := row.status == 401 && row.user != ""; wanted != strings.HasPrefix(challenge, "Basic ") {
				t.Errorf("got WWW-Authenticate %q, want one: %t", challenge, wanted)
			}
		})
	}
}

func TestProviderObeysItsControls(t *testing.T) {
	p := newProvider(t, demo.ProviderOptions{})
	form := url.Values{"grant_type": {"client_credentials"}}
	ask := func() response { return requestToken(t, p, p.ClientID(), p.ClientSecret(), form) }

	p.Down(7 * time.Second)
	if r := ask(); r.status != 503 || r.header.Get("Retry-After") != "7" {
		t.Errorf("down: got %d with Retry-After %q, want 503 with 7", r.status, r.header.Get("Retry-After"))
	}
	if r := send(t, httpClient(t, p.CAPEM()), "GET", p.Issuer()+"/.well-known/openid-configuration", nil, nil); r.status != 503 {
		t.Errorf("down: got %d from discovery, want 503", r.status)
	}
	p.Answer(418, http.Header{"X-Test": {"yes"}}, "<html>")
	if r := ask(); r.status != 418 || r.header.Get("X-Test") != "yes" || string(r.body) != "<html>" {
		t.Errorf("answer: got %d %v %q, want what was set", r.status, r.header, r.body)
	}
	p.Recover()
	old := p.ClientSecret()
	p.SetClientSecret("changed")
	if r := requestToken(t, p, p.ClientID(), old, form); r.status != 401 {
		t.Errorf("changed secret: got %d for the old one, want 401", r.status)
	}
	if r := ask(); r.status != 200 {
		t.Errorf("changed secret: got %d for the new one, want 200", r.status)
	}

	want := demo.TokenRequest{Grant: "client_credentials", AuthMethod: "client_secret_basic", ClientID: "orthanc"}
	log := p.Log()
	if p.TokenRequests() != 4 || len(log) != 4 {
		t.Fatalf("got %d token requests and %d log entries, want 4", p.TokenRequests(), len(log))
	}
	if diff := cmp.Diff(want, log[3], cmpopts.IgnoreFields(demo.TokenRequest{}, "Time")); diff != "" {
		t.Errorf("log entry (-want +got):\n%s", diff)
	}
}

func TestProviderHangsUntilItRecovers(t *testing.T) {
	p := newProvider(t, demo.ProviderOptions{})
	p.Hang()
	answers := make(chan int)
	go func() {
		answers <- requestToken(t, p, p.ClientID(), p.ClientSecret(), url.Values{"grant_type": {"client_credentials"}}).status
	}()
	if err := p.WaitTokenRequests(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	select {
	case status := <-answers:
		t.Fatalf("got %d while it hangs, want no answer", status)
	default:
	}
	p.Recover()
	if status := <-answers; status != 200 {
		t.Errorf("got %d after Recover, want 200", status)
	}
}

func TestProviderCloseEndsAHangingRequest(t *testing.T) {
	p := demo.NewIdentityProvider(demo.ProviderOptions{})
	p.Hang()
	c := httpClient(t, p.CAPEM())
	ended := make(chan error)
	go func() {
		r, err := http.NewRequestWithContext(context.Background(), "POST", p.TokenEndpoint(), strings.NewReader("a=b"))
		if err != nil {
			ended <- err
			return
		}
		answer, err := c.Do(r)
		if err == nil {
			_ = answer.Body.Close()
		}
		ended <- err
	}()
	if err := p.WaitTokenRequests(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	p.Close()
	p.Close()
	if err := <-ended; err == nil {
		t.Error("got an answer from a closed provider, want a cut connection")
	}
}

func TestVerifyRefusesWhatAResourceServerShould(t *testing.T) {
	p := newProvider(t, demo.ProviderOptions{Scopes: []string{"dicomweb", "other"}})
	other := newProvider(t, demo.ProviderOptions{})
	good := accessToken(t, p)

	if err := p.Verify(accessToken(t, p, "other")); !errors.Is(err, demo.ErrInsufficientScope) {
		t.Errorf("token without the scope: got %v, want ErrInsufficientScope", err)
	}
	tampered := good[:len(good)-4] + "AAAA"
	for name, token := range map[string]string{
		"empty": "", "noise": "a.b.c", "tampered": tampered, "of another provider": accessToken(t, other),
	} {
		if err := p.Verify(token); err == nil {
			t.Errorf("token %s: got nil, want an error", name)
		}
	}
	if err := p.Verify(good); err != nil {
		t.Errorf("good token: got %v, want nil", err)
	}
	p.RevokeAll()
	if err := p.Verify(good); err == nil {
		t.Error("revoked token: got nil, want an error")
	}
	if err := p.Verify(accessToken(t, p)); err != nil {
		t.Errorf("token after RevokeAll: got %v, want nil", err)
	}
}
