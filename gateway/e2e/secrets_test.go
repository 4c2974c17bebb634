//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patientName, patientID and studyUID are what may name a patient: in queries, paths, bodies, headers.
const (
	patientName = "DOE-JANE-4711"
	patientID   = "PID-0815-4711"
	studyUID    = "1.2.826.0.1.3680043.2.1143.4711"
)

// runBinary runs a command of the gateway's binary with a config until it ends or the time is over, and returns its exit
// code and all that it wrote.
func runBinary(t *testing.T, config string, command ...string) (code int, output string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, gatewayBinary, command...)
	cmd.Env = []string{"E2E_CLIENT_SECRET=" + ownCredential, "DICOMWEB_OAUTH_CONFIG=" + config}
	out, _ := cmd.CombinedOutput() // the exit code tells
	return cmd.ProcessState.ExitCode(), string(out)
}

// The CA's key is readable by the gateway's user alone, is made once, and is refused where others can read it; no
// leaf's key is ever in a file.
func TestAttackA12TheftOfTheCAKey(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorder(t, p, nil)
	a := startArena(t, "", p.inject("archive", s.url(), ""))
	a.tunnel(t, s.authority)
	folder := filepath.Dir(a.bundle)
	modes := map[string]fs.FileMode{".": 0o711, "ca-key.pem": 0o600}
	for name, want := range modes {
		info, err := os.Stat(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %04o, want %04o", name, got, want)
		}
	}
	if n := strings.Count(contents(t, folder), "PRIVATE KEY-----\n"); n != 2 {
		t.Errorf("%d lines of private keys in the CA folder, want the first and the last of one", n)
	}
	before := contents(t, folder)
	a.process.kill()
	a.start(t)
	if contents(t, folder) != before {
		t.Error("the second start has changed the CA")
	}
	a.process.terminate(t)
	if err := os.Chmod(filepath.Join(folder, "ca-key.pem"), 0o640); err != nil {
		t.Fatal(err)
	}
	if code, out := runBinary(t, a.config, "run"); code == 0 || !strings.Contains(out, "chmod 600") {
		t.Errorf("a key that the group can read: exit code %d, %s; want a refusal that says chmod 600", code, out)
	}
	_ = os.Chmod(filepath.Join(folder, "ca-key.pem"), 0o600)
	a.start(t)
}

