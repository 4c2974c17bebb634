package gateway_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/gateway/demo"
)

// study is one study in DICOM JSON, with a patient's name.
const study = `{"00100010":{"vr":"PN","Value":[{"Alphabetic":"` + patient + `"}]}}`

// dicomJSON answers like a QIDO-RS server that has these studies.
func dicomJSON(studies string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/dicom+json")
		_, _ = io.WriteString(w, studies)
	}
}

// probe tests a rule, and looks for secrets in the report.
func (h *harness) probe(ctx context.Context, target string) gateway.Report {
	h.t.Helper()
	var told []gateway.Step
	report, err := h.gw.Probe(ctx, target, func(s gateway.Step) { told = append(told, s) })
	if err != nil {
		h.t.Fatal(err)
	}
	if diff := cmp.Diff(report.Steps, told); diff != "" {
		h.t.Errorf("the steps that were told are not those of the report:\n%s", diff)
	}
	shown := fmt.Sprint(report)
	secrets := []string{h.idp.ClientSecret(), patient}
	for _, credential := range h.up.credentials() {
		secrets = append(secrets, strings.Split(credential, ".")...) // no third of a JWT either
	}
	for _, secret := range secrets {
		if strings.Contains(shown, secret) {
			h.t.Errorf("the report shows %q:\n%s", secret, shown)
		}
	}
	return report
}

// outcome is a report in short: "dns tcp tls" if these were well, "dns !tcp" if
// tcp was not.
func outcome(r gateway.Report) string {
	var words []string
	for _, s := range r.Steps {
		if s.OK {
			words = append(words, s.Step)
		} else {
			words = append(words, "!"+s.Step)
		}
	}
	return strings.Join(words, " ")
}

const allWell = "dns tcp tls token query"

// wantOutcome fails the test unless the steps went like this, and the last one
// says and advises what is wanted.
func wantOutcome(t *testing.T, r gateway.Report, want, detail, hint string) {
	t.Helper()
	if got := outcome(r); got != want || r.OK != !strings.Contains(want, "!") {
		t.Errorf("got %s, ok %v, want %s\n%+v", got, r.OK, want, r)
	}
	if len(r.Steps) == 0 {
		return
	}
	last := r.Steps[len(r.Steps)-1]
	if !strings.Contains(last.Detail, detail) || !strings.Contains(last.Hint, hint) || (last.Hint == "") != (hint == "") {
		t.Errorf("got %+v, want a detail with %q and a hint with %q", last, detail, hint)
	}
	for _, s := range r.Steps {
		if s.Detail == "" || s.Milliseconds < 0 || s.OK && s.Hint != "" {
			t.Errorf("odd step %+v", s)
		}
	}
}

