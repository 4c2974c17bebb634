package orthancjson

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/rules"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestGoldenFilesAreWhatConvertWritesAndLoad(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.json")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	for _, input := range inputs {
		t.Run(strings.TrimSuffix(filepath.Base(input), ".json"), func(t *testing.T) {
			text, err := os.ReadFile(input)
			if err != nil {
				t.Fatal(err)
			}
			got, notes, err := Convert(text, "")
			if err != nil {
				t.Fatal(err)
			}
			// The notes are a part of the golden file, so that their wording is looked at.
			shown := string(got) + "\n# ---- notes ----\n"
			for _, n := range notes {
				shown += "# " + n + "\n"
			}
			golden := strings.TrimSuffix(input, ".json") + ".toml"
			if *update {
				if err := os.WriteFile(golden, []byte(shown), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), shown); diff != "" {
				t.Errorf("differs from %s (-want +got), see -update:\n%s", golden, diff)
			}
			load(t, got)
		})
	}
}

// load loads a gateway.toml beside the files that it may name.
func load(t *testing.T, text []byte) *rules.Config {
	t.Helper()
	c, err := rules.Load(placed(t, text), environment)
	if err != nil {
		t.Fatalf("%v\nin\n%s", err, text)
	}
	return c
}

// environment has every variable of the tests.
func environment(name string) (string, bool) {
	switch {
	case name == "REFRESH_SECONDS":
		return "120", true
	case strings.HasSuffix(name, "_URL") || strings.HasSuffix(name, "_ENDPOINT"):
		return "https://" + strings.ToLower(strings.ReplaceAll(name, "_", "-")) + ".example.org/", true
	}
	return "value-of-" + name, true
}

