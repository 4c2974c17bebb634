package token

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// Ways to authenticate the client at the token endpoint, by their names in
// OpenID Connect Core section 9.
const (
	clientSecretBasic = "client_secret_basic"
	clientSecretPost  = "client_secret_post"
)

// ClientCredentials are the keys of the type client_credentials: the OAuth 2.0
// client credentials grant (RFC 6749 section 4.4).
type ClientCredentials struct {
	Fetching
	// Issuer is the OpenID Connect issuer whose discovery document names the
	// token endpoint. Either this or TokenEndpoint.
	Issuer string `toml:"issuer"`
	// TokenEndpoint is the URL that tokens are asked from.
	TokenEndpoint string `toml:"token_endpoint"`
	// InsecureHTTP permits http:// for a provider on loopback.
	InsecureHTTP bool `toml:"insecure_http"`
	// ClientID is the client's name at the provider.
	ClientID string `toml:"client_id"`
	// ClientAuth is how the client proves itself: client_secret_basic or
	// client_secret_post. Empty: as the discovery document says, else basic.
	ClientAuth string `toml:"client_auth"`
	// ClientSecret is the client's secret.
	ClientSecret SecretSource `toml:"client_secret"`
	// Audience is sent as audience (Auth0 needs it).
	Audience string `toml:"audience"`
	// Resource is sent as resource, once per value (RFC 8707).
	Resource Strings `toml:"resource"`
	// Params are further parameters of the token request.
	Params map[string]string `toml:"params"`
}

// Check implements [Settings].
func (c *ClientCredentials) Check(report Report) {
	c.check(report)
	switch {
	case c.Issuer == "" && c.TokenEndpoint == "":
		report("token_endpoint", "is missing", "give token_endpoint, or issuer for OpenID Connect discovery")
	case c.Issuer != "" && c.TokenEndpoint != "":
		report("issuer", "both issuer and token_endpoint are given", "keep one of them")
	case c.Issuer != "":
		checkEndpoint(report, "issuer", c.Issuer, c.InsecureHTTP)
	default:
		checkEndpoint(report, "token_endpoint", c.TokenEndpoint, c.InsecureHTTP)
	}
	if c.ClientID == "" {
		report("client_id", "is missing", "give the client's id at the provider")
	}
	if c.ClientSecret.IsZero() {
		report("client_secret", "is missing", `give client_secret = "${VARIABLE}", or client_secret_file`)
	}
	if !slices.Contains([]string{"", clientSecretBasic, clientSecretPost}, c.ClientAuth) {
		report("client_auth", fmt.Sprintf("%q is not supported", c.ClientAuth), "one of client_secret_basic, client_secret_post; or leave it out")
	}
	for name := range c.Params {
		if slices.Contains([]string{"grant_type", "scope", "client_id", "client_secret", "audience", "resource"}, name) {
			report("params."+name, "is set by the gateway itself", "use the profile's own key for it")
		}
	}
}

// checkEndpoint refuses a URL that secrets must not be sent to.
func checkEndpoint(report Report, key, raw string, insecure bool) {
	if err := endpointError(raw, insecure); err != nil {
		report(key, err.Error(), "use an https:// URL; http:// only on loopback with insecure_http = true")
	}
}

func endpointError(raw string, insecure bool) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Hostname() == "" || u.User != nil || u.Fragment != "":
		return fmt.Errorf("is not a URL of a provider")
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && insecure && loopback(u.Hostname()):
		return nil
	case u.Scheme == "http" && insecure:
		return fmt.Errorf("insecure_http is for loopback only, %q is not", u.Hostname())
	}
	return fmt.Errorf("%s:// would send the secret in clear", u.Scheme)
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// Acquirer implements [Settings].
func (c *ClientCredentials) Acquirer(env Env) (Acquirer, error) {
	client, err := newClient(env, c.CAFile)
	if err != nil {
		return nil, err
	}
	a := &clientCredentials{settings: c, client: client}
	if c.Issuer != "" {
		a.discovery = &discovery{issuer: c.Issuer, insecure: c.InsecureHTTP, client: client}
	}
	return a, nil
}

// clientCredentials asks the token endpoint. x/oauth2 writes the request; its
// cache and its guess of the client authentication are not used, since the one
// holds a lock across the network and the other doubles every failure.
type clientCredentials struct {
	settings  *ClientCredentials
	client    *http.Client
	discovery *discovery // nil: TokenEndpoint is configured
}

// Acquire implements [Acquirer].
func (a *clientCredentials) Acquire(ctx context.Context) (Token, error) {
	s := a.settings
	secret, err := s.ClientSecret.Read()
	if err != nil {
		return Token{}, &Error{Class: Transient, Code: "secret_unreadable", Key: "client_secret", Hint: "check client_secret_file: " + err.Error()}
	}
	endpoint, auth := s.TokenEndpoint, s.ClientAuth
	if a.discovery != nil {
		found, err := a.discovery.metadata(ctx)
		if err != nil {
			return Token{}, err
		}
		endpoint = found.TokenEndpoint
		if auth == "" && found.AuthMethods != nil && !slices.Contains(found.AuthMethods, clientSecretBasic) {
			auth = clientSecretPost
		}
	}
	style := oauth2.AuthStyleInHeader
	if auth == clientSecretPost {
		style = oauth2.AuthStyleInParams
	}
	params := url.Values{}
	for name, value := range s.Params {
		params.Set(name, value)
	}
	if s.Audience != "" {
		params.Set("audience", s.Audience)
	}
	if len(s.Resource) > 0 {
		params["resource"] = s.Resource
	}
	began := time.Now()
	config := clientcredentials.Config{
		ClientID: s.ClientID, ClientSecret: secret.Reveal(), TokenURL: endpoint,
		Scopes: s.Scopes, EndpointParams: params, AuthStyle: style,
	}
	answer, err := config.Token(context.WithValue(ctx, oauth2.HTTPClient, a.client))
	if err != nil {
		e := networkError(err)
		if a.discovery != nil && e.Status == http.StatusNotFound {
			a.discovery.forget() // the provider may have moved its token endpoint
		}
		return Token{}, e
	}
	return oauthToken(answer, began, s.Scopes)
}

// oauthToken turns x/oauth2's answer, which has passed the guard, into a Token.
func oauthToken(answer *oauth2.Token, began time.Time, asked []string) (Token, error) {
	life, ok := expiresIn(answer.Extra(lifetimeKey))
	if !ok {
		return Token{}, &Error{Class: Transient, Code: "provider_answer", Hint: "the provider's expires_in is not a life that a token can have"}
	}
	t := Token{Value: NewSecret(answer.AccessToken)}
	if life > 0 {
		t.Expires = began.Add(life)
	}
	if granted, said := answer.Extra("scope").(string); said {
		var missing []string
		for _, scope := range asked {
			if !slices.Contains(strings.Fields(granted), scope) {
				missing = append(missing, scope)
			}
		}
		if missing != nil {
			t.Warning = "the provider did not grant " + strings.Join(missing, " ") + "; check scopes and what the client is allowed"
		}
	}
	return t, nil
}