func TestProbeOfARuleThatWorks(t *testing.T) {
	t.Parallel()
	up := newDouble(t, dicomJSON("["+study+"]"))
	h := newHarness(t, setup{
		up: up, url: up.url + "/dicom-web/", profile: `scopes = ["dicomweb"]`,
		rule: `headers = { "Ocp-Apim-Subscription-Key" = "` + patient + `-key", "X-Site" = "north" }`,
	})
	for _, target := range []string{up.url + "/dicom-web/", up.url + "/dicom-web", up.url + "/dicom-web/?PatientName=" + patient + "#x"} {
		r := h.probe(t.Context(), target)
		wantOutcome(t, r, allWell, "HTTP 200, 1 study", "")
		if r.Name != "dicom" {
			t.Errorf("got the name %q, want the rule's", r.Name)
		}
		got := up.last(t)
		if got.method != "GET" || got.target != "/dicom-web/studies?limit=1" || got.host != h.authority() || got.sni != "localhost" {
			t.Errorf("got %s %s for %s (%s), want the query", got.method, got.target, got.host, got.sni)
		}
		if err := h.idp.Verify(strings.TrimPrefix(got.header.Get("Authorization"), "Bearer ")); err != nil {
			t.Errorf("the credential: %v", err)
		}
		got.header.Del("Authorization")
		want := http.Header{"Accept": {"application/dicom+json"}, "Ocp-Apim-Subscription-Key": {patient + "-key"}, "X-Site": {"north"}}
		if diff := cmp.Diff(want, got.header); diff != "" {
			t.Errorf("headers (-want +got):\n%s", diff)
		}
		for i, parts := range [][]string{
			{"localhost is ", "127.0.0.1"},
			{"connected to ", "127.0.0.1"},
			{"TLS 1.3", `"test CA"`},
			{`aud "https://dicomweb.demo"`, "iss " + fmt.Sprintf("%q", h.idp.Issuer()), `scope "dicomweb"`, "expires in "},
		} {
			for _, part := range parts {
				if !strings.Contains(r.Steps[i].Detail, part) {
					t.Errorf("%s: got %q, want %q in it", r.Steps[i].Step, r.Steps[i].Detail, part)
				}
			}
		}
	}
	if n := h.idp.TokenRequests(); n != 1 {
		t.Errorf("got %d token requests, want the gateway's one token to be used", n)
	}
}

// The report is also what the admin API answers, as design.md has it.
func TestProbeReportAsJSON(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) })})
	text, err := json.Marshal(h.probe(t.Context(), h.up.url))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Name  string
		OK    bool
		Steps []map[string]any
	}
	if err := json.Unmarshal(text, &got); err != nil || got.Name != "dicom" || got.OK || len(got.Steps) != 5 {
		t.Fatalf("got %s, %v", text, err)
	}
	for i, step := range got.Steps {
		_, number := step["milliseconds"].(float64)
		hint, there := step["hint"].(string)
		if step["step"] != strings.Fields(allWell)[i] || step["ok"] != (i < 4) || !number || step["detail"] == "" || !there || (hint != "") != (i == 4) {
			t.Errorf("got %v as step %d", step, i)
		}
	}
}

// Of the server's answer only the status and the media type are shown.
func TestProbeJudgesTheAnswer(t *testing.T) {
	t.Parallel()
	const failed = "dns tcp tls token !query"
	for _, row := range []struct {
		name         string
		status       int
		media, body  string
		want         string
		detail, hint string
	}{
		{"a study", 200, "application/dicom+json", "[" + study + "]", allWell, "HTTP 200, 1 study", ""},
		{"no study, 200", 200, "application/json", "[]", allWell, "HTTP 200, 0 study", ""},
		{"no study, 204", 204, "", "", allWell, "HTTP 204, no study there yet", ""},
		{"more studies than the limit", 200, "application/dicom+json", "[" + study + "," + study + "]", allWell, "HTTP 200, 2 study", ""},
		{"a study of more bytes than are read", 200, "application/dicom+json", "[{\"x\":\"" + strings.Repeat("x", 100<<10) + "\"}]", allWell, "HTTP 200", ""},
		{"a media type with a parameter", 200, "application/dicom+json; charset=utf-8", "[]", allWell, "HTTP 200", ""},
		{"a media type in other letters", 200, "Application/DICOM+JSON ;charset=utf-8", "[]", allWell, "HTTP 200", ""},
		{"the wrong audience", 401, "text/plain", patient, failed, "HTTP 401: the DICOMweb server does not accept the credential", "audience or from another tenant: compare its aud and iss"},
		{"no role", 403, "application/json", `{"error":"` + patient + `"}`, failed, "HTTP 403: the credential is good, but", "give the client the role"},
		{"the wrong path", 404, "text/html", patient, failed, "HTTP 404: there is no DICOMweb service at this URL", "check the path of the rule's url"},
		{"moved", 302, "text/html", patient, failed, "HTTP 302: the server redirects", "the final URL"},
		{"moved for good", 308, "", "", failed, "HTTP 308: the server redirects", "the final URL"},
		{"a login page", 200, "text/html; charset=utf-8", "<html>" + patient, failed, "HTTP 200, but the answer is text/html, not DICOM JSON", "login page"},
		{"XML", 200, "multipart/related; type=\"application/dicom+xml\"; boundary=" + patient, "", failed, "multipart/related", "compare the rule's url"},
		{"a broken server", 500, "application/dicom+json", patient, failed, "HTTP 500", "the DICOMweb server's own log"},
		{"a busy server", 429, "", patient, failed, "HTTP 429", "the server throttles"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Content-Type"] = []string{row.media}
				w.Header().Set("Location", "https://localhost/"+patient)
				w.Header().Set("Www-Authenticate", `Bearer error_description="`+patient+`"`)
				w.Header().Set("Warning", r.Header.Get("Authorization"))
				w.WriteHeader(row.status)
				_, _ = io.WriteString(w, row.body)
			})})
			wantOutcome(t, h.probe(t.Context(), h.up.url+"/"), row.want, row.detail, row.hint)
			if n := len(h.up.all()); n != 1 {
				t.Errorf("got %d requests, want one: nothing is followed or repeated", n)
			}
		})
	}
}

