package token

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// AzureClientSecret are the keys of the type azure_client_secret: an application
// of Microsoft Entra with a client secret.
type AzureClientSecret struct {
	Azure
	// TenantID is the tenant's id or one of its domains.
	TenantID string `toml:"tenant_id"`
	// ClientID is the application's id.
	ClientID string `toml:"client_id"`
	// ClientSecret is the application's secret.
	ClientSecret SecretSource `toml:"client_secret"`
}

// Check implements [Settings].
func (c *AzureClientSecret) Check(report Report) {
	c.check(report, "")
	checkTenant(report, c.TenantID, "")
	checkClientID(report, c.ClientID, "")
	if c.ClientSecret.IsZero() {
		report("client_secret", "is missing", `give client_secret = "${VARIABLE}", or client_secret_file`)
	}
}

// Acquirer implements [Settings].
func (c *AzureClientSecret) Acquirer(env Env) (Acquirer, error) {
	host := c.host("")
	return c.entra(env, host, "client_secret", func(options azcore.ClientOptions) (azcore.TokenCredential, error) {
		secret, err := c.ClientSecret.Read()
		if err != nil {
			return nil, azureUnreadable("client_secret", "client_secret_file", err)
		}
		return azidentity.NewClientSecretCredential(c.TenantID, c.ClientID, secret.Reveal(), &azidentity.ClientSecretCredentialOptions{
			ClientOptions: options, DisableInstanceDiscovery: true, // see entra
		})
	})
}

// AzureClientCertificate are the keys of the type azure_client_certificate: an
// application of Microsoft Entra that signs assertions with the key of a
// certificate (PS256, x5t#S256), as in
// https://learn.microsoft.com/entra/identity-platform/certificate-credentials
type AzureClientCertificate struct {
	Azure
	// TenantID is the tenant's id or one of its domains.
	TenantID string `toml:"tenant_id"`
	// ClientID is the application's id.
	ClientID string `toml:"client_id"`
	// CertFile is the certificate, PEM, that the application has registered. It
	// is read at each acquisition, as is the key.
	CertFile File `toml:"cert_file"`
	// KeyFile is its private key, PEM, RSA, not encrypted.
	KeyFile PrivateFile `toml:"key_file"`
}

// Check implements [Settings].
func (c *AzureClientCertificate) Check(report Report) {
	c.check(report, "")
	checkTenant(report, c.TenantID, "")
	checkClientID(report, c.ClientID, "")
	if c.CertFile == "" {
		report("cert_file", "is missing", "give the PEM certificate that the app registration has")
	}
	if c.KeyFile == "" {
		report("key_file", "is missing", "give the PEM private key of cert_file")
	}
	if c.CertFile == "" || c.KeyFile == "" {
		return
	}
	if _, _, err := c.load(); err != nil {
		key, remedy := "cert_file", "give a PEM certificate in cert_file and its private key, PEM and not encrypted, in key_file"
		if errors.Is(err, errNotRSA) {
			key, remedy = "key_file", "Microsoft Entra takes RSA keys only; make a new pair, for example with openssl req -x509 -newkey rsa:3072 -noenc, and register its certificate"
		}
		report(key, err.Error(), remedy)
	}
}

var errNotRSA = errors.New("the private key is not an RSA key")

// load reads the certificate chain and the key, which must belong together.
func (c *AzureClientCertificate) load() ([]*x509.Certificate, crypto.PrivateKey, error) {
	pair, err := tls.LoadX509KeyPair(string(c.CertFile), string(c.KeyFile))
	if err != nil {
		return nil, nil, err
	}
	if _, ok := pair.PrivateKey.(*rsa.PrivateKey); !ok {
		return nil, nil, errNotRSA
	}
	certs := []*x509.Certificate{pair.Leaf}
	for _, der := range pair.Certificate[1:] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", c.CertFile, err)
		}
		certs = append(certs, cert)
	}
	return certs, pair.PrivateKey, nil
}

// Acquirer implements [Settings].
func (c *AzureClientCertificate) Acquirer(env Env) (Acquirer, error) {
	host := c.host("")
	return c.entra(env, host, "cert_file", func(options azcore.ClientOptions) (azcore.TokenCredential, error) {
		certs, key, err := c.load()
		if err != nil {
			return nil, azureUnreadable("cert_file", "cert_file and key_file", err)
		}
		return azidentity.NewClientCertificateCredential(c.TenantID, c.ClientID, certs, key, &azidentity.ClientCertificateCredentialOptions{
			ClientOptions: options, DisableInstanceDiscovery: true, // see entra
		})
	})
}

// AzureWorkloadIdentity are the keys of the type azure_workload_identity: the
// token of a Kubernetes service account stands in for a secret, as in
// https://learn.microsoft.com/azure/aks/workload-identity-overview. What is not
// given comes from the variables that the cluster's webhook sets.
type AzureWorkloadIdentity struct {
	Azure
	// TenantID is the tenant's id. Empty: AZURE_TENANT_ID.
	TenantID string `toml:"tenant_id"`
	// ClientID is the id of the managed identity or application. Empty: AZURE_CLIENT_ID.
	ClientID string `toml:"client_id"`
	// TokenFile is the service account's token. Empty: AZURE_FEDERATED_TOKEN_FILE.
	// It is read at each acquisition. Others may be able to read it: Kubernetes
	// projects it so within the pod.
	TokenFile File `toml:"token_file"`
}

