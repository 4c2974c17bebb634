package docs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"orthanc-dicomweb-oauth/rules"
)

// No test can run what needs a container engine, a cluster or a cloud. These hold it together: what it names exists, and
// its parts agree.

const (
	binaryInImage = "/usr/bin/orthanc-dicomweb-oauth"
	configInImage = "/etc/orthanc-dicomweb-oauth/gateway.toml"
	caInImage     = "/var/lib/orthanc-dicomweb-oauth/ca"
)

func TestEachYAMLAndJSONOfTheExamplesParses(t *testing.T) {
	found := 0
	err := filepath.WalkDir("examples", func(path string, _ fs.DirEntry, err error) error {
		switch filepath.Ext(path) {
		case ".yaml", ".yml":
			found++
			documents(t, path)
		case ".json":
			var v any
			if jsonErr := json.Unmarshal([]byte(read(t, path)), &v); jsonErr != nil {
				t.Errorf("%s: %v", path, jsonErr)
			}
		}
		return err
	})
	if err != nil || found < 3 {
		t.Errorf("%d YAML files, %v", found, err)
	}
}

func TestDockerfileAgreesWithItself(t *testing.T) {
	file := read(t, "../Dockerfile")
	for _, want := range []string{
		"CGO_ENABLED=0", "-trimpath", "-X main.version=", "\nFROM scratch\n", "\nUSER 65532:65532\n",
		"\nENV DICOMWEB_OAUTH_CONFIG=" + configInImage + "\n",
		"\nVOLUME " + caInImage + "\n",
		"--chown=65532:65532 /state/ /var/lib/\n", "/state/orthanc-dicomweb-oauth/ca",
		"-o /out/" + filepath.Base(binaryInImage) + " .\n", "COPY --from=build /out/orthanc-dicomweb-oauth /usr/bin/\n",
		`ENTRYPOINT ["` + binaryInImage + `"]`, `CMD ["run"]`,
		`HEALTHCHECK --interval=10s --timeout=5s --start-period=15s CMD ["` + binaryInImage + `", "health"]`,
		"\nEXPOSE " + port(t, rules.Default().Proxy.Listen) + " " + port(t, rules.Default().Admin.Listen) + "\n",
		"/etc/ssl/certs/ca-certificates.crt",
	} {
		if !strings.Contains(file, want) {
			t.Errorf("Dockerfile has no %q", want)
		}
	}
	gomod := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "../go.mod"))
	if !strings.Contains(file, "FROM golang:"+gomod[1]+" AS build") {
		t.Errorf("Dockerfile builds with another Go than %s of go.mod", gomod[1])
	}
	ignored := strings.Fields(read(t, "../.dockerignore"))
	for _, needed := range []string{"go.mod", "go.sum", "*.go", "main.go", "rules", "token", "certs", "gateway"} {
		if slices.Contains(ignored, needed) {
			t.Errorf(".dockerignore leaves %s out, which the build needs", needed)
		}
	}
}