func TestProbeEndsAtTheStepThatFails(t *testing.T) {
	t.Parallel()
	valid, expired := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	serving := func(conf func() (*pki, time.Time, string)) func(t *testing.T) *double {
		return func(t *testing.T) *double {
			p, end, name := conf()
			return newDoubleWith(t, serverTLS(p.leaf(end, name)), nil)
		}
	}
	at := func(url string) func(*testing.T) *double {
		return func(*testing.T) *double { return &double{url: url} }
	}
	for _, row := range []struct {
		name         string
		up           func(t *testing.T) *double
		want         string
		detail, hint string
	}{
		{"no such name", at("https://no-such-host.invalid"), "!dns", "DNS knows no address for no-such-host.invalid", "the host in the rule's url"},
		{"nobody listens", func(t *testing.T) *double { return &double{url: "https://127.0.0.1:" + closed(t)} }, "dns !tcp", "refused", "check host and port"},
		{"another CA", serving(func() (*pki, time.Time, string) { return newPKI(), valid, "localhost" }), "dns tcp !tls", "authority is unknown", "ca_file"},
		{"expired", serving(func() (*pki, time.Time, string) { return testPKI(), expired, "localhost" }), "dns tcp !tls", "expired on ", "renew its certificate"},
		{"another name", serving(func() (*pki, time.Time, string) { return testPKI(), valid, "evil.test" }), "dns tcp !tls", "for another name", "the host in the rule's url"},
		{"no TLS", func(t *testing.T) *double { return script(t, nil, says("HTTP/1.1 400 "+patient+"\r\n\r\n")) }, "dns tcp !tls", "does not speak TLS", "check the port"},
		{"no HTTP", func(t *testing.T) *double { return script(t, goodTLS(), says(patient+"\r\n\r\n")) }, "dns tcp tls token !query", "could not be read", ""},
		{"no answer", func(t *testing.T) *double { return script(t, goodTLS(), says("")) }, "dns tcp tls token !query", "closed before an answer", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t, setup{up: row.up(t)})
			wantOutcome(t, h.probe(t.Context(), h.up.url+"/"), row.want, row.detail, row.hint)
			if n := len(h.up.all()); !strings.Contains(row.want, "query") && n != 0 {
				t.Errorf("got %d requests, want none", n)
			}
		})
	}
}

func TestProbeOfAnAddressThatIsNotPermitted(t *testing.T) {
	t.Parallel()
	up := newDouble(t, nil)
	ip := strings.Replace(up.url, "localhost", "127.0.0.1", 1)
	h := newHarness(t, setup{up: up, more: fmt.Sprintf("[[rule]]\nname = \"strict\"\nurl = \"%s/\"\nprofile = \"main\"\nca_file = \"up.pem\"\n", ip)})
	wantOutcome(t, h.probe(t.Context(), ip), "dns !tcp", "address 127.0.0.1 is loopback", "allow_networks")
	if up.connections() != 0 {
		t.Error("the server was reached")
	}
}

