package gateway_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/gateway/demo"
	"orthanc-dicomweb-oauth/token"
)

// These are the sentences of docs/security.md. Number 5 is in redirect_test.go,
// number 8 in stream_test.go.

// While there is no credential nothing is sent, whatever the method and
// whatever the client brings; while there is one, each request carries it once,
// and nothing of the client's own.
func TestInvariant1RequestNeverLeavesWithoutItsCredential(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{token: "max_attempts = 1", before: func(p *demo.IdentityProvider) { p.Down(0) }})
	send := func(want int) {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE"} {
			for _, own := range []string{"X-None: 1", "Authorization: Bearer " + clientSecret, "authorization: Basic " + clientSecret, "AUTHORIZATION: " + clientSecret} {
				var body io.Reader
				if method == "POST" || method == "PUT" {
					body = strings.NewReader("hello")
				}
				if a := h.request(method, "/studies", body, own); a.status != want {
					t.Errorf("%s with %s: got %d, want %d", method, own, a.status, want)
				}
			}
		}
	}
	send(503)
	if n := h.up.connections(); n != 0 {
		t.Fatalf("got %d connections to the server without a credential", n)
	}
	h.idp.Recover()
	eventually(t, "there is a token", func() bool { return h.gw.Status().Profiles[0].State == token.Fresh })
	send(200)
	all := h.up.all()
	if len(all) != 20 {
		t.Errorf("got %d requests, want 20", len(all))
	}
	for _, r := range all {
		values := r.header["Authorization"]
		if len(values) != 1 || h.idp.Verify(strings.TrimPrefix(values[0], "Bearer ")) != nil {
			t.Errorf("%s %s: %d Authorization headers, or not ours", r.method, r.target, len(values))
		}
		if strings.Contains(fmt.Sprint(r.header), clientSecret) {
			t.Error("the client's own credential left")
		}
	}
}

