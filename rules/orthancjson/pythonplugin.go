package orthancjson

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

const (
	entraDefault = "/.default"
	azureScope   = "https://dicom.healthcareapis.azure.com" + entraDefault
)

// Token endpoints by their hosts (identity.md sections 1 and 5).
var (
	googleHosts = []string{"oauth2.googleapis.com", "www.googleapis.com", "accounts.google.com", "sts.googleapis.com"}
	entraHosts  = []string{"login.microsoftonline.com", "login.microsoftonline.us", "login.chinacloudapi.cn", "login.partner.microsoftonline.cn"}
)

// Settings of the plugin that have no counterpart, and what to use instead.
var (
	sectionSettings = map[string]string{
		"ConfigVersion":          "has no meaning here",
		"LogLevel":               "was not taken over; set level under [log]",
		"EnableMetrics":          "was not taken over; metrics are always at /metrics of the address under [admin]",
		"RateLimitRequests":      "has no counterpart; the admin address is on loopback or behind a password",
		"RateLimitWindowSeconds": "has no counterpart; the admin address is on loopback or behind a password",
	}
	serverSettings = map[string]string{
		"ResilienceConfig":     "has no counterpart; see max_attempts and max_backoff under [token]",
		"DisableJWTValidation": "has no meaning; the gateway does not look into access tokens",
		"JWTPublicKey":         "has no meaning; the gateway does not look into access tokens",
		"JWTAudience":          "has no meaning; the gateway does not look into access tokens",
		"JWTIssuer":            "has no meaning; the gateway does not look into access tokens",
		"UseInstanceProfile":   "has no meaning for this provider",
		"Region":               "has no meaning for this provider",
		"TenantId":             "is not needed beside TokenEndpoint",
	}
	identitySettings = with(serverSettings, "is not needed for a managed identity and was not taken over", "TokenEndpoint", "ClientSecret", "TenantId")
)

func with(base map[string]string, reason string, keys ...string) map[string]string {
	m := maps.Clone(base)
	for _, k := range keys {
		m[k] = reason
	}
	return m
}

// pythonPlugin converts the section of the Python plugin: {"Servers": {...}},
// or the servers directly.
func (c *converter) pythonPlugin(section *object) {
	servers := section
	if _, there := section.values["Servers"]; there {
		if servers = c.object(section, "Servers"); servers == nil {
			if len(c.problems) == 0 {
				c.problem(section.key("Servers"), "is null", `write it as {"NAME": {...}}`)
			}
			return
		}
	} else {
		for _, key := range section.keys {
			if _, isServer := section.values[key].(*object); isServer {
				section.read[key] = true
			}
		}
	}
	c.sectionRest(section, sectionSettings)
	for _, name := range servers.keys {
		if server, ok := servers.values[name].(*object); ok {
			c.server(name, server)
		} else if servers != section {
			c.problem(servers.key(name), "must be an object, got "+kind(servers.values[name]), "write the server as {...}")
		}
	}
}

func (c *converter) server(name string, o *object) {
	b := c.begin(name, o)
	url, key := c.required(o, "Url", "DicomWebRoot")
	if strings.Contains(url, "//medical-imaging.") {
		b.decide(&b.rule, key, "HealthImaging speaks DICOMweb at https://dicom-medical-imaging.REGION.amazonaws.com/datastore/ID/")
	}
	b.setURL(key, url)
	said, providerKey := c.text(o, "ProviderType", "Provider", "Type")
	provider := strings.NewReplacer("_", "", "-", "", " ", "").Replace(strings.ToLower(said))
	given, _ := c.text(o, "TokenEndpoint")
	switch provider {
	case "", "auto", "generic", "oauth2", "oidc", "keycloak", "okta", "auth0", "azure", "azuread", "entra", "google", "aws",
		"azuremanagedidentity", "managedidentity":
	default:
		b.decide(&b.rule, providerKey, fmt.Sprintf("provider %q is unknown; taken as client_credentials", said))
	}
	switch {
	case b.usesManagedIdentity(provider):
		b.managedIdentity()
	case provider == "aws" && (given == "" || strings.Contains(given, "//sts.")):
		b.aws()
	default:
		b.clientCredentials(provider)
	}
}