func TestProbeNamesWhatIsWrongWithTheProfile(t *testing.T) {
	t.Parallel()
	page := http.Header{"Content-Type": {"text/html"}}
	for _, row := range []struct {
		name         string
		before       func(*demo.IdentityProvider) // the gateway asks for a token as soon as it starts
		after        func(*demo.IdentityProvider)
		detail, hint string
	}{
		{
			"wrong secret", (*demo.IdentityProvider).Hang, func(p *demo.IdentityProvider) { p.SetClientSecret("another-secret-0x5ec"); p.Recover() },
			"invalid_client", "(profile.main.client_secret)",
		},
		{"provider down", func(p *demo.IdentityProvider) { p.Down(0) }, nil, "provider_answer", "the provider has a problem of its own"},
		{"provider gone", (*demo.IdentityProvider).Close, nil, "provider_unreachable", "token_endpoint"},
		{"a page instead of a token", func(p *demo.IdentityProvider) { p.Answer(200, page, "<html>"+patient) }, nil, "provider_answer", "not JSON"},
		{"the provider's own words", func(p *demo.IdentityProvider) {
			p.Answer(400, nil, `{"error":"invalid_scope","error_description":"`+patient+`","error_uri":"https://`+patient+`/"}`)
		}, nil, "invalid_scope", "(profile.main.scopes)"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t, setup{token: "max_attempts = 1", before: row.before})
			secret := h.idp.ClientSecret()
			if row.after != nil {
				row.after(h.idp)
			}
			r := h.probe(t.Context(), h.up.url)
			wantOutcome(t, r, "dns tcp tls !token", `profile "main" has no usable credential: `+row.detail, row.hint)
			if strings.Contains(fmt.Sprint(r), secret) {
				t.Errorf("the report shows the secret: %+v", r)
			}
			if n := len(h.up.all()); n != 0 {
				t.Errorf("got %d requests without a credential", n)
			}
		})
	}
}

func TestProbeOfAPassRuleSendsNoCredential(t *testing.T) {
	t.Parallel()
	var status atomic.Int64
	up := newDouble(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(status.Load())) })
	h := newHarness(t, setup{up: up, url: up.url + "/dicom-web/", more: fmt.Sprintf(
		"[[rule]]\nname = \"open\"\nurl = \"%s/open/\"\naction = \"pass\"\nca_file = \"up.pem\"\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n", up.url)})
	status.Store(204)
	r := h.probe(t.Context(), up.url+"/open/")
	wantOutcome(t, r, allWell, "HTTP 204", "")
	if r.Name != "open" || r.Steps[3].Detail != "none: the rule's action is pass" {
		t.Errorf("got %+v, want no token", r)
	}
	if got := up.last(t).header["Authorization"]; got != nil {
		t.Errorf("got %d credentials at the server, want none", len(got))
	}
	for _, refusal := range []int64{401, 403} { // none of what is said of credentials fits
		status.Store(refusal)
		wantOutcome(t, h.probe(t.Context(), up.url+"/open/"), "dns tcp tls token !query", fmt.Sprintf("HTTP %d: the server wants a credential", refusal), "profile")
	}
}

