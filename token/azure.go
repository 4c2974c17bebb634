package token

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	azlog "github.com/Azure/azure-sdk-for-go/sdk/azcore/log"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

const (
	// azureDICOM is the scope of the DICOM service on the public cloud. Those of
	// the other clouds are published nowhere, hence no default for them.
	azureDICOM = "https://dicom.healthcareapis.azure.com/.default"
	// azureScopeSuffix asks for what the application was granted; Entra takes
	// nothing else in the client credentials grant.
	azureScopeSuffix = "/.default"
)

// azureHosts are the authority hosts by the names that the key cloud takes.
var azureHosts = map[string]string{
	"public": cloud.AzurePublic.ActiveDirectoryAuthorityHost,
	"usgov":  cloud.AzureGovernment.ActiveDirectoryAuthorityHost,
	"china":  cloud.AzureChina.ActiveDirectoryAuthorityHost,
}

// Azure are the keys that all azure types know.
type Azure struct {
	Fetching
	// Cloud is public, usgov or china. Empty: public.
	Cloud string `toml:"cloud"`
	// AuthorityHost is the https URL of another cloud's authority, instead of Cloud.
	AuthorityHost string `toml:"authority_host"`
}

// host returns where tokens come from. The environment has no say in it, but
// for workload identity, whose webhook sets AZURE_AUTHORITY_HOST.
func (a *Azure) host(environment string) string {
	switch {
	case a.AuthorityHost != "":
		return a.AuthorityHost
	case a.Cloud != "":
		return azureHosts[a.Cloud]
	case environment != "":
		return environment
	}
	return azureHosts["public"]
}

// scope returns the one scope to ask for, or "" if it is not known.
func (a *Azure) scope(host string) string {
	switch {
	case len(a.Scopes) == 1:
		return a.Scopes[0]
	case len(a.Scopes) == 0 && strings.TrimSuffix(host, "/") == strings.TrimSuffix(azureHosts["public"], "/"):
		return azureDICOM
	}
	return ""
}

func (a *Azure) check(report Report, environment string) {
	a.Fetching.check(report)
	if _, known := azureHosts[a.Cloud]; a.Cloud != "" && !known {
		report("cloud", fmt.Sprintf("%q is not known", a.Cloud), "one of public, usgov, china; or give authority_host for another one")
		return
	}
	if a.Cloud != "" && a.AuthorityHost != "" {
		report("authority_host", "both cloud and authority_host are given", "keep one of them")
	}
	host := a.host(environment)
	if a.AuthorityHost != "" || environment != "" && a.Cloud == "" {
		if u, err := url.Parse(host); err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			report("authority_host", "is not the https URL of a host", `write it as "https://login.microsoftonline.us"; from AZURE_AUTHORITY_HOST if the profile has none`)
		}
	}
	switch scope := a.scope(host); {
	case len(a.Scopes) > 1:
		report("scopes", fmt.Sprintf("has %d entries, Azure takes one", len(a.Scopes)), "keep the one of the DICOM service, and make a profile for each of the others")
	case scope == "":
		report("scopes", "is missing", "beyond the public cloud there is no known default: read properties.authenticationConfiguration.audiences of the DICOM service resource, and add /.default")
	case !strings.HasSuffix(scope, azureScopeSuffix) || scope == azureScopeSuffix:
		report("scopes", fmt.Sprintf("%q does not end in /.default", scope), `write the audience followed by /.default, such as "`+azureDICOM+`"`)
	}
}

// azureAcquirer asks by way of azidentity, which caches: that a new token comes
// each time is seen to by credential and claims.
type azureAcquirer struct {
	scope      string
	claims     string
	base       http.RoundTripper
	credential func(azcore.ClientOptions) (azcore.TokenCredential, *Error)
	explain    func(e *Error, resp *http.Response, body []byte)
	unusable   Error // for an answer that is sound, but that the SDK does not take
	plain      bool  // the endpoint may be http: it is on this machine
}

// acquirer builds an acquirer that sends by the house's own transport.
func (a *Azure) acquirer(env Env, host string) (*azureAcquirer, error) {
	silenceSDK()
	client, err := newClient(env, a.CAFile)
	if err != nil {
		return nil, err
	}
	// The SDK needs an expires_in that x/oauth2 does not, and Arc's 401: a guard
	// of its own stands on the same transport.
	return &azureAcquirer{scope: a.scope(host), base: client.Transport.(*guard).base}, nil
}

// silenceSDK turns the SDK's log off, which AZURE_SDK_GO_LOGGING=all in the
// environment turns on: it writes to standard error, past our log and its
// redaction. Once is enough, since nothing else in this program sets it, and
// must be before the first use, since the SDK reads it without a lock.
var silenceSDK = sync.OnceFunc(func() { azlog.SetListener(nil) })

// Acquire implements [Acquirer].
func (a *azureAcquirer) Acquire(ctx context.Context) (Token, error) {
	x := &azureExchange{azureAcquirer: a}
	options := azcore.ClientOptions{Transport: x}
	options.Retry.MaxRetries = -1     // one attempt; the Source repeats
	options.Telemetry.Disabled = true // no word about this machine's system
	credential, failed := a.credential(options)
	if failed != nil {
		return Token{}, failed
	}
	got, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{a.scope}, Claims: a.claims})
	if err != nil {
		return Token{}, x.error(ctx) // err has bodies in its text, even tokens
	}
	return Token{Value: NewSecret(got.Token), Expires: x.expires(got.ExpiresOn)}, nil
}

// azureDefault returns the value of a key, or else of the variable that the
// platform sets.
func azureDefault[S ~string](value S, variable string) S {
	if value == "" {
		return S(os.Getenv(variable))
	}
	return value
}

// earlier returns the earlier of two times.
func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