// resolved returns the settings with the environment's values filled in.
func (c *AzureWorkloadIdentity) resolved() (w AzureWorkloadIdentity, host string) {
	w = *c
	w.TenantID = azureDefault(c.TenantID, "AZURE_TENANT_ID")
	w.ClientID = azureDefault(c.ClientID, "AZURE_CLIENT_ID")
	w.TokenFile = azureDefault(c.TokenFile, "AZURE_FEDERATED_TOKEN_FILE")
	return w, c.host(os.Getenv("AZURE_AUTHORITY_HOST"))
}

// Check implements [Settings].
func (c *AzureWorkloadIdentity) Check(report Report) {
	c.check(report, os.Getenv("AZURE_AUTHORITY_HOST"))
	w, _ := c.resolved()
	checkTenant(report, w.TenantID, "AZURE_TENANT_ID")
	checkClientID(report, w.ClientID, "AZURE_CLIENT_ID")
	if w.TokenFile == "" {
		report("token_file", "is missing, and AZURE_FEDERATED_TOKEN_FILE is not set", workloadRemedy)
	}
}

// Acquirer implements [Settings].
func (c *AzureWorkloadIdentity) Acquirer(env Env) (Acquirer, error) {
	w, host := c.resolved()
	return c.entra(env, host, "token_file", func(options azcore.ClientOptions) (azcore.TokenCredential, error) {
		// Read here, not by azidentity's WorkloadIdentityCredential, which does the
		// same behind this very credential, but without a limit or a telling error.
		assertion, err := SecretFile(string(w.TokenFile)).Read()
		if err != nil {
			return nil, azureUnreadable("token_file", "token_file", err)
		}
		read := func(context.Context) (string, error) { return assertion.Reveal(), nil }
		return azidentity.NewClientAssertionCredential(w.TenantID, w.ClientID, read, &azidentity.ClientAssertionCredentialOptions{
			ClientOptions: options, DisableInstanceDiscovery: true, // see entra
		})
	})
}

const workloadRemedy = "set it, or run the pod with the label azure.workload.identity/use and its service account"

// tenantLetters are those that the SDK takes in a tenant's id or domain.
const tenantLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-"

func checkTenant(report Report, tenant, variable string) {
	odd := func(r rune) bool { return !strings.ContainsRune(tenantLetters, r) }
	switch {
	case tenant == "" && variable != "":
		report("tenant_id", "is missing, and "+variable+" is not set", workloadRemedy)
	case tenant == "":
		report("tenant_id", "is missing", "give the tenant's id, as the Azure portal shows it")
	case strings.ContainsFunc(tenant, odd):
		report("tenant_id", fmt.Sprintf("%q is neither an id nor a domain", tenant), "give the tenant's id, as the Azure portal shows it")
	case tenant == "common", tenant == "organizations", tenant == "consumers":
		report("tenant_id", fmt.Sprintf("%q is not one tenant", tenant), "an application without a user needs the id of its own tenant")
	}
}

func checkClientID(report Report, id, variable string) {
	switch {
	case id == "" && variable != "":
		report("client_id", "is missing, and "+variable+" is not set", workloadRemedy)
	case id == "":
		report("client_id", "is missing", "give the application (client) id of the app registration")
	}
}

func azureUnreadable(key, files string, err error) *Error {
	return &Error{Class: Transient, Code: "secret_unreadable", Key: key, Hint: "check " + files + ": " + err.Error()}
}

// entra builds an acquirer that asks Microsoft Entra. It makes a new credential
// for each attempt: one that lives on would answer from its cache, also with the
// token that an upstream has just refused, and would keep a rotated secret.
//
// Instance discovery stays off: it would ask login.microsoftonline.com whether
// the host is to be trusted, a second point of failure, and out of reach from
// private clouds. The hosts of cloud are constants; for authority_host, the
// operator vouches. That the token endpoint belongs to the authority is checked
// all the same, by its issuer.
func (a *Azure) entra(env Env, host, proof string, credential func(azcore.ClientOptions) (azcore.TokenCredential, error)) (Acquirer, error) {
	acquirer, err := a.acquirer(env, host)
	if err != nil {
		return nil, err
	}
	acquirer.credential = func(options azcore.ClientOptions) (azcore.TokenCredential, *Error) {
		options.Cloud = cloud.Configuration{ActiveDirectoryAuthorityHost: host}
		c, err := credential(options)
		if e, ok := errors.AsType[*Error](err); ok {
			return nil, e
		}
		if err != nil { // the SDK's own checks; its text may quote anything
			return nil, &Error{Class: Permanent, Code: "secret_unreadable", Key: proof, Hint: "check " + proof + ", tenant_id and authority_host: they do not make a credential"}
		}
		return c, nil
	}
	acquirer.unusable = Error{Class: Transient, Code: "provider_answer", Hint: "the provider's answer cannot be used"}
	acquirer.explain = func(e *Error, resp *http.Response, body []byte) { a.explainEntra(e, resp, body, proof) }
	return acquirer, nil
}

// explainEntra puts an error into the terms of the profile's keys.
func (a *Azure) explainEntra(e *Error, resp *http.Response, body []byte, proof string) {
	at := "authority_host"
	if a.AuthorityHost == "" {
		at = "cloud"
	}
	e.Hint = strings.ReplaceAll(e.Hint, "token_endpoint", at)
	if e.Key == "token_endpoint" {
		e.Key = at
	}
	if e.Key == "client_secret" {
		e.Key, e.Hint = proof, "the provider refused the client; check client_id and "+proof+", which may be wrong or expired"
	}
	if resp != nil {
		explainAADSTS(e, resp, azureText(body))
	}
}
