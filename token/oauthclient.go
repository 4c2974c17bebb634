package token

import (
	"cmp"
	"context"
	"crypto/tls"
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
// OpenID Connect Core section 9 and RFC 8705 section 2.
const (
	clientSecretBasic = "client_secret_basic"
	clientSecretPost  = "client_secret_post"
	privateKeyJWT     = "private_key_jwt"
	tlsClientAuth     = "tls_client_auth"
)

// OAuthClient are the keys of every type that authenticates as an OAuth 2.0
// client at a token endpoint.
type OAuthClient struct {
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
	// ClientAuth is how the client proves itself: client_secret_basic,
	// client_secret_post, private_key_jwt or tls_client_auth. Empty: by what is
	// given; a secret is sent as the discovery document says, else basic.
	ClientAuth string `toml:"client_auth"`
	// ClientSecret is the client's secret.
	ClientSecret SecretSource `toml:"client_secret"`
	// Audience is sent as audience (Auth0 needs it).
	Audience string `toml:"audience"`
	// Resource is sent as resource, once per value (RFC 8707).
	Resource Strings `toml:"resource"`
	// Params are further parameters of the token request.
	Params map[string]string `toml:"params"`

	AssertionKey
	// AssertionAudience is the audience of a private_key_jwt: token_endpoint (the
	// default), issuer, or a URL. Providers disagree.
	AssertionAudience string `toml:"assertion_audience"`
	// CertFile is a PEM certificate: for tls_client_auth the client's, for
	// private_key_jwt the one whose thumbprint (x5t) the provider knows.
	CertFile File `toml:"cert_file"`
	// BoundToken shows the certificate of tls_client_auth to the DICOMweb server
	// too, for tokens that are bound to it (RFC 8705 section 3).
	BoundToken bool `toml:"bound_token"`
}

// auth returns how the client proves itself; empty stands for a secret, sent as
// discovery says.
func (c *OAuthClient) auth() string {
	switch {
	case c.ClientAuth != "":
		return c.ClientAuth
	case c.KeyFile != "" && c.CertFile == "":
		return privateKeyJWT
	}
	return ""
}

// BoundCertificate returns the certificate and key to show to the DICOMweb
// server, if tokens are bound to it.
func (c *OAuthClient) BoundCertificate() (cert File, key PrivateFile, bound bool) {
	return c.CertFile, c.KeyFile, c.BoundToken
}

// Check implements [Settings].
func (c *OAuthClient) Check(report Report) {
	c.Fetching.check(report)
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
	c.checkAuth(report)
	for name := range c.Params {
		if slices.Contains([]string{"grant_type", "scope", "client_id", "client_secret", "client_assertion", "client_assertion_type", "audience", "resource", "refresh_token", "subject_token", "subject_token_type", "requested_token_type"}, name) {
			report("params."+name, "is set by the gateway itself", "use the profile's own key for it")
		}
	}
}

// Warn implements [Warner].
func (c *OAuthClient) Warn(report Report) {
	warnEndpoint(report, c.TokenEndpoint, c.InsecureHTTP, c.CAFile)
}

// warnEndpoint reports keys that a configured token endpoint makes no use of.
// Without one, it is the discovery document that decides.
func warnEndpoint(report Report, endpoint string, insecure bool, ca File) {
	switch secure := strings.HasPrefix(endpoint, "https:"); {
	case endpoint == "":
	case secure && insecure:
		report("insecure_http", "has no effect, as token_endpoint is https://", "remove it")
	case !secure && ca != "":
		report("ca_file", "has no effect, as token_endpoint is http://", "remove it, or write https://")
	}
}

// checkAuth refuses keys that are missing for the way the client proves itself,
// and those that belong to another way.
func (c *OAuthClient) checkAuth(report Report) {
	auth := c.auth()
	foreign := func(key string, given bool, owners ...string) {
		if given && !slices.Contains(owners, auth) {
			report(key, fmt.Sprintf("has no meaning for client_auth %q", cmp.Or(auth, clientSecretBasic)), "it belongs to "+strings.Join(owners, ", ")+"; remove it or change client_auth")
		}
	}
	switch auth {
	case "", clientSecretBasic, clientSecretPost:
		switch {
		case c.CertFile != "" && c.ClientAuth == "":
			report("client_auth", "is missing: cert_file may serve tls_client_auth or private_key_jwt", "write which of them is meant")
			return
		case c.ClientSecret.IsZero():
			report("client_secret", "is missing", `give client_secret = "${VARIABLE}", or client_secret_file`)
		}
	case privateKeyJWT:
		c.AssertionKey.check(report)
		if c.CertFile != "" {
			if _, err := thumbprints(c.CertFile); err != nil {
				report("cert_file", err.Error(), "give the PEM certificate that the provider knows")
			}
		}
		if a := c.AssertionAudience; a == "issuer" && c.Issuer == "" {
			report("assertion_audience", "there is no issuer", "give issuer instead of token_endpoint, or write the audience as a URL")
		} else if u, err := url.Parse(a); a != "" && a != "issuer" && a != "token_endpoint" && (err != nil || u.Scheme == "") {
			report("assertion_audience", fmt.Sprintf("%q is not token_endpoint, issuer or a URL", a), "leave it out if the provider documents no audience")
		}
	case tlsClientAuth:
		if _, err := tls.LoadX509KeyPair(string(c.CertFile), string(c.KeyFile)); err != nil {
			report("cert_file", err.Error(), "tls_client_auth needs cert_file and key_file, a PEM certificate and its private key")
		}
	default:
		report("client_auth", fmt.Sprintf("%q is not supported", c.ClientAuth),
			"one of client_secret_basic, client_secret_post, private_key_jwt, tls_client_auth; or leave it out")
		return
	}
	foreign("client_secret", !c.ClientSecret.IsZero(), "", clientSecretBasic, clientSecretPost)
	foreign("key_file", c.KeyFile != "", privateKeyJWT, tlsClientAuth)
	foreign("key_id", c.KeyID != "", privateKeyJWT)
	foreign("key_alg", c.KeyAlg != "", privateKeyJWT)
	foreign("assertion_audience", c.AssertionAudience != "", privateKeyJWT)
	foreign("cert_file", c.CertFile != "", privateKeyJWT, tlsClientAuth)
	foreign("bound_token", c.BoundToken, tlsClientAuth)
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

// tokenEndpoint asks for tokens as an OAuth 2.0 client. x/oauth2 writes the
// request; its cache and its guess of the client authentication are not used,
// since the one holds a lock across the network and the other doubles every
// failure.
type tokenEndpoint struct {
	client    *OAuthClient
	http      *http.Client
	discovery *discovery // nil: TokenEndpoint is configured
}

func newTokenEndpoint(c *OAuthClient, env Env) (*tokenEndpoint, error) {
	h, err := newClient(env, c.CAFile)
	if err != nil {
		return nil, err
	}
	if c.auth() == tlsClientAuth {
		presentCertificate(h, c.CertFile, c.KeyFile)
	}
	e := &tokenEndpoint{client: c, http: h}
	if c.Issuer != "" {
		e.discovery = &discovery{issuer: c.Issuer, insecure: c.InsecureHTTP, mtls: c.auth() == tlsClientAuth, client: h}
	}
	return e, nil
}

// presentCertificate makes a client of newClient show a certificate, read anew
// for each handshake so that it can be replaced.
func presentCertificate(h *http.Client, cert File, key PrivateFile) {
	transport := h.Transport.(*guard).base.(*trusting)
	transport.DisableKeepAlives = true // a kept connection would go on with the old certificate
	transport.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(string(cert), string(key))
		if err != nil {
			return nil, &Error{Class: Transient, Code: "secret_unreadable", Key: "cert_file", Hint: "check cert_file and key_file: " + err.Error()}
		}
		return &pair, nil
	}
}

// answer is a token endpoint's success.
type answer struct {
	Token
	refresh Secret // a new refresh token, if one came
}

// ask makes one token request for a grant and its parameters.
func (e *tokenEndpoint) ask(ctx context.Context, grant url.Values) (answer, error) {
	c := e.client
	endpoint, auth := c.TokenEndpoint, c.auth()
	if e.discovery != nil {
		found, err := e.discovery.metadata(ctx)
		if err != nil {
			return answer{}, err
		}
		endpoint = found.TokenEndpoint
		if auth == "" && found.AuthMethods != nil && !slices.Contains(found.AuthMethods, clientSecretBasic) {
			auth = clientSecretPost
		}
	}
	config := clientcredentials.Config{ClientID: c.ClientID, TokenURL: endpoint, Scopes: c.Scopes, EndpointParams: grant, AuthStyle: oauth2.AuthStyleInParams}
	for name, value := range c.Params {
		grant.Set(name, value)
	}
	if c.Audience != "" {
		grant.Set("audience", c.Audience)
	}
	if len(c.Resource) > 0 {
		grant["resource"] = c.Resource
	}
	switch auth {
	case privateKeyJWT:
		assertion, err := c.assertion(endpoint)
		if err != nil {
			return answer{}, err
		}
		grant.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
		grant.Set("client_assertion", assertion)
	case tlsClientAuth: // the certificate speaks for itself
	default:
		secret, err := c.ClientSecret.Read()
		if err != nil {
			return answer{}, unreadable("client_secret", err)
		}
		config.ClientSecret = secret.Reveal()
		if auth != clientSecretPost {
			config.AuthStyle = oauth2.AuthStyleInHeader
		}
	}
	began := time.Now()
	got, err := config.Token(context.WithValue(ctx, oauth2.HTTPClient, e.http))
	if err != nil {
		failure := networkError(err)
		if e.discovery != nil && failure.Status == http.StatusNotFound {
			e.discovery.forget() // the provider may have moved its token endpoint
		}
		return answer{}, explainClient(failure, auth)
	}
	t, err := oauthToken(got, began, c.Scopes)
	return answer{t, NewSecret(got.RefreshToken)}, err
}

// explainClient names the key to check for a client that was refused.
func explainClient(e *Error, auth string) *Error {
	refused := e.Class == Permanent && (e.Code == "invalid_client" || e.Status == http.StatusUnauthorized)
	if !refused || e.Description != "" { // a description is a better explanation already
		return e
	}
	switch auth {
	default: // Keycloak calls a wrong secret unauthorized_client
		e.Key, e.Hint = "client_secret", refusals["invalid_client"].hint
	case privateKeyJWT:
		e.Key = "key_file"
		e.Hint = "the provider refused the client's assertion; check client_id, key_file, key_id, key_alg and assertion_audience, and that the provider has the public key"
	case tlsClientAuth:
		e.Key = "cert_file"
		e.Hint = "the provider refused the client's certificate; check client_id and cert_file, and that the provider knows the certificate"
	}
	return e
}

// unreadable is a secret that cannot be read at the moment.
func unreadable(key string, err error) *Error {
	return &Error{Class: Transient, Code: "secret_unreadable", Key: key, Hint: "check " + key + "_file: " + err.Error()}
}

// oauthToken turns x/oauth2's answer, which has passed the guard, into a Token.
func oauthToken(got *oauth2.Token, began time.Time, asked []string) (Token, error) {
	life, ok := expiresIn(got.Extra(lifetimeKey))
	if !ok {
		return Token{}, &Error{Class: Transient, Code: "provider_answer", Hint: "the provider's expires_in is not a life that a token can have"}
	}
	t := Token{Value: NewSecret(got.AccessToken)}
	if life > 0 {
		t.Expires = began.Add(life)
	}
	if granted, said := got.Extra("scope").(string); said {
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