// A credential goes with the methods of its rule only, in a test too; and in
// report mode with none.
func TestProbeSendsNoCredentialWhereARequestWouldHaveNone(t *testing.T) {
	t.Parallel()
	up := newDouble(t, dicomJSON("[]"))
	more := "[[rule]]\nname = \"%s\"\nurl = \"%s\"\nprofile = \"main\"\nca_file = \"up.pem\"\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n%s\n"
	h := newHarness(t, setup{
		up: up, url: up.url + "/dicom-web/",
		more: fmt.Sprintf(more, "upload", up.url+"/upload/", `methods = ["POST"]`) + fmt.Sprintf(more, "trial", up.url+"/trial/", `mode = "report"`),
	})
	wantOutcome(t, h.probe(t.Context(), up.url+"/upload/"), allWell, "not asked: the rule lets no GET through", "")
	if got := up.all(); len(got) != 0 {
		t.Errorf("got %d requests, want none", len(got))
	}
	r := h.probe(t.Context(), up.url+"/trial/")
	wantOutcome(t, r, allWell, "HTTP 200", "")
	if got := up.last(t).header["Authorization"]; got != nil || !strings.Contains(r.Steps[3].Detail, `mode "report"`) {
		t.Errorf("got %d credentials at the server, and %+v", len(got), r.Steps[3])
	}
}

func TestProbeRefusesWhatItCannotTest(t *testing.T) {
	t.Parallel()
	up := newDouble(t, nil)
	h := newHarness(t, setup{up: up, url: up.url + "/dicom-web/", more: fmt.Sprintf(`
[[rule]]
name = "denied"
url = "%[1]s/denied/"
action = "deny"
[[rule]]
name = "whole"
url = "%[1]s/split/"
profile = "main"
ca_file = "up.pem"
allow_networks = ["127.0.0.0/8", "::1/128"]
[[rule]]
name = "part"
url = "%[1]s/split/studies/"
action = "deny"
[[rule]]
name = "cloud"
url = "https://*.cloud.test/dicom/"
profile = "main"
`, up.url)})
	for _, row := range []struct{ name, target, want string }{
		{"a deny rule", up.url + "/denied/", `rule "denied" denies /denied/studies`},
		{"a rule whose query another one covers", up.url + "/split/", `rule "part" denies /split/studies`},
		{"a path that no rule covers", up.url + "/other/", "no rule covers the path /other/studies"},
		{"a host that no rule names", "https://unknown.test/", "no rule names the host unknown.test:443"},
		{"dot segments", up.url + "/dicom-web/%2e%2e/", "path has a dot segment"},
		{"http", strings.Replace(up.url, "https", "http", 1) + "/dicom-web/", "is not an https:// URL"},
		{"a wildcard itself", "https://*.cloud.test/dicom/", `character '*' is not allowed`},
		{"no URL", "dicom", "is not an https:// URL"},
		{"a URL that is none", "https://[::1/", "is not an https:// URL"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, err := h.gw.Probe(t.Context(), row.target, func(s gateway.Step) { t.Errorf("got the step %+v, want none", s) })
			if err == nil || !strings.Contains(err.Error(), row.want) || r.Steps != nil {
				t.Errorf("got %+v, %v, want %s", r, err, row.want)
			}
		})
	}
	if up.connections() != 0 {
		t.Error("the server was asked")
	}
}

func TestProbeOfAWildcardRuleByURL(t *testing.T) {
	t.Parallel()
	up := newDoubleWith(t, serverTLS(testPKI().leaf(time.Now().Add(time.Hour), "eu.cloud.test")), dicomJSON("[]"))
	h := behindCloud(t, up, setup{more: "[[rule]]\nname = \"cloud\"\nurl = \"https://*.cloud.test/dicom/\"\nprofile = \"main\"\nca_file = \"up.pem\"\n"})
	r := h.probe(t.Context(), "https://EU.cloud.test./dicom/")
	wantOutcome(t, r, allWell, "HTTP 200", "")
	if got := up.last(t); r.Name != "cloud" || got.host != "eu.cloud.test" || got.sni != "eu.cloud.test" || got.target != "/dicom/studies?limit=1" || got.header.Get("Authorization") == "" {
		t.Errorf("rule %s: got %s for %s (%s)", r.Name, got.target, got.host, got.sni)
	}
	if r.Steps[0].Detail != "left to upstream_proxy" || !strings.Contains(r.Steps[1].Detail, "through upstream_proxy localhost:") {
		t.Errorf("got %+v, want the proxy named", r.Steps[:2])
	}
}