// The credential of a rule is put on for its authority, path and methods only,
// and only over verified TLS.
func TestInvariant2CredentialGoesOnlyWhereItsRuleSays(t *testing.T) {
	t.Parallel()
	up := newDouble(t, nil)
	more := func(name, url, extra string) string {
		return fmt.Sprintf("[[rule]]\nname = %q\nurl = %q\nca_file = \"up.pem\"\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n%s\n", name, url, extra)
	}
	other, untrusted := newDouble(t, nil), newDoubleWith(t, serverTLS(newPKI().leaf(time.Now().Add(time.Hour), "localhost")), nil)
	h := newHarness(t, setup{
		up: up, url: up.url + "/dicom-web/", rule: `methods = ["GET", "POST"]`,
		more: more("open", up.url+"/open/", `action = "pass"`) +
			passRule("other", other.authority()) +
			more("untrusted", untrusted.url+"/", `profile = "main"`),
	})
	get := func(url string) answer {
		a, err := h.try("GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	h.get("/dicom-web/studies").want(t, 200)
	if up.last(t).header.Get("Authorization") == "" {
		t.Error("the rule's own request has no credential")
	}
	h.get("/open/studies").want(t, 200)
	if up.last(t).header.Get("Authorization") != "" {
		t.Error("another path got the credential")
	}
	h.get("/").problem(t, 403, "no_rule")
	h.request("DELETE", "/dicom-web/studies/1", nil).problem(t, 405, "method_not_allowed")
	if n := len(up.all()); n != 2 {
		t.Errorf("got %d requests at the server, want 2", n)
	}
	get(untrusted.url+"/").problem(t, 502, "upstream_tls")
	if len(untrusted.all()) != 0 {
		t.Error("a server that is not trusted got a request")
	}
	c := secure(t, h.addr, other.authority(), "", testPKI().pool())
	talk(c, "GET / HTTP/1.1\r\nHost: "+other.authority()+"\r\n\r\n").want(t, 200)
	if other.last(t).header.Get("Authorization") != "" {
		t.Error("another authority got the credential")
	}
}

// However a client spells the host, one canonical authority is in the leaf, in
// SNI and Host at the server, and in log and audit; the rule matches.
func TestInvariant3OneAuthorityDecidesAll(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	_, port, _ := strings.Cut(h.authority(), ":")
	for _, spelling := range []string{"localhost:" + port, "LOCALHOST:" + port, "LocalHost.:" + port, "localhost:0" + port} {
		c := tls.Client(connect(t, h.addr, spelling), &tls.Config{RootCAs: h.roots(), ServerName: "localhost"})
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Fatalf("%s: %v", spelling, err)
		}
		if names := c.ConnectionState().PeerCertificates[0].DNSNames; len(names) != 1 || names[0] != "localhost" {
			t.Errorf("%s: got a leaf for %q", spelling, names)
		}
		talk(c, "GET / HTTP/1.1\r\nHost: "+spelling+"\r\n\r\n").want(t, 200)
		if r := h.up.last(t); r.host != "localhost:"+port || r.sni != "localhost" {
			t.Errorf("%s: the server was called %q, by SNI %q", spelling, r.host, r.sni)
		}
	}
	c := tls.Client(connect(t, h.addr, "LOCALHOST:"+port), &tls.Config{RootCAs: h.roots(), ServerName: "LOCALHOST"})
	talk(c, "GET / HTTP/1.1\r\nHost: localhost.:"+port+"\r\n\r\n").want(t, 200)
	talk(dial(t, h.addr), "CONNECT Unknown.TEST.:443 HTTP/1.1\r\nHost: other.test\r\n\r\n").problem(t, 403, "no_rule")
	if !strings.Contains(h.log.String(), `"authority":"unknown.test:443"`) {
		t.Errorf("the log has another authority:\n%s", h.log)
	}
	ctx, cancel := contextWithPatience()
	defer cancel()
	_ = h.stop(ctx)
	if n := strings.Count(h.audit.String(), `"authority":"localhost:`+port+`"`); n != 5 {
		t.Errorf("got the authority in %d audit records, want 5:\n%s", n, h.audit)
	}
}

// What Connection names is gone before the credential is put on, which is
// therefore never among it; so are all hop-by-hop headers, in both directions.
func TestInvariant4HopByHopHeadersAreStrippedBeforeTheCredential(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{rule: `headers = { "X-Static" = "1" }`, up: newDouble(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "X-Named")
		w.Header().Set("X-Named", "1")
		w.Header().Set("Keep-Alive", "timeout=5")
		w.Header().Set("Proxy-Authenticate", "Basic")
	})})
	hop := []string{"Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Upgrade", "X-Named", "Proxy-Authenticate"}
	for _, nominated := range []string{"authorization", "Authorization, x-named", "close, AUTHORIZATION", "x-static, authorization", "upgrade, authorization"} {
		lines := "Connection: " + nominated + "\r\nConnection: x-named\r\n"
		for _, name := range hop {
			lines += name + ": 1\r\n"
		}
		a := h.raw("GET / HTTP/1.1\r\nHost: {good}\r\n"+lines+"\r\n").want(t, 200)
		r := h.up.last(t)
		if values := r.header["Authorization"]; len(values) != 1 {
			t.Errorf("Connection: %s: got %d credentials", nominated, len(values))
		}
		if r.header.Get("X-Static") != "1" {
			t.Errorf("Connection: %s: the rule's own header is gone", nominated)
		}
		for _, name := range append(hop, "Connection") {
			if r.header.Get(name) != "" {
				t.Errorf("%s reached the server", name)
			}
			if a.header.Get(name) != "" && a.header.Get(name) != "close" {
				t.Errorf("%s reached the client", name)
			}
		}
	}
}

