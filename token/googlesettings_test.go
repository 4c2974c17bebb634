package token_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

func TestGoogleCheckNamesEachMistake(t *testing.T) {
	key := firstGoogleKey()
	const endpoint = "https://oauth2.google.test/token"
	account, user := serviceAccount(key, endpoint), authorizedUser(endpoint)
	subject := map[string]any{"file": "/var/run/secrets/subject"}
	external := externalAccount(endpoint, "", subject)
	der, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := x509.MarshalPKCS8PrivateKey(der)
	if err != nil {
		t.Fatal(err)
	}
	ecPEM := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: ec}))
	noPEM := file(t, []byte("no certificate"))
	source := func(s map[string]any) map[string]any { return with(external, "credential_source", s) }
	secret := token.SecretValue(token.NewSecret(clientSecret))
	refresh := token.SecretValue(token.NewSecret(googleRefresh))

	type settings = token.Settings
	accountWith := func(content map[string]any) settings {
		return googleSettings(t, "google_service_account", func(g *token.GoogleServiceAccount) { g.CredentialsFile = googleJSON(t, content) })
	}
	userWith := func(content map[string]any) settings {
		return googleSettings(t, "google_authorized_user", func(g *token.GoogleAuthorizedUser) { g.CredentialsFile = googleJSON(t, content) })
	}
	externalWith := func(content map[string]any) settings {
		return googleSettings(t, "google_external_account", func(g *token.GoogleExternalAccount) { g.CredentialsFile = googleJSON(t, content) })
	}
	raw := func(content string) settings {
		return googleSettings(t, "google_service_account", func(g *token.GoogleServiceAccount) {
			g.CredentialsFile = token.PrivateFile(file(t, []byte(content)))
		})
	}
	keys := func(change func(*token.GoogleAuthorizedUser)) settings {
		return googleSettings(t, "google_authorized_user", func(g *token.GoogleAuthorizedUser) {
			g.ClientID, g.ClientSecret, g.RefreshToken = googleUserID, secret, refresh
			change(g)
		})
	}
	meta := func(change func(*token.GoogleMetadata)) settings { return googleSettings(t, "google_metadata", change) }
	insecure := func(s settings) settings {
		switch g := s.(type) {
		case *token.GoogleServiceAccount:
			g.InsecureHTTP = true
		case *token.GoogleAuthorizedUser:
			g.InsecureHTTP = true
		case *token.GoogleExternalAccount:
			g.InsecureHTTP = true
		}
		return s
	}

	for _, row := range []struct {
		name     string
		settings settings
		want     []string // "key: problem", of which the remedy has the part after " => "
	}{
		{name: "service account", settings: accountWith(account)},
		{name: "service account without token_uri", settings: accountWith(with(account, "token_uri", ""))},
		{name: "service account on loopback", settings: insecure(accountWith(with(account, "token_uri", "http://127.0.0.1:8080/token")))},
		{name: "user", settings: userWith(user)},
		{name: "user as gcloud writes it", settings: userWith(with(with(user, "token_uri", nil), "quota_project_id", "p"))},
		{name: "user by keys", settings: keys(func(*token.GoogleAuthorizedUser) {})},
		{name: "external account", settings: externalWith(external)},
		{name: "external account with defaults", settings: externalWith(with(external, "token_url", ""))},
		{name: "external account, url", settings: externalWith(source(map[string]any{"url": "https://login.test/subject"}))},
		{name: "external account, url on loopback", settings: insecure(externalWith(source(map[string]any{"url": "http://localhost:8080/subject"})))},
		{name: "metadata", settings: meta(func(*token.GoogleMetadata) {})},
		{name: "metadata with an account", settings: meta(func(g *token.GoogleMetadata) { g.ServiceAccount = googleEmail })},

		{name: "no file", settings: token.NewSettings("google_service_account"), want: []string{"credentials_file: is missing => service_account"}},
		{name: "no file of a user", settings: token.NewSettings("google_authorized_user"), want: []string{"credentials_file: is missing => authorized_user"}},
		{name: "no file of an external account", settings: token.NewSettings("google_external_account"), want: []string{"credentials_file: is missing => create-cred-config"}},
		{name: "a user's file for a service account", settings: accountWith(user), want: []string{`credentials_file: is of type authorized_user, not service_account => use type = "google_authorized_user"`}},
		{name: "a service account for a user", settings: userWith(account), want: []string{`credentials_file: is of type service_account, not authorized_user => use type = "google_service_account"`}},
		{name: "an external account for a service account", settings: accountWith(external), want: []string{`credentials_file: is of type external_account, not service_account => use type = "google_external_account"`}},
		{name: "a service account for an external one", settings: externalWith(account), want: []string{`credentials_file: is of type service_account, not external_account => use type = "google_service_account"`}},
		{name: "an impersonated account", settings: accountWith(with(account, "type", "impersonated_service_account")), want: []string{"credentials_file: is of type impersonated_service_account, which is not supported => service_account"}},
		{name: "a type nobody knows", settings: accountWith(with(account, "type", planted)), want: []string{"credentials_file: is not of type service_account => gcloud iam"}},
		{name: "no type", settings: accountWith(map[string]any{}), want: []string{"credentials_file: is not of type service_account => gcloud iam"}},
		{
			name:     "the file of an OAuth client",
			settings: userWith(map[string]any{"installed": map[string]any{"client_id": "x", "client_secret": clientSecret, "redirect_uris": []string{"http://localhost"}}}),
			want:     []string{"credentials_file: is the file of an OAuth client, not credentials => gcloud auth application-default login"},
		},
		{
			// Google's own reader takes the first form whatever the type says.
			name:     "a user's file that is also the file of an OAuth client",
			settings: userWith(with(user, "installed", map[string]any{"client_id": "x", "redirect_uris": []string{"http://localhost"}})),
		},
		{name: "not JSON", settings: raw(key.pem), want: []string{"credentials_file: is not JSON => service_account"}},
		{name: "half of it", settings: raw(`{"type":"service_account","private_key":"` + planted), want: []string{"credentials_file: is not JSON => service_account"}},
		{name: "JSON of another kind", settings: raw(`["` + planted + `"]`), want: []string{"credentials_file: is JSON, but not a Google credentials file => service_account"}},
		{name: "a number for a key", settings: raw(`{"type":"service_account","private_key":12345678}`), want: []string{"credentials_file: is JSON, but not a Google credentials file => service_account"}},
		{name: "nothing in it", settings: accountWith(map[string]any{"type": "service_account"}), want: []string{"credentials_file: has no client_email => keys create", "credentials_file: has no private_key => keys create"}},
		{name: "an EC key", settings: accountWith(with(account, "private_key", ecPEM)), want: []string{"credentials_file: has a private_key that is not an RSA key in PEM => keys create"}},
		{name: "no key", settings: accountWith(with(account, "private_key", planted)), want: []string{"credentials_file: has a private_key that is not an RSA key in PEM => keys create"}},
		{name: "token_uri in clear", settings: accountWith(with(account, "token_uri", "http://"+planted+"/token")), want: []string{"credentials_file: has a token_uri that is not a plain https:// URL => insecure_http"}},
		{name: "token_uri on loopback", settings: accountWith(with(account, "token_uri", "http://127.0.0.1/token")), want: []string{"credentials_file: has a token_uri that is not a plain https:// URL => insecure_http"}},
		{name: "token_uri in clear with leave", settings: insecure(accountWith(with(account, "token_uri", "http://login.test/token"))), want: []string{"credentials_file: has a token_uri that is not a plain https:// URL => insecure_http"}},
		{name: "token_uri with a password", settings: accountWith(with(account, "token_uri", "https://u:"+clientSecret+"@login.test/")), want: []string{"credentials_file: has a token_uri that is not a plain https:// URL => insecure_http"}},
		{name: "a user's token_uri in clear", settings: userWith(with(user, "token_uri", "http://login.test/token")), want: []string{"credentials_file: has a token_uri that is not a plain https:// URL => insecure_http"}},
		{name: "a user without refresh_token", settings: userWith(with(user, "refresh_token", "")), want: []string{"credentials_file: has no refresh_token => gcloud auth"}},
		{name: "keys and a file", settings: keys(func(g *token.GoogleAuthorizedUser) { g.CredentialsFile = googleJSON(t, user) }), want: []string{
			"client_id: both client_id and credentials_file are given => keep", "client_secret: both client_secret and credentials_file are given => keep", "refresh_token: both refresh_token and credentials_file are given => keep",
		}},
		{name: "one key and a file", settings: googleSettings(t, "google_authorized_user", func(g *token.GoogleAuthorizedUser) {
			g.CredentialsFile, g.ClientID = googleJSON(t, user), googleUserID
		}), want: []string{"client_id: both client_id and credentials_file are given => keep"}},
		{name: "keys and insecure_http", settings: insecure(keys(func(*token.GoogleAuthorizedUser) {})), want: []string{"insecure_http: has no effect without credentials_file: Google's own token endpoint is https:// => remove it"}},
		{name: "keys without refresh_token", settings: keys(func(g *token.GoogleAuthorizedUser) { g.RefreshToken = token.SecretSource{} }), want: []string{"refresh_token: is missing => go together"}},
		{name: "keys without client", settings: keys(func(g *token.GoogleAuthorizedUser) { g.ClientID, g.ClientSecret = "", token.SecretSource{} }), want: []string{
			"client_id: is missing => go together", "client_secret: is missing => go together",
		}},
		{name: "a command", settings: externalWith(source(map[string]any{"executable": map[string]any{"command": planted}})), want: []string{"credentials_file: names a command to run (credential_source.executable), which is never run => a file, or a url"}},
		{name: "a command behind a file", settings: externalWith(source(map[string]any{"file": "/f", "executable": map[string]any{"command": planted}})), want: []string{"credentials_file: names a command to run (credential_source.executable), which is never run => a file, or a url"}},
		{
			name:     "an AWS machine",
			settings: externalWith(source(map[string]any{"environment_id": "aws1", "region_url": "http://169.254.169.254/latest/meta-data/placement/availability-zone"})),
			want:     []string{"credentials_file: wants the credentials of an AWS machine (credential_source.environment_id), which is not supported => a file, or a url"},
		},
		{name: "the metadata of another cloud", settings: externalWith(source(map[string]any{"url": "http://169.254.169.254/metadata/identity/oauth2/token"})), want: []string{"credentials_file: has a credential_source.url that is not a plain https:// URL => insecure_http"}},
		{name: "the metadata of another cloud with leave", settings: insecure(externalWith(source(map[string]any{"url": "http://169.254.169.254/metadata/identity/oauth2/token"}))), want: []string{"credentials_file: has a credential_source.url that is not a plain https:// URL => insecure_http"}},
		{name: "a file: URL", settings: externalWith(source(map[string]any{"url": "file:///etc/shadow"})), want: []string{"credentials_file: has a credential_source.url that is not a plain https:// URL => insecure_http"}},
		{name: "no source", settings: externalWith(source(nil)), want: []string{"credentials_file: has no credential_source.file or credential_source.url => a file, or a url"}},
		{name: "two sources", settings: externalWith(source(map[string]any{"file": "/f", "url": "https://login.test/"})), want: []string{"credentials_file: has both credential_source.file and credential_source.url => keep one"}},
		{name: "a relative source", settings: externalWith(source(map[string]any{"file": planted})), want: []string{"credentials_file: has a relative path in credential_source.file => whole path"}},
		{name: "an unknown format", settings: externalWith(source(map[string]any{"file": "/f", "format": map[string]any{"type": "xml"}})), want: []string{"credentials_file: has a credential_source.format.type other than text and json => one of these"}},
		{name: "JSON without a field", settings: externalWith(source(map[string]any{"file": "/f", "format": map[string]any{"type": "json"}})), want: []string{"credentials_file: has no credential_source.format.subject_token_field_name => name the JSON field"}},
		{name: "all wrong", settings: externalWith(map[string]any{"type": "external_account", "token_url": "http://a.test", "service_account_impersonation_url": "ftp://a.test"}), want: []string{
			"credentials_file: has no audience => create-cred-config", "credentials_file: has no subject_token_type => create-cred-config",
			"credentials_file: has a token_url that is not a plain https:// URL => insecure_http", "credentials_file: has a service_account_impersonation_url that is not a plain https:// URL => insecure_http",
			"credentials_file: has no credential_source.file or credential_source.url => a file, or a url",
		}},
		{name: "a path in service_account", settings: meta(func(g *token.GoogleMetadata) { g.ServiceAccount = "default/../../project" }), want: []string{"service_account: is not the name of a service account => default"}},
		{name: "dots as service_account", settings: meta(func(g *token.GoogleMetadata) { g.ServiceAccount = ".." }), want: []string{"service_account: is not the name of a service account => default"}},
		{name: "a query in service_account", settings: meta(func(g *token.GoogleMetadata) { g.ServiceAccount = "default/token?x" }), want: []string{"service_account: is not the name of a service account => default"}},
		{name: "no service_account", settings: meta(func(g *token.GoogleMetadata) { g.ServiceAccount = "" }), want: []string{"service_account: is not the name of a service account => default"}},
		{name: "no scopes", settings: meta(func(g *token.GoogleMetadata) { g.Scopes = nil }), want: []string{"scopes: is empty => cloud-healthcare"}},
		{name: "a bad ca_file", settings: meta(func(g *token.GoogleMetadata) { g.CAFile = noPEM }), want: []string{fmt.Sprintf("ca_file: no PEM certificate in %s => PEM", noPEM)}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var got []string
			var remedies []string
			row.settings.Check(func(key, problem, remedy string) {
				got = append(got, key+": "+problem)
				remedies = append(remedies, remedy)
				wantHidden(t, key+problem+remedy, append(firstGoogleKey().parts(), clientSecret, googleRefresh, planted)...)
			})
			var want []string
			for i, w := range row.want {
				problem, remedy, _ := strings.Cut(w, " => ")
				want = append(want, problem)
				if i < len(remedies) && !strings.Contains(remedies[i], remedy) {
					t.Errorf("remedy %q, want %q in it", remedies[i], remedy)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestGoogleCheckOfAMissingFile(t *testing.T) {
	s := googleSettings(t, "google_service_account", func(g *token.GoogleServiceAccount) { g.CredentialsFile = "/no/such/key.json" })
	var got []string
	s.Check(func(key, problem, _ string) { got = append(got, key+": "+problem) })
	want := []string{"credentials_file: cannot be read: read secret: open /no/such/key.json: no such file or directory"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestGoogleScopesDefaultToHealthcare(t *testing.T) {
	for _, typ := range token.Types() {
		if !strings.HasPrefix(typ, "google_") {
			continue
		}
		var got []string
		switch g := token.NewSettings(typ).(type) {
		case *token.GoogleServiceAccount:
			got = g.Scopes
		case *token.GoogleAuthorizedUser:
			got = g.Scopes
		case *token.GoogleExternalAccount:
			got = g.Scopes
		case *token.GoogleMetadata:
			got = g.Scopes
		}
		if diff := cmp.Diff([]string{googleScope}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", typ, diff)
		}
	}
}

func TestKeysOfARequestThatIsNotMadeAreWarnings(t *testing.T) {
	for _, selfSigned := range []bool{false, true} {
		g := &token.GoogleServiceAccount{SelfSignedJWT: selfSigned}
		g.CAFile, g.RequestTimeout, g.RefreshBuffer = "ca.pem", time.Second, time.Minute
		got := map[string]string{}
		g.Warn(func(key, problem, _ string) { got[key] = problem })
		want := map[string]string{}
		if selfSigned {
			const what = "has no effect with self_signed_jwt, as nobody is asked"
			want = map[string]string{"ca_file": what, "request_timeout": what}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("self_signed_jwt = %v: warnings (-want +got):\n%s", selfSigned, diff)
		}
	}
}
