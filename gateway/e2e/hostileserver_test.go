//go:build e2e

package e2e

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"orthanc-dicomweb-oauth/gateway/demo"
)

// startIdP starts an identity provider, and returns a profile for it with more keys.
func startIdP(t *testing.T, name, more string) (idp *demo.IdentityProvider, profile string) {
	t.Helper()
	idp = demo.NewIdentityProvider(demo.ProviderOptions{ClientSecret: clientCredential + "-idp"})
	t.Cleanup(idp.Close)
	ca := filepath.Join(t.TempDir(), "idp.pem")
	secret := filepath.Join(t.TempDir(), "secret")
	for path, content := range map[string][]byte{ca: idp.CAPEM(), secret: []byte(idp.ClientSecret())} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return idp, fmt.Sprintf("[profile.%s]\ntype = \"client_credentials\"\ntoken_endpoint = %q\nclient_id = %q\nclient_secret_file = %q\nca_file = %q\n%s\n",
		name, idp.TokenEndpoint(), idp.ClientID(), secret, ca, more)
}

// withProfile is a rule whose credential is of another profile than the arena's own.
func withProfile(rule, profile string) string {
	return strings.Replace(rule, `profile = "main"`, fmt.Sprintf("profile = %q", profile), 1)
}

// whole reads all that comes back for a request that is the last on its connection.
func (a *arena) whole(t *testing.T, authority, request string) string {
	t.Helper()
	c := a.tunnel(t, authority)
	go func() { _, _ = io.WriteString(c, request) }()
	text, _ := io.ReadAll(c) // however it ends
	return string(text)
}

// A redirect is the client's to follow, if a rule covers its target. Neither credential nor secret goes after one.
func TestAttackA06RedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	evil := startRecorder(t, p, nil)
	covered := startRecorder(t, p, nil)
	redirecting := startRecorder(t, p, func(r recorded) string {
		to := map[string]string{"/evil": evil.url(), "/covered": covered.url() + "studies"}[r.target]
		return "HTTP/1.1 307 Temporary Redirect\r\nLocation: " + to + "\r\nContent-Length: 0\r\n\r\n"
	})
	idp, profile := startIdP(t, "led-astray", "")
	idp.Answer(http.StatusTemporaryRedirect, http.Header{"Location": {evil.url() + "token"}}, "")
	tokenless := startRecorder(t, p, nil)
	a := startArena(t, "", p.inject("archive", redirecting.url(), "")+p.inject("covered", covered.url(), "")+
		withProfile(p.inject("tokenless", tokenless.url(), ""), "led-astray")+profile)
	for _, row := range []struct {
		line, rest string
		status     int
		code       string
	}{
		{"GET /evil", "", 502, "redirect_refused"},
		{"HEAD /evil", "", 502, "redirect_refused"},
		{"POST /evil", "hello", 502, "redirect_refused"},
		{"POST /covered", "hello", 502, "redirect_refused"},
		{"GET /covered", "", 307, ""},
	} {
		request := fmt.Sprintf("%s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", row.line, redirecting.authority, len(row.rest), row.rest)
		if wrong := talk(a.tunnel(t, redirecting.authority), request).is(row.status, row.code); wrong != "" {
			t.Errorf("%s: %s", row.line, wrong)
		}
	}
	if wrong := talk(a.tunnel(t, tokenless.authority), "GET / HTTP/1.1\r\nHost: "+tokenless.authority+"\r\n\r\n").is(503, "token_unavailable"); wrong != "" {
		t.Errorf("the token endpoint redirects: %s", wrong)
	}
	if idp.TokenRequests() == 0 {
		t.Error("the provider was not asked")
	}
	for name, s := range map[string]*recorder{"target": evil, "covered target": covered, "server without a token": tokenless} {
		if n := len(s.seen()); n > 0 {
			t.Errorf("the %s was asked %d times", name, n)
		}
	}
	redirecting.wantOurs(t)
}