func placed(t *testing.T, text []byte) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string][]byte{"gateway.toml": text}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files["service-account.json"] = marshal(t, map[string]string{
		"type": "service_account", "project_id": "example-project", "private_key_id": "1",
		"private_key":  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"client_email": "orthanc@example-project.iam.gserviceaccount.com", "client_id": "1",
		"token_uri": "https://oauth2.googleapis.com/token",
	})
	files["user.json"] = marshal(t, map[string]string{
		"type": "authorized_user", "client_id": "id", "client_secret": "secret", "refresh_token": "refresh",
	})
	files["hospital-ca.pem"] = caFile(t)
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "gateway.toml")
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func caFile(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Hospital CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// python returns an orthanc.json with one server of the Python plugin.
func python(members string) string {
	return `{"DicomWebOAuth": {"Servers": {"pacs": {` + members + `}}}}`
}

const (
	pacsURL  = `"Url": "https://pacs.example.org/dicom-web/"`
	client   = `"ClientId": "orthanc", "ClientSecret": "${SECRET}"`
	complete = pacsURL + `, "TokenEndpoint": "https://idp.example.org/token", ` + client
)

func TestErrorsNameTheKeyAndTheRemedy(t *testing.T) {
	account := func(members string) string {
		return `{"GoogleCloudPlatform": {"Accounts": {"g": {` + members + `}}}}`
	}
	for _, row := range []struct{ name, json, want string }{
		{"nothing", ``, "not the JSON that Orthanc reads: line 2, column 1: parsing value: unexpected EOF; correct the file"},
		{"a list", `[]`, "not the JSON that Orthanc reads: the file is not one object {...}; give an orthanc.json"},
		{"an error of syntax", "{\n\"a\" 1}", "not the JSON that Orthanc reads: line 2, column 5: invalid character '1' after object name; correct the file"},
		{"a variable without quotes", `{"HttpPort": ${PORT}}`, `line 1, column 14: invalid character '$' at start of value; put quotes round it: "${VARIABLE}"`},
		{"Latin-1", "{\n\"Name\": \"\xe4\"}", "line 2: the file is not UTF-8; save it as UTF-8"},
		{"too deep", strings.Repeat("[", maxNesting+1), "this is too large for an orthanc.json; name the configuration file of Orthanc"},
		{"no section", `{"Name": "Orthanc"}`, `there is no section "DicomWebOAuth" and no section "GoogleCloudPlatform"; give the file that has one (Orthanc itself merges all files of a folder)`},
		{"a section of the wrong type", `{"DicomWebOAuth": 1}`, "DicomWebOAuth: must be an object, got a number; write it as {...}"},
		{"no server", `{"DicomWebOAuth": {"Servers": {}}}`, "DicomWebOAuth: names no server; there is nothing to do"},
		{"Servers of the wrong type", `{"DicomWebOAuth": {"Servers": []}}`, "DicomWebOAuth.Servers: must be an object, got a list; write it as {...}"},
		{"a server of the wrong type", `{"DicomWebOAuth": {"Servers": {"a": "b"}}}`, "DicomWebOAuth.Servers.a: must be an object, got a string; write the server as {...}"},
		{"no Url", python(`"TokenEndpoint": "https://idp.example.org/token", ` + client), "DicomWebOAuth.Servers.pacs.Url: is missing; add it"},
		{"url", python(`"url": "https://pacs.example.org/", "TokenEndpoint": "https://idp.example.org/token", ` + client), `DicomWebOAuth.Servers.pacs.Url: is missing; there is "url", but upper and lower case count: write "Url"`},
		{"an empty secret", python(pacsURL + `, "TokenEndpoint": "https://idp.example.org/token", "ClientId": "a", "ClientSecret": ""`), "DicomWebOAuth.Servers.pacs.ClientSecret: is empty; add it"},
		{"all at once", python(pacsURL), "DicomWebOAuth.Servers.pacs.TokenEndpoint: is missing; add it\nDicomWebOAuth.Servers.pacs.ClientId: is missing; add it\nDicomWebOAuth.Servers.pacs.ClientSecret: is missing; add it"},
		{"a number for a string", python(`"Url": 1, "TokenEndpoint": "https://idp.example.org/token", ` + client), "DicomWebOAuth.Servers.pacs.Url: want a string, got a number; write it in quotes"},
		{"VerifySSL of the wrong type", python(complete + `, "VerifySSL": 1`), "DicomWebOAuth.Servers.pacs.VerifySSL: want true, false or the path of a CA file, got a number; write true, or the path in quotes"},
		{"only http", python(`"Url": "http://pacs.example.org/", "TokenEndpoint": "https://idp.example.org/token", ` + client), "DicomWebOAuth.Servers.pacs.Url: is not https; a credential is never sent over http. Use https, and ca_file for a CA of your own"},
		{"only a token endpoint in clear", python(pacsURL + `, "TokenEndpoint": "http://idp.example.org/token", ` + client), "DicomWebOAuth.Servers.pacs.TokenEndpoint: is not https; it would send the secret in clear. Use the provider's https URL, and ca_file for a CA of your own"},
		{"a region that is none", python(pacsURL + `, "ProviderType": "aws", "Region": "{region}"`), `DicomWebOAuth.Servers.pacs.Region: "{region}" is no region of AWS; write it as "us-west-2"`},
		{"no account", `{"GoogleCloudPlatform": {}}`, "GoogleCloudPlatform.Accounts: is missing; add it, or remove the section"},
		{"no credential", account(`"Project": "p", "Location": "l", "Dataset": "d", "DicomStore": "s", "AuthorizedUserClientId": "i"`), "GoogleCloudPlatform.Accounts.g: has no credential; give ServiceAccountFile, AuthorizedUserFile, or all three of AuthorizedUserClientId, AuthorizedUserClientSecret, AuthorizedUserRefreshToken"},
		{"no store", account(`"Project": "p", "Location": "l", "Dataset": "d", "ServiceAccountFile": "f"`), "GoogleCloudPlatform.Accounts.g.DicomStore: is missing; add it"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, notes, err := Convert([]byte(row.json), "")
			if err == nil || err.Error() != row.want {
				t.Errorf("got  %v\nwant %s", err, row.want)
			}
			if got != nil || notes != nil {
				t.Errorf("an error comes with %d bytes and %d notes, want none", len(got), len(notes))
			}
		})
	}
}

