package rules

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"orthanc-dicomweb-oauth/token"
)

// secrets compares secrets by content; a diff shows them as redacted all the same.
var secrets = cmp.Options{
	cmp.Comparer(func(a, b token.Secret) bool { return a.Reveal() == b.Reveal() }),
	cmp.Comparer(func(a, b token.SecretSource) bool {
		x, errX := a.Read()
		y, errY := b.Read()
		return a.File() == b.File() && x.Reveal() == y.Reveal() && (errX == nil) == (errY == nil)
	}),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.IgnoreFields(Config{}, "Table", "Info"),
	cmpopts.IgnoreUnexported(Rule{}),
}

func TestDefaults(t *testing.T) {
	path := writeConfig(t, minimal)
	got, err := Load(path, variables)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(minimal))
	want := &Config{
		Path: path, Revision: hex.EncodeToString(sum[:])[:12],
		Proxy: Proxy{
			Listen: "127.0.0.1:3128", Unmatched: "deny", MaxConnections: 1024, HeaderTimeout: 10 * time.Second, StallTimeout: 2 * time.Minute,
			ResponseTimeout: 10 * time.Minute, IdleTimeout: 2 * time.Minute, DrainTimeout: 30 * time.Second,
		},
		Admin: Admin{Listen: "127.0.0.1:3129"},
		CA:    CA{Dir: token.File(filepath.Join(filepath.Dir(path), "ca")), NameConstraints: true},
		Log:   Log{Level: "info", Format: "auto", Audit: "stderr"},
		Token: token.Lifecycle{
			RefreshBuffer: 5 * time.Minute, DefaultLifetime: 5 * time.Minute, RequestTimeout: 10 * time.Second, MaxAttempts: 3, MaxBackoff: time.Minute,
		},
		Rules: []*Rule{{
			Name: "azure", URL: "https://dicom.example.org/dicom-web/", Profile: "azure", Action: Inject,
			Methods: []string{"GET", "HEAD", "POST", "PUT", "DELETE"}, Mode: "enforce",
		}},
		Profiles: map[string]*Profile{"azure": {
			Name: "azure", Type: "client_credentials", Lifecycle: token.DefaultLifecycle(),
			Settings: &token.ClientCredentials{OAuthClient: token.OAuthClient{
				TokenEndpoint: "https://login.example.org/token", ClientID: "orthanc", ClientSecret: token.SecretValue(token.NewSecret("s3cr3t")),
			}},
		}},
	}
	if diff := cmp.Diff(want, got, secrets); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestEverythingSet(t *testing.T) {
	text, err := os.ReadFile("testdata/everything.toml")
	if err != nil {
		t.Fatal(err)
	}
	path := writeConfig(t, string(text))
	dir := filepath.Dir(path)
	cert, key := newPair(t)
	write(t, filepath.Join(dir, "cert.pem"), cert, 0o644)
	write(t, filepath.Join(dir, "key.pem"), key, 0o600)
	write(t, filepath.Join(dir, "admin-password"), "adm1n\n", 0o600)
	write(t, filepath.Join(dir, "client-secret"), "cl1ent\r\n", 0o600)
	write(t, filepath.Join(dir, "audit.key"), strings.Repeat("k", 32), 0o600)
	file := func(name string) token.File { return token.File(filepath.Join(dir, name)) }
	got, err := Load(path, variables)
	if err != nil {
		t.Fatal(err)
	}
	profile := &token.ClientCredentials{}
	profile.Scopes, profile.RefreshBuffer, profile.RequestTimeout, profile.CAFile = []string{"a", "b"}, 30*time.Second, 7*time.Second, file("cert.pem")
	profile.Issuer, profile.InsecureHTTP, profile.ClientID, profile.ClientAuth = "http://localhost:8080/realms/imaging", true, "orthanc", "client_secret_post"
	profile.ClientSecret, profile.Audience = token.SecretFile(string(file("client-secret"))), "https://dicom.example.org/"
	profile.Resource, profile.Params = token.Strings{"https://dicom.example.org/"}, map[string]string{"organization": "radiology"}
	want := &Config{
		Path: path, Revision: got.Revision,
		Proxy: Proxy{
			Listen: "0.0.0.0:8080", TLSCert: file("cert.pem"), TLSKey: token.PrivateFile(file("key.pem")), Username: "orthanc",
			Password: token.SecretValue(token.NewSecret("s3cr3t")), AllowClients: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/32"), netip.MustParsePrefix("fd00::/8")},
			Unmatched: "pass", MaxConnections: 64, HeaderTimeout: time.Second, StallTimeout: 2 * time.Second, ResponseTimeout: 3 * time.Second,
			IdleTimeout: 4 * time.Second, DrainTimeout: 5 * time.Second, UpstreamProxy: token.NewSecret("http://user:s3cr3t@proxy.example.org:8080"), PermissiveModes: true,
		},
		Admin: Admin{Listen: "[::]:8081", Username: "admin", Password: token.SecretFile(string(file("admin-password")))},
		CA:    CA{Dir: file("authority"), NameConstraints: false},
		Log:   Log{Level: "debug", Format: "json", Audit: "audit.log", AuditKeyFile: token.PrivateFile(file("audit.key"))},
		Token: token.Lifecycle{RefreshBuffer: time.Minute, DefaultLifetime: 2 * time.Minute, RequestTimeout: 3 * time.Second, MaxAttempts: 4, MaxBackoff: 5 * time.Second},
		Rules: []*Rule{
			{
				Name: "archive", URL: "https://dicom.example.org/dicom-web/", Profile: "archive", Action: Inject, Methods: []string{"GET", "PATCH"}, Mode: "report",
				Headers: map[string]token.Secret{"Ocp-Apim-Subscription-Key": token.NewSecret("s3cr3t"), "X-Site": token.NewSecret("north")},
				CAFile:  file("cert.pem"), ClientCert: file("cert.pem"), ClientKey: token.PrivateFile(file("key.pem")), AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
			},
			{Name: "peer", URL: "http://peer.example.org:8042/dicom-web/", Action: Pass, Methods: defaultRule().Methods, Mode: "enforce"},
		},
		Profiles: map[string]*Profile{"archive": {
			Name: "archive", Type: "client_credentials",
			Lifecycle: token.Lifecycle{RefreshBuffer: 30 * time.Second, DefaultLifetime: 2 * time.Minute, RequestTimeout: 7 * time.Second, MaxAttempts: 4, MaxBackoff: 5 * time.Second},
			Settings:  profile,
		}},
	}
	if diff := cmp.Diff(want, got, secrets); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	secret, err := got.Profiles["archive"].Settings.(*token.ClientCredentials).ClientSecret.Read()
	if err != nil || secret.Reveal() != "cl1ent" {
		t.Errorf("client_secret_file: got %q, %v, want the file without its newline", secret.Reveal(), err)
	}
}