// A provider that hangs, errs or lies is not noticed while the token is usable,
// not even while a refresh is under way.
func TestInvariant6UsableCredentialNeverWaitsForTheProvider(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{provider: demo.ProviderOptions{TokenLifetime: 8 * time.Second}})
	h.get("/").want(t, 200)
	h.idp.Hang()
	ctx, cancel := contextWithPatience()
	defer cancel()
	if err := h.idp.WaitTokenRequests(ctx, 2); err != nil { // the refresh, after 3.2 s or more
		t.Fatal(err)
	}
	for range 20 {
		began := time.Now()
		h.get("/studies").want(t, 200)
		if d := time.Since(began); d > time.Second {
			t.Errorf("a request took %v while the provider hung", d)
		}
	}
	if n := h.idp.TokenRequests(); n != 2 {
		t.Errorf("got %d token requests, want the first and one that hangs", n)
	}
}

// However many ask, one acquisition is under way; and a provider that failed is
// left alone until the next step.
func TestInvariant7OneAcquisitionAtATimePerProfile(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{token: "max_attempts = 1\nmax_backoff = \"60s\"", before: (*demo.IdentityProvider).Hang})
	var refused atomic.Int64
	ask := func(n int) {
		parallel(n, func(int) {
			if a, err := h.try("GET", h.up.url+"/", nil); err == nil && a.status == 503 {
				refused.Add(1)
			}
		})
	}
	done := make(chan struct{})
	go func() { defer close(done); ask(40) }()
	eventually(t, "all wait", func() bool { return h.gw.Status().InFlight == 40 })
	if n := h.idp.TokenRequests(); n != 1 {
		t.Errorf("got %d token requests under way, want 1", n)
	}
	h.idp.Answer(400, http.Header{"Content-Type": {"application/json"}}, `{"error":"invalid_client"}`) // permanent: the longest step
	<-done
	ask(40)
	if n := h.idp.TokenRequests(); n != 1 {
		t.Errorf("got %d token requests within one step, want 1", n)
	}
	if n := refused.Load(); n != 80 {
		t.Errorf("got %d of 80 requests refused with 503", n)
	}
}