// A config that is broken while the gateway runs, or half written, changes nothing; mended, it is taken again.
func TestAttackA19BrokenConfig(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorder(t, p, nil)
	a := startArena(t, "", p.inject("archive", s.url(), ""))
	text, err := os.ReadFile(a.config)
	if err != nil {
		t.Fatal(err)
	}
	works := func(when string) {
		t.Helper()
		if wrong := talk(a.tunnel(t, s.authority), "GET / HTTP/1.1\r\nHost: "+s.authority+"\r\n\r\n").is(200, ""); wrong != "" {
			t.Errorf("%s: %s", when, wrong)
		}
	}
	works("at first")
	for _, broken := range []string{
		"", "[[rule", string(text[:len(text)/2]), strings.Replace(string(text), "[[rule]]", "[[rule]]\nunknown = 1", 1),
		strings.Repeat("\x00", 4096),
	} {
		if err := os.WriteFile(a.config, []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		a.process.signal(syscall.SIGHUP)
		works(fmt.Sprintf("with a config of %.20q", broken))
	}
	if err := os.Remove(a.config); err != nil {
		t.Fatal(err)
	}
	a.process.signal(syscall.SIGHUP)
	works("without a config")
	if err := os.WriteFile(a.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	a.process.signal(syscall.SIGHUP)
	works("with the config back")
	s.wantOurs(t)
}

// A secret is in no argument, and a file that holds one in clear is refused while others can read it.
func TestAttackA20SecretsInFilesAndArguments(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorder(t, p, nil)
	a := startArena(t, "", p.inject("archive", s.url(), ""))
	arguments, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", a.process.cmd.Process.Pid))
	if err != nil || strings.Contains(string(arguments), ownCredential) {
		t.Errorf("got the arguments %q, %v", arguments, err)
	}
	dir := t.TempDir()
	secret := filepath.Join(dir, "token")
	for name, file := range map[string]struct{ path, profile string }{
		"the config":    {filepath.Join(dir, "gateway.toml"), "token = \"in-clear-4711\""},
		"a secret file": {secret, fmt.Sprintf("token_file = %q", secret)},
	} {
		config := filepath.Join(dir, "gateway.toml")
		text := "[proxy]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"\"\n" + p.inject("archive", s.url(), "") + "[profile.main]\ntype = \"static_bearer\"\n" + file.profile + "\n"
		for path, content := range map[string]string{secret: "in-clear-4711\n", config: text} {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if code, out := runBinary(t, config, "check"); code != 0 {
			t.Errorf("%s with mode 0600: exit code %d, %s", name, code, out)
		}
		if err := os.Chmod(file.path, 0o644); err != nil {
			t.Fatal(err)
		}
		for _, command := range []string{"check", "run"} {
			code, out := runBinary(t, config, command)
			if code != 2 || !containsAll(out, []string{"chmod 600", filepath.Base(file.path)}) || strings.Contains(out, "4711") {
				t.Errorf("%s with mode 0644: %s ended with %d, %s; want 2 and chmod 600, and nothing of the secret", name, command, code, out)
			}
		}
	}
}

// While there is no credential nothing leaves, whatever the method and whatever the client brings; while there is one,
// each request carries it once, and nothing of the client's own.
func TestInvariant1RequestNeverLeavesWithoutItsCredential(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorder(t, p, nil)
	idp, profile := startIdP(t, "idp", "")
	idp.Down(0)
	a := startArena(t, "", withProfile(p.inject("archive", s.url(), ""), "idp")+strings.ReplaceAll(profile, "[profile", "[token]\nmax_attempts = 1\nmax_backoff = \"1s\"\n[profile"))
	send := func(status int, code string) (n int) {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE"} {
			for _, own := range []string{
				"", "Authorization: Bearer " + clientCredential + "\r\n",
				"authorization: " + clientCredential + "\r\nAUTHORIZATION: Basic " + clientCredential + "\r\nConnection: authorization\r\n",
			} {
				request := fmt.Sprintf("%s /studies HTTP/1.1\r\nHost: %s\r\n%sContent-Length: 5\r\n\r\nhello", method, s.authority, own)
				got := talk(a.tunnel(t, s.authority), request)
				if wrong := got.is(status, code); wrong != "" || code != "" && got.header.Get("Retry-After") == "" {
					t.Errorf("%q: %s, Retry-After %q", request, wrong, got.header.Get("Retry-After"))
				}
				n++
			}
		}
		return n
	}
	send(503, "token_unavailable")
	if n := s.dialled(); n > 0 {
		t.Fatalf("the server was dialled %d times without a credential", n)
	}
	idp.Recover()
	eventually(t, patience, func() error {
		_, err := get(loopbackClient, a.admin+"/readyz?rule=archive")
		if err == nil && talk(a.tunnel(t, s.authority), "HEAD / HTTP/1.1\r\nHost: "+s.authority+"\r\n\r\n").status != 200 {
			err = fmt.Errorf("no credential yet")
		}
		return err
	})
	before := len(s.seen())
	n := send(200, "")
	if got := len(s.seen()) - before; got != n {
		t.Errorf("%d requests at the server, want %d", got, n)
	}
	for _, r := range s.seen() {
		values := r.values("Authorization")
		if len(values) != 1 || idp.Verify(strings.TrimPrefix(values[0], "Bearer ")) != nil || strings.Contains(strings.Join(r.fields, ""), clientCredential) {
			t.Errorf("%s: %d Authorization headers, or not the gateway's", r.method, len(values))
		}
	}
}

// The credential is for the authority, path and methods of its rule, and for verified TLS only.
func TestInvariant2CredentialGoesOnlyWhereItsRuleSays(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s, passed, untrusted := startRecorder(t, p, nil), startRecorder(t, p, nil), startRecorder(t, newPKI(t), nil)
	tunnelled := fmt.Sprintf("[[rule]]\nname = \"other\"\nurl = %q\naction = \"pass\"\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n", passed.url())
	open := strings.Replace(p.inject("open", s.url()+"open/", ""), `profile = "main"`, `action = "pass"`, 1)
	a := startArena(t, "", p.inject("archive", s.url()+"dicom-web/", `methods = ["GET", "POST"]`)+open+tunnelled+p.inject("untrusted", untrusted.url(), ""))
	for _, row := range []struct {
		line   string
		status int
		code   string
		has    string // the credential at the server
	}{
		{"GET /dicom-web/studies", 200, "", "Bearer " + ownCredential},
		{"GET /open/studies", 200, "", "Bearer of-the-client"},
		{"DELETE /dicom-web/studies", 405, "method_not_allowed", ""},
		{"GET /", 403, "no_rule", ""},
		{"GET /dicom-web", 200, "", "Bearer " + ownCredential}, // below the prefix as far as its segments go
		{"GET /dicom-webs/", 403, "no_rule", ""},
		{"GET /open/..%2fdicom-web/", 400, "bad_request", ""},
		{"GET /open/../dicom-web/", 400, "bad_request", ""},
		{"GET /DICOM-web/", 403, "no_rule", ""},
	} {
		before := len(s.seen())
		if wrong := talk(a.tunnel(t, s.authority), row.line+" HTTP/1.1\r\nHost: "+s.authority+"\r\nAuthorization: Bearer of-the-client\r\n\r\n").is(row.status, row.code); wrong != "" {
			t.Errorf("%s: %s", row.line, wrong)
		}
		arrived := s.seen()[before:]
		if row.has == "" && len(arrived) > 0 || row.has != "" && (len(arrived) != 1 || strings.Join(arrived[0].values("Authorization"), "|") != row.has) {
			t.Errorf("%s: the server got %+v, want the credential %q", row.line, arrived, row.has)
		}
	}
	if wrong := talk(a.tunnel(t, untrusted.authority), "GET / HTTP/1.1\r\nHost: "+untrusted.authority+"\r\n\r\n").is(502, "upstream_tls"); wrong != "" {
		t.Error(wrong)
	}
	through := *a // the server's own certificate comes through
	through.roots = p.pool
	if wrong := talk(through.tunnel(t, passed.authority), "GET / HTTP/1.1\r\nHost: "+passed.authority+"\r\n\r\n").is(200, ""); wrong != "" {
		t.Error(wrong)
	}
	for _, r := range append(untrusted.seen(), passed.seen()...) {
		if strings.Contains(strings.Join(r.fields, ""), ownCredential) {
			t.Error("the credential has reached a server that no inject rule names, or that is not trusted")
		}
	}
}

// What is secret and what may name a patient is planted everywhere; no log at debug level, audit record, page of the
// admin listener, test of a server, answer or file shows it.
func TestInvariant9NoSecretInAnyOutput(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	said := ownCredential + patientName + patientID + studyUID
	s := startRecorder(t, p, func(r recorded) string {
		switch {
		case strings.Contains(r.target, "do=cut"):
			return "HTTP/1.1 200 OK\r\nContent-Length: 100\r\nX-A: " + said + "\r\n\r\n" + hangUp
		case strings.Contains(r.target, "do=nonsense"):
			return said + "\r\n\r\n" + hangUp
		case strings.Contains(r.target, "do=header"):
			return "HTTP/1.1 200 OK\r\n" + said + "\r\n\r\n" + hangUp
		case strings.Contains(r.target, "do=redirect"):
			return "HTTP/1.1 302 Found\r\nLocation: https://evil.test/" + said + "\r\nContent-Length: 0\r\n\r\n"
		case strings.Contains(r.target, "do=reject"):
			return "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
		case strings.Contains(r.target, "do=fail"):
			return "HTTP/1.1 500 " + patientName + "\r\nContent-Length: 0\r\n\r\n"
		case strings.Contains(r.target, "limit=1"): // of a test: what it finds, and what it is told
			body := `[{"00100010":{"vr":"PN","Value":[{"Alphabetic":"` + said + `"}]}}]`
			status := "200 OK"
			if strings.Contains(r.target, "closed") {
				status = "403 " + said
			}
			return fmt.Sprintf("HTTP/1.1 %s\r\nContent-Type: application/dicom+json\r\nX-A: %s\r\nContent-Length: %d\r\n\r\n%s", status, said, len(body), body)
		case strings.Contains(r.target, "do=silence"):
			return hangUp
		}
		return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	})
	idp, profile := startIdP(t, "talkative", "")
	idp.Answer(http.StatusBadRequest, http.Header{"Content-Type": {"application/json"}}, `{"error":"invalid_client","error_description":"`+ownCredential+" "+said+" "+idp.ClientSecret()+`"}`)
	_, granted := startIdP(t, "granted", "")
	const password = "planted-Proxy-0x5ec"
	a := startArena(t, fmt.Sprintf("username = \"orthanc\"\npassword = \"${E2E_CLIENT_SECRET}%s\"", password),
		fmt.Sprintf("audit_key_file = %q\n", auditKey(t))+
			p.inject("archive", s.url(), `headers = { "X-Static" = "${E2E_CLIENT_SECRET}" }`)+
			withProfile(p.inject("talkative", s.url()+"talkative/", ""), "talkative")+profile+
			withProfile(p.inject("closed", s.url()+"closed/", ""), "granted")+granted)
	auth := "Proxy-Authorization: Basic " + basic("orthanc:"+ownCredential+password) + "\r\n"
	var answers strings.Builder
	told := 0
	tell := func(r reply) {
		if r.code() != "" { // the others are the server's own
			fmt.Fprintf(&answers, "%d %v %s\n", r.status, r.header, r.body)
			told++
		}
	}
	open := func(authority string) net.Conn {
		c := a.dial(t)
		_, _ = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: x\r\n%s\r\n", authority, auth)
		readHead(t, c)
		return a.secure(t, c, authority)
	}
	head := " HTTP/1.1\r\nHost: " + s.authority + "\r\nX-Patient: " + said + "\r\nAuthorization: Bearer " + clientCredential + "\r\nCookie: " + patientName + "\r\n"
	requests := 0
	for _, do := range []string{"ok", "cut", "nonsense", "header", "redirect", "reject", "fail", "silence"} {
		for _, path := range []string{"/studies", "/studies/" + studyUID + "/series", "/studies/" + patientName, "/" + patientName, "/talkative/studies", "/closed/studies/" + studyUID} {
			query := "?PatientName=" + patientName + "&00100020=" + patientID + "&StudyInstanceUID=" + studyUID + "&do=" + do
			tell(talk(open(s.authority), "GET "+path+query+head+"\r\n"))
			tell(talk(open(s.authority), "POST "+path+query+head+fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(said), said)))
			requests += 2
		}
	}
	for _, request := range []string{
		"GET /../" + patientName + head, "TRACE /" + patientName + head, patientName + " / HTTP/1.1\r\nHost: x\r\n",
		patientName + "\r\n", "GET /?" + patientName + " HTTP/1.1\r\nHost: evil.test\r\n", "GET /\x00" + patientName + head,
	} {
		tell(talk(open(s.authority), request+"\r\n"))
	}
	tell(talk(a.dial(t), "CONNECT "+s.authority+" HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic "+basic("orthanc:"+clientCredential)+"\r\n\r\n"))
	tell(talk(a.dial(t), "GET http://unknown.test/"+patientName+"?"+patientName+" HTTP/1.1\r\nHost: x\r\n"+auth+"\r\n"))
	tell(talk(a.dial(t), "GET http://"+clientCredential+":"+patientName+"@unknown.test/ HTTP/1.1\r\nHost: x\r\n"+auth+"\r\n"))
	if _, err := get(loopbackClient, a.admin+"/debug/pprof/cmdline"); err == nil {
		t.Error("pprof answers on the admin listener")
	}
	tests := ""
	for _, accept := range []string{"", "application/json", "application/x-ndjson", "text/html"} {
		for _, rule := range []string{"archive", "talkative", "closed"} {
			tests += a.post(t, "/dicomweb-oauth/servers/"+rule+"/test", accept)
		}
	}
	if !containsAll(tests, []string{"1 study in the answer", "HTTP 403", "invalid_client"}) {
		t.Errorf("the tests of the servers have not come to their ends: %s", tests)
	}
	text, err := os.ReadFile(a.config)
	if err != nil {
		t.Fatal(err)
	}
	wrong := fmt.Sprintf("client_secrt = %q\nclient_secret = [%[1]q]\n", said)
	if err := os.WriteFile(a.config, append(text, wrong...), 0o600); err != nil {
		t.Fatal(err)
	}
	reload := a.post(t, "/dicomweb-oauth/reload", "")
	if !strings.Contains(reload, `"problems"`) {
		t.Errorf("a config that is wrong: got %s", reload)
	}
	shown := a.pages() + tests
	a.process.terminate(t)
	if err := os.Remove(a.config); err != nil { // which holds a password of the user's own making
		t.Fatal(err)
	}
	shown += a.process.output(t) + answers.String() + contents(t, filepath.Dir(a.config))
	secrets := []string{
		patientName, strings.ToLower(patientName), patientID, studyUID, ownCredential, clientCredential, password,
		basic("orthanc:" + ownCredential)[:20], idp.ClientSecret(),
	}
	granteds := 0
	for _, r := range s.seen() {
		for _, value := range r.values("Authorization") {
			if parts := strings.Split(value, "."); len(parts) == 3 { // a JWT's payload and signature
				secrets = append(secrets, parts[1:]...)
				granteds++
			}
		}
	}
	if granteds == 0 {
		t.Error("no request has brought an access token of a provider's to the server")
	}
	for _, secret := range secrets {
		if before, _, found := strings.Cut(shown, secret); found {
			t.Errorf("the gateway has shown %.20s…, after %q", secret, tail(before, 300))
		}
	}
	if told < requests/4 {
		t.Errorf("%d answers of the gateway's own, want some of each kind", told)
	}
	if n := strings.Count(shown, `"route":`); n < requests {
		t.Errorf("%d audit records with a route, want one for each of %d requests", n, requests)
	}
}

// auditKey makes a key file for the hashes of study UIDs.
func auditKey(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.key")
	if err := os.WriteFile(path, []byte(strings.Repeat("k", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// post asks the admin listener to do something, and returns its answer whatever the status is.
func (g *gateway) post(t *testing.T, path, accept string) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, g.admin+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	body, err := do(loopbackClient, req)
	if _, answered := errors.AsType[statusError](err); err != nil && !answered {
		t.Fatal(err)
	}
	return string(body)
}

// One provider is broken, in each way that there is; the rules of the other profile notice nothing.
func TestInvariant10BrokenProfileAffectsOnlyItself(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorder(t, p, nil)
	idp, profile := startIdP(t, "lame", `request_timeout = "500ms"`)
	idp.Down(0)
	a := startArena(t, "", p.inject("archive", s.url(), "")+withProfile(p.inject("lame", s.url()+"lame/", ""), "lame")+
		strings.Replace(profile, "[profile", "[token]\nmax_attempts = 1\nmax_backoff = \"1s\"\n[profile", 1))
	for name, fail := range map[string]func(){
		"hangs":         idp.Hang,
		"is down":       func() { idp.Down(time.Second) },
		"speaks HTML":   func() { idp.Answer(200, http.Header{"Content-Type": {"text/html"}}, "<html>") },
		"gives nothing": func() { idp.Answer(200, http.Header{"Content-Type": {"application/json"}}, "{}") },
		"refuses":       func() { idp.Answer(401, nil, `{"error":"invalid_client"}`) },
	} {
		fail()
		for range 5 {
			began := time.Now()
			if wrong := talk(a.tunnel(t, s.authority), "GET /studies HTTP/1.1\r\nHost: "+s.authority+"\r\n\r\n").is(200, ""); wrong != "" {
				t.Errorf("while the other provider %s: %s", name, wrong)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("while the other provider %s a request took %v", name, took)
			}
		}
		got := talk(a.tunnel(t, s.authority), "GET /lame/studies HTTP/1.1\r\nHost: "+s.authority+"\r\n\r\n")
		var document struct{ Code, Rule, Profile string }
		if err := json.Unmarshal([]byte(got.body), &document); err != nil || document.Code != "token_unavailable" || document.Profile != "lame" || document.Rule != "lame" {
			t.Errorf("while its provider %s: got %d %s, want 503 token_unavailable of lame", name, got.status, got.body)
		}
	}
	for _, r := range s.seen() {
		if strings.HasPrefix(r.target, "/lame") {
			t.Error("a request of the broken profile has left")
		}
	}
	s.wantOurs(t)
}