// usesManagedIdentity reads UseManagedIdentity, in quotes or not.
func (b *block) usesManagedIdentity(provider string) bool {
	v, key := b.c.get(b.from, "UseManagedIdentity")
	named := strings.HasSuffix(provider, "managedidentity")
	switch v := v.(type) {
	case nil:
		return named
	case bool:
		return v || named
	case string:
		if truth, err := strconv.ParseBool(strings.ToLower(v)); err == nil {
			return truth || named
		}
		secret, _ := b.from.values["ClientSecret"].(string)
		b.decide(&b.profile, key, "whether a managed identity is used cannot hang on a variable; decided by whether there is a ClientSecret")
		return secret == "" || named
	}
	b.c.problem(b.path(key), "want true or false, got "+kind(v), "write true or false")
	return false
}

// managedIdentity is what the plugin got by DefaultAzureCredential.
func (b *block) managedIdentity() {
	delete(b.from.read, "TokenEndpoint") // asked for to know the provider
	b.profile.set("type", quote("azure_managed_identity"))
	if id, key := b.c.text(b.from, "ClientId"); id != "" {
		b.decide(&b.profile, key, "for a user-assigned identity remove the # of the next line; without it, the system-assigned one is used")
		b.profile.comment("identity_client_id = " + b.c.value(id))
	} else {
		b.profile.comment("A user-assigned identity: identity_client_id = \"...\". On AKS: type = \"azure_workload_identity\".")
	}
	scopes := b.scopes()
	if len(scopes) > 1 {
		b.decide(&b.profile, "Scope", "a managed identity has exactly one scope; the first one was kept")
		scopes = scopes[:1]
	}
	if scopes == nil {
		scopes = []string{azureScope}
	}
	b.setEntraScopes(scopes)
	b.refreshBuffer()
	b.verifyTLS(false)
	b.rest(identitySettings)
}

