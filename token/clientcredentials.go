package token

import (
	"context"
	"net/url"
)

// ClientCredentials are the keys of the type client_credentials: the OAuth 2.0
// client credentials grant (RFC 6749 section 4.4).
type ClientCredentials struct{ OAuthClient }

// Acquirer implements [Settings].
func (c *ClientCredentials) Acquirer(env Env) (Acquirer, error) {
	endpoint, err := newTokenEndpoint(&c.OAuthClient, env)
	if err != nil {
		return nil, err
	}
	return acquirerFunc(func(ctx context.Context) (Token, error) {
		got, err := endpoint.ask(ctx, url.Values{})
		return got.Token, err
	}), nil
}

// acquirerFunc is an [Acquirer] without state of its own.
type acquirerFunc func(ctx context.Context) (Token, error)

// Acquire implements [Acquirer].
func (f acquirerFunc) Acquire(ctx context.Context) (Token, error) { return f(ctx) }