func TestRuleURLsAreRefusedWithAReason(t *testing.T) {
	for _, url := range []string{
		"http://pacs.example.org/", "ftp://pacs.example.org/", "pacs.example.org", "https://", "https:///dicom-web/", "https://pacs.example.org/?a=b",
		"https://pacs.example.org/#a", "https://user:pass@pacs.example.org/", "https://pacs.example.org:0/", "https://pacs.example.org:x/",
		"https://pacs.example.org:/", "https://1.2.3/", "https://0x7f.1/", "https://a..b/", "https://a b/", "https://pacs.example.org/a//b",
		"https://pacs.example.org/../a", "https://pacs.example.org/.a", "https://pacs.example.org/%2e", "https://pacs.example.org/a;b",
		"https://[::1/", "https://[::1]x/", "https://[1.2.3.4]/", "https://::1/", "https://*.example.org/", "https://pacs.example.org/ü", "http://${HOST}/",
		"https://" + strings.Repeat("a", 64) + ".org/",
	} {
		if canonical, err := canonicalURL(url); err == nil {
			t.Errorf("%q: got %q, want an error", url, canonical)
		}
	}
}

func TestRuleURLsThatAreOnePlaceHaveOneSpelling(t *testing.T) {
	for _, same := range [][]string{
		{"https://pacs.example.org:443/dicom-web/", "https://PACS.example.org/dicom-web", "HTTPS://pacs.example.org./dicom-web/"},
		{"https://127.0.0.1:443/", "https://127.0.0.1", "https://[::ffff:127.0.0.1]/"},
		{"https://[::1]:8443/", "https://[0:0::1]:8443"},
	} {
		for _, url := range same {
			got, err := canonicalURL(url)
			if want, _ := canonicalURL(same[0]); err != nil || got != want {
				t.Errorf("%q: got %q, %v, want %q", url, got, err, want)
			}
			load(t, []byte("[[rule]]\nname = 'a'\nurl = "+quote(url)+"\naction = 'inject'\nprofile = 'p'\n"+
				"[profile.p]\ntype = 'client_credentials'\ntoken_endpoint = 'https://idp.example.org/'\nclient_id = 'a'\nclient_secret = '${S}'\n"))
		}
	}
}

func TestRelativePathsAreBesideTheOrthancJSON(t *testing.T) {
	dir := string(filepath.Separator) + "etc-orthanc"
	for path, want := range map[string]string{
		"ca.pem": filepath.Join(dir, "ca.pem"), "sub/ca.pem": filepath.Join(dir, "sub", "ca.pem"), "/ca.pem": "/ca.pem",
		`C:\ca.pem`: `C:\ca.pem`, "${CAS}/ca.pem": "${CAS}/ca.pem",
	} {
		got, notes, err := Convert([]byte(python(complete+`, "VerifySSL": `+string(marshal(t, path)))), dir)
		if err != nil {
			t.Fatal(err)
		}
		if profile(t, got)["ca_file"] != want {
			t.Errorf("%q: got %v, want %q", path, profile(t, got)["ca_file"], want)
		}
		moved := slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "beside the orthanc.json") })
		if moved != (path != want) {
			t.Errorf("%q: moved %v, and the notes say %v", path, path != want, notes)
		}
	}
}

// profile returns the one profile of a gateway.toml.
func profile(t *testing.T, text []byte) map[string]any {
	t.Helper()
	var tree struct{ Profile map[string]map[string]any }
	if _, err := toml.Decode(string(text), &tree); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	for _, p := range tree.Profile {
		return p
	}
	return nil
}

func TestOnlyScopesOfOneAudienceGoToEntra(t *testing.T) {
	for scope, want := range map[string][]any{
		`"https://dicom.healthcareapis.azure.com"`:  {azureScope},
		`"https://dicom.healthcareapis.azure.com/"`: {azureScope},
		`"${SCOPE}"`:                          {"${SCOPE}"},
		`""`:                                  {azureScope},
		`null`:                                {azureScope},
		`["a/.default"]`:                      {"a/.default"},
		`" a/.default\tb/.default "`:          {"a/.default", "b/.default"},
		`"${A:-x y}/.default $b/.default ${"`: {"${A:-x y}/.default", "$$b/.default", "$${"},
	} {
		got, _, err := Convert([]byte(python(pacsURL+`, "TokenEndpoint": "https://login.microsoftonline.com/t/oauth2/v2.0/token", `+client+`, "Scope": `+scope)), "")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(any(want), profile(t, got)["scopes"]); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", scope, diff)
		}
	}
}

