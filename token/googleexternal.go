package token

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
	"golang.org/x/oauth2/google/externalaccount"
)

// GoogleExternalAccount are the keys of the type google_external_account:
// workload identity federation. A subject token from a file or a URL is
// exchanged at Google's security token service (RFC 8693), and its answer
// mostly for the access token of a service account
// (cloud.google.com/iam/docs/workload-identity-federation).
type GoogleExternalAccount struct {
	Fetching
	// CredentialsFile is a JSON of type external_account. It is read again at each
	// acquisition. Commands in it are never run, and AWS sources not supported.
	CredentialsFile PrivateFile `toml:"credentials_file"`
	// InsecureHTTP permits http:// URLs in the file, on loopback.
	InsecureHTTP bool `toml:"insecure_http"`
}

// Check implements [Settings].
func (g *GoogleExternalAccount) Check(report Report) {
	g.check(report)
	checkScopes(report, g.Scopes)
	checkGoogleFile(report, g.CredentialsFile, google.ExternalAccount, g.InsecureHTTP)
}

// Acquirer implements [Settings].
func (g *GoogleExternalAccount) Acquirer(env Env) (Acquirer, error) {
	client, err := newClient(env, g.CAFile)
	if err != nil {
		return nil, err
	}
	return acquirerFunc(func(ctx context.Context) (Token, error) {
		f, err := readGoogleFile(g.CredentialsFile, google.ExternalAccount, g.InsecureHTTP)
		if err != nil {
			return Token{}, err
		}
		config := externalaccount.Config{
			Audience: f.Audience, SubjectTokenType: f.SubjectTokenType, TokenURL: f.TokenURL,
			ServiceAccountImpersonationURL: f.Impersonation, ServiceAccountImpersonationLifetimeSeconds: f.Lifetime.Seconds,
			ClientID: f.ClientID, ClientSecret: f.ClientSecret, CredentialSource: &f.CredentialSource,
			Scopes: g.Scopes, WorkforcePoolUserProject: f.UserProject,
		}
		steps := federation{format: f.CredentialSource.Format}
		began := time.Now()
		got, err := exchangeGoogle(ctx, client, steps.step, func(ctx context.Context) (*oauth2.Token, error) {
			source, err := externalaccount.NewTokenSource(ctx, config)
			if err != nil {
				return nil, err
			}
			return source.Token()
		})
		if err != nil {
			if !steps.asked && ctx.Err() == nil {
				err = &Error{
					Class: Transient, Code: "secret_unreadable", Key: "credentials_file",
					Hint: "the subject token cannot be read; check credential_source in credentials_file, and that the gateway's user may read its file",
				}
			}
			return Token{}, err
		}
		return oauthToken(got.WithExtra(steps.last), began, g.Scopes)
	}), nil
}

// federation is the run of one exchange through its two or three requests. The
// library insists on an expires_in, a whole number above zero, and on an
// expireTime; it gets one, and what the provider truly said is kept in last.
type federation struct {
	format externalaccount.Format
	asked  bool           // a request was made
	last   map[string]any // the members of the last answer that oauthToken reads
}