// A server that refuses every token costs its provider one more, however many requests there are.
func TestAttackA17LoopOf401s(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorder(t, p, func(recorded) string { return "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n" })
	idp, profile := startIdP(t, "idp", "")
	a := startArena(t, "", withProfile(p.inject("archive", s.url(), ""), "idp")+profile)
	c := a.tunnel(t, s.authority)
	const requests = 60
	for range requests {
		if wrong := talk(c, "GET / HTTP/1.1\r\nHost: "+s.authority+"\r\n\r\n").is(401, ""); wrong != "" {
			t.Fatal(wrong)
		}
	}
	if n := idp.TokenRequests(); n != 2 {
		t.Errorf("%d token requests, want the first and one after the first 401", n)
	}
	if n := len(s.seen()); n > requests+1 {
		t.Errorf("%d requests at the server for %d", n, requests)
	}
}

// Whatever a server answers, the client gets one answer to its request, in one framing, without what is not meant for
// it, and the gateway neither swells nor gives an answer to the wrong request.
func TestAttackA22HostileAnswers(t *testing.T) {
	t.Parallel()
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	if _, err := w.Write(make([]byte, 64<<20)); err != nil {
		t.Fatal(err)
	}
	_ = w.Close() // into memory
	const early = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
	const good = "Content-Length: 2\r\n\r\nok"
	answers := map[string]string{
		"/flood":      strings.Repeat(early, 20_000) + "HTTP/1.1 200 OK\r\n" + good,
		"/few":        early + early + "HTTP/1.1 200 OK\r\n" + good,
		"/switching":  "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
		"/endless":    "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 2000) + good,
		"/one-line":   "HTTP/1.1 200 OK\r\nX-A: " + strings.Repeat("a", 4<<20) + "\r\n" + good,
		"/bare-cr":    "HTTP/1.1 200 OK\r\nX-A: a\rX-Injected: b\r\n" + good,
		"/nul":        "HTTP/1.1 200 OK\r\nX-A: a\x00b\r\n" + good,
		"/folded":     "HTTP/1.1 200 OK\r\nX-A: a\r\n X-Injected: b\r\n" + good,
		"/no-name":    "HTTP/1.1 200 OK\r\n: b\r\n" + good,
		"/blank-name": "HTTP/1.1 200 OK\r\nX A: b\r\n" + good,
		"/forged": "HTTP/1.1 200 OK\r\nX-Gateway-Error: overloaded\r\nX-Gateway-Upstream-Status: 1\r\nConnection: X-Named\r\n" +
			"X-Named: 1\r\nProxy-Authenticate: Basic\r\nKeep-Alive: max=1\r\nUpgrade: h2c\r\n" + good,
		"/both":         "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"/two-lengths":  "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
		"/odd-length":   "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
		"/odd-coding":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"/cut":          "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok" + hangUp,
		"/cut-chunk":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nok" + hangUp,
		"/odd-chunk":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok" + hangUp,
		"/trailers":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\nX-Injected: 1\r\n\r\n",
		"/one-too-many": "HTTP/1.1 200 OK\r\n" + good + "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
		"/bad-status":   "HTTP/1.1 20 OK\r\n" + good,
		"/bomb":         fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", bomb.Len(), bomb.String()),
	}
	refusals := []string{
		"/bare-cr", "/nul", "/flood", "/switching", "/endless", "/one-line", "/no-name", "/two-lengths", "/odd-length", "/odd-coding", "/bad-status",
	}
	cuts := []string{"/cut", "/cut-chunk", "/odd-chunk"}
	notPassed := []string{"X-Injected", "X-Named", "X-Gateway-Upstream-Status", "Proxy-Authenticate", "Keep-Alive", "Upgrade", "Trailer", "Link"}
	p := newPKI(t)
	s := startRecorder(t, p, func(r recorded) string {
		if answer, ok := answers[r.target]; ok {
			return answer
		}
		return echo(r)
	})
	a := startArena(t, "", p.inject("archive", s.url(), ""))
	for target := range answers {
		request := "GET " + target + " HTTP/1.1\r\nHost: " + s.authority + "\r\n"
		text := a.whole(t, s.authority, request+"Connection: close\r\n\r\n")
		head, body, _ := strings.Cut(text, "\r\n\r\n")
		for line := range strings.SplitSeq(head, "\r\n") {
			name, _, _ := strings.Cut(line, ":")
			if strings.ContainsAny(line, "\r\n\x00") || slices.Contains(notPassed, name) {
				t.Errorf("%s: the client got the header line %q", target, line)
			}
		}
		switch {
		case slices.Contains(refusals, target):
			if !strings.HasPrefix(text, "HTTP/1.1 502 ") || !strings.Contains(head, "X-Gateway-Error: upstream_protocol") {
				t.Errorf("%s: got %.200q, want 502 upstream_protocol", target, text)
			}
		case slices.Contains(cuts, target):
			if got := talk(a.tunnel(t, s.authority), request+"\r\n"); got.err == nil {
				t.Errorf("%s: got %d %q, want an answer that is cut", target, got.status, got.body)
			}
		case target == "/bomb":
			if body != bomb.String() || !strings.Contains(head, "\r\nContent-Encoding: gzip") {
				t.Errorf("%s: got %d bytes %q, want the %d as they are", target, len(body), head, bomb.Len())
			}
		case strings.HasPrefix(text, "HTTP/1.1 200 "):
			framings := strings.Count(head, "\r\nContent-Length: ") + strings.Count(head, "\r\nTransfer-Encoding: chunked")
			if framings != 1 || strings.Contains(head, "X-Gateway-Error") {
				t.Errorf("%s: got the head %q, want one framing and no error", target, head)
			}
			if body != "ok" && body != "2\r\nok\r\n0\r\n\r\n" {
				t.Errorf("%s: got the body %q, want ok", target, body)
			}
		default:
			t.Errorf("%s: got %.200q, want 200", target, text)
		}
		// The next request has its own answer.
		if got := talk(a.tunnel(t, s.authority), "GET /next HTTP/1.1\r\nHost: "+s.authority+"\r\n\r\n"); got.body != "/next" {
			t.Errorf("after %s the next request got %d %.100q", target, got.status, got.body)
		}
	}
	if n := residentMemory(t, a); n > 64 {
		t.Errorf("the gateway has grown to %d MiB", n)
	}
	s.wantOurs(t)
}