// behindCloud is a harness in which a corporate proxy leads every name to up,
// except for the provider's.
func behindCloud(t *testing.T, up *double, s setup) *harness {
	t.Helper()
	corp := newCorporate(t, func(authority string) string {
		if strings.HasSuffix(authority, ".test:443") {
			return up.server.Listener.Addr().String()
		}
		return authority
	})
	s.up, s.proxy = up, fmt.Sprintf("%s\nupstream_proxy = \"http://%s\"", s.proxy, corp.addr)
	return newHarness(t, s)
}

func TestProbeShowsTheClientCertificate(t *testing.T) {
	t.Parallel()
	cert, key := pair(t, testPKI().leaf(time.Now().Add(time.Hour), "gateway.test"))
	for _, row := range []struct {
		version uint16
		without string // where it fails without a certificate: a TLS 1.3 server says so after the handshake
	}{
		{tls.VersionTLS12, "dns tcp !tls"}, {tls.VersionTLS13, "dns tcp tls token !query"},
	} {
		conf := serverTLS(testPKI().leaf(time.Now().Add(time.Hour), "localhost"))
		conf.ClientAuth, conf.MaxVersion = tls.RequireAnyClientCert, row.version
		up := newDoubleWith(t, conf, dicomJSON("[]"))
		h := newHarness(t, setup{
			up: up, url: up.url + "/mutual/", rule: "client_cert = \"client.pem\"\nclient_key = \"client-key.pem\"",
			files: map[string][]byte{"client.pem": cert, "client-key.pem": key},
			more:  fmt.Sprintf("[[rule]]\nname = \"without\"\nurl = \"%s/without/\"\nprofile = \"main\"\nca_file = \"up.pem\"\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n", up.url),
		})
		wantOutcome(t, h.probe(t.Context(), up.url+"/mutual/"), allWell, "HTTP 200", "")
		wantOutcome(t, h.probe(t.Context(), up.url+"/without/"), row.without, "the server refused the handshake", "client_cert")
	}
}

// A test ends with its context, in whatever step it is.
func TestProbeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	up := newDouble(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	for _, row := range []struct{ after, want string }{
		{"", "dns !tcp"},
		{"dns", "dns !tcp"},
		{"tcp", "dns tcp !tls"},
		{"tls", "dns tcp tls !token"},
		{"token", "dns tcp tls token !query"},
	} {
		t.Run("after "+row.after, func(t *testing.T) {
			s := setup{up: up}
			if row.after == "tls" {
				s.before = (*demo.IdentityProvider).Hang
			}
			h := newHarness(t, s)
			defer h.idp.Recover()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if row.after == "" {
				cancel()
			}
			began := time.Now()
			r, err := h.gw.Probe(ctx, h.up.url, func(s gateway.Step) {
				if s.Step == row.after {
					time.AfterFunc(20*time.Millisecond, cancel)
					if row.after == "dns" || row.after == "tcp" { // what comes next is too fast for that
						cancel()
					}
				}
			})
			if err != nil || outcome(r) != row.want || r.OK {
				t.Errorf("got %s, %v, want %s", outcome(r), err, row.want)
			}
			if last := r.Steps[len(r.Steps)-1]; strings.Contains(last.Detail, "DNS knows no address") || last.Hint != "" {
				t.Errorf("got %+v, want no reason but the end of the test", last)
			}
			if took := time.Since(began); took > patience/2 {
				t.Errorf("took %v", took)
			}
		})
	}
}

