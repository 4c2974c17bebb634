package rules

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestKeyWithoutEffectIsAWarning(t *testing.T) {
	const rule = "[[rule]]\nname = 'one'\nurl = 'https://dicom.example.org/'\nprofile = 'one'\n"
	const inside = "[[rule]]\nname = 'two'\nurl = 'https://dicom.example.org/two/'\n"
	const plain = "[[rule]]\nname = 'two'\nurl = 'http://dicom.example.org/'\n"
	static := rule + "[profile.one]\ntype = 'static_bearer'\ntoken = '${SECRET}'\n"
	client := func(keys string) string {
		return rule + "[profile.one]\ntype = 'client_credentials'\nclient_id = 'orthanc'\nclient_secret = '${SECRET}'\n" + keys
	}
	jwt := func(keys string) string {
		return rule + "[profile.one]\ntype = 'jwt_bearer'\nassertion_issuer = 'orthanc'\nkey_file = 'key.pem'\n" + keys
	}
	typ := func(name, keys string) string { return rule + "[profile.one]\ntype = '" + name + "'\n" + keys }
	for _, row := range []struct {
		name, text string
		want       []string // "line: key: what"
	}{
		{name: "none", text: static},
		{name: "none with an admin listener", text: "[admin]\nusername = 'a'\npassword = '${SECRET}'\n" + static},
		{name: "none with an audit key", text: "[log]\naudit_key_file = 'audit.key'\n" + static},
		{name: "none with a rule that passes inside TLS", text: inside + "action = 'pass'\nca_file = 'cert.pem'\nmethods = ['GET']\nallow_networks = ['10.0.0.0/8']\n" + static},
		{name: "none with a rule that only reports what it would deny", text: inside + "action = 'deny'\nmode = 'report'\nmethods = ['GET']\n" + static},
		{name: "none with a rule without TLS", text: plain + "action = 'pass'\nheaders = { X-Site = 'north' }\nmethods = ['GET']\n" + static},
		{name: "none with an issuer", text: client("issuer = 'https://login.example.org'\ninsecure_http = true\nca_file = 'cert.pem'\n")},
		{name: "none with https", text: client("token_endpoint = 'https://login.example.org/token'\nca_file = 'cert.pem'\n")},
		{name: "none with http", text: client("token_endpoint = 'http://127.0.0.1/token'\ninsecure_http = true\n")},
		{name: "none with a managed identity", text: typ("azure_managed_identity", "refresh_buffer = '1m'\nrequest_timeout = '1s'\n")},
		{name: "none with Google's metadata", text: typ("google_metadata", "refresh_buffer = '1m'\nrequest_timeout = '1s'\n")},

		{
			name: "a password of no listener", text: "[admin]\nlisten = ''\nusername = 'a'\npassword = '${SECRET}'\n" + static,
			want: []string{
				"3: admin.username: has no effect, as the admin listener is turned off",
				"4: admin.password: has no effect, as the admin listener is turned off",
			},
		},
		{
			name: "an audit key for no audit", text: "[log]\naudit = 'off'\naudit_key_file = 'audit.key'\n" + static,
			want: []string{`3: log.audit_key_file: has no effect with audit = "off"`},
		},
		{
			name: "a rule that denies", text: inside + "action = 'deny'\nmethods = ['DELETE']\nheaders = { X-Site = 'north' }\nca_file = 'cert.pem'\n" +
				"client_cert = 'cert.pem'\nclient_key = 'key.pem'\nallow_networks = ['10.0.0.0/8']\n" + static,
			want: []string{
				`5: rule[0].methods: has no effect with action = "deny": every method is refused`,
				`6: rule[0].headers: has no effect with action = "deny"`,
				`7: rule[0].ca_file: has no effect with action = "deny"`,
				`8: rule[0].client_cert: has no effect with action = "deny"`,
				`9: rule[0].client_key: has no effect with action = "deny"`,
				`10: rule[0].allow_networks: has no effect with action = "deny"`,
			},
		},
		{
			name: "a rule without TLS", text: plain + "action = 'pass'\nca_file = 'cert.pem'\nclient_cert = 'cert.pem'\nclient_key = 'key.pem'\n" + static,
			want: []string{
				"5: rule[0].ca_file: has no effect without TLS",
				"6: rule[0].client_cert: has no effect without TLS",
				"7: rule[0].client_key: has no effect without TLS",
			},
		},
		{
			name: "a rule that reports that it passes", text: inside + "action = 'pass'\nmode = 'report'\n" + static,
			want: []string{`5: rule[0].mode: has no effect with action = "pass", which report stands for`},
		},
		{
			name: "leave for http that is not asked for", text: client("token_endpoint = 'https://login.example.org/token'\ninsecure_http = true\n"),
			want: []string{"10: profile.one.insecure_http: has no effect, as token_endpoint is https://"},
		},
		{
			name: "trust where there is no TLS", text: client("token_endpoint = 'http://127.0.0.1/token'\ninsecure_http = true\nca_file = 'cert.pem'\n"),
			want: []string{"11: profile.one.ca_file: has no effect, as token_endpoint is http://"},
		},
		{
			name: "leave for http of a jwt_bearer", text: jwt("token_endpoint = 'https://login.example.org/token'\ninsecure_http = true\n"),
			want: []string{"10: profile.one.insecure_http: has no effect, as token_endpoint is https://"},
		},
		{
			name: "keys of Entra for a managed identity",
			text: typ("azure_managed_identity", "cloud = 'usgov'\nca_file = 'cert.pem'\nscopes = ['https://dicom.example.org/.default']\n"),
			want: []string{
				"7: profile.one.cloud: has no effect on where tokens come from: that is this machine's own endpoint",
				"8: profile.one.ca_file: has no effect, as the managed identity endpoint is http:// on this machine",
			},
		},
		{
			name: "an authority for a managed identity",
			text: typ("azure_managed_identity", "authority_host = 'https://login.example.org'\nscopes = ['https://dicom.example.org/.default']\n"),
			want: []string{"7: profile.one.authority_host: has no effect on where tokens come from: that is this machine's own endpoint"},
		},
		{
			name: "trust for Google's metadata", text: typ("google_metadata", "ca_file = 'cert.pem'\n"),
			want: []string{"7: profile.one.ca_file: has no effect, as the metadata server is http:// on this machine"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Setenv("IDENTITY_ENDPOINT", "")
			path := writeConfig(t, row.text)
			cert, key := newPair(t)
			write(t, filepath.Join(filepath.Dir(path), "cert.pem"), cert, 0o600)
			write(t, filepath.Join(filepath.Dir(path), "key.pem"), key, 0o600)
			write(t, filepath.Join(filepath.Dir(path), "audit.key"), strings.Repeat("k", 32), 0o600)
			c, err := Load(path, variables)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, w := range c.Warnings {
				if w.Hint == "" {
					t.Errorf("%s: no remedy", w)
				}
				got = append(got, strings.TrimPrefix(w.String(), path+":"))
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTrustOfAManagedIdentityEndpointOverTLSIsNoWarning(t *testing.T) {
	t.Setenv("IDENTITY_ENDPOINT", "https://127.0.0.1:8443/token")
	path := writeConfig(t, "[[rule]]\nname = 'one'\nurl = 'https://dicom.example.org/'\nprofile = 'one'\n[profile.one]\ntype = 'azure_managed_identity'\nca_file = 'cert.pem'\n")
	cert, _ := newPair(t)
	write(t, filepath.Join(filepath.Dir(path), "cert.pem"), cert, 0o600)
	if c, err := Load(path, variables); err != nil || c.Warnings != nil {
		t.Errorf("got %v, %v", c.Warnings, err)
	}
}
