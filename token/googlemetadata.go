package token

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	gcemetadata "cloud.google.com/go/compute/metadata"
	"golang.org/x/oauth2"
)

// GoogleMetadata are the keys of the type google_metadata: the service account
// that is attached to a virtual machine, a GKE workload or a Cloud Run service,
// from the metadata server
// (cloud.google.com/compute/docs/access/authenticate-workloads). Its address is
// that of GCE_METADATA_HOST, else 169.254.169.254. The server hands out the same
// token until about four minutes before its end.
type GoogleMetadata struct {
	Fetching
	// ServiceAccount is default, or the e-mail address of an attached account.
	ServiceAccount string `toml:"service_account"`
}

// Check implements [Settings].
func (g *GoogleMetadata) Check(report Report) {
	g.check(report)
	checkScopes(report, g.Scopes)
	if strings.Trim(g.ServiceAccount, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:@") != "" ||
		strings.Trim(g.ServiceAccount, ".") == "" {
		report("service_account", "is not the name of a service account", `write "default", or the account's e-mail address`)
	}
}

// Warn implements [Warner].
func (g *GoogleMetadata) Warn(report Report) {
	if g.CAFile != "" {
		report("ca_file", "has no effect, as the metadata server is http:// on this machine", "remove it")
	}
}

// AsksMetadata implements [MetadataUser].
func (g *GoogleMetadata) AsksMetadata() bool { return true }

// metadataDial bounds the connection to the metadata server, which is near or
// not there at all.
const metadataDial = 3 * time.Second

// Acquirer implements [Settings].
func (g *GoogleMetadata) Acquirer(env Env) (Acquirer, error) {
	dial := env.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	near := Env{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, metadataDial)
		defer cancel()
		return dial(ctx, network, address)
	}} // and no proxy: the address means this machine
	client, err := newClient(near, g.CAFile)
	if err != nil {
		return nil, err
	}
	suffix := "instance/service-accounts/" + g.ServiceAccount + "/token?" + url.Values{"scopes": {strings.Join(g.Scopes, ",")}}.Encode()
	return acquirerFunc(func(ctx context.Context) (Token, error) {
		began := time.Now()
		// The library's own token source knows neither a context nor a client.
		got, err := exchangeGoogle(ctx, client, always(&metadataStep), func(ctx context.Context) (*oauth2.Token, error) {
			text, err := gcemetadata.NewClient(ctx.Value(oauth2.HTTPClient).(*http.Client)).GetWithContext(ctx, suffix)
			if err != nil {
				return nil, err
			}
			var members map[string]any
			if err := json.Unmarshal([]byte(text), &members); err != nil {
				return nil, err
			}
			value, _ := members["access_token"].(string)
			return (&oauth2.Token{AccessToken: value}).WithExtra(members), nil
		})
		if err != nil {
			return Token{}, err
		}
		return oauthToken(got, began, g.Scopes)
	}), nil
}

const notOnGoogleCloud = "the metadata server does not answer: this machine is not on Google Cloud, or the server is out of reach (container network, firewall); elsewhere use another google_ type"

var metadataStep = googleStep{
	key: "type", endpoint: "GCE_METADATA_HOST", answer: jsonTokenAnswer,
	advice: map[string]googleAdvice{
		"provider_unreachable": {Transient, "type", notOnGoogleCloud, false},
		"provider_timeout":     {Transient, "type", notOnGoogleCloud, false},
		"400":                  {Permanent, "scopes", "the metadata server refused the request; check scopes and service_account", false},
		"403":                  {Permanent, "service_account", "the workload may not use the service account; check service_account, on GKE grant roles/iam.workloadIdentityUser to the Kubernetes service account", false},
		"404":                  {Permanent, "service_account", "the service account is not attached to this machine; check service_account", false},
	},
}