// What match says is what the gateway does.
func TestExplainAgreesWithTheGateway(t *testing.T) {
	t.Parallel()
	const unmatchedPass = `unmatched = "pass"`
	certificate := testPKI().leaf(time.Now().Add(time.Hour), "good.test", "through.test", "watched.test", "unknown.test", "plain.test", "eu.cloud.test", "bad.cloud.test")
	up := newDoubleWith(t, serverTLS(certificate), nil)
	harnesses := map[string]*harness{}
	for _, unmatched := range []string{"", unmatchedPass} {
		harnesses[unmatched] = behindCloud(t, up, setup{proxy: unmatched, url: "https://good.test/dicom-web/", more: `
[[rule]]
name = "locked"
url = "https://good.test/dicom-web/locked/"
action = "deny"
[[rule]]
name = "query"
url = "https://good.test/query/"
profile = "main"
methods = ["GET"]
ca_file = "up.pem"
[[rule]]
name = "open"
url = "https://good.test/open/"
action = "pass"
methods = ["GET"]
ca_file = "up.pem"
[[rule]]
name = "trial"
url = "https://good.test/trial/"
profile = "main"
mode = "report"
methods = ["GET"]
ca_file = "up.pem"
[[rule]]
name = "cloud"
url = "https://*.cloud.test/dicom/"
profile = "main"
ca_file = "up.pem"
[[rule]]
name = "bad-cloud"
url = "https://bad.cloud.test/"
action = "deny"
[[rule]]
name = "through"
url = "https://through.test/"
action = "pass"
[[rule]]
name = "watched"
url = "https://watched.test/dicom-web/"
profile = "main"
mode = "report"
[[rule]]
name = "denied"
url = "https://denied.test/"
action = "deny"
[[rule]]
name = "plain"
url = "http://plain.test/open/"
action = "pass"
methods = ["GET"]
[[rule]]
name = "plain-locked"
url = "http://plain.test/locked/"
action = "deny"
[[rule]]
name = "odd"
url = "http://odd.test:443/"
action = "deny"
`})
	}
	would := map[string]int{}
	for _, row := range []struct{ proxy, request string }{
		{"", "GET https://good.test/dicom-web/studies?limit=1"},
		{"", "DELETE https://good.test/dicom-web/studies/1"},
		{"", "GET https://good.test/dicom-web"},
		{"", "GET https://good.test:443/dicom-web/"},
		{"", "GET https://good.test/dicom-web/a%2Fb;c/d"},
		{"", "PATCH https://good.test/dicom-web/studies"},
		{"", "GET https://good.test/dicom-web/locked/1"},
		{"", "GET https://good.test/dicom-web/LOCKED"},
		{"", "GET https://good.test/dicom-web%2flocked/1"},
		{"", "GET https://good.test/dicom-web//locked/1"},
		{"", "GET https://good.test/dicom-web2/"},
		{"", "GET https://good.test/"},
		{"", "GET https://good.test"},
		{"", "GET https://good.test/dicom-web/../open/"},
		{"", "GET https://good.test/dicom-web/%2e%2E/open/"},
		{"", "GET https://good.test/dicom-web/%252e%252e/open/"},
		{"", `GET https://good.test/dicom-web\..\open`},
		{"", "GET https://good.test//dicom-web/studies"},
		{"", "GET https://good.test/query/studies"},
		{"", "POST https://good.test/query/studies"},
		{"", "GET https://good.test/open/x"},
		{"", "PUT https://good.test/open/x"},
		{"", "GET https://good.test/trial/x"},
		{"", "PUT https://good.test/trial/x"},
		{"", "GET https://eu.cloud.test/dicom/studies"},
		{"", "GET https://eu.cloud.test/other"},
		{"", "GET https://bad.cloud.test/dicom/studies"},
		{"", "GET https://through.test/x"},
		{"", "PATCH https://through.test/../x"},
		{"", "GET https://watched.test/dicom-web/studies"},
		{"", "PATCH https://watched.test/other/../x"},
		{"", "GET https://denied.test/x"},
		{"", "GET https://unknown.test/"},
		{"", "GET https://good.test:8443/dicom-web/"},
		{"", "GET http://plain.test/open/x"},
		{"", "PUT http://plain.test/open/x"},
		{"", "GET http://plain.test/locked/x"},
		{"", "GET http://plain.test/open/../locked/x"},
		{"", "GET http://plain.test/"},
		{"", "GET http://good.test/dicom-web/"},
		{"", "GET http://unknown.test/"},
		{unmatchedPass, "GET https://unknown.test/x/../y"},
		{unmatchedPass, "GET http://unknown.test/x"},
		{unmatchedPass, "GET http://good.test/dicom-web/"},
		{unmatchedPass, "GET https://plain.test/open/x"},
		{unmatchedPass, "GET https://odd.test/"},
		{unmatchedPass, "GET https://good.test/"},
		{unmatchedPass, "GET https://denied.test/"},
	} {
		t.Run(row.request+" "+row.proxy, func(t *testing.T) {
			h := harnesses[row.proxy]
			method, target, _ := strings.Cut(row.request, " ")
			e, err := h.gw.Status().Config.Explain(method, target)
			if err != nil {
				t.Fatal(err)
			}
			would[e.Would]++
			if got := h.decided(method, target); got.would != e.Would || got.code != e.Code || got.status != statuses[e.Code] {
				t.Errorf("the gateway: %+v\nmatch: %+v", got, e)
			}
		})
	}
	for _, w := range []string{"inject", "pass", "tunnel", "refuse"} {
		if would[w] < 3 {
			t.Errorf("only %d of the requests would %s", would[w], w)
		}
	}
}