func TestRefreshBufferIsADuration(t *testing.T) {
	for seconds, want := range map[string]any{
		"300": "5m", "90": "90s", "60.0": "1m", `"45"`: "45s", `"${S}"`: "${S}s", "0": nil, "-5": nil, "1e99": nil, `"soon"`: nil, `"NaN"`: nil, "86400": "1440m",
	} {
		got, notes, err := Convert([]byte(python(complete+`, "TokenRefreshBufferSeconds": `+seconds)), "")
		if err != nil {
			t.Fatal(err)
		}
		if have := profile(t, got)["refresh_buffer"]; have != want {
			t.Errorf("%s: got %v, want %v", seconds, have, want)
		}
		if (len(notes) == 0) != (want != nil) {
			t.Errorf("%s: got notes %q", seconds, notes)
		}
	}
}

func TestSecretsStandInNoNoteAndNoComment(t *testing.T) {
	got, notes, err := Convert([]byte(`{"HttpProxy": "http://user:hunter2@proxy.example.org:3128", "DicomWebOAuth": {
		"a": {`+complete+`, "ProviderType": "azuremanagedidentity", "ClientSecret": "hunter2"},
		"b": {"Url": "https://b.example.org/", "TokenEndpoint": "https://idp.example.org/", "ClientId": "b", "ClientSecret": "hunter2", "Password": "hunter2"}
	}, "GoogleCloudPlatform": {"Accounts": {"g": {"Project": "p", "Location": "l", "Dataset": "d", "DicomStore": "s",
		"AuthorizedUserClientId": "i", "AuthorizedUserClientSecret": "hunter2", "AuthorizedUserRefreshToken": "hunter2"}}}}`), "")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.Join(notes, "\n"), "hunter2") {
		t.Errorf("a note shows a secret: %q", notes)
	}
	for line := range strings.Lines(string(got)) {
		if strings.HasPrefix(line, "#") && strings.Contains(line, "hunter2") {
			t.Errorf("a comment shows a secret: %s", line)
		}
	}
	if n := strings.Count(string(got), "hunter2"); n != 3 {
		t.Errorf("%d secrets were written, want 3 (that of a managed identity is not needed)", n)
	}
}

