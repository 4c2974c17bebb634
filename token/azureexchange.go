package token

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// errAzureAnswer is all that the SDK gets to know of a failure: what it puts
// into its own errors is thrown away, whole bodies are in them.
var errAzureAnswer = errors.New("see azureExchange.failure")

// azureExchange carries the requests of one attempt, in place of the guard that
// stands before x/oauth2. It hands the SDK sound answers only, reduced to the
// members that are needed, and keeps what an [*Error] is made of. The SDK calls
// it from the goroutine of the attempt, one request after the other.
type azureExchange struct {
	*azureAcquirer

	failure    *Error        // of the last request; nil if its answer was sound
	discovered bool          // the last answer was a sound discovery document
	began      time.Time     // when the token was asked for
	life       time.Duration // expires_in, 0 if not said
	unsaid     bool          // neither expires_in nor expires_on
}

// Do implements the SDK's policy.Transporter.
func (x *azureExchange) Do(req *http.Request) (*http.Response, error) {
	x.failure, x.discovered = nil, false
	if req.URL.Scheme != "https" && !x.plain { // the token endpoint comes from a discovery document
		return x.fail(&Error{
			Class: Permanent, Code: "discovery_failed", Key: "authority_host",
			Hint: "the authority names a token endpoint that is not https; check authority_host",
		}, nil, nil)
	}
	x.began = time.Now()
	resp, err := x.base.RoundTrip(req)
	if err != nil {
		return x.fail(networkError(err), nil, nil)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	resp.Body.Close()
	switch {
	case err != nil:
		return x.fail(networkError(err), nil, nil)
	case len(body) > maxAnswer:
		return x.fail(oddAnswer(resp, fmt.Sprintf("the answer is larger than %d bytes", maxAnswer)), resp, nil)
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return x.fail(oddAnswer(resp, "the provider answers with a redirect, which is never followed; give its final URL"), resp, nil)
	case arcChallenge(req, resp):
		x.failure = arcKeyUnreadable(resp) // unless the SDK goes on and asks again with the key
		return rebuild(resp, nil), nil
	case resp.StatusCode != http.StatusOK:
		return x.fail(refusal(resp, body), resp, body)
	case !json.Valid(body):
		return x.fail(oddAnswer(resp, "the answer is not JSON; a captive portal or TLS-inspecting proxy may stand before the provider"), resp, nil)
	}
	if strings.HasSuffix(req.URL.Path, "/.well-known/openid-configuration") {
		x.discovered = true
		return rebuild(resp, members(body, "issuer", "authorization_endpoint", "token_endpoint")), nil
	}
	return x.token(resp, body)
}

// token checks the answer that holds the token.
func (x *azureExchange) token(resp *http.Response, body []byte) (*http.Response, error) {
	if _, err := tokenAnswer(resp, body); err != nil {
		return x.fail(networkError(err), resp, body)
	}
	answer := members(body,
		"access_token", "token_type", "expires_in", "expires_on",
		"client_id", "object_id", "msi_res_id", "mi_res_id") // by these Arc confirms a user-assigned identity
	life, ok := expiresIn(answer["expires_in"])
	if !ok {
		return x.fail(oddAnswer(resp, "the provider's expires_in is not a life that a token can have"), resp, nil)
	}
	x.life = life
	x.unsaid = life == 0 && (answer["expires_on"] == nil || answer["expires_on"] == "")
	if x.unsaid {
		life = time.Hour // the SDK will not do without; see expires
	}
	delete(answer, "expires_in")
	if life > 0 { // a whole number, which is all that the SDK reads
		answer["expires_in"] = int(max(life, time.Second) / time.Second)
	}
	return rebuild(resp, answer), nil
}

// expires returns the end of the token's life, given what the SDK makes of it.
// Managed identity endpoints name the end itself, and answer from a cache.
func (x *azureExchange) expires(sdk time.Time) time.Time {
	switch {
	case x.unsaid:
		return time.Time{}
	case x.life > 0:
		return earlier(sdk, x.began.Add(x.life))
	}
	return earlier(sdk, x.began.Add(maxLifetime))
}

func (x *azureExchange) fail(e *Error, resp *http.Response, body []byte) (*http.Response, error) {
	x.explain(e, resp, body)
	x.failure = e
	return nil, errAzureAnswer
}

// error returns why there is no token, after the SDK said that there is none.
func (x *azureExchange) error(ctx context.Context) *Error {
	switch {
	case x.failure != nil:
		return x.failure
	case ctx.Err() != nil:
		e := networkError(ctx.Err())
		x.explain(e, nil, nil)
		return e
	case x.discovered:
		return &Error{
			Class: Permanent, Code: "discovery_failed", Key: "authority_host",
			Hint: "the authority's discovery document is not one of Microsoft Entra; check cloud or authority_host",
		}
	}
	e := x.unusable
	return &e
}

// members returns the named members of a JSON object, in this spelling only.
func members(body []byte, names ...string) map[string]any {
	var all map[string]any
	_ = json.Unmarshal(body, &all) // checked to be JSON; what is no object has no members
	some := map[string]any{}
	for _, name := range names {
		switch v := all[name].(type) {
		case string, float64:
			some[name] = v
		}
	}
	return some
}

// rebuild returns the response with nothing in it but the members.
func rebuild(resp *http.Response, some map[string]any) *http.Response {
	body, _ := json.Marshal(some) // strings and numbers from JSON
	clean := *resp
	clean.Header = http.Header{"Content-Type": {"application/json"}}
	if challenge := resp.Header["Www-Authenticate"]; challenge != nil {
		clean.Header["Www-Authenticate"] = challenge
	}
	clean.Body = io.NopCloser(bytes.NewReader(body))
	clean.ContentLength = int64(len(body))
	return &clean
}

// azureText returns the words of an error answer, to look for codes in it: they
// go nowhere else. Entra and IMDS write error_description, App Service message.
func azureText(body []byte) string {
	some := members(body, "error_description", "message")
	description, _ := some["error_description"].(string)
	message, _ := some["message"].(string)
	return description + " " + message
}
