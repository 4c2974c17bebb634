package token

import (
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/oauth2/google"
	"golang.org/x/oauth2/google/externalaccount"
)

// googleFile is a Google credentials file, as far as it is used. It is read,
// used and forgotten within one acquisition.
type googleFile struct {
	Type google.CredentialsType `json:"type"`

	// service_account
	ClientEmail  string `json:"client_email"`
	PrivateKeyID string `json:"private_key_id"`
	PrivateKey   string `json:"private_key"`
	// service_account and authorized_user
	TokenURI string `json:"token_uri"`

	// authorized_user, and optional in external_account
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
	RefreshToken string `json:"refresh_token"`

	// external_account
	Audience         string                           `json:"audience"`
	SubjectTokenType string                           `json:"subject_token_type"`
	TokenURL         string                           `json:"token_url"`
	Impersonation    string                           `json:"service_account_impersonation_url"`
	CredentialSource externalaccount.CredentialSource `json:"credential_source"`
	UserProject      string                           `json:"workforce_pool_user_project"`
	Lifetime         struct {
		Seconds int `json:"token_lifetime_seconds"`
	} `json:"service_account_impersonation"`
}

// googleTypes are the profile types that read a credentials file, by the type
// of the file.
var googleTypes = map[google.CredentialsType]string{
	google.ServiceAccount:  "google_service_account",
	google.AuthorizedUser:  "google_authorized_user",
	google.ExternalAccount: "google_external_account",
}

// howToGet says where a file of the type comes from.
var howToGet = map[google.CredentialsType]string{
	google.ServiceAccount:  "gcloud iam service-accounts keys create",
	google.AuthorizedUser:  "gcloud auth application-default login",
	google.ExternalAccount: "gcloud iam workload-identity-pools create-cred-config",
}

// checkGoogleFile reports what is wrong with a credentials file. Nothing of its
// content is shown, save the type and the names of what is missing.
func checkGoogleFile(report Report, path PrivateFile, want google.CredentialsType, insecure bool) {
	if path == "" {
		report("credentials_file", "is missing", fmt.Sprintf("give the path of a JSON file of type %s (%s)", want, howToGet[want]))
		return
	}
	_, _ = parseGoogleFile(path, want, insecure, func(problem, remedy string) { report("credentials_file", problem, remedy) })
}

// readGoogleFile reads a credentials file for an acquisition, with the checks
// made again: it may have been replaced since.
func readGoogleFile(path PrivateFile, want google.CredentialsType, insecure bool) (*googleFile, error) {
	hint := ""
	f, ok := parseGoogleFile(path, want, insecure, func(problem, remedy string) {
		if hint == "" {
			hint = "check credentials_file: it " + problem + "; " + remedy
		}
	})
	if !ok {
		return nil, &Error{Class: Transient, Code: "secret_unreadable", Key: "credentials_file", Hint: hint}
	}
	return f, nil
}

// parseGoogleFile reads a credentials file and reports each problem; ok is
// false if there was one.
func parseGoogleFile(path PrivateFile, want google.CredentialsType, insecure bool, report func(problem, remedy string)) (f *googleFile, ok bool) {
	f, ok = &googleFile{}, true
	bad := func(problem, remedy string) {
		ok = false
		report(problem, remedy)
	}
	text, err := SecretFile(string(path)).Read()
	if err != nil {
		bad("cannot be read: "+err.Error(), fmt.Sprintf("give the path of a JSON file of type %s (%s)", want, howToGet[want]))
		return nil, false
	}
	raw := []byte(text.Reveal())
	if !json.Valid(raw) {
		bad("is not JSON", fmt.Sprintf("give the JSON file of type %s as Google's tools write it (%s)", want, howToGet[want]))
		return nil, false
	}
	if err := json.Unmarshal(raw, f); err != nil { // its text may show a part of the content
		bad("is JSON, but not a Google credentials file", fmt.Sprintf("give the JSON file of type %s as Google's tools write it (%s)", want, howToGet[want]))
		return nil, false
	}
	if f.Type != want {
		bad(otherType(raw, f.Type, want))
		return nil, false
	}
	switch want {
	case google.ServiceAccount:
		f.checkServiceAccount(bad, insecure)
	case google.AuthorizedUser:
		f.checkAuthorizedUser(bad, insecure)
	case google.ExternalAccount:
		f.checkExternalAccount(bad, insecure)
	}
	return f, ok
}

// otherType explains a file of a type that the profile's type does not read.
func otherType(raw []byte, is, want google.CredentialsType) (problem, remedy string) {
	another := fmt.Sprintf("give a file of type %s (%s)", want, howToGet[want])
	if typ, known := googleTypes[is]; known {
		return fmt.Sprintf("is of type %s, not %s", is, want), fmt.Sprintf("use type = %q, or %s", typ, another)
	}
	switch is {
	case google.ImpersonatedServiceAccount, google.ExternalAccountAuthorizedUser, google.GDCHServiceAccount:
		return fmt.Sprintf("is of type %s, which is not supported", is), another
	}
	var client struct{ Web, Installed map[string]any }
	if json.Unmarshal(raw, &client) == nil && (client.Web != nil || client.Installed != nil) {
		return "is the file of an OAuth client, not credentials", another
	}
	return fmt.Sprintf("is not of type %s", want), another
}