// aws is an access key, which the plugin could not sign with.
func (b *block) aws() {
	delete(b.from.read, "TokenEndpoint")
	b.profile.before = append(b.profile.before, "decide: AWS has no token endpoint for an access key: each request is signed (SigV4). "+
		"With HealthImaging's OIDC use client_credentials at your provider")
	b.c.note(b.from.path, "AWS has no token endpoint for an access key; it became aws_sigv4, which signs each request")
	b.profile.set("type", quote("aws_sigv4"))
	region, _ := b.c.text(b.from, "Region")
	if region == "" {
		region = "us-west-2"
		b.decide(&b.profile, "Region", "was not given; the plugin's default")
	} else if !hasVariable(region) && strings.Trim(region, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || region[0] == '-' {
		b.c.problem(b.path("Region"), fmt.Sprintf("%q is no region of AWS", region), `write it as "us-west-2"`)
	}
	b.profile.set("region", b.c.value(region))
	profile, _ := b.c.get(b.from, "UseInstanceProfile")
	id, _ := b.c.text(b.from, "ClientId")
	secret, _ := b.c.text(b.from, "ClientSecret")
	if use, _ := profile.(bool); !use && id != "" && secret != "" {
		b.secret("ClientId", "access_key_id", id)
		b.secret("ClientSecret", "secret_access_key", secret)
	} else {
		b.profile.comment("The credentials come from where AWS's own tools look: environment, shared profile, instance, container.")
	}
	b.rest(with(serverSettings, "has no meaning for an access key of AWS",
		"TokenEndpoint", "Scope", "VerifySSL", "TokenRefreshBufferSeconds", "RefreshBufferSeconds", "Audience"))
}

func (b *block) clientCredentials(provider string) {
	given, key := b.tokenEndpoint(provider)
	at, err := parseEndpoint(given)
	if err != nil && given != "" {
		b.turnOff(key, err.Error())
	}
	google := at.is(googleHosts...) || provider == "google" && at.host == "" ||
		at.host == "" && strings.Contains(b.url, "//healthcare.googleapis.com/")
	if google {
		b.googleCannot()
	}
	b.profile.set("type", quote("client_credentials"))
	if strings.Contains(at.path, "/common/") && at.is(entraHosts...) {
		b.decide(&b.profile, key, `the tenant "common" has no client credentials; write the id of your tenant in its place`)
	}
	if strings.HasSuffix(at.path, "/oauth2/token") && at.is(entraHosts...) {
		b.decide(&b.profile, key, "this endpoint of Entra (v1) knows no scopes; use .../oauth2/v2.0/token")
	}
	b.profile.set("token_endpoint", b.c.value(given))
	if at.loopback {
		b.profile.set("insecure_http", "true")
	}
	id, _ := b.c.required(b.from, "ClientId")
	b.profile.set("client_id", b.c.value(id))
	secret, secretKey := b.c.required(b.from, "ClientSecret")
	b.secret(secretKey, "client_secret", secret)
	b.profile.comment("The plugin sent the secret in the body.")
	b.profile.set("client_auth", quote("client_secret_post"))
	switch scopes := b.scopes(); {
	case at.is(entraHosts...):
		b.setEntraScopes(scopes)
	default:
		b.setScopes(scopes)
	}
	if audience, _ := b.c.text(b.from, "Audience"); audience != "" {
		b.profile.set("audience", b.c.value(audience))
	} else if at.is(".auth0.com") {
		b.decide(&b.profile, "TokenEndpoint", `Auth0 wants the identifier of the API: audience = "..."`)
	}
	b.refreshBuffer()
	b.verifyTLS(true)
	b.rest(serverSettings)
}

// tokenEndpoint returns the endpoint, by the provider's defaults where none is given.
func (b *block) tokenEndpoint(provider string) (url, key string) {
	if v, _ := b.c.get(b.from, "TokenEndpoint"); v == nil || v == "" {
		tenant, _ := b.from.values["TenantId"].(string)
		switch {
		case strings.HasPrefix(provider, "google"):
			return "https://oauth2.googleapis.com/token", "TokenEndpoint"
		case strings.HasPrefix(provider, "azure") && tenant != "" && !strings.Contains(tenant, "/"):
			b.from.read["TenantId"] = true
			return "https://" + entraHosts[0] + "/" + tenant + "/oauth2/v2.0/token", "TenantId"
		}
	}
	return b.c.required(b.from, "TokenEndpoint")
}

// googleCannot says what to use instead of a client id and secret at Google.
func (b *block) googleCannot() {
	text := "Google has no client_credentials grant: with a client id and secret alone its token endpoint gives no token, " +
		"so this profile cannot work. Use a service account instead, with its JSON key file " +
		"(on a machine of Google's: type = \"google_metadata\", without a file). Put these lines in place of the table below:"
	b.profile.before = append(b.profile.before, "decide: "+text, b.profile.header,
		`type = "google_service_account"`, `credentials_file = "google-service-account.json"`)
	b.c.note(b.path("TokenEndpoint"), "Google has no client_credentials grant, this profile cannot work; use google_service_account with credentials_file")
}

// scopes reads Scope: separated by spaces, or a list.
func (b *block) scopes() []string {
	v, key := b.c.get(b.from, "Scope")
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		return splitScopes(v)
	case []any:
		var all []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				b.c.problem(b.path(key), "want a list of strings, got "+kind(e), "write each scope in quotes")
				return nil
			}
			all = append(all, splitScopes(s)...)
		}
		return all
	}
	b.c.problem(b.path(key), "want a string, got "+kind(v), "write the scopes in quotes, separated by spaces")
	return nil
}

// splitScopes splits at white space, but not inside of ${VAR:-default}.
func splitScopes(s string) []string {
	var scopes []string
	var now strings.Builder
	flush := func() {
		if now.Len() > 0 {
			scopes = append(scopes, now.String())
		}
		now.Reset()
	}
	for s != "" {
		if rest, dollar := strings.CutPrefix(s, "$"); dollar {
			if body, after, ok := variable(rest); ok {
				now.WriteString("${" + body + "}")
				s = after
				continue
			}
		}
		if strings.ContainsRune(" \t\r\n", rune(s[0])) {
			flush()
		} else {
			now.WriteByte(s[0])
		}
		s = s[1:]
	}
	flush()
	return scopes
}