// A server that sends an answer too many, as some do with a body to HEAD, must not have it taken for the answer to the
// next request.
func TestAnswerTooManyUnderLoad(t *testing.T) {
	p := newPKI(t)
	s := startRecorder(t, p, func(r recorded) string {
		if r.target == "/one-too-many" {
			return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
		}
		return echo(r)
	})
	a := startArena(t, "", p.inject("archive", s.url(), ""))
	conns := make([]net.Conn, 400)
	for i := range conns {
		conns[i] = a.tunnel(t, s.authority)
	}
	atOnce(len(conns), 16, func(i int) {
		target, want := fmt.Sprintf("/mine-%d", i), fmt.Sprintf("/mine-%d", i)
		if i%2 == 0 {
			target, want = "/one-too-many", "ok"
		}
		if got := talk(conns[i], "GET "+target+" HTTP/1.1\r\nHost: "+s.authority+"\r\n\r\n"); got.body != want {
			t.Errorf("%s got %d %.100q", target, got.status, got.body)
		}
	})
}

// Bytes that come behind an answer, as when Content-Length is too small or HEAD gets a body, may be a patient's:
// nothing shows them.
func TestBytesBehindAnAnswerAreNotLogged(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorder(t, p, func(recorded) string { return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + patientName })
	a := startArena(t, "", p.inject("archive", s.url(), ""))
	for range 20 {
		if wrong := talk(a.tunnel(t, s.authority), "GET / HTTP/1.1\r\nHost: "+s.authority+"\r\n\r\n").is(200, ""); wrong != "" {
			t.Error(wrong)
		}
	}
	a.process.terminate(t)
	if before, _, found := strings.Cut(a.process.output(t), patientName); found {
		t.Errorf("the gateway has shown them, after %q", tail(before, 200))
	}
}
