package token_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

// azureProblems are what Check reports, as "key: problem".
func azureProblems(s token.Settings) []string {
	var got []string
	s.Check(func(key, problem, remedy string) {
		got = append(got, key+": "+problem)
		if remedy == "" || strings.Contains(problem+remedy, clientSecret) {
			got = append(got, key+": no remedy, or the secret is in it")
		}
	})
	return got
}

func TestAzureCheckNamesEachMistake(t *testing.T) {
	for _, name := range []string{"AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST"} {
		t.Setenv(name, "")
	}
	cert, key := azureKeyPair(t, azureRSAKey(t))
	ecCert, ecPrivate := azureKeyPair(t, azureECKey(t))
	secret := func(change func(*token.AzureClientSecret)) token.Settings {
		c := &token.AzureClientSecret{TenantID: azureTenant, ClientID: azureClient, ClientSecret: token.SecretValue(token.NewSecret(clientSecret))}
		change(c)
		return c
	}
	certificate := func(change func(*token.AzureClientCertificate)) token.Settings {
		c := &token.AzureClientCertificate{TenantID: azureTenant, ClientID: azureClient, CertFile: cert, KeyFile: token.PrivateFile(key)}
		change(c)
		return c
	}
	scoped := func(scopes ...string) token.Azure { return token.Azure{Fetching: token.Fetching{Scopes: scopes}} }
	for _, row := range []struct {
		name     string
		settings token.Settings
		want     []string
	}{
		{name: "managed identity, no key at all", settings: &token.AzureManagedIdentity{}},
		{name: "managed identity by client id", settings: &token.AzureManagedIdentity{IdentityClientID: "x"}},
		{name: "managed identity by object id", settings: &token.AzureManagedIdentity{IdentityObjectID: "x"}},
		{name: "managed identity by resource id", settings: &token.AzureManagedIdentity{IdentityResourceID: "x"}},
		{
			name: "two identities", settings: &token.AzureManagedIdentity{IdentityClientID: "x", IdentityResourceID: "y"},
			want: []string{"identity_resource_id: identity_client_id and identity_resource_id are given"},
		},
		{
			name: "three identities", settings: &token.AzureManagedIdentity{IdentityClientID: "x", IdentityObjectID: "z", IdentityResourceID: "y"},
			want: []string{"identity_object_id: identity_client_id and identity_object_id and identity_resource_id are given"},
		},
		{
			name: "managed identity on another cloud", settings: &token.AzureManagedIdentity{Azure: token.Azure{Cloud: "usgov"}},
			want: []string{"scopes: is missing"},
		},
		{name: "secret", settings: secret(func(*token.AzureClientSecret) {})},
		{name: "secret, cloud by name", settings: secret(func(c *token.AzureClientSecret) { c.Cloud = "public" })},
		{name: "secret, the public cloud by its host", settings: secret(func(c *token.AzureClientSecret) { c.AuthorityHost = "https://login.microsoftonline.com" })},
		{name: "secret, tenant by domain", settings: secret(func(c *token.AzureClientSecret) { c.TenantID = "Contoso-1.onmicrosoft.com" })},
		{name: "secret, another cloud with scopes", settings: secret(func(c *token.AzureClientSecret) { c.Azure = scoped("https://dicom.test/.default"); c.Cloud = "china" })},
		{name: "secret, another cloud", settings: secret(func(c *token.AzureClientSecret) { c.Cloud = "china" }), want: []string{"scopes: is missing"}},
		{name: "secret, another authority", settings: secret(func(c *token.AzureClientSecret) { c.AuthorityHost = "https://login.test" }), want: []string{"scopes: is missing"}},
		{name: "an unknown cloud", settings: secret(func(c *token.AzureClientSecret) { c.Cloud = "germany" }), want: []string{`cloud: "germany" is not known`}},
		{
			name: "cloud and authority", settings: secret(func(c *token.AzureClientSecret) {
				c.Azure = scoped(azureScope)
				c.Cloud, c.AuthorityHost = "usgov", "https://login.test"
			}),
			want: []string{"authority_host: both cloud and authority_host are given"},
		},
		{name: "authority in clear", settings: secret(authority("http://login.test")), want: []string{"authority_host: is not the https URL of a host"}},
		{name: "authority with a path", settings: secret(authority("https://login.test/tenant")), want: []string{"authority_host: is not the https URL of a host"}},
		{name: "authority with credentials", settings: secret(authority("https://u:" + clientSecret + "@login.test")), want: []string{"authority_host: is not the https URL of a host"}},
		{name: "authority that is no URL", settings: secret(authority("login.test")), want: []string{"authority_host: is not the https URL of a host"}},
		{
			name: "a scope without /.default", settings: secret(func(c *token.AzureClientSecret) { c.Azure = scoped("https://dicom.healthcareapis.azure.com") }),
			want: []string{`scopes: "https://dicom.healthcareapis.azure.com" does not end in /.default`},
		},
		{
			name: "an identity's scope without /.default", settings: &token.AzureManagedIdentity{Azure: scoped("https://dicom.healthcareapis.azure.com/user_impersonation")},
			want: []string{`scopes: "https://dicom.healthcareapis.azure.com/user_impersonation" does not end in /.default`},
		},
		{name: "nothing but /.default", settings: secret(func(c *token.AzureClientSecret) { c.Azure = scoped("/.default") }), want: []string{`scopes: "/.default" does not end in /.default`}},
		{name: "an empty scope", settings: secret(func(c *token.AzureClientSecret) { c.Azure = scoped("") }), want: []string{"scopes: is missing"}},
		{name: "two scopes", settings: secret(func(c *token.AzureClientSecret) { c.Azure = scoped(azureScope, "openid") }), want: []string{"scopes: has 2 entries, Azure takes one"}},
		{name: "nothing", settings: &token.AzureClientSecret{}, want: []string{"tenant_id: is missing", "client_id: is missing", "client_secret: is missing"}},
		{name: "an odd tenant", settings: secret(func(c *token.AzureClientSecret) { c.TenantID = "a/b" }), want: []string{`tenant_id: "a/b" is neither an id nor a domain`}},
		{name: "the tenant of all", settings: secret(func(c *token.AzureClientSecret) { c.TenantID = "common" }), want: []string{`tenant_id: "common" is not one tenant`}},
		{name: "a ca_file that is not there", settings: secret(func(c *token.AzureClientSecret) { c.CAFile = "/no/such/ca.pem" }), want: []string{"ca_file: open /no/such/ca.pem: no such file or directory"}},
		{name: "certificate", settings: certificate(func(*token.AzureClientCertificate) {})},
		{name: "certificate, nothing", settings: &token.AzureClientCertificate{}, want: []string{"tenant_id: is missing", "client_id: is missing", "cert_file: is missing", "key_file: is missing"}},
		{
			name: "an EC key", settings: certificate(func(c *token.AzureClientCertificate) { c.CertFile, c.KeyFile = ecCert, token.PrivateFile(ecPrivate) }),
			want: []string{"key_file: the private key is not an RSA key"},
		},
		{
			name: "a key of another certificate", settings: certificate(func(c *token.AzureClientCertificate) { c.KeyFile = token.PrivateFile(ecPrivate) }),
			want: []string{"cert_file: tls: private key type does not match public key type"},
		},
		{
			name: "a key file that is no key", settings: certificate(func(c *token.AzureClientCertificate) { c.KeyFile = token.PrivateFile(cert) }),
			want: []string{"cert_file: tls: found a certificate rather than a key in the PEM for the private key"},
		},
		{
			name: "a certificate that is not there", settings: certificate(func(c *token.AzureClientCertificate) { c.CertFile = "/no/such/cert.pem" }),
			want: []string{"cert_file: open /no/such/cert.pem: no such file or directory"},
		},
		{
			name: "workload identity outside a pod", settings: &token.AzureWorkloadIdentity{},
			want: []string{
				"tenant_id: is missing, and AZURE_TENANT_ID is not set", "client_id: is missing, and AZURE_CLIENT_ID is not set",
				"token_file: is missing, and AZURE_FEDERATED_TOKEN_FILE is not set",
			},
		},
		{name: "workload identity", settings: &token.AzureWorkloadIdentity{TenantID: azureTenant, ClientID: azureClient, TokenFile: "/not/there/yet"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			if diff := cmp.Diff(row.want, azureProblems(row.settings)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func authority(host string) func(*token.AzureClientSecret) {
	return func(c *token.AzureClientSecret) {
		c.Scopes, c.AuthorityHost = []string{azureScope}, host
	}
}

func TestAzureAuthorityOfThePodIsChecked(t *testing.T) {
	c := &token.AzureWorkloadIdentity{TenantID: azureTenant, ClientID: azureClient, TokenFile: "/x"}
	for host, want := range map[string][]string{
		"https://login.microsoftonline.com/": nil,
		"https://login.microsoftonline.us/":  {"scopes: is missing"},
		"http://login.microsoftonline.com/":  {"authority_host: is not the https URL of a host", "scopes: is missing"},
	} {
		t.Setenv("AZURE_AUTHORITY_HOST", host)
		if diff := cmp.Diff(want, azureProblems(c)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", host, diff)
		}
	}
}
