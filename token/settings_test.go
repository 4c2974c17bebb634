package token_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

func TestCheckNamesEachMistake(t *testing.T) {
	noPEM := file(t, []byte("no certificate"))
	for _, row := range []struct {
		name   string
		change func(*token.ClientCredentials)
		want   []string // "key: problem"
	}{
		{name: "none", change: func(*token.ClientCredentials) {}},
		{name: "none with an issuer", change: func(c *token.ClientCredentials) { c.TokenEndpoint, c.Issuer = "", "https://login.test/" }},
		{name: "none with a secret file", change: func(c *token.ClientCredentials) { c.ClientSecret = token.SecretFile("/no/such/file/yet") }},
		{name: "none with basic", change: func(c *token.ClientCredentials) { c.ClientAuth = "client_secret_basic" }},
		{name: "none with post", change: func(c *token.ClientCredentials) { c.ClientAuth = "client_secret_post" }},
		{name: "none with params", change: func(c *token.ClientCredentials) { c.Params = map[string]string{"organization": "x"} }},
		{name: "none with a query", change: func(c *token.ClientCredentials) { c.TokenEndpoint += "?api-version=1" }},
		{name: "http on 127.0.0.1", change: func(c *token.ClientCredentials) { c.TokenEndpoint, c.InsecureHTTP = "http://127.0.0.1:8080/t", true }},
		{name: "http on ::1", change: func(c *token.ClientCredentials) { c.TokenEndpoint, c.InsecureHTTP = "http://[::1]:8080/t", true }},
		{name: "http on localhost", change: func(c *token.ClientCredentials) { c.TokenEndpoint, c.InsecureHTTP = "http://localhost/t", true }},
		{
			name: "neither endpoint nor issuer", change: func(c *token.ClientCredentials) { c.TokenEndpoint = "" },
			want: []string{"token_endpoint: is missing"},
		},
		{
			name: "both endpoint and issuer", change: func(c *token.ClientCredentials) { c.Issuer = "https://login.test" },
			want: []string{"issuer: both issuer and token_endpoint are given"},
		},
		{
			name: "http", change: func(c *token.ClientCredentials) { c.TokenEndpoint = "http://login.test/token" },
			want: []string{"token_endpoint: http:// would send the secret in clear"},
		},
		{
			name: "http on loopback without leave", change: func(c *token.ClientCredentials) { c.TokenEndpoint = "http://127.0.0.1/token" },
			want: []string{"token_endpoint: http:// would send the secret in clear"},
		},
		{
			name: "http beyond loopback with leave", change: func(c *token.ClientCredentials) { c.TokenEndpoint, c.InsecureHTTP = "http://login.test/token", true },
			want: []string{`token_endpoint: insecure_http is for loopback only, "login.test" is not`},
		},
		{
			name: "http on a name that only looks like loopback", change: func(c *token.ClientCredentials) {
				c.TokenEndpoint, c.InsecureHTTP = "http://127.0.0.1.nip.test/token", true
			},
			want: []string{`token_endpoint: insecure_http is for loopback only, "127.0.0.1.nip.test" is not`},
		},
		{
			name: "issuer over http", change: func(c *token.ClientCredentials) { c.TokenEndpoint, c.Issuer = "", "http://login.test" },
			want: []string{"issuer: http:// would send the secret in clear"},
		},
		{
			name: "another scheme", change: func(c *token.ClientCredentials) { c.TokenEndpoint = "ftp://login.test/token" },
			want: []string{"token_endpoint: ftp:// would send the secret in clear"},
		},
		{
			name: "no scheme", change: func(c *token.ClientCredentials) { c.TokenEndpoint = "login.test/token" },
			want: []string{"token_endpoint: is not a URL of a provider"},
		},
		{
			name: "no host", change: func(c *token.ClientCredentials) { c.TokenEndpoint = "https:///token" },
			want: []string{"token_endpoint: is not a URL of a provider"},
		},
		{
			name: "a port without host", change: func(c *token.ClientCredentials) { c.TokenEndpoint = "https://:8443/token" },
			want: []string{"token_endpoint: is not a URL of a provider"},
		},
		{
			name: "not a URL", change: func(c *token.ClientCredentials) { c.TokenEndpoint = "https://login.test:port/" },
			want: []string{"token_endpoint: is not a URL of a provider"},
		},
		{
			name: "credentials in the URL", change: func(c *token.ClientCredentials) {
				c.TokenEndpoint = "https://user:" + clientSecret + "@login.test/token"
			},
			want: []string{"token_endpoint: is not a URL of a provider"},
		},
		{
			name: "a fragment", change: func(c *token.ClientCredentials) { c.TokenEndpoint = "https://login.test/token#x" },
			want: []string{"token_endpoint: is not a URL of a provider"},
		},
		{name: "no client_id", change: func(c *token.ClientCredentials) { c.ClientID = "" }, want: []string{"client_id: is missing"}},
		{name: "no secret", change: func(c *token.ClientCredentials) { c.ClientSecret = token.SecretSource{} }, want: []string{"client_secret: is missing"}},
		{
			name: "an unknown client_auth", change: func(c *token.ClientCredentials) { c.ClientAuth = "client_secret_jwt" },
			want: []string{`client_auth: "client_secret_jwt" is not supported`},
		},
		{name: "grant_type in params", change: reserve("grant_type"), want: []string{"params.grant_type: is set by the gateway itself"}},
		{name: "scope in params", change: reserve("scope"), want: []string{"params.scope: is set by the gateway itself"}},
		{name: "client_id in params", change: reserve("client_id"), want: []string{"params.client_id: is set by the gateway itself"}},
		{name: "client_secret in params", change: reserve("client_secret"), want: []string{"params.client_secret: is set by the gateway itself"}},
		{name: "audience in params", change: reserve("audience"), want: []string{"params.audience: is set by the gateway itself"}},
		{name: "resource in params", change: reserve("resource"), want: []string{"params.resource: is set by the gateway itself"}},
		{
			name: "a ca_file that is not there", change: func(c *token.ClientCredentials) { c.CAFile = "/no/such/ca.pem" },
			want: []string{"ca_file: open /no/such/ca.pem: no such file or directory"},
		},
		{
			name: "a ca_file without certificates", change: func(c *token.ClientCredentials) { c.CAFile = noPEM },
			want: []string{"ca_file: no PEM certificate in " + string(noPEM)},
		},
		{
			name: "all empty", change: func(c *token.ClientCredentials) { *c = token.ClientCredentials{} },
			want: []string{"token_endpoint: is missing", "client_id: is missing", "client_secret: is missing"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := &token.ClientCredentials{OAuthClient: token.OAuthClient{
				TokenEndpoint: "https://login.test/token", ClientID: "client", ClientSecret: token.SecretValue(token.NewSecret(clientSecret)),
			}}
			row.change(c)
			var got []string
			c.Check(func(key, problem, remedy string) {
				got = append(got, key+": "+problem)
				if remedy == "" {
					t.Errorf("%s: no remedy", key)
				}
				if strings.Contains(problem+remedy, clientSecret) {
					t.Errorf("%s shows the secret: %s, %s", key, problem, remedy)
				}
			})
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func reserve(name string) func(*token.ClientCredentials) {
	return func(c *token.ClientCredentials) { c.Params = map[string]string{name: "x"} }
}

func TestProfileKeysLieOverTheDefaults(t *testing.T) {
	var c token.ClientCredentials
	defaults := token.DefaultLifecycle()
	if diff := cmp.Diff(defaults, c.Lifecycle(defaults)); diff != "" {
		t.Errorf("no keys (-want +got):\n%s", diff)
	}
	c.RefreshBuffer, c.RequestTimeout = time.Minute, 3*time.Second
	want := defaults
	want.RefreshBuffer, want.RequestTimeout = time.Minute, 3*time.Second
	if diff := cmp.Diff(want, c.Lifecycle(defaults)); diff != "" {
		t.Errorf("both keys (-want +got):\n%s", diff)
	}
}

func TestEachTypeHasSettings(t *testing.T) {
	for _, typ := range token.Types() {
		if token.NewSettings(typ) == nil {
			t.Errorf("no settings for the type %q", typ)
		}
	}
	if got := token.NewSettings("password"); got != nil {
		t.Errorf("settings %T for an unknown type", got)
	}
}

func TestAcquirerNeedsAReadableCAFile(t *testing.T) {
	c := &token.ClientCredentials{OAuthClient: token.OAuthClient{TokenEndpoint: "https://login.test/token"}}
	c.CAFile = "/no/such/ca.pem"
	if _, err := c.Acquirer(token.Env{}); err == nil || !strings.Contains(err.Error(), "ca_file") {
		t.Errorf("Acquirer: %v, want an error that names ca_file", err)
	}
}
