package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/rules"
)

// fuzzed is a gateway that lives as long as a fuzz target.
type fuzzed struct {
	addr    string
	log     *buffer
	records chan string // what the audit log wrote, a line each
}

// recordSink passes audit records on.
type recordSink chan string

func (s recordSink) Write(p []byte) (int, error) {
	s <- string(p)
	return len(p), nil
}

// startFuzzed starts a gateway with this gateway.toml.
func startFuzzed(f *testing.F, text string) *fuzzed {
	f.Helper()
	path := filepath.Join(f.TempDir(), "gateway.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.Fatal(err)
	}
	config, err := rules.Load(path, func(string) (string, bool) { return "", false })
	if err != nil {
		f.Fatal(err)
	}
	ca, err := gateway.OpenCA(config)
	if err != nil {
		f.Fatal(err)
	}
	z := &fuzzed{log: &buffer{}, records: make(chan string, 4096)}
	records := audit.New(recordSink(z.records))
	g, err := gateway.New(gateway.Options{
		Config: config, CA: ca, Audit: records,
		Log: slog.New(slog.NewJSONHandler(z.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		f.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	z.addr = ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- g.Serve(ln) }()
	f.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = g.Shutdown(ctx)
		if err := <-served; err != nil {
			f.Error(err)
		}
		_ = records.Close()
	})
	return z
}

// say writes bytes to the gateway and returns all that comes back. It ends the connection only when nothing has come
// for a while, since a client that leaves is not served.
func (z *fuzzed) say(t *testing.T, raw string) string {
	t.Helper()
	c, err := net.Dial("tcp", z.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
	_, _ = io.WriteString(c, raw)
	answer, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = c.SetDeadline(time.Now().Add(patience))
		_ = c.(*net.TCPConn).CloseWrite()
		rest, _ := io.ReadAll(c) // however it ends
		answer = append(answer, rest...)
	}
	return string(answer)
}

// What a CONNECT, or any other head, makes the gateway dial is what its request line names, in canonical form, and a
// rule has it. A corporate proxy shows what is dialled.
func FuzzConnectLine(f *testing.F) {
	var mu sync.Mutex
	var dialled []string
	corporate := newRaw(f, nil, func(c net.Conn, br *bufio.Reader) {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		mu.Lock()
		dialled = append(dialled, strings.TrimSpace(line))
		mu.Unlock()
		_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
	}).authority()
	const rule = "[[rule]]\nname = %q\nurl = %q\naction = %q\n"
	z := startFuzzed(f, fmt.Sprintf("[proxy]\nlisten = \"127.0.0.1:0\"\nupstream_proxy = \"http://%s\"\n[admin]\nlisten = \"\"\n", corporate)+
		fmt.Sprintf(rule, "pass", "https://pass.test/", "pass")+fmt.Sprintf(rule, "port", "https://pass.test:8443/", "pass")+
		fmt.Sprintf(rule, "wild", "https://*.wild.test/", "pass")+fmt.Sprintf(rule, "deny", "https://deny.test/", "deny")+
		fmt.Sprintf(rule, "clear", "http://clear.test/open/", "pass"))
	for _, seed := range [][2]string{
		{"CONNECT pass.test:443 HTTP/1.1", "Host: pass.test:443"},
		{"CONNECT PASS.test.:8443 HTTP/1.1", "Host: evil.test"},
		{"CONNECT a.wild.test:443 HTTP/1.1", "Host: x\r\nConnection: close"},
		{"CONNECT a.b.wild.test:443 HTTP/1.1", "Host: x"},
		{"CONNECT deny.test:443 HTTP/1.1", "Host: pass.test:443"},
		{"CONNECT evil.test:443 HTTP/1.1", "Host: pass.test:443"},
		{"CONNECT pass.test:443@evil.test:443 HTTP/1.1", "Host: pass.test"},
		{"CONNECT evil.test:443#pass.test:443 HTTP/1.1", ""},
		{"CONNECT //pass.test:443 HTTP/1.1", "Host: pass.test"},
		{"CONNECT /pass.test:443 HTTP/1.1", "Host: evil.test:443"},
		{"CONNECT https://pass.test:443 HTTP/1.1", "Host: evil.test:443"},
		{"CONNECT [::ffff:127.0.0.1]:443 HTTP/1.1", "Host: pass.test"},
		{"CONNECT pass.test HTTP/1.0", "Host: pass.test:443"},
		{"CONNECT pass.test:443\tHTTP/1.1", "X: b\r\n\r\nGET / HTTP/1.1"},
		{"connect pass.test:443 HTTP/1.1", "Host: pass.test"},
		{"GET http://clear.test/open/ HTTP/1.1", "Host: evil.test"},
		{"GET http://clear.test/secret HTTP/1.1", "Host: clear.test"},
		{"GET http://clear.test@evil.test/open/ HTTP/1.1", "Host: clear.test"},
		{"GET http://clear.test/open/../secret HTTP/1.1", "Host: clear.test"},
		{"GET https://pass.test/ HTTP/1.1", "Host: pass.test"},
		{"GET / HTTP/1.1", "Host: pass.test:443"},
	} {
		f.Add(seed[0], seed[1])
	}
	tunnels := []string{"CONNECT pass.test:443 HTTP/1.1", "CONNECT pass.test:8443 HTTP/1.1"}
	f.Fuzz(func(t *testing.T, line, header string) {
		const last = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" // so that the connection ends
		answer := z.say(t, line+"\r\n"+header+"\r\n\r\n"+last)
		mu.Lock()
		asked := dialled
		dialled = nil
		mu.Unlock()
		for _, what := range asked {
			label, wild := strings.CutSuffix(strings.TrimPrefix(what, "CONNECT "), ".wild.test:443 HTTP/1.1")
			below := wild && label != "" && !strings.ContainsAny(label, ". /@:") && strings.ToLower(label) == label
			clear := strings.HasPrefix(what, "GET http://clear.test:80/open") || strings.Contains(what, " http://clear.test:80/open")
			if !below && !clear && !slices.Contains(tunnels, what) {
				t.Errorf("%q\n%q\nhas made the gateway ask for %q, which no rule has", line, header, what)
			}
			if !strings.ContainsAny(header, "\r\n") && strings.HasPrefix(what, "CONNECT ") { // one head, and so one name
				_, rest, _ := strings.Cut(line, " ")
				target, _, _ := strings.Cut(rest, " ")
				if a, err := rules.ParseAuthority(target, 0); err != nil || "CONNECT "+a.String()+" HTTP/1.1" != what {
					t.Errorf("%q has made the gateway ask for %q, want %s (%v)", line, what, a, err)
				}
			}
		}
		if strings.HasPrefix(answer, "HTTP/1.1 200 ") && len(asked) == 0 {
			t.Errorf("%q\n%q\nwas accepted, and nothing dialled", line, header)
		}
	})
}

// Whatever a server answers, and whatever the request for it was: neither the log at debug level, nor the audit record,
// nor an answer of the gateway's own repeats a word of it.
func FuzzLogShowsNothingOfRequestOrAnswer(f *testing.F) {
	var answer atomic.Pointer[string]
	up := newRaw(f, nil, func(c net.Conn, br *bufio.Reader) {
		if _, err := http.ReadRequest(br); err == nil {
			_, _ = io.WriteString(c, *answer.Load())
		}
	}).authority()
	z := startFuzzed(f, fmt.Sprintf("[proxy]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"\"\n"+
		"[[rule]]\nname = \"clear\"\nurl = \"http://%s/dicom-web/\"\naction = \"pass\"\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n", up))
	for _, seed := range [][2]string{
		{"/dicom-web/studies?PatientName={x}", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{x}"},
		{"/dicom-web/studies/{x}", "HTTP/1.1 200 OK\r\nX-A: {x}\r\n"},
		{"/dicom-web/{x}/../", "{x}\r\n\r\n"},
		{"/{x}", "HTTP/1.1 {x} OK\r\n\r\n"},
		{"/dicom-web/", "HTTP/1.1 302 {x}\r\nLocation: https://evil.test/{x}?{x}\r\nContent-Length: 0\r\n\r\n"},
		{"/dicom-web/", "HTTP/1.1 302 Found\r\nLocation: http://[{x}\r\nContent-Length: 0\r\n\r\n"},
		{"/dicom-web/%zz{x}", "HTTP/1.1 200 OK\r\nTransfer-Encoding: {x}\r\n\r\n"},
		{"/dicom-web/studies", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{x}\r\n"},
		{"/dicom-web/studies", "HTTP/1.1 200 OK\r\nContent-Length: {x}\r\n\r\n"},
		{"/dicom-web/studies", "HTTP/1.1 200 OK\r\n{x}\r\n\r\n"},
		{"/dicom-web/studies", "HTTP/1.1 101 {x}\r\nUpgrade: {x}\r\nConnection: upgrade\r\n\r\n{x}"},
		{"/dicom-web/studies", "HTTP/1.1 103 Early\r\nLink: {x}\r\n\r\nHTTP/1.1 429 {x}\r\nContent-Length: 100\r\n\r\n{x}"},
		{"/dicom-web/studies/1?a={x}", ""},
	} {
		f.Add(seed[0], seed[1])
	}
	planted := func(text string) string { return strings.ReplaceAll(text, "{x}", patient) }
	f.Fuzz(func(t *testing.T, target, text string) {
		target, text = planted(target), planted(text)
		if !strings.HasPrefix(target, "/") || strings.ContainsFunc(target, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			t.Skip("not a request target")
		}
		if _, err := url.Parse("http://" + up + target); err != nil {
			t.Skip("not a URL, and so no record")
		}
		answer.Store(&text)
		logged := len(z.log.String())
		got := z.say(t, "GET http://"+up+target+" HTTP/1.1\r\nHost: x\r\nX-A: "+patient+"\r\nConnection: close\r\n\r\n")
		var record string
		select {
		case record = <-z.records:
		case <-time.After(patience):
			t.Fatalf("no audit record of %q", target)
		}
		if head, _, _ := bytes.Cut([]byte(got), []byte("\r\n\r\n")); !bytes.Contains(head, []byte("\r\nX-Gateway-Error: ")) {
			got = "" // the server's own answer
		}
		for name, output := range map[string]string{"log": z.log.String()[logged:], "audit record": record, "answer": got} {
			if strings.Contains(output, patient) {
				t.Errorf("%q, answered by %q: the %s shows it: %s", target, text, name, output)
			}
		}
	})
}