func (b *block) setScopes(scopes []string) {
	var quoted []string
	for _, s := range scopes {
		quoted = append(quoted, b.c.value(s))
	}
	if quoted != nil {
		b.profile.set("scopes", quoteList(quoted))
	}
}

// setEntraScopes writes scopes for Entra, which knows <audience>/.default only.
func (b *block) setEntraScopes(scopes []string) {
	scopes = slices.DeleteFunc(scopes, func(scope string) bool { // one without an audience is none
		return strings.Trim(strings.TrimSuffix(scope, entraDefault), "/") == ""
	})
	switch {
	case len(scopes) == 0:
		b.decide(&b.profile, "Scope", "was not given, and Entra needs one; this is that of the Azure DICOM service")
		scopes = []string{azureScope}
	case len(scopes) == 1 && !strings.HasSuffix(scopes[0], entraDefault) && !hasVariable(scopes[0]):
		b.decide(&b.profile, "Scope", fmt.Sprintf("was %q; Entra gives a client a token for AUDIENCE/.default only", scopes[0]))
		scopes = []string{strings.TrimSuffix(scopes[0], "/") + entraDefault}
	case len(scopes) > 1:
		b.decide(&b.profile, "Scope", "Entra wants one scope, AUDIENCE/.default")
	}
	b.setScopes(scopes)
}

func (b *block) refreshBuffer() {
	v, key := b.c.get(b.from, "TokenRefreshBufferSeconds", "RefreshBufferSeconds")
	var text string
	switch v := v.(type) {
	case nil:
		return
	case number:
		text = string(v)
	case string:
		text = v
		if e := escapeDollars(v); len(e.variables) == 1 && !e.literal {
			b.profile.set("refresh_buffer", b.c.value(v+"s"))
			return
		}
	default:
		b.c.problem(b.path(key), "want a number, got "+kind(v), "write the seconds, such as 300")
		return
	}
	seconds, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	switch whole := int64(seconds); {
	case err != nil || seconds != seconds || seconds < 1 || seconds > 24*60*60:
		b.decide(&b.profile, key, fmt.Sprintf("%s was %q, which is no time before the end of a token; the default of 5m is used", key, text))
	case whole%60 == 0:
		b.profile.set("refresh_buffer", quote(fmt.Sprintf("%dm", whole/60)))
	default:
		b.profile.set("refresh_buffer", quote(fmt.Sprintf("%ds", whole)))
	}
}

// verifyTLS reads VerifySSL, which the plugin obeyed at the token endpoint.
func (b *block) verifyTLS(hasEndpoint bool) {
	v, key := b.c.get(b.from, "VerifySSL")
	switch v := v.(type) {
	case nil:
	case bool:
		b.verifies(key, v)
	case string:
		truth, err := strconv.ParseBool(strings.ToLower(v))
		switch {
		case v == "":
		case err == nil:
			b.verifies(key, truth)
		case !hasEndpoint:
			b.decide(&b.rule, key, fmt.Sprintf("VerifySSL was %q; a managed identity has no token endpoint to verify. "+
				"If the DICOMweb server's certificate is of that CA, set ca_file here", v))
		default:
			b.file(&b.profile, key, "ca_file", v)
			b.decide(&b.rule, key, "VerifySSL was a CA file. It is the token endpoint's now, in the profile; "+
				"if the DICOMweb server's certificate is of the same CA, set ca_file here, too")
		}
	default:
		b.c.problem(b.path(key), "want true, false or the path of a CA file, got "+kind(v), "write true, or the path in quotes")
	}
}

func (b *block) verifies(key string, truth bool) {
	if !truth {
		b.decide(&b.profile, key, `VerifySSL was false, which the gateway does not know. For a certificate of a CA of your own, name the CA here: `+
			`ca_file = "ca.pem"; and in the rule, if the DICOMweb server has one, too`)
	}
}
