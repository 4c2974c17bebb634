package token_test

import (
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

const subjectToken = "subject-token-of-somebody-else"

func TestTokenExchangeRequestOnTheWire(t *testing.T) {
	const grant = "urn:ietf:params:oauth:grant-type:token-exchange"
	for _, row := range []struct {
		name   string
		change func(*token.Exchange)
		want   url.Values
	}{
		{name: "what is not said", change: func(*token.Exchange) {}, want: url.Values{
			"grant_type": {grant}, "subject_token": {subjectToken}, "subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"},
		}},
		{name: "all keys", change: func(c *token.Exchange) {
			c.SubjectTokenType, c.RequestedTokenType = "urn:ietf:params:oauth:token-type:id_token", "urn:ietf:params:oauth:token-type:access_token"
			c.Scopes, c.Audience, c.Resource = []string{"a", "b"}, "dicom", token.Strings{"https://one.test", "https://two.test"}
			c.Params = map[string]string{"x": "y"}
		}, want: url.Values{
			"grant_type": {grant}, "subject_token": {subjectToken}, "subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"},
			"requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"}, "scope": {"a b"}, "audience": {"dicom"},
			"resource": {"https://one.test", "https://two.test"}, "x": {"y"},
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := serve(t, answers(200, nil, `{"access_token":"`+accessToken+`","token_type":"Bearer","expires_in":60,"issued_token_type":"urn:ietf:params:oauth:token-type:access_token"}`))
			c := &token.Exchange{OAuthClient: e.settings().OAuthClient, SubjectToken: token.SecretValue(token.NewSecret(subjectToken))}
			row.change(c)
			acquire(t, c)
			if diff := cmp.Diff(row.want, e.requests()[0].Form); diff != "" {
				t.Errorf("form (-want +got):\n%s", diff)
			}
		})
	}
}

// The file is kept fresh by somebody else, such as a kubelet.
func TestSubjectTokenFileIsReadAtEachAttempt(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	path := string(file(t, nil))
	a := build(t, &token.Exchange{OAuthClient: e.settings().OAuthClient, SubjectToken: token.SecretFile(path)})
	for _, content := range []string{"first\n", "second"} {
		overwrite(t, path, []byte(content))
		if _, err := a.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var sent []string
	for _, r := range e.requests() {
		sent = append(sent, r.Form.Get("subject_token"))
	}
	if diff := cmp.Diff([]string{"first", "second"}, sent); diff != "" {
		t.Errorf("subject tokens (-want +got):\n%s", diff)
	}
	_ = os.Remove(path)
	got := failure(t.Context(), t, a)
	if got.Class != token.Transient || got.Code != "secret_unreadable" || got.Key != "subject_token" || !strings.Contains(got.Hint, "subject_token_file") {
		t.Errorf("%+v, want secret_unreadable that names subject_token_file", got)
	}
}

func TestCheckNamesEachMistakeOfTokenExchange(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(*token.Exchange)
		want   []string
	}{
		{name: "none", change: func(*token.Exchange) {}},
		{name: "none, other types", change: func(c *token.Exchange) {
			c.SubjectTokenType, c.RequestedTokenType = "urn:ietf:params:oauth:token-type:id_token", "https://types.test/x"
		}},
		{name: "no subject token", change: func(c *token.Exchange) { c.SubjectToken = token.SecretSource{} }, want: []string{"subject_token: is missing"}},
		{
			name: "types that are not URIs", change: func(c *token.Exchange) { c.SubjectTokenType, c.RequestedTokenType = "jwt", "access_token" },
			want: []string{"requested_token_type: is not a URI", "subject_token_type: is not a URI"},
		},
		{name: "no client secret", change: func(c *token.Exchange) { c.ClientSecret = token.SecretSource{} }, want: []string{"client_secret: is missing"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := &token.Exchange{OAuthClient: oauthClient(), SubjectToken: token.SecretValue(token.NewSecret(subjectToken))}
			row.change(c)
			if diff := cmp.Diff(row.want, reported(t, c)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}
