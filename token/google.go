package token

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
	"golang.org/x/oauth2/jwt"
)

// Scopes of the Cloud Healthcare API
// (cloud.google.com/healthcare-api/docs/reference/rest). The second covers the
// first.
const (
	scopeHealthcare    = "https://www.googleapis.com/auth/cloud-healthcare"
	scopeCloudPlatform = "https://www.googleapis.com/auth/cloud-platform"
)

// googleFetching are the defaults of every Google type.
func googleFetching() Fetching { return Fetching{Scopes: []string{scopeHealthcare}} }

func checkScopes(report Report, scopes []string) {
	if len(scopes) == 0 {
		report("scopes", "is empty", "leave it out for "+scopeHealthcare)
	}
}

// GoogleServiceAccount are the keys of the type google_service_account: a JWT
// signed with the account's key is exchanged for an access token (RFC 7523
// section 2.1, developers.google.com/identity/protocols/oauth2/service-account).
type GoogleServiceAccount struct {
	Fetching
	// CredentialsFile is the account's key: a JSON of type service_account. It is
	// read again at each acquisition.
	CredentialsFile PrivateFile `toml:"credentials_file"`
	// SelfSignedJWT uses the signed JWT itself as the bearer token: no token
	// endpoint is asked (google.aip.dev/auth/4111).
	SelfSignedJWT bool `toml:"self_signed_jwt"`
	// InsecureHTTP permits an http:// token_uri in the file, on loopback.
	InsecureHTTP bool `toml:"insecure_http"`
}

// Check implements [Settings].
func (g *GoogleServiceAccount) Check(report Report) {
	g.check(report)
	checkScopes(report, g.Scopes)
	checkGoogleFile(report, g.CredentialsFile, google.ServiceAccount, g.InsecureHTTP)
}

// Warn implements [Warner].
func (g *GoogleServiceAccount) Warn(report Report) {
	for key, given := range map[string]bool{"ca_file": g.CAFile != "", "request_timeout": g.RequestTimeout > 0} {
		if given && g.SelfSignedJWT {
			report(key, "has no effect with self_signed_jwt, as nobody is asked", "remove it")
		}
	}
}

// Acquirer implements [Settings].
func (g *GoogleServiceAccount) Acquirer(env Env) (Acquirer, error) {
	client, err := newClient(env, g.CAFile)
	if err != nil {
		return nil, err
	}
	return acquirerFunc(func(ctx context.Context) (Token, error) {
		f, err := readGoogleFile(g.CredentialsFile, google.ServiceAccount, g.InsecureHTTP)
		if err != nil {
			return Token{}, err
		}
		if g.SelfSignedJWT {
			return f.selfSigned(g.Scopes)
		}
		config := jwt.Config{
			Email: f.ClientEmail, PrivateKey: []byte(f.PrivateKey), PrivateKeyID: f.PrivateKeyID,
			Scopes: g.Scopes, TokenURL: f.tokenURI(),
		}
		began := time.Now()
		got, err := exchangeGoogle(ctx, client, always(&serviceAccountStep), func(ctx context.Context) (*oauth2.Token, error) {
			return config.TokenSource(ctx).Token()
		})
		if err != nil {
			return Token{}, err
		}
		return oauthToken(got, began, g.Scopes)
	}), nil
}

var serviceAccountStep = googleStep{
	key: "credentials_file", endpoint: "token_uri in credentials_file", answer: jsonTokenAnswer,
	advice: map[string]googleAdvice{
		"invalid_grant":       {Permanent, "credentials_file", "the provider refused the signed assertion: clock skew, or the key or its service account was deleted or disabled; set the clock or put a new key into credentials_file", true},
		"invalid_client":      {Permanent, "credentials_file", "the provider does not know the service account; put a new key into credentials_file", false},
		"unauthorized_client": {Permanent, "credentials_file", "the provider does not let this service account get tokens for these scopes; check scopes and the account in credentials_file", false},
		"401":                 {Permanent, "credentials_file", "the provider refused the service account; put a new key into credentials_file", true},
	},
}

// GoogleAuthorizedUser are the keys of the type google_authorized_user: a
// user's refresh token (RFC 6749 section 6), as "gcloud auth
// application-default login" leaves it. Either the file or the other three.
type GoogleAuthorizedUser struct {
	// Scopes are only compared with what the provider says that it granted: a
	// refresh token carries those that the user has consented to.
	Fetching
	// CredentialsFile is a JSON of type authorized_user. It is read again at each
	// acquisition.
	CredentialsFile PrivateFile `toml:"credentials_file"`
	// ClientID and ClientSecret are the OAuth client that the user consented to.
	ClientID     string       `toml:"client_id"`
	ClientSecret SecretSource `toml:"client_secret"`
	// RefreshToken is what the consent gave.
	RefreshToken SecretSource `toml:"refresh_token"`
	// InsecureHTTP permits an http:// token_uri in the file, on loopback.
	InsecureHTTP bool `toml:"insecure_http"`
}

