//go:build e2e

package e2e

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/gateway/demo"
)

// failure is something that goes wrong in a hospital's night, and what tells of it: the status page and the status API
// by the same finding, the log by a warning, /metrics by series, and a command by its output. Each names a remedy.
type failure struct {
	name string

	proxyKeys string // of [proxy]
	url       string // of the rule; "": the server's
	profile   func(idp *demo.IdentityProvider, profile string) string
	leaf      func(*x509.Certificate)      // of the server
	answer    string                       // of the server, an HTTP status; "": it works
	provider  func(*demo.IdentityProvider) // breaks it
	provoke   func(*testing.T, *scene)     // nil: a query, like Orthanc's

	finding []string // words of one finding of page and status, and there is no other
	log     []string // words of one warning or error
	metrics map[string]func(float64) bool
	command []string // whose words follow; nil: no command sees this
	code    int      // its exit code
	says    []string
}

// scene is an arena whose one rule in question, "archive", has a credential of a provider of the test's own.
type scene struct {
	*arena

	server *recorder
	url    string // of the rule
}

func (s *scene) authority() string {
	host, _, _ := strings.Cut(strings.TrimPrefix(s.url, "https://"), "/")
	if !strings.Contains(host, ":") {
		host += ":443"
	}
	return host
}

// query asks for what lies at a path of the rule's server.
func (s *scene) query(t *testing.T, path string) {
	t.Helper()
	talk(s.tunnel(t, s.authority()), "GET "+path+" HTTP/1.1\r\nHost: "+s.authority()+"\r\nAccept: application/dicom+json\r\n\r\n")
}

func some(v float64) bool { return v > 0 }
func none(v float64) bool { return v == 0 }