// Secrets, tokens and what may name a patient are planted everywhere; no log at
// debug level, audit record, status or answer shows one.
func TestInvariant9NoSecretInAnyOutput(t *testing.T) {
	t.Parallel()
	up := newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch r.URL.Query().Get("do") {
		case "cut":
			panic(http.ErrAbortHandler)
		case "fail":
			w.WriteHeader(500)
		case "redirect":
			w.Header().Set("Location", "https://evil.test/?PatientName="+patient)
			w.WriteHeader(302)
		case "reject":
			w.WriteHeader(401)
		}
	})
	const static = "static-key-4711"
	h := newHarness(t, setup{
		up: up, rule: `headers = { "Ocp-Apim-Subscription-Key" = "` + static + `" }`, token: "max_attempts = 1",
		proxy: "username = \"orthanc\"\npassword = \"proxy-password-4711\"\nresponse_timeout = \"2s\"",
	})
	auth := "Proxy-Authorization: Basic b3J0aGFuYzpwcm94eS1wYXNzd29yZC00NzEx\r\n" // orthanc:proxy-password-4711
	var answers []string
	tunnel := func(request string) {
		c := dial(t, h.addr)
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: x\r\n%s\r\n", h.authority(), auth)
		readHead(t, c)
		a := talk(handshake(t, c, h), strings.ReplaceAll(request, "{good}", h.authority()))
		answers = append(answers, a.body+fmt.Sprint(a.header))
	}
	query := "?PatientName=" + patient + "&do="
	head := " HTTP/1.1\r\nHost: {good}\r\nX-Patient: " + patient + "\r\nAuthorization: Bearer " + clientSecret + "\r\n"
	for _, do := range []string{"ok", "cut", "fail", "redirect", "reject"} {
		for _, path := range []string{"/studies", "/studies/" + patient + "/series", "/" + patient} {
			tunnel("GET " + path + query + do + head + "\r\n")
		}
		tunnel("POST /studies" + query + do + head + "Content-Length: 13\r\n\r\n" + patient)
	}
	tunnel("GET /../" + patient + query + head + "\r\n")
	tunnel("TRACE /" + patient + query + head + "\r\n")
	tunnel(patient + "\r\n\r\n")
	tunnel("GET /?" + patient + " HTTP/1.1\r\nHost: evil.test\r\n\r\n")
	h.idp.Answer(400, nil, h.idp.ClientSecret()+patient)
	tunnel("GET /studies" + query + "reject" + head + "\r\n")
	answers = append(answers, h.front("GET http://"+patient+".test/"+patient+"?"+patient+" HTTP/1.1\r\nHost: x\r\n"+auth+"\r\n").body)
	answers = append(answers, h.front("CONNECT "+h.authority()+" HTTP/1.1\r\nProxy-Authorization: Basic "+clientSecret+"\r\n\r\n").body)

	status := fmt.Sprintf("%+v %+v", h.gw.Status(), h.gw.Rules())
	ctx, cancel := contextWithPatience()
	defer cancel()
	_ = h.stop(ctx)
	outputs := map[string]string{"log": h.log.String(), "audit": h.audit.String(), "status": status, "answers": strings.Join(answers, "\n")}
	secrets := append(up.credentials(), h.idp.ClientSecret(), static, "proxy-password-4711", "b3J0aGFuYzpwcm94", clientSecret, strings.ToLower(patient), patient)
	for name, text := range outputs {
		if name == "log" { // the host of a refused request is logged, that is its purpose; here it is the test that put a name there
			text = strings.ReplaceAll(text, strings.ToLower(patient)+".test:80", "")
		}
		if name == "audit" {
			text = strings.ReplaceAll(text, strings.ToLower(patient)+".test:80", "")
		}
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s shows %.20s…:\n%s", name, secret, text)
			}
		}
	}
	sc := bufio.NewScanner(strings.NewReader(h.audit.String()))
	lines := 0
	for sc.Scan() {
		lines++
	}
	if lines < 20 {
		t.Errorf("got %d audit records, want one for each request", lines)
	}
}

// One profile's provider is broken; the rules of the other go on as ever.
func TestInvariant10BrokenProfileAffectsOnlyItself(t *testing.T) {
	t.Parallel()
	broken := demo.NewIdentityProvider(demo.ProviderOptions{})
	t.Cleanup(broken.Close)
	broken.Hang()
	up := newDouble(t, nil)
	h := newHarness(t, setup{
		up: up, files: map[string][]byte{"broken.pem": broken.CAPEM()}, token: "request_timeout = \"200ms\"\nmax_attempts = 1",
		more: fmt.Sprintf(`
[[rule]]
name = "lame"
url = "%s/lame/"
profile = "lame"
ca_file = "up.pem"
allow_networks = ["127.0.0.0/8", "::1/128"]
[profile.lame]
type = "client_credentials"
token_endpoint = %q
client_id = "x"
client_secret = "lame-secret-4711"
ca_file = "broken.pem"
`, up.url, broken.TokenEndpoint()),
	})
	eventually(t, "the good profile has its token", func() bool { return h.gw.Status().Profiles[1].State == token.Fresh })
	h.get("/studies").want(t, 200)
	if p := h.get("/lame/studies").problem(t, 503, "token_unavailable"); p.Profile != "lame" || p.Rule != "lame" {
		t.Errorf("got %+v", p)
	}
	for range 20 {
		h.get("/studies").want(t, 200)
		if p := h.get("/lame/studies").problem(t, 503, "token_unavailable"); p.Profile != "lame" {
			t.Errorf("got profile %q", p.Profile)
		}
	}
	for _, r := range up.all() {
		if strings.HasPrefix(r.target, "/lame") {
			t.Error("a request of the broken profile left")
		}
	}
}