// The example of the design and those of the documentation load as they are.
func TestExamplesLoad(t *testing.T) {
	var examples []string
	err := filepath.WalkDir("../docs/examples", func(path string, _ fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".toml" {
			examples = append(examples, path)
		}
		return err
	})
	if err != nil || len(examples) == 0 {
		t.Fatalf("%d examples, %v", len(examples), err)
	}
	cert, key := newPair(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	curveKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "orthanc@project.iam.gserviceaccount.com", "private_key_id": "1",
		"private_key": pkcs8(t, rsaKey), "token_uri": "https://oauth2.googleapis.com/token",
	})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"client_secret": "s3cr3t", "hospital-ca.pem": cert, "ca.pem": cert, "client-cert.pem": cert, "client-key.pem": key, "smart-key.pem": pkcs8(t, curveKey),
		"azure-cert.pem": selfSigned(t, rsaKey), "azure-key.pem": pkcs8(t, rsaKey), "google-service-account.json": string(account),
	}
	// What stands elsewhere where the examples are used.
	elsewhere := strings.NewReplacer(`"/certificates/`, `"`, `"${CREDENTIALS_DIRECTORY}/`, `"`)
	for _, example := range append(examples, "testdata/design.toml") {
		t.Run(strings.TrimPrefix(example, "../docs/examples/"), func(t *testing.T) {
			text, err := os.ReadFile(example)
			if err != nil {
				t.Fatal(err)
			}
			path := writeConfig(t, elsewhere.Replace(string(text)))
			for name, content := range files {
				write(t, filepath.Join(filepath.Dir(path), name), content, 0o600)
			}
			c, err := Load(path, anyVariable)
			if err != nil {
				t.Fatal(err)
			}
			if c.Rules[0].Decision() != Inject {
				t.Errorf("the first rule decides %q, want %q", c.Rules[0].Decision(), Inject)
			}
			if c.Warnings != nil {
				t.Errorf("warnings: %v", c.Warnings)
			}
			// A reload compares profiles, and an equal one keeps its token: using
			// settings must not change them.
			for name, p := range c.Profiles {
				if _, err := p.Settings.Acquirer(token.Env{}); err != nil {
					t.Errorf("profile %s: %v", name, err)
				}
			}
			again, err := Load(path, anyVariable)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(c.Profiles, again.Profiles) {
				t.Errorf("the same file makes other profiles (-first +second):\n%s", cmp.Diff(c.Profiles, again.Profiles, secrets))
			}
		})
	}
}