// Whoever looks after the gateway at night, and did not install it, sees everywhere what is wrong and what to change.
func TestEachFailureIsNamedWithItsRemedyEverywhere(t *testing.T) {
	t.Parallel()
	said := func(status int, code, description string) func(*demo.IdentityProvider) {
		return func(idp *demo.IdentityProvider) {
			body, _ := json.Marshal(map[string]string{"error": code, "error_description": description})
			idp.Answer(status, http.Header{"Content-Type": {"application/json"}}, string(body))
		}
	}
	noToken := func(code string) map[string]func(float64) bool {
		return map[string]func(float64) bool{
			`token_acquire_total{profile="idp",result="failure"}`: some,
			`profile_state{profile="idp",state="unavailable"}`:    some,
			`profile_error{code="` + code + `",profile="idp"}`:    some,
			`refused_total{reason="token_unavailable"}`:           some,
		}
	}
	answered := func(status int) map[string]func(float64) bool {
		return map[string]func(float64) bool{fmt.Sprintf(`upstream_responses_total{code="%d",rule="archive"}`, status): some}
	}
	refused := func(code string) map[string]func(float64) bool {
		return map[string]func(float64) bool{`refused_total{reason="` + code + `"}`: some}
	}
	testCommand := []string{"test", "archive"}
	for _, row := range []failure{
		{
			name:     "wrong secret",
			provider: func(idp *demo.IdentityProvider) { idp.SetClientSecret("another") },
			finding:  []string{`Profile "idp"`, "invalid_client", "client_secret, which may be wrong or expired", "(profile.idp.client_secret)"},
			log:      []string{"token not acquired", "invalid_client", "client_secret, which may be wrong or expired"},
			metrics:  noToken("invalid_client"),
			command:  testCommand, code: 1, says: []string{"token  FAILED", "invalid_client", "client_secret, which may be wrong or expired", "(profile.idp.client_secret)"},
		},
		{
			name:     "expired secret",
			provider: said(401, "invalid_client", "AADSTS7000222: The provided client secret keys for app 'x' are expired."),
			finding:  []string{"secret_expired", "AADSTS7000222: client_secret has expired", "make a new one", "(profile.idp.client_secret)"},
			log:      []string{"token not acquired", "secret_expired", "AADSTS7000222: client_secret has expired", "make a new one"},
			metrics:  noToken("secret_expired"),
			command:  testCommand, code: 1, says: []string{"token  FAILED", "AADSTS7000222: client_secret has expired", "make a new one"},
		},
		{
			name:     "wrong tenant",
			provider: said(400, "invalid_request", "AADSTS90002: Tenant 'x' not found."),
			finding:  []string{"AADSTS90002: there is no such tenant; check the tenant's id or domain", "(profile.idp.token_endpoint)"},
			log:      []string{"token not acquired", "AADSTS90002: there is no such tenant; check the tenant's id or domain", "token_endpoint"},
			metrics:  noToken("tenant_unknown"),
			command:  testCommand, code: 1, says: []string{"token  FAILED", "AADSTS90002: there is no such tenant; check the tenant's id or domain", "(profile.idp.token_endpoint)"},
		},
		{
			name: "wrong realm, by token endpoint",
			profile: func(idp *demo.IdentityProvider, profile string) string {
				return strings.Replace(profile, idp.TokenEndpoint(), idp.Issuer()+"/realms/none/token", 1)
			},
			finding: []string{"provider_answer", "check token_endpoint", "(profile.idp.token_endpoint)"},
			log:     []string{"token not acquired", "404", "check token_endpoint"},
			metrics: noToken("provider_answer"),
			command: testCommand, code: 1, says: []string{"token  FAILED", "check token_endpoint", "(profile.idp.token_endpoint)"},
		},
		{
			name: "wrong realm, by issuer",
			profile: func(idp *demo.IdentityProvider, profile string) string {
				return strings.Replace(profile, fmt.Sprintf("token_endpoint = %q", idp.TokenEndpoint()), fmt.Sprintf("issuer = %q", idp.Issuer()+"/realms/none"), 1)
			},
			finding: []string{"discovery_failed", "check issuer", "(profile.idp.issuer)"},
			log:     []string{"token not acquired", "discovery_failed", "404", "check issuer"},
			metrics: noToken("discovery_failed"),
			command: testCommand, code: 1, says: []string{"token  FAILED", "discovery_failed", "check issuer", "(profile.idp.issuer)"},
		},
		{
			name:     "provider down",
			provider: func(idp *demo.IdentityProvider) { idp.Close() },
			finding:  []string{"provider_unreachable", "check token_endpoint, the network and DNS"},
			log:      []string{"token not acquired", "provider_unreachable", "check token_endpoint, the network and DNS"},
			metrics:  noToken("provider_unreachable"),
			command:  testCommand, code: 1, says: []string{"token  FAILED", "provider_unreachable", "check token_endpoint, the network and DNS"},
		},
		{
			name: "provider slow",
			profile: func(_ *demo.IdentityProvider, profile string) string {
				return profile + "request_timeout = \"300ms\"\n"
			},
			provider: func(idp *demo.IdentityProvider) { idp.Hang() },
			finding:  []string{"provider_timeout", "did not answer within request_timeout"},
			log:      []string{"token not acquired", "provider_timeout", "did not answer within request_timeout"},
			metrics:  noToken("provider_timeout"),
			command:  testCommand, code: 1, says: []string{"token  FAILED", "provider_timeout", "did not answer within request_timeout"},
		},
		{
			name:    "upstream 401",
			answer:  "401 Unauthorized",
			finding: []string{"the server answered 401", "audience", "scopes"},
			log:     []string{`"upstream_status":401`, "audience", "scopes"},
			metrics: answered(401),
			command: testCommand, code: 1, says: []string{"query  FAILED", "HTTP 401", "audience", "scopes"},
		},
		{
			name:    "upstream 403",
			answer:  "403 Forbidden",
			finding: []string{"the server answered 403", "give the client the role"},
			log:     []string{`"upstream_status":403`, "give the client the role"},
			metrics: answered(403),
			command: testCommand, code: 1, says: []string{"query  FAILED", "HTTP 403", "give the client the role"},
		},
		{
			name:    "upstream 404",
			answer:  "404 Not Found",
			finding: []string{"the server answered 404", "check the path of the rule's url", "DicomWeb.Servers"},
			log:     []string{`"upstream_status":404`, "check the path of the rule's url", "DicomWeb.Servers"},
			metrics: answered(404),
			command: testCommand, code: 1, says: []string{"query  FAILED", "HTTP 404", "check the path of the rule's url"},
		},
		{
			name:    "upstream 429",
			answer:  "429 Too Many Requests",
			finding: []string{"the server answered 429, passed on as 503", "send less at once"},
			log:     []string{`"upstream_status":429`, `"status":503`, "send less at once"},
			metrics: answered(429),
			command: testCommand, code: 1, says: []string{"query  FAILED", "HTTP 429", "send less at once"},
		},
		{
			name:    "upstream 500",
			answer:  "500 Internal Server Error",
			finding: []string{"the server answered 500", "see the DICOMweb server's own log"},
			log:     []string{`"upstream_status":500`, "see the DICOMweb server's own log"},
			metrics: answered(500),
			command: testCommand, code: 1, says: []string{"query  FAILED", "HTTP 500", "see the DICOMweb server's own log"},
		},
		{
			name:    "upstream 503",
			answer:  "503 Service Unavailable",
			finding: []string{"the server answered 503", "overloaded or under maintenance"},
			log:     []string{`"upstream_status":503`, "overloaded or under maintenance"},
			metrics: answered(503),
			command: testCommand, code: 1, says: []string{"query  FAILED", "HTTP 503", "overloaded or under maintenance"},
		},
		{
			name:    "upstream certificate expired",
			leaf:    func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) },
			finding: []string{"upstream_tls", "the certificate expired on", "must renew its certificate"},
			log:     []string{"upstream_tls", "the certificate expired on", "must renew its certificate"},
			metrics: refused("upstream_tls"),
			command: testCommand, code: 1, says: []string{"tls    FAILED", "the certificate expired on", "must renew its certificate"},
		},
		{
			name:    "upstream certificate for another name",
			leaf:    func(c *x509.Certificate) { c.DNSNames = []string{"other.example.org"} },
			finding: []string{"upstream_tls", "the certificate is for another name", "the host in the rule's url"},
			log:     []string{"upstream_tls", "the certificate is for another name", "the host in the rule's url"},
			metrics: refused("upstream_tls"),
			command: testCommand, code: 1, says: []string{"tls    FAILED", "the certificate is for another name", "the host in the rule's url"},
		},
		{
			name:    "DNS gone",
			url:     "https://pacs.invalid/",
			finding: []string{"upstream_unreachable", "DNS", "pacs.invalid", "check the host in the rule's url"},
			log:     []string{"upstream_unreachable", "DNS", "pacs.invalid", "check the host in the rule's url"},
			metrics: refused("upstream_unreachable"),
			command: testCommand, code: 1, says: []string{"dns    FAILED", "pacs.invalid", "check the host in the rule's url"},
		},
		{
			name: "CA not trusted by the client",
			provoke: func(t *testing.T, s *scene) {
				c := tls.Client(s.connect(t, s.authority()), &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"})
				if c.HandshakeContext(t.Context()) == nil {
					t.Error("a client that trusts nothing has accepted the certificate")
				}
			},
			finding: []string{"A client refused the gateway's certificate", "HttpsCACertificates", "bundle.pem"},
			log:     []string{"does not trust this CA", "HttpsCACertificates", "bundle.pem"},
			metrics: map[string]func(float64) bool{"client_ca_refusals_total": some},
		},
		{
			name:    "CA expiring",
			provoke: func(t *testing.T, s *scene) { s.useCA(t, 20*24*time.Hour) },
			finding: []string{"Local CA", "in 19 days", "run ca rotate, then ca activate"},
			log:     []string{"the CA is to be replaced", "in 19 days", "run ca rotate, then ca activate"},
			metrics: map[string]func(float64) bool{"ca_expiry_timestamp_seconds": func(v float64) bool {
				left := time.Until(time.Unix(int64(v), 0))
				return left > 19*24*time.Hour && left < 20*24*time.Hour
			}},
			command: []string{"ca", "show"}, says: []string{"warning:", "in 19 days", "run ca rotate, then ca activate"},
		},
		{
			name:      "proxy password wrong",
			proxyKeys: "username = \"orthanc\"\npassword = \"${E2E_CLIENT_SECRET}\"",
			provoke: func(t *testing.T, s *scene) {
				got := talk(s.dial(t), "CONNECT "+s.authority()+" HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic "+basic("orthanc:"+clientCredential)+"\r\n\r\n")
				if wrong := got.is(407, "proxy_auth_required"); wrong != "" {
					t.Error(wrong)
				}
			},
			finding: []string{"CONNECT from 127.0.0.1: proxy_auth_required", "user and password", "HttpProxy"},
			log:     []string{"proxy_auth_required", "user and password", "HttpProxy"},
			metrics: refused("proxy_auth_required"),
		},
		{
			name: "rule missing for a host",
			provoke: func(t *testing.T, s *scene) {
				if wrong := talk(s.dial(t), "CONNECT other.example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n").is(403, "no_rule"); wrong != "" {
					t.Error(wrong)
				}
			},
			finding: []string{"CONNECT other.example.org:443: no_rule", "add a [[rule]] for https://other.example.org/"},
			log:     []string{"no_rule", "other.example.org:443", "add a [[rule]] for https://other.example.org/"},
			metrics: refused("no_rule"),
			command: []string{"test", "https://other.example.org/dicom-web/"}, code: 2,
			says: []string{"no rule names the host other.example.org", "hint:", "match GET"},
		},
		{
			name:    "path outside the rule",
			url:     "{server}dicom-web/",
			provoke: func(t *testing.T, s *scene) { s.query(t, "/elsewhere/studies") },
			finding: []string{"no_rule", "none covers this path", "compare the url of the rules", "DicomWeb.Servers"},
			log:     []string{"no_rule", "compare the url of the rules", "DicomWeb.Servers"},
			metrics: refused("no_rule"),
			command: []string{"test", "{server}elsewhere/"}, code: 2,
			says: []string{"no rule covers the path", "hint:", "match GET"},
		},
		{
			name: "broken reload",
			provoke: func(t *testing.T, s *scene) {
				text, err := os.ReadFile(s.config)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(s.config, []byte(strings.Replace(string(text), "token_endpoint", "token_endpiont", 1)), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			finding: []string{"The last reload failed", "profile.idp.token_endpiont: unknown key", `did you mean "token_endpoint"`, "`check`"},
			log:     []string{"configuration not reloaded", "profile.idp.token_endpiont", `did you mean \"token_endpoint\"`},
			metrics: map[string]func(float64) bool{"config_last_reload_success": none},
			command: testCommand, code: 2, says: []string{"profile.idp.token_endpiont: unknown key", `did you mean "token_endpoint"`},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.play(t)
		})
	}
}

