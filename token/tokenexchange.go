package token

import (
	"cmp"
	"context"
	"net/url"
	"strings"
)

// Exchange are the keys of the type token_exchange: another token is
// exchanged for one that the DICOMweb server takes (RFC 8693).
type Exchange struct {
	OAuthClient
	// SubjectToken is the token to exchange, mostly from a file that somebody
	// else keeps fresh.
	SubjectToken SecretSource `toml:"subject_token"`
	// SubjectTokenType is its type. Empty: urn:ietf:params:oauth:token-type:jwt.
	SubjectTokenType string `toml:"subject_token_type"`
	// RequestedTokenType is the type to ask for. Empty: the provider decides.
	RequestedTokenType string `toml:"requested_token_type"`
}

// Check implements [Settings].
func (x *Exchange) Check(report Report) {
	x.OAuthClient.Check(report)
	if x.SubjectToken.IsZero() {
		report("subject_token", "is missing", "give subject_token_file")
	}
	for key, typ := range map[string]string{"subject_token_type": x.SubjectTokenType, "requested_token_type": x.RequestedTokenType} {
		if typ != "" && !strings.Contains(typ, ":") {
			report(key, "is not a URI", "such as urn:ietf:params:oauth:token-type:access_token")
		}
	}
}

// Acquirer implements [Settings].
func (x *Exchange) Acquirer(env Env) (Acquirer, error) {
	endpoint, err := newTokenEndpoint(&x.OAuthClient, env)
	if err != nil {
		return nil, err
	}
	return acquirerFunc(func(ctx context.Context) (Token, error) {
		subject, err := x.SubjectToken.Read()
		if err != nil {
			return Token{}, unreadable("subject_token", err)
		}
		grant := url.Values{
			"grant_type":         {"urn:ietf:params:oauth:grant-type:token-exchange"},
			"subject_token":      {subject.Reveal()},
			"subject_token_type": {cmp.Or(x.SubjectTokenType, "urn:ietf:params:oauth:token-type:jwt")},
		}
		if x.RequestedTokenType != "" {
			grant.Set("requested_token_type", x.RequestedTokenType)
		}
		got, err := endpoint.ask(ctx, grant)
		return got.Token, explainGrant(err, "subject_token", "the provider refused the subject token; check subject_token_file, subject_token_type and audience")
	}), nil
}

// explainGrant names the key to check when the grant was refused.
func explainGrant(err error, key, hint string) error {
	if e, ok := err.(*Error); ok && (e.Code == "invalid_grant" || e.Code == "invalid_request") && e.Description == "" { //nolint:errorlint // our own, never wrapped
		e.Key, e.Hint = key, hint
	}
	return err
}