// Both the design's example and docs/examples/full.toml show the values that hold without them.
func TestExamplesShowTheDefaults(t *testing.T) {
	cert, _ := newPair(t)
	for _, example := range []string{"testdata/design.toml", "../docs/examples/full.toml"} {
		text, err := os.ReadFile(example)
		if errors.Is(err, os.ErrNotExist) {
			t.Logf("%s is not there", example)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		path := writeConfig(t, string(text))
		write(t, filepath.Join(filepath.Dir(path), "hospital-ca.pem"), cert, 0o644)
		got, err := Load(path, anyVariable)
		if err != nil {
			t.Fatal(err)
		}
		want := Default()
		want.CA.Dir = token.File(filepath.Join(filepath.Dir(path), "ca"))
		ignore := cmpopts.IgnoreFields(Config{}, "Path", "Revision", "Rules", "Profiles")
		if diff := cmp.Diff(&want, got, secrets, ignore, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-default +example):\n%s", example, diff)
		}
	}
}

func TestExpand(t *testing.T) {
	for _, row := range []struct {
		name, in, want string
		inClear        bool
	}{
		{"nothing", "", "", false},
		{"no variable", "plain", "plain", true},
		{"a variable", "${SECRET}", "s3cr3t", false},
		{"a variable and more", "Bearer ${SECRET}", "Bearer s3cr3t", true},
		{"two variables", "${SECRET}${HOST}", "s3cr3tdicom.example.org", false},
		{"a variable that is set, with a default", "${SECRET:-default}", "s3cr3t", false},
		{"a default", "${NOT_SET:-default}", "default", true},
		{"a default for an empty variable", "${EMPTY:-default}", "default", true},
		{"an empty default", "${NOT_SET:-}", "", false},
		{"an empty variable", "${EMPTY}", "", false},
		{"a default with :- in it", "${NOT_SET:-a:-b}", "a:-b", true},
		{"a default with $ in it", "${NOT_SET:-a$b}", "a$b", true},
		{"a literal $", "$$", "$", true},
		{"a literal ${", "$${SECRET}", "${SECRET}", true},
		{"a literal $ before a variable", "$$${SECRET}", "$s3cr3t", true},
		{"a lone $", "pa$word", "pa$word", true},
		{"a $ at the end", "word$", "word$", true},
		{"a value that looks like a variable is not expanded again", "${DOLLAR}", "a${SECRET}$$b", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := expand(row.in, variables)
			if err != nil || got != (expanded{row.want, row.inClear}) {
				t.Errorf("got %+v, %v, want %q, in clear: %v", got, err, row.want, row.inClear)
			}
		})
	}
}