func TestReleaseBuildsWhatIsPromised(t *testing.T) {
	var c struct {
		Builds []struct {
			Main         string
			Goos, Goarch []string
			Flags        []string
			Ldflags      []string
			ModTimestamp string `yaml:"mod_timestamp"`
		}
		Archives []struct{ Files []struct{ Src string } }
		Nfpms    []struct {
			Formats  []string
			Scripts  map[string]string
			Contents []struct {
				Src, Dst string
				FileInfo struct{ Mode fs.FileMode } `yaml:"file_info"`
			}
		}
		Sboms    []any
		Checksum map[string]string
	}
	if err := yaml.Unmarshal([]byte(read(t, "../.goreleaser.yaml")), &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Builds) != 1 || len(c.Nfpms) != 1 || len(c.Sboms) == 0 || c.Checksum["name_template"] == "" {
		t.Fatalf("got %+v", c)
	}
	b := c.Builds[0]
	if !slices.Contains(b.Flags, "-trimpath") || b.ModTimestamp != "{{ .CommitTimestamp }}" || !strings.Contains(b.Ldflags[0], "-X main.version={{ .Version }}") {
		t.Errorf("the build is not reproducible, or has no version: %+v", b)
	}
	if !regexp.MustCompile(`(?m)^var version string$`).MatchString(read(t, "../main.go")) {
		t.Error("main.go has no variable version for -X main.version")
	}
	var platforms []string
	for _, system := range b.Goos {
		for _, machine := range b.Goarch {
			platforms = append(platforms, system+"/"+machine)
		}
	}
	if want := "PLATFORMS     := " + strings.Join(platforms, " ") + "\n"; !strings.Contains(read(t, "../Makefile"), want) {
		t.Errorf("the Makefile has not %q: CI builds something else than a release", want)
	}
	sources := slices.Collect(func(yield func(string) bool) {
		for _, f := range c.Archives[0].Files {
			yield(f.Src)
		}
		for _, s := range c.Nfpms[0].Scripts {
			yield(s)
		}
		for _, f := range c.Nfpms[0].Contents {
			yield(f.Src)
		}
	})
	for _, src := range sources {
		if found, _ := filepath.Glob(filepath.Join("..", strings.ReplaceAll(src, "**", "*"))); found == nil {
			t.Errorf(".goreleaser.yaml names %s, which is not there", src)
		}
	}
	modes := map[string]fs.FileMode{}
	for _, f := range c.Nfpms[0].Contents {
		modes[f.Dst] = f.FileInfo.Mode
	}
	if modes[configInImage] != 0o600 {
		t.Errorf("the Debian package installs %s with mode %o, want 600", configInImage, modes[configInImage])
	}
	unit := "/lib/systemd/system/orthanc-dicomweb-oauth.service"
	if _, ok := modes[unit]; !ok {
		t.Errorf("the Debian package does not install %s", unit)
	}
}