// Check implements [Settings].
func (g *GoogleAuthorizedUser) Check(report Report) {
	g.check(report)
	checkScopes(report, g.Scopes)
	given := []struct {
		key   string
		given bool
	}{{"client_id", g.ClientID != ""}, {"client_secret", !g.ClientSecret.IsZero()}, {"refresh_token", !g.RefreshToken.IsZero()}}
	some := g.ClientID != "" || !g.ClientSecret.IsZero() || !g.RefreshToken.IsZero()
	if !some {
		checkGoogleFile(report, g.CredentialsFile, google.AuthorizedUser, g.InsecureHTTP)
		return
	}
	if g.InsecureHTTP && g.CredentialsFile == "" {
		report("insecure_http", "has no effect without credentials_file: Google's own token endpoint is https://", "remove it")
	}
	for _, k := range given {
		switch {
		case k.given && g.CredentialsFile != "":
			report(k.key, "both "+k.key+" and credentials_file are given", "keep credentials_file, or client_id, client_secret and refresh_token")
		case !k.given && g.CredentialsFile == "":
			report(k.key, "is missing", "client_id, client_secret and refresh_token go together")
		}
	}
}

// Acquirer implements [Settings].
func (g *GoogleAuthorizedUser) Acquirer(env Env) (Acquirer, error) {
	client, err := newClient(env, g.CAFile)
	if err != nil {
		return nil, err
	}
	return acquirerFunc(func(ctx context.Context) (Token, error) {
		f, err := g.credentials()
		if err != nil {
			return Token{}, err
		}
		config := oauth2.Config{
			ClientID: f.ClientID, ClientSecret: f.ClientSecret,
			Endpoint: oauth2.Endpoint{TokenURL: f.tokenURI(), AuthStyle: oauth2.AuthStyleInParams},
		}
		began := time.Now()
		got, err := exchangeGoogle(ctx, client, always(userStep(g.CredentialsFile != "")), func(ctx context.Context) (*oauth2.Token, error) {
			return config.TokenSource(ctx, &oauth2.Token{RefreshToken: f.RefreshToken}).Token()
		})
		if err != nil {
			return Token{}, err
		}
		wanted := g.Scopes
		if granted, _ := got.Extra("scope").(string); slices.Contains(strings.Fields(granted), scopeCloudPlatform) {
			wanted = nil
		}
		return oauthToken(got, began, wanted)
	}), nil
}

// credentials returns what the file or the keys hold now.
func (g *GoogleAuthorizedUser) credentials() (*googleFile, error) {
	if g.CredentialsFile != "" {
		return readGoogleFile(g.CredentialsFile, google.AuthorizedUser, g.InsecureHTTP)
	}
	secret, err := g.ClientSecret.Read()
	if err != nil {
		return nil, unreadable("client_secret", err)
	}
	refresh, err := g.RefreshToken.Read()
	if err != nil {
		return nil, unreadable("refresh_token", err)
	}
	return &googleFile{ClientID: g.ClientID, ClientSecret: secret.Reveal(), RefreshToken: refresh.Reveal()}, nil
}

// userStep speaks of the keys that hold the user's credentials.
func userStep(fromFile bool) *googleStep {
	user, client, endpoint := "refresh_token", "client_secret", "upstream_proxy"
	if fromFile {
		user, client, endpoint = "credentials_file", "credentials_file", "token_uri in credentials_file"
	}
	return &googleStep{key: user, endpoint: endpoint, answer: jsonTokenAnswer, advice: map[string]googleAdvice{
		"invalid_grant":       {Permanent, user, "refresh_token expired or revoked (it lives 7 days while the OAuth client is in testing); sign in again and put the new one into " + user, false},
		"invalid_client":      {Permanent, client, "the provider refused the OAuth client; check client_id and client_secret", false},
		"unauthorized_client": {Permanent, client, "the refresh_token belongs to another OAuth client; client_id, client_secret and refresh_token go together", false},
		"invalid_scope":       {Permanent, user, "the user's consent does not cover what is asked for; sign in again with the scope " + scopeHealthcare, false},
		"401":                 {Permanent, client, "the provider refused the OAuth client, it may be deleted or disabled; check client_id and client_secret", false},
	}}
}