func TestVariablesWorkInEveryStringAndNowhereElse(t *testing.T) {
	c := load(t, `
# ${NOT_SET} and ${ stand in a comment
[proxy]
stall_timeout = "${NOT_SET:-7}s" # ${NOT_SET}
allow_clients = ["${NOT_SET:-10.0.0.0}/8"]
[ca]
dir = "/srv/${HOST}"
[[rule]]
name    = "${NOT_SET:-azure}"
url     = "https://${HOST}/dicom-web/"
profile = "azure"
methods = ["${NOT_SET:-GET}"]
headers = { X-Key = '${DOLLAR}' }
[profile.azure]
type           = "client_credentials"
token_endpoint = "https://login.example.org/token"
client_id      = """${HOST}"""
client_secret  = "${DOLLAR}"
scopes         = ["$$default"]
params         = { key = "${HOST}" }
`)
	if got := c.Proxy.StallTimeout; got != 7*time.Second {
		t.Errorf("proxy.stall_timeout: got %v", got)
	}
	if got := c.Proxy.AllowClients[0].String(); got != "10.0.0.0/8" {
		t.Errorf("proxy.allow_clients: got %v", got)
	}
	if got := c.CA.Dir; got != "/srv/dicom.example.org" {
		t.Errorf("ca.dir: got %v", got)
	}
	r := c.Rules[0]
	if r.Name != "azure" || r.URL != "https://dicom.example.org/dicom-web/" || r.Methods[0] != "GET" || r.Headers["X-Key"].Reveal() != "a${SECRET}$$b" {
		t.Errorf("rule: got %+v", r)
	}
	p := c.Profiles["azure"].Settings.(*token.ClientCredentials)
	secret, err := p.ClientSecret.Read()
	if err != nil || secret.Reveal() != "a${SECRET}$$b" {
		t.Errorf("client_secret: got %q, %v, want the variable's value as it is", secret.Reveal(), err)
	}
	if p.ClientID != "dicom.example.org" || p.Scopes[0] != "$default" || p.Params["key"] != "dicom.example.org" {
		t.Errorf("profile: got %+v", p)
	}
}

func TestSecretFileMayUseAVariableAndAnAbsolutePath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	write(t, path, "s3cr3t", 0o600)
	text := strings.ReplaceAll(minimal, `client_secret  = "${SECRET}"`, `client_secret_file = "${FILE}"`)
	c, err := Load(writeConfig(t, text), func(string) (string, bool) { return path, true })
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Profiles["azure"].Settings.(*token.ClientCredentials).ClientSecret.File(); got != path {
		t.Errorf("got %q, want %q", got, path)
	}
}

func TestRelativePathsAreRelativeToTheConfig(t *testing.T) {
	path := writeConfig(t, minimal)
	t.Chdir(filepath.Dir(filepath.Dir(path)))
	relative := filepath.Join(filepath.Base(filepath.Dir(path)), "gateway.toml")
	c, err := Load(relative, variables)
	if err != nil {
		t.Fatal(err)
	}
	if want := token.File(filepath.Join(filepath.Dir(path), "ca")); c.CA.Dir != want {
		t.Errorf("ca.dir: got %q, want %q", c.CA.Dir, want)
	}
	if c.Path != path {
		t.Errorf("path: got %q, want %q", c.Path, path)
	}
}

func TestFileThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "none.toml"): "none.toml: no such file or directory (name the file with --config, or in DICOMWEB_OAUTH_CONFIG)",
		dir:                             filepath.Base(dir) + ": is a directory (name the file with --config, or in DICOMWEB_OAUTH_CONFIG)",
	} {
		_, err := Load(path, variables)
		if _, ok := errors.AsType[Problems](err); !ok || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestReportModeDecidesPass(t *testing.T) {
	for _, row := range []struct {
		rule Rule
		want Action
	}{
		{Rule{Action: Inject, Mode: "enforce"}, Inject},
		{Rule{Action: Inject, Mode: "report"}, Pass},
		{Rule{Action: Deny, Mode: "enforce"}, Deny},
		{Rule{Action: Deny, Mode: "report"}, Pass},
		{Rule{Action: Pass, Mode: "enforce"}, Pass},
	} {
		if got := row.rule.Decision(); got != row.want {
			t.Errorf("%s in mode %s: got %s, want %s", row.rule.Action, row.rule.Mode, got, row.want)
		}
	}
}

func TestMethodsAreLetThroughByName(t *testing.T) {
	r := defaultRule()
	for method, want := range map[string]bool{"GET": true, "HEAD": true, "POST": true, "PUT": true, "DELETE": true, "PATCH": false, "OPTIONS": false, "get": false, "": false} {
		if got := r.Allows(method); got != want {
			t.Errorf("%q: got %v, want %v", method, got, want)
		}
	}
}