// play makes it happen and looks at everything that should tell.
func (f failure) play(t *testing.T) {
	p := newPKI(t)
	s := &scene{server: startRecorderWith(t, &tls.Config{Certificates: []tls.Certificate{p.leaf(t, f.leaf)}}, func(recorded) string {
		if f.answer != "" {
			return "HTTP/1.1 " + f.answer + "\r\nContent-Length: 0\r\n\r\n"
		}
		return "HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\nContent-Length: 2\r\n\r\n[]"
	})}
	idp, profile := startIdP(t, "idp", "")
	if f.profile != nil {
		profile = f.profile(idp, profile)
	}
	if f.provider != nil {
		f.provider(idp)
	}
	at := func(url string) string { return strings.Replace(url, "{server}", s.server.url(), 1) }
	if s.url = at(f.url); s.url == "" {
		s.url = s.server.url()
	}
	s.arena = startArena(t, f.proxyKeys, withProfile(p.inject("archive", s.url, ""), "idp")+profile)
	if f.provider == nil && f.profile == nil {
		s.process.ready(t, func() error {
			_, err := get(loopbackClient, s.admin+"/readyz?rule=archive")
			return err
		})
	}
	if f.provoke != nil {
		f.provoke(t, s)
	} else {
		s.query(t, "/studies")
	}
	eventually(t, patience, func() error { return s.shows(f.finding) })
	eventually(t, patience, func() error { return s.warned(t, f.log...) })
	eventually(t, patience, func() error { return s.measures(f.metrics) })
	if f.command != nil {
		command := slices.Clone(f.command)
		for i := range command {
			command[i] = at(command[i])
		}
		if code, out := runBinary(t, s.config, command...); code != f.code || !containsAll(out, f.says) {
			t.Errorf("%q ended with %d and said\n%swant %d and %q", command, code, out, f.code, f.says)
		}
	}
}

