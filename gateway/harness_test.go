package gateway_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/gateway/demo"
	"orthanc-dicomweb-oauth/rules"
)

// patience bounds every wait; no test that passes comes near it.
const patience = 10 * time.Second

// patient is what tests plant as PHI; no output may show it.
const patient = "DOE-JANE-4711"

// setup is what is special about a harness. The zero value is one inject rule,
// "dicom" with the profile "main", for a double that answers 200.
type setup struct {
	proxy    string // more keys of [proxy]
	token    string // keys of [token]
	url      string // of the rule, if not that of up
	rule     string // more keys of the rule
	profile  string // more keys of the profile
	more     string // more tables
	provider demo.ProviderOptions
	up       *double
	files    map[string][]byte // beside gateway.toml, in place of the usual ones
	ln       net.Listener      // what the gateway serves, if a test must know it before
	before   func(*demo.IdentityProvider)
}

// harness is a gateway between a client and doubles, all on loopback.
type harness struct {
	t     testing.TB
	gw    *gateway.Gateway
	ca    *certs.CA
	idp   *demo.IdentityProvider
	up    *double
	addr  string // of the proxy
	log   *buffer
	audit *buffer
	stop  func(context.Context) error // Shutdown, and the wait for Serve

	client *http.Client
	dir    string // of gateway.toml and the files it names
}

const toml = `
[proxy]
listen = "127.0.0.1:0"
%s
[admin]
listen = ""
[token]
%s
[[rule]]
name = "dicom"
url = %q
profile = "main"
ca_file = "up.pem"
allow_networks = ["127.0.0.0/8", "::1/128"]
%s
[profile.main]
type = "client_credentials"
token_endpoint = %q
client_id = %q
client_secret = %q
ca_file = "idp.pem"
%s
%s
`

func newHarness(t testing.TB, s setup) *harness {
	t.Helper()
	h := &harness{t: t, up: s.up, log: &buffer{}, audit: &buffer{}}
	h.idp = demo.NewIdentityProvider(s.provider)
	t.Cleanup(h.idp.Close)
	if s.before != nil {
		s.before(h.idp)
	}
	if h.up == nil {
		h.up = newDouble(t, nil)
	}
	if s.url == "" {
		s.url = h.up.url + "/"
	}
	dir := t.TempDir()
	h.dir = dir
	text := fmt.Sprintf(toml, s.proxy, s.token, s.url, s.rule, h.idp.TokenEndpoint(), h.idp.ClientID(), h.idp.ClientSecret(), s.profile, s.more)
	files := map[string][]byte{"gateway.toml": []byte(text), "up.pem": testPKI().pem, "idp.pem": h.idp.CAPEM()}
	maps.Copy(files, s.files)
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := rules.Load(filepath.Join(dir, "gateway.toml"), func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if h.ca, err = gateway.OpenCA(config); err != nil {
		t.Fatal(err)
	}
	if s.ln == nil {
		s.ln = listen(t)
	}
	h.addr = s.ln.Addr().String()
	records := audit.New(h.audit)
	h.gw, err = gateway.New(gateway.Options{
		Config: config, CA: h.ca, Audit: records,
		Log: slog.New(slog.NewJSONHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- h.gw.Serve(s.ln) }()
	var once sync.Once
	h.stop = func(ctx context.Context) (err error) {
		once.Do(func() {
			err = h.gw.Shutdown(ctx)
			if serveErr := <-served; serveErr != nil {
				t.Errorf("got %v from Serve, want nil", serveErr)
			}
			_ = records.Close() // as main does
		})
		return err
	}
	h.client = h.newClient(nil)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = h.stop(ctx)
		h.checkOutputs()
	})
	return h
}

// checkOutputs looks for secrets in all that the gateway wrote.
func (h *harness) checkOutputs() {
	h.t.Helper()
	secrets := append(h.up.credentials(), h.idp.ClientSecret(), patient)
	for name, out := range map[string]string{"log": h.log.String(), "audit": h.audit.String()} {
		for _, secret := range secrets {
			if strings.Contains(out, secret) {
				h.t.Errorf("%s shows %q", name, secret)
			}
		}
	}
}

// authority is host:port of the rule's server.
func (h *harness) authority() string { return strings.TrimPrefix(h.up.url, "https://") }

// newClient returns a client that uses the proxy as Orthanc does.
func (h *harness) newClient(user *url.Userinfo) *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(h.ca.Certificate())
	transport := &http.Transport{
		Proxy:              http.ProxyURL(&url.URL{Scheme: "http", Host: h.addr, User: user}),
		TLSClientConfig:    clientTLS(roots),
		DisableCompression: true,
	}
	h.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Timeout: patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// answer is what came back. Err is how its body ended if not well.
type answer struct {
	status int
	header http.Header
	body   string
	err    error
}

// request sends a request to the rule's server, header as "Name: value".
func (h *harness) request(method, path string, body io.Reader, header ...string) answer {
	h.t.Helper()
	a, err := h.try(method, h.up.url+path, body, header...)
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

func (h *harness) get(path string, header ...string) answer {
	h.t.Helper()
	return h.request("GET", path, nil, header...)
}

// try may be called from any goroutine.
func (h *harness) try(method, target string, body io.Reader, header ...string) (answer, error) {
	r, err := http.NewRequestWithContext(h.t.Context(), method, target, body)
	if err != nil {
		return answer{}, err
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	resp, err := h.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	return readAnswer(resp), nil
}

func readAnswer(resp *http.Response) answer {
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(text), err}
}

// want fails the test unless the answer has this status and a whole body.
func (a answer) want(t testing.TB, status int) answer {
	t.Helper()
	if a.status != status || a.err != nil {
		t.Errorf("got %d (%s, %v), want %d", a.status, a.body, a.err, status)
	}
	return a
}

// buffer collects output from many goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// eventually waits until something is so.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !so() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("never: %s", what)
		}
	}
}

// parallel calls f n times at once and waits.
func parallel(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}