// statuses are those of design.md; without a code it is the server's own.
var statuses = map[string]int{"": 200, "no_rule": 403, "rule_denied": 403, "method_not_allowed": 405, "bad_request": 400}

// decision is what the gateway did with a request.
type decision struct {
	would, code string
	status      int
}

// connectRefused is how the client learns what a refused CONNECT said.
type connectRefused struct {
	status int
	code   string
}

func (connectRefused) Error() string { return "CONNECT refused" }

// decided sends a request and tells what the gateway did, from what the client
// and the server see.
func (h *harness) decided(method, target string) decision {
	h.t.Helper()
	client, roots := h.newClient(nil), h.roots()
	roots.AddCert(testPKI().cert)
	transport := client.Transport.(*http.Transport)
	transport.TLSClientConfig = clientTLS(roots)
	transport.OnProxyConnectResponse = func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
		if resp.StatusCode != http.StatusOK {
			return connectRefused{resp.StatusCode, resp.Header.Get("X-Gateway-Error")}
		}
		return nil
	}
	r, err := http.NewRequestWithContext(h.t.Context(), method, target, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	const own = "Bearer the-client's-own-" + patient
	r.Header.Set("Authorization", own)
	before := len(h.up.all())
	resp, err := client.Do(r)
	if refused, ok := errors.AsType[connectRefused](err); ok {
		return decision{"refuse", refused.code, refused.status}
	}
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	d := decision{"refuse", resp.Header.Get("X-Gateway-Error"), resp.StatusCode}
	arrived := h.up.all()[before:]
	switch {
	case d.code != "" || d.status != http.StatusOK:
		if len(arrived) != 0 {
			h.t.Error("refused, and yet sent")
		}
	case resp.TLS == nil:
		d.would = "pass"
	case resp.TLS.PeerCertificates[0].Issuer.CommonName == testPKI().cert.Subject.CommonName:
		d.would = "tunnel"
	case len(arrived) == 1 && arrived[0].header.Get("Authorization") == own:
		d.would = "pass"
	case len(arrived) == 1 && h.idp.Verify(strings.TrimPrefix(arrived[0].header.Get("Authorization"), "Bearer ")) == nil:
		d.would = "inject"
	}
	return d
}