func TestLiteralSecretsArriveAsTheyWere(t *testing.T) {
	for _, secret := range []string{
		"plain", "$", "$$", "$$$", "a$b", "${", "${}", "${1}", "${A B}", "$${", "}", `"\`, "\x00\x1f\x7f\u0085\ufeff\u2028", "tab\tnewline\nreturn\r", "\U0001f600", "#=[]",
	} {
		got, _, err := Convert([]byte(python(pacsURL+`, "TokenEndpoint": "https://idp.example.org/", "ClientId": `+string(marshal(t, secret))+`, "ClientSecret": "${S}"`)), "")
		if err != nil {
			t.Fatal(err)
		}
		have := clientID(t, load(t, got))
		if have != secret {
			t.Errorf("got %q, want %q", have, secret)
		}
	}
}

// clientID reads a client's id as the gateway has it, after expansion.
func clientID(t *testing.T, c *rules.Config) string {
	t.Helper()
	var s struct{ ClientID string }
	for _, p := range c.Profiles {
		if err := json.Unmarshal(marshal(t, p.Settings), &s); err != nil {
			t.Fatal(err)
		}
	}
	return s.ClientID
}

func TestNamesAreValidAndUnique(t *testing.T) {
	c := &converter{names: map[string]bool{}}
	for _, row := range [][2]string{
		{"a", "a"}, {"a", "a-2"}, {"a", "a-3"}, {"a-2", "a-2-2"}, {"", "server"}, {"//", "server-2"}, {"A.b_c-d", "A.b_c-d"}, {"a b\nc", "a-b-c"}, {"Süd", "S-d"},
	} {
		if got := c.uniqueName(row[0]); got != row[1] {
			t.Errorf("%q: got %q, want %q", row[0], got, row[1])
		}
	}
}

func FuzzQuoteRoundTrips(f *testing.F) {
	for _, s := range []string{"", "plain", `"\`, "\x00\t\n\r\x1f\x7f", "\xff\xfe", "\u0085\ufeff\u2028\U0010ffff", `'''"""`, "${VAR}", "a # b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var got struct{ Key string }
		if _, err := toml.Decode("Key = "+quote(s), &got); err != nil {
			t.Fatalf("%q: %v", quote(s), err)
		}
		if want := strings.Map(func(r rune) rune { return r }, s); got.Key != want { // U+FFFD for what is not UTF-8
			t.Errorf("got %q, want %q", got.Key, want)
		}
	})
}

// FuzzConvert checks that whatever goes in, what comes out is a gateway.toml in
// which nothing is wrong but what is outside of it: variables and files.
func FuzzConvert(f *testing.F) {
	inputs, err := filepath.Glob("testdata/*.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, input := range inputs {
		text, err := os.ReadFile(input)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, "")
	}
	for _, members := range []string{complete, complete + `, "Scope": "a b"`, complete + `, "VerifySSL": "a"`, complete + `, "\n\u0000": "\ud800"`} {
		f.Add([]byte(python(members)), "/dir")
	}
	f.Fuzz(checkConversion)
}

// FuzzServer is FuzzConvert with what is in the right place already.
func FuzzServer(f *testing.F) {
	add := func(name, url, endpoint, id, scope, provider, number, other string) {
		f.Add(name, url, endpoint, id, scope, provider, number, other)
	}
	for _, provider := range []string{"auto", "azuremanagedidentity", "google", "aws", "azure", "?"} {
		add("pacs", "https://pacs.example.org/dicom-web/", "https://idp.example.org/token", "id", "a b", provider, "300", "us-east-1")
		add("p.a c", "https://${HOST}:8443/", "${ENDPOINT}", "$id", "${SCOPE:-a b}", provider, "-1", "ca.pem")
		add("", "https://[::1]/", "http://[::1]/token", "id\n", "", provider, "1e3", "false")
		add("pacs", "https://pacs.example.org", "https://login.microsoftonline.com/${TENANT}/oauth2/token", "", "a", provider, "0", "")
	}
	f.Fuzz(func(t *testing.T, name, url, endpoint, id, scope, provider, number, other string) {
		text, err := json.Marshal(map[string]any{
			"HttpProxy": other, "HttpsCACertificates": other,
			"DicomWebOAuth": map[string]any{name: map[string]any{
				"Url": url, "TokenEndpoint": endpoint, "ClientId": id, "ClientSecret": id, "Scope": scope, "ProviderType": provider,
				"TokenRefreshBufferSeconds": number, "VerifySSL": other, "Region": other, "TenantId": other, "Audience": other, other: scope,
			}},
			"GoogleCloudPlatform": map[string]any{"BaseUrl": url, "Accounts": map[string]any{name: map[string]any{
				"Project": id, "Location": number, "Dataset": scope, "DicomStore": other, "ServiceAccountFile": provider,
				"AuthorizedUserClientId": id, "AuthorizedUserClientSecret": id, "AuthorizedUserRefreshToken": id,
			}}},
		})
		if err != nil {
			t.Skip()
		}
		checkConversion(t, text, "")
	})
}

func checkConversion(t *testing.T, text []byte, dir string) {
	got, notes, err := Convert(text, dir)
	if err != nil {
		return
	}
	again, notesAgain, _ := Convert(text, dir)
	if string(got) != string(again) || !slices.Equal(notes, notesAgain) {
		t.Fatal("two runs differ")
	}
	path := filepath.Join(t.TempDir(), "gateway.toml")
	if err := os.WriteFile(path, got, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = rules.Load(path, func(string) (string, bool) { return "", false })
	problems, _ := errors.AsType[rules.Problems](err)
	if err != nil && problems == nil {
		t.Fatalf("%v\nin\n%s", err, got)
	}
	unset := map[string]bool{}
	for _, p := range problems {
		key, _, _ := strings.Cut(p.Key, "[") // of a list, the whole
		unset[key] = unset[key] || strings.HasPrefix(p.What, "variable ")
	}
	for _, p := range problems {
		outside := unset[p.Key] || strings.HasPrefix(p.What, "variable ") || strings.HasSuffix(p.Key, "_file") ||
			strings.HasSuffix(p.Key, "access_key_id") || strings.HasSuffix(p.Key, "secret_access_key") || // what AWS's keys look like is theirs
			strings.Contains(string(got), ":-") // a default may be anything
		if !outside {
			t.Errorf("%v (%s)\nin\n%s", p, p.Hint, got)
		}
	}
}
