package token

import (
	"context"
	"net/url"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// JWTBearer are the keys of the type jwt_bearer: a JWT as authorization grant
// (RFC 7523 section 2.1).
type JWTBearer struct {
	Fetching
	// TokenEndpoint is the URL that tokens are asked from.
	TokenEndpoint string `toml:"token_endpoint"`
	// InsecureHTTP permits http:// for a provider on loopback.
	InsecureHTTP bool `toml:"insecure_http"`
	AssertionKey
	// AssertionIssuer is the iss of the assertion, mostly the client's id.
	AssertionIssuer string `toml:"assertion_issuer"`
	// AssertionSubject is its sub, for whom the token is. Empty: the issuer.
	AssertionSubject string `toml:"assertion_subject"`
	// AssertionAudience is its aud. Empty: the token endpoint.
	AssertionAudience string `toml:"assertion_audience"`
	// Params are further parameters of the token request.
	Params map[string]string `toml:"params"`
}

// Check implements [Settings].
func (j *JWTBearer) Check(report Report) {
	j.Fetching.check(report)
	if j.TokenEndpoint == "" {
		report("token_endpoint", "is missing", "give the URL of the token endpoint")
	} else {
		checkEndpoint(report, "token_endpoint", j.TokenEndpoint, j.InsecureHTTP)
	}
	if j.AssertionIssuer == "" {
		report("assertion_issuer", "is missing", "give what the provider expects as iss, mostly the client's id")
	}
	j.AssertionKey.check(report)
	for _, name := range []string{"grant_type", "assertion", "scope"} {
		if _, given := j.Params[name]; given {
			report("params."+name, "is set by the gateway itself", "use the profile's own key for it")
		}
	}
}

// Warn implements [Warner].
func (j *JWTBearer) Warn(report Report) {
	warnEndpoint(report, j.TokenEndpoint, j.InsecureHTTP, j.CAFile)
}

// Acquirer implements [Settings].
func (j *JWTBearer) Acquirer(env Env) (Acquirer, error) {
	client, err := newClient(env, j.CAFile)
	if err != nil {
		return nil, err
	}
	return acquirerFunc(func(ctx context.Context) (Token, error) {
		subject, audience := j.AssertionSubject, j.AssertionAudience
		if subject == "" {
			subject = j.AssertionIssuer
		}
		if audience == "" {
			audience = j.TokenEndpoint
		}
		assertion, err := j.sign(claims(j.AssertionIssuer, subject, audience), nil)
		if err != nil {
			return Token{}, err
		}
		grant := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {assertion}}
		for name, value := range j.Params {
			grant.Set(name, value)
		}
		config := clientcredentials.Config{TokenURL: j.TokenEndpoint, Scopes: j.Scopes, EndpointParams: grant, AuthStyle: oauth2.AuthStyleInParams}
		began := time.Now()
		got, err := config.Token(context.WithValue(ctx, oauth2.HTTPClient, client))
		if err != nil {
			e := networkError(err)
			if e.Class == Permanent && e.Description == "" && e.Key != "scopes" && e.Key != "token_endpoint" {
				e.Key, e.Hint = "key_file", "the provider refused the assertion; check assertion_issuer, assertion_subject, assertion_audience, key_file, key_id and params, and the clock"
			}
			return Token{}, e
		}
		return oauthToken(got, began, j.Scopes)
	}), nil
}