// googleStep is one kind of request in an exchange, and what its failures mean for
// the profile.
type googleStep struct {
	key      string                  // where to look if nothing better is known
	endpoint string                  // how a user finds the URL that was asked
	advice   map[string]googleAdvice // by error code, else by HTTP status
	// answer checks a success, as in guard.
	answer func(resp *http.Response, body []byte) ([]byte, error)
}

// googleAdvice says what a failure means.
type googleAdvice struct {
	class Class
	key   string // empty: the step's
	hint  string
	clock bool // a wrong clock is a possible cause
}

// maxSkew is how far two clocks may be apart before a refused assertion is
// blamed on them.
const maxSkew = time.Minute

// explain makes a failure speak of the profile's own keys. skew is how far this
// machine's clock is ahead of the provider's.
func (s *googleStep) explain(e *Error, skew time.Duration) *Error {
	e.Hint = strings.ReplaceAll(e.Hint, "token_endpoint", s.endpoint)
	if e.Key != "" && e.Key != "ca_file" && e.Key != "scopes" {
		e.Key = s.key
	}
	if e.Class != Permanent && e.Status != 0 {
		return e // the provider's own trouble
	}
	a, ok := s.advice[e.Code]
	if !ok {
		a, ok = s.advice[strconv.Itoa(e.Status)]
	}
	if !ok {
		return e
	}
	e.Class, e.Key, e.Hint = a.class, a.key, a.hint
	if e.Key == "" {
		e.Key = s.key
	}
	if a.clock && skew.Abs() > maxSkew {
		e.Class = Transient // it ends when the clock is set
		e.Description = "this machine's clock is " + skew.Abs().Round(time.Second).String() + " behind the provider's"
		if skew > 0 {
			e.Description = strings.Replace(e.Description, "behind", "ahead of", 1)
		}
		e.Hint = "set the clock: " + e.Description + "; else: " + e.Hint
	}
	return e
}

// always is the choice of step for an exchange of one request.
func always(s *googleStep) func(*http.Request) *googleStep {
	return func(*http.Request) *googleStep { return s }
}

// googleExchange carries the requests of one acquisition between Google's library and
// the provider. The library flattens errors to a text that may have a body, a
// URL or a token in it; so the cause is kept here, and nothing that the library
// says is shown.
type googleExchange struct {
	ctx     context.Context   // of the acquisition; x/oauth2's jwt package sends its request without one
	base    http.RoundTripper // beneath the guard
	step    func(*http.Request) *googleStep
	failure *Error
}

// RoundTrip implements [http.RoundTripper].
func (x *googleExchange) RoundTrip(req *http.Request) (*http.Response, error) {
	s := x.step(req)
	clock := &clockReader{base: x.base}
	resp, err := (&guard{base: clock, answer: s.answer}).RoundTrip(req.WithContext(x.ctx))
	if err != nil {
		x.failure = s.explain(networkError(err), clock.skew)
		return nil, x.failure
	}
	return resp, nil
}

// clockReader compares this machine's clock with the Date of an answer.
type clockReader struct {
	base http.RoundTripper
	skew time.Duration // how far ours is ahead; 0 if the answer has no Date
}

// RoundTrip implements [http.RoundTripper].
func (c *clockReader) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.base.RoundTrip(req)
	if err == nil {
		if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			c.skew = time.Since(date)
		}
	}
	return resp, err
}

// exchangeGoogle runs one exchange. Google's token sources are bound to the
// context and the client that they are made with, and cache; so get makes a new
// one for each acquisition.
func exchangeGoogle[T any](ctx context.Context, client *http.Client, s func(*http.Request) *googleStep, get func(context.Context) (T, error)) (T, error) {
	x := &googleExchange{ctx: ctx, base: client.Transport.(*guard).base, step: s}
	got, err := get(context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: x, CheckRedirect: client.CheckRedirect}))
	switch {
	case err == nil:
		return got, nil
	case x.failure != nil:
		err = x.failure
	case ctx.Err() != nil:
		err = networkError(ctx.Err())
	default:
		err = &Error{Class: Transient, Code: "secret_unreadable", Key: "credentials_file", Hint: "check credentials_file: nothing could be asked with what is in it"}
	}
	var none T
	return none, err
}

// jsonTokenAnswer is a token endpoint's success, whatever method it was asked with.
func jsonTokenAnswer(resp *http.Response, body []byte) ([]byte, error) {
	if !json.Valid(body) {
		return nil, oddAnswer(resp, notJSON)
	}
	return tokenAnswer(resp, body)
}