func TestSystemdUnitAgreesWithTheExampleAndTheBinary(t *testing.T) {
	unit := read(t, "examples/systemd/orthanc-dicomweb-oauth.service")
	values := map[string][]string{}
	for line := range strings.Lines(unit) {
		line = strings.TrimSpace(line)
		name, value, ok := strings.Cut(line, "=")
		if ok && !strings.HasPrefix(line, "#") {
			values[name] = append(values[name], value)
		}
	}
	for name, want := range map[string]string{
		"Type": "notify", "ExecStart": binaryInImage + " run --config " + configInImage, "ExecReload": "/bin/kill -HUP $MAINPID",
		"LimitCORE": "0", "StateDirectory": "orthanc-dicomweb-oauth/ca", "NoNewPrivileges": "yes", "ProtectSystem": "strict",
		"LoadCredential": "client_secret:/etc/orthanc-dicomweb-oauth/client_secret",
	} {
		if got := values[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	config := read(t, "examples/systemd/gateway.toml")
	for _, want := range []string{`dir = "/var/lib/` + values["StateDirectory"][0] + `"`, `"${CREDENTIALS_DIRECTORY}/client_secret"`} {
		if !strings.Contains(config, want) {
			t.Errorf("examples/systemd/gateway.toml has no %s", want)
		}
	}
	scripts := read(t, "examples/debian/postinstall.sh")
	if user := values["User"][0]; !strings.Contains(scripts, "user="+user+"\n") {
		t.Errorf("postinstall.sh does not make the user %s", user)
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed: the unit was not verified by systemd itself")
	}
	installed := filepath.Join(t.TempDir(), "orthanc-dicomweb-oauth.service")
	text := strings.ReplaceAll(unit, binaryInImage, "/bin/true") // it must exist
	if err := os.WriteFile(installed, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", installed).CombinedOutput(); err != nil || bytes.Contains(out, []byte(filepath.Base(installed))) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestComposeExampleAgreesWithItself(t *testing.T) {
	var c struct {
		Services map[string]struct {
			Build       string
			Environment map[string]string
			Volumes     []string
			Networks    []string
			Ports       []string
			DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
		}
		Networks map[string]struct {
			Ipam struct{ Config []struct{ Subnet string } }
		}
		Volumes map[string]any
	}
	if err := yaml.Unmarshal([]byte(read(t, "examples/compose/compose.yaml")), &c); err != nil {
		t.Fatal(err)
	}
	for name, s := range c.Services {
		for _, v := range s.Volumes {
			source, _, _ := strings.Cut(v, ":")
			if _, named := c.Volumes[source]; strings.HasPrefix(source, "./") {
				mustExist(t, filepath.Join("examples/compose", source))
			} else if !named {
				t.Errorf("%s: there is no volume %s", name, source)
			}
		}
		for other := range s.DependsOn {
			if _, ok := c.Services[other]; !ok {
				t.Errorf("%s depends on %s, which is not there", name, other)
			}
		}
		for _, network := range s.Networks {
			if _, ok := c.Networks[network]; !ok {
				t.Errorf("%s: there is no network %s", name, network)
			}
		}
		for _, published := range s.Ports {
			if !strings.HasPrefix(published, "127.0.0.1:") {
				t.Errorf("%s: %s is published to other machines", name, published)
			}
		}
	}
	gateway, orthanc := c.Services["gateway"], c.Services["orthanc"]
	mustExist(t, filepath.Join("examples/compose", gateway.Build, "Dockerfile"))
	config := load(t, read(t, "examples/compose/gateway.toml"), gateway.Environment)
	rule := config.Rules[0]
	if got, want := orthanc.Environment["ORTHANC__HTTP_PROXY"], "http://gateway:"+port(t, config.Proxy.Listen); got != want {
		t.Errorf("Orthanc's proxy: got %s, want %s", got, want)
	}
	var servers map[string]struct{ URL string }
	if err := json.Unmarshal([]byte(orthanc.Environment["ORTHANC__DICOM_WEB__SERVERS"]), &servers); err != nil || servers[rule.Name].URL != rule.URL {
		t.Errorf("Orthanc's servers: got %v, %v, want %s", servers, err, rule.URL)
	}
	if subnet := c.Networks["site"].Ipam.Config[0].Subnet; config.Proxy.AllowClients[0].String() != subnet {
		t.Errorf("allow_clients: got %v, want the network's %s", config.Proxy.AllowClients, subnet)
	}
	if !slices.Contains(gateway.Ports, "127.0.0.1:3129:"+port(t, config.Admin.Listen)) {
		t.Errorf("ports of the gateway: got %v", gateway.Ports)
	}
	if !slices.Contains(gateway.Volumes, "gateway-ca:"+string(config.CA.Dir)) || !slices.Contains(orthanc.Volumes, "gateway-ca:/gateway-ca:ro") {
		t.Error("gateway and Orthanc do not share the CA's folder")
	}
	if orthanc.DependsOn["gateway"].Condition != "service_healthy" {
		t.Error("Orthanc does not wait for the gateway")
	}
	if slices.Contains(c.Services["archive"].Networks, "site") {
		t.Error("the archive can be reached without a token")
	}
	var realm struct {
		Realm   string
		Clients []struct{ ClientID, Secret string }
	}
	if err := json.Unmarshal([]byte(read(t, "examples/compose/realm.json")), &realm); err != nil {
		t.Fatal(err)
	}
	if realm.Clients[0].Secret != gateway.Environment["CLIENT_SECRET"] || realm.Clients[0].ClientID != "orthanc" {
		t.Error("the client of realm.json is not that of the gateway")
	}
	issuer := c.Services["keycloak"].Environment["KC_HOSTNAME"] + "/realms/" + realm.Realm
	for _, path := range []string{"examples/compose/gateway.toml", "examples/compose/nginx.conf"} {
		if !strings.Contains(read(t, path), issuer) {
			t.Errorf("%s does not name the issuer %s", path, issuer)
		}
	}
}

func TestKubernetesExamplesAgreeWithThemselves(t *testing.T) {
	for _, path := range []string{"examples/kubernetes/sidecar.yaml", "examples/kubernetes/gateway.yaml"} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			var config *rules.Config
			kinds := map[string]bool{}
			for _, d := range documents(t, path) {
				kinds[d["kind"].(string)] = true
				if d["kind"] == "ConfigMap" {
					config = load(t, d["data"].(map[string]any)["gateway.toml"].(string), map[string]string{"ADMIN_PASSWORD": "x"})
				}
			}
			if config == nil {
				t.Fatal("there is no gateway.toml")
			}
			text := read(t, path)
			admin, proxy := port(t, config.Admin.Listen), port(t, config.Proxy.Listen)
			for _, m := range regexp.MustCompile(`httpGet: \{path: ([^,]+), port: (\d+)\}`).FindAllStringSubmatch(text, -1) {
				if m[2] != admin || m[1] != "/livez" && m[1] != "/readyz" {
					t.Errorf("a probe asks %s on port %s, the gateway answers /livez and /readyz on %s", m[1], m[2], admin)
				}
			}
			for _, want := range []string{
				"mountPath: " + filepath.Dir(configInImage), "mountPath: " + string(config.CA.Dir), "httpGet: {path: /livez", "args: [run]",
				"readOnlyRootFilesystem: true", "runAsUser: 65532", "containerPort: " + admin,
			} {
				if !strings.Contains(text, want) {
					t.Errorf("there is no %q", want)
				}
			}
			if kinds["StatefulSet"] {
				if !strings.Contains(text, `"http://`+config.Proxy.Listen+`"`) || !strings.Contains(text, config.Rules[0].URL+`"}}'`) {
					t.Error("Orthanc's proxy or server is not that of the gateway")
				}
				return
			}
			for _, kind := range []string{"Deployment", "Service", "NetworkPolicy", "HorizontalPodAutoscaler", "PodDisruptionBudget"} {
				if !kinds[kind] {
					t.Errorf("there is no %s", kind)
				}
			}
			for _, want := range []string{"httpGet: {path: /readyz", "containerPort: " + proxy, "port: " + proxy + ", targetPort: " + proxy, "[{port: " + proxy + "}]", "[{port: " + admin + "}]"} {
				if !strings.Contains(text, want) {
					t.Errorf("there is no %q", want)
				}
			}
		})
	}
}

