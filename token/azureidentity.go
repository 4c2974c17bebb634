package token

import (
	"net/http"
	"os"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// AzureManagedIdentity are the keys of the type azure_managed_identity: the
// platform that the gateway runs on hands out the token. The SDK finds the
// platform by the environment: App Service and Container Apps
// (IDENTITY_ENDPOINT), Azure Arc (its agent, on 127.0.0.1), else a virtual
// machine (169.254.169.254).
type AzureManagedIdentity struct {
	Azure
	// At most one of these names a user-assigned identity. None: the one that is
	// system-assigned.
	IdentityClientID   string `toml:"identity_client_id"`
	IdentityObjectID   string `toml:"identity_object_id"`
	IdentityResourceID string `toml:"identity_resource_id"`
}

// AsksMetadata implements [MetadataUser].
func (m *AzureManagedIdentity) AsksMetadata() bool { return true }

// Check implements [Settings].
func (m *AzureManagedIdentity) Check(report Report) {
	m.check(report, "")
	var given []string
	for _, id := range []struct{ key, value string }{
		{"identity_client_id", m.IdentityClientID}, {"identity_object_id", m.IdentityObjectID}, {"identity_resource_id", m.IdentityResourceID},
	} {
		if id.value != "" {
			given = append(given, id.key)
		}
	}
	if len(given) > 1 {
		report(given[1], strings.Join(given, " and ")+" are given", "keep one of them: each names one identity")
	}
}

// Warn implements [Warner].
func (m *AzureManagedIdentity) Warn(report Report) {
	for key, given := range map[string]bool{"cloud": m.Cloud != "", "authority_host": m.AuthorityHost != ""} {
		if given { // but that there is no default for scopes beyond the public cloud
			report(key, "has no effect on where tokens come from: that is this machine's own endpoint", "remove it, and keep scopes")
		}
	}
	if m.CAFile != "" && !strings.HasPrefix(os.Getenv("IDENTITY_ENDPOINT"), "https:") {
		report("ca_file", "has no effect, as the managed identity endpoint is http:// on this machine", "remove it")
	}
}

// identity returns the key that names the identity, "" if it is system-assigned.
func (m *AzureManagedIdentity) identity() (key string, id azidentity.ManagedIDKind) {
	switch {
	case m.IdentityClientID != "":
		return "identity_client_id", azidentity.ClientID(m.IdentityClientID)
	case m.IdentityObjectID != "":
		return "identity_object_id", azidentity.ObjectID(m.IdentityObjectID)
	case m.IdentityResourceID != "":
		return "identity_resource_id", azidentity.ResourceID(m.IdentityResourceID)
	}
	return "", nil
}

// Acquirer implements [Settings].
func (m *AzureManagedIdentity) Acquirer(env Env) (Acquirer, error) {
	env.Proxy = nil // the endpoint is this machine's own; no proxy could reach it
	acquirer, err := m.acquirer(env, m.host(""))
	if err != nil {
		return nil, err
	}
	key, id := m.identity()
	acquirer.plain = true
	// The SDK keeps tokens in a cache that all credentials of the process share.
	// Claims make it pass that by; they are not sent to the endpoint.
	acquirer.claims = "{}"
	acquirer.credential = func(options azcore.ClientOptions) (azcore.TokenCredential, *Error) {
		c, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ClientOptions: options, ID: id})
		if err != nil { // Cloud Shell, Azure ML and Service Fabric take not every kind of identity, or not our transport
			return nil, &Error{
				Class: Permanent, Code: "provider_unreachable", Key: key,
				Hint: "this platform's managed identity endpoint cannot be used with these keys; on Service Fabric it cannot be used at all",
			}
		}
		return c, nil
	}
	acquirer.unusable = Error{Class: Transient, Code: "provider_answer", Key: key, Hint: "the managed identity endpoint's answer cannot be used"}
	if key != "" { // the one such answer that is known
		acquirer.unusable.Hint += "; an Azure Arc agent that does not know user-assigned identities hands out another identity's token, so leave " + key + " out, or update the agent"
	}
	acquirer.explain = func(e *Error, resp *http.Response, body []byte) { explainIdentity(e, resp, body, key) }
	return acquirer, nil
}

// explainIdentity puts an error into the terms of the profile's keys. key is
// the one that names the identity, or empty.
func explainIdentity(e *Error, resp *http.Response, body []byte, key string) {
	const endpoint = "the managed identity endpoint"
	e.Hint = strings.ReplaceAll(e.Hint, "token_endpoint", endpoint)
	if e.Key == "token_endpoint" || e.Key == "client_secret" {
		e.Key = ""
	}
	if resp == nil {
		if e.Code == "provider_unreachable" || e.Code == "provider_timeout" {
			e.Hint = "this machine has no managed identity endpoint, or it does not answer; outside Azure take another type, or install the Azure Arc agent"
		}
		return
	}
	text := azureText(body)
	explainAADSTS(e, resp, text)
	if e.Class == Throttled || strings.HasPrefix(e.Description, "AADSTS") || e.Code == "provider_answer" && resp.StatusCode < 400 {
		return
	}
	switch {
	case resp.StatusCode == http.StatusBadRequest && strings.Contains(string(body), "invalid_resource"):
		e.Class, e.Key, e.Hint = Permanent, "scopes", "the audience in scopes is not known in the identity's tenant"
	case resp.StatusCode == http.StatusBadRequest && key != "":
		e.Class, e.Key = Permanent, key
		e.Hint = "the identity is not assigned to this machine or app; check " + key + ", or assign it"
	case resp.StatusCode == http.StatusBadRequest:
		e.Class = Permanent
		e.Hint = "this machine or app has no system-assigned identity; turn it on, or name a user-assigned one by identity_client_id"
	case resp.StatusCode == http.StatusNotFound, resp.StatusCode == http.StatusGone: // IMDS restarts, says its documentation
		e.Class, e.Hint = Transient, endpoint+" is not ready, or there is none"
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		e.Class, e.Hint = Permanent, endpoint+" refused the gateway; restart it if its platform has changed, and see that no proxy answers in place of the platform"
	}
}

// arcChallenge reports whether Azure Arc's agent answers with the path of a key
// file: who can read it may have a token, and asks again with its content.
func arcChallenge(req *http.Request, resp *http.Response) bool {
	return resp.StatusCode == http.StatusUnauthorized && req.Method == http.MethodGet && req.Header.Get("Authorization") == "" &&
		strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Basic realm=")
}

func arcKeyUnreadable(resp *http.Response) *Error {
	return &Error{
		Class: Transient, Code: "secret_unreadable", Status: resp.StatusCode,
		Hint: "the Azure Arc agent's key file cannot be read; add the gateway's user to the group himds",
	}
}