// step tells the requests apart by what Google's library makes them of.
func (f *federation) step(req *http.Request) *googleStep {
	f.asked = true
	switch {
	case req.Method == http.MethodGet:
		return &googleStep{key: "credentials_file", endpoint: "credential_source.url in credentials_file", answer: f.subjectToken, advice: map[string]googleAdvice{
			"400": {Permanent, "", "the source of the subject token refused the request; check credential_source.url and .headers in credentials_file", false},
			"401": {Permanent, "", "the source of the subject token refused the request; check credential_source.headers in credentials_file", false},
			"403": {Permanent, "", "the source of the subject token refused the request; check credential_source.headers in credentials_file", false},
			"404": {Permanent, "", "there is no subject token at credential_source.url in credentials_file", false},
		}}
	case req.Header.Get("Content-Type") == "application/json":
		return &googleStep{key: "credentials_file", endpoint: "service_account_impersonation_url in credentials_file", answer: f.impersonated, advice: map[string]googleAdvice{
			"400": {Permanent, "scopes", "Google refused to make a token for the service account; check scopes, and token_lifetime_seconds in credentials_file", false},
			"401": {Permanent, "", "Google refused the federated token at service_account_impersonation_url in credentials_file", true},
			"403": {Permanent, "", "the external identity may not act as the service account; grant it roles/iam.workloadIdentityUser there, and enable the IAM Service Account Credentials API", false},
			"404": {Permanent, "", "the service account is unknown; check service_account_impersonation_url in credentials_file", false},
		}}
	}
	return &googleStep{key: "credentials_file", endpoint: "token_url in credentials_file", answer: f.federated, advice: map[string]googleAdvice{
		"invalid_grant":       {Permanent, "", "Google refused the subject token: it is expired, or its issuer or audience is not what the identity pool's provider allows; check credential_source in credentials_file, and the clock", true},
		"invalid_request":     {Permanent, "", "Google dislikes the subject token or a parameter; check credential_source (is the token empty?), subject_token_type and audience in credentials_file", false},
		"invalid_target":      {Permanent, "", "Google does not know the identity pool or its provider, or it is disabled; check audience in credentials_file", false},
		"unauthorized_client": {Permanent, "", "the attribute condition of the identity pool's provider refuses this identity", false},
		"invalid_client":      {Permanent, "", "Google refused the client; check client_id and client_secret in credentials_file", false},
		"401":                 {Permanent, "", "Google refused the client; check client_id and client_secret in credentials_file", false},
	}}
}

// subjectToken checks the answer of credential_source.url.
func (f *federation) subjectToken(resp *http.Response, body []byte) ([]byte, error) {
	body = bytes.TrimSpace(body) // as Google's library does it for a file
	if f.format.Type == "json" {
		var answer map[string]any
		if json.Unmarshal(body, &answer) != nil {
			return nil, oddAnswer(resp, "the subject token's answer is not a JSON object; check credential_source in credentials_file")
		}
		if value, _ := answer[f.format.SubjectTokenFieldName].(string); value == "" {
			return nil, oddAnswer(resp, "the subject token's answer lacks the field that holds it; check credential_source.format in credentials_file")
		}
		return body, nil
	}
	if len(body) == 0 {
		return nil, oddAnswer(resp, "the subject token is empty; check credential_source.url in credentials_file")
	}
	return body, nil
}

// federated checks the answer of the security token service.
func (f *federation) federated(resp *http.Response, body []byte) ([]byte, error) {
	body, err := jsonTokenAnswer(resp, body)
	if err != nil {
		return nil, err
	}
	f.last = map[string]any{}
	if err := json.Unmarshal(body, &f.last); err != nil {
		return nil, oddAnswer(resp, notJSON)
	}
	return json.Marshal(map[string]any{"access_token": f.last["access_token"], "token_type": "Bearer", "expires_in": 3600})
}

// impersonated checks the answer of generateAccessToken
// (cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken).
func (f *federation) impersonated(resp *http.Response, body []byte) ([]byte, error) {
	var answer map[string]any
	if json.Unmarshal(body, &answer) != nil {
		return nil, oddAnswer(resp, notJSON)
	}
	f.last = map[string]any{}
	end := time.Now().Add(time.Hour)
	if said := answer["expireTime"]; said != nil {
		text, _ := said.(string)
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return nil, oddAnswer(resp, "the expireTime of the answer is not a time")
		}
		life := at.Sub(providerTime(resp))
		if life <= 0 {
			return nil, oddAnswer(resp, "the token was already expired when it came; check the clock of this machine")
		}
		f.last[lifetimeKey], end = life.Seconds(), at
	}
	token, err := json.Marshal(map[string]any{"access_token": answer["accessToken"], "token_type": "Bearer"})
	if err != nil {
		return nil, oddAnswer(resp, notJSON)
	}
	if _, err := tokenAnswer(resp, token); err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"accessToken": answer["accessToken"], "expireTime": end.UTC().Format(time.RFC3339)})
}

// providerTime is the provider's own time of an answer, so that a life does not
// depend on this machine's clock. Date leaves out the fraction of a second, which
// is put on top to be on the safe side.
func providerTime(resp *http.Response) time.Time {
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		return date.Add(time.Second)
	}
	return time.Now()
}