func TestContainerAppsExampleAgreesWithItself(t *testing.T) {
	text := read(t, "examples/azure-container-apps/main.bicep")
	environment := map[string]string{}
	for _, m := range regexp.MustCompile(`name: '([A-Z_]+)', (?:value: (\S+)|secretRef)`).FindAllStringSubmatch(text, -1) {
		environment[m[1]] = "x"
	}
	environment["DICOM_URL"] = "https://contoso-imaging.dicom.azurehealthcareapis.com/v2/"
	config := load(t, read(t, "examples/azure-container-apps/gateway.toml"), environment)
	for _, want := range []string{
		"loadTextContent('gateway.toml')", "'DICOM_URL'", "mountPath: '" + filepath.Dir(configInImage) + "'", "mountPath: '" + string(config.CA.Dir) + "'",
		"{ path: '/livez', port: " + port(t, config.Admin.Listen) + " }", "{ path: '/readyz', port: " + port(t, config.Admin.Listen) + " }",
		"value: 'http://" + config.Proxy.Listen + "'", "identity: { type: 'SystemAssigned' }",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("main.bicep has no %q", want)
		}
	}
	for _, pair := range []string{"{}", "[]", "()"} {
		if strings.Count(text, pair[:1]) != strings.Count(text, pair[1:]) {
			t.Errorf("main.bicep: the %s do not match", pair)
		}
	}
}

// load is a gateway.toml as the container would have it: with this environment, and any file.
func load(t *testing.T, text string, environment map[string]string) *rules.Config {
	t.Helper()
	dir := t.TempDir()
	for _, prefix := range []string{`"/certificates/`, `"/run/secrets/orthanc-gateway/`} {
		text = strings.ReplaceAll(text, prefix, `"`)
	}
	pem, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		t.Skip("this machine has no CA certificates to stand for those of the example")
	}
	for name, content := range map[string][]byte{"gateway.toml": []byte(text), "ca.pem": pem, "client_secret": []byte("s3cr3t")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c, err := rules.Load(filepath.Join(dir, "gateway.toml"), func(name string) (string, bool) {
		value, ok := environment[name]
		return value, ok
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func documents(t *testing.T, path string) []map[string]any {
	t.Helper()
	var all []map[string]any
	d := yaml.NewDecoder(strings.NewReader(read(t, path)))
	for {
		var one map[string]any
		switch err := d.Decode(&one); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, one)
	}
}

func port(t *testing.T, address string) string {
	t.Helper()
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func mustExist(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Error(fmt.Errorf("named in an example: %w", err))
	}
}