func (f *googleFile) missing(bad func(problem, remedy string), fields ...string) {
	for i := 0; i < len(fields); i += 2 {
		if fields[i+1] == "" {
			bad("has no "+fields[i], "give the file as Google's tools write it ("+howToGet[f.Type]+")")
		}
	}
}

// endpoint checks a URL in the file that secrets are sent to or fetched from.
func (f *googleFile) endpoint(bad func(problem, remedy string), field, url string, insecure bool) {
	if err := endpointError(url, insecure); err != nil {
		bad("has a "+field+" that is not a plain https:// URL", "use an https:// URL; http:// only on loopback with insecure_http = true")
	}
}

func (f *googleFile) checkServiceAccount(bad func(problem, remedy string), insecure bool) {
	f.missing(bad, "client_email", f.ClientEmail, "private_key", f.PrivateKey)
	if f.PrivateKey != "" {
		key, err := parseKey([]byte(f.PrivateKey))
		if _, isRSA := key.(*rsa.PrivateKey); err != nil || !isRSA {
			bad("has a private_key that is not an RSA key in PEM", "give the file as Google's tools write it ("+howToGet[f.Type]+")")
		}
	}
	f.endpoint(bad, "token_uri", f.tokenURI(), insecure)
}

func (f *googleFile) checkAuthorizedUser(bad func(problem, remedy string), insecure bool) {
	f.missing(bad, "client_id", f.ClientID, "client_secret", f.ClientSecret, "refresh_token", f.RefreshToken)
	f.endpoint(bad, "token_uri", f.tokenURI(), insecure)
}

// checkExternalAccount refuses what Google warns of in files from elsewhere
// (cloud.google.com/docs/authentication/external/externally-sourced-credentials):
// commands to run, and URLs in clear. The latter keeps the metadata addresses
// of all clouds out of reach.
func (f *googleFile) checkExternalAccount(bad func(problem, remedy string), insecure bool) {
	f.missing(bad, "audience", f.Audience, "subject_token_type", f.SubjectTokenType)
	if f.TokenURL != "" {
		f.endpoint(bad, "token_url", f.TokenURL, insecure)
	}
	if f.Impersonation != "" {
		f.endpoint(bad, "service_account_impersonation_url", f.Impersonation, insecure)
	}
	s := f.CredentialSource
	const sources = "let credential_source name a file, or a url, that holds the subject token"
	switch {
	case s.Executable != nil:
		bad("names a command to run (credential_source.executable), which is never run", sources)
	case s.EnvironmentID != "":
		bad("wants the credentials of an AWS machine (credential_source.environment_id), which is not supported", sources)
	case s.File == "" && s.URL == "":
		bad("has no credential_source.file or credential_source.url", sources)
	case s.File != "" && s.URL != "":
		bad("has both credential_source.file and credential_source.url", "keep one of them")
	case s.URL != "":
		f.endpoint(bad, "credential_source.url", s.URL, insecure)
	case !filepath.IsAbs(s.File):
		bad("has a relative path in credential_source.file", "write the whole path, the gateway's working directory may be any")
	}
	switch {
	case s.Format.Type != "" && s.Format.Type != "text" && s.Format.Type != "json":
		bad("has a credential_source.format.type other than text and json", "use one of these")
	case s.Format.Type == "json" && s.Format.SubjectTokenFieldName == "":
		bad("has no credential_source.format.subject_token_field_name", "name the JSON field that holds the subject token")
	}
}

// tokenURI returns the token endpoint of a service account or user.
func (f *googleFile) tokenURI() string {
	if f.TokenURI != "" {
		return f.TokenURI
	}
	return google.Endpoint.TokenURL
}

// selfSigned returns a JWT that is itself the bearer token.
func (f *googleFile) selfSigned(scopes []string) (Token, error) {
	failure := &Error{Class: Permanent, Code: "secret_unreadable", Key: "credentials_file", Hint: "check credentials_file: no JWT can be signed with it"}
	// Only what was checked: another parser might see another type in the file.
	key, err := json.Marshal(map[string]string{
		"type": string(google.ServiceAccount), "client_email": f.ClientEmail, "private_key_id": f.PrivateKeyID, "private_key": f.PrivateKey,
	})
	if err != nil {
		return Token{}, failure
	}
	source, err := google.JWTAccessTokenSourceWithScope(key, scopes...)
	if err != nil {
		return Token{}, failure
	}
	got, err := source.Token()
	if err != nil {
		return Token{}, failure
	}
	return Token{Value: NewSecret(got.AccessToken), Expires: got.Expiry.Truncate(time.Second)}, nil // exp has whole seconds
}