// useCA starts the gateway again with a CA that lives for so long from now.
func (s *scene) useCA(t *testing.T, life time.Duration) {
	t.Helper()
	s.process.kill()
	folder := filepath.Dir(s.bundle)
	ca := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "CA that ends soon"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	key := newKey(t)
	sign(t, filepath.Join(folder, "ca.pem"), ca, ca, key, key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(folder, "ca-key.pem"), "PRIVATE KEY", der)
	s.start(t)
}

// shows returns nil if status page and status API have one finding, and these words are in it.
func (s *scene) shows(words []string) error {
	page, err := get(loopbackClient, s.admin+"/")
	if err != nil {
		return err
	}
	_, health, _ := strings.Cut(string(page), `<section id="health"`)
	health, _, _ = strings.Cut(health, "</section>")
	if health = html.UnescapeString(health); strings.Count(health, "<li>") != 1 || !containsAll(health, append([]string{"What to do:"}, words...)) {
		return fmt.Errorf("the status page has %s, want one finding with %q", health, words)
	}
	body, err := get(loopbackClient, s.admin+"/dicomweb-oauth/status")
	if err != nil {
		return err
	}
	var status struct {
		Findings []struct{ Severity, What, Hint string }
	}
	if err := json.Unmarshal(body, &status); err != nil {
		return err
	}
	if len(status.Findings) != 1 || status.Findings[0].Hint == "" || !containsAll(status.Findings[0].What+" "+status.Findings[0].Hint, words) {
		return fmt.Errorf("the status has %+v, want one finding with %q", status.Findings, words)
	}
	return nil
}

// measures returns nil if each of these series is there with a value that is right.
func (g *gateway) measures(series map[string]func(float64) bool) error {
	body, err := get(loopbackClient, g.admin+"/metrics")
	if err != nil {
		return err
	}
	values := map[string]float64{}
	for lines := bufio.NewScanner(strings.NewReader(string(body))); lines.Scan(); {
		name, value, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "dicomweb_oauth_"), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			values[name] = v
		}
	}
	for name, right := range series {
		if v, there := values[name]; !there || !right(v) {
			return fmt.Errorf("%s is %v (there: %v)", name, v, there)
		}
	}
	return nil
}
