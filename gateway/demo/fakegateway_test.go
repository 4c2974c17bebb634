package demo

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// fakeGateway is the least that the story needs of a gateway: it terminates TLS for localhost, and puts on a token that
// it gets from the provider anew after a few requests.
type fakeGateway struct {
	config map[string]string // key = value of the configuration file; of a key that stands twice, the last
	client *client           // trusts the provider
	inner  http.Handler
	conns  chan net.Conn
	leaf   tls.Certificate
	perUse int // requests per token; 0 never puts one on
	mu     sync.Mutex
	uses   int
	token  string
}

// startFakeGateway is an Options.Start.
func startFakeGateway(t *testing.T, perUse int) func(context.Context, string) (*Running, error) {
	return func(ctx context.Context, configPath string) (*Running, error) {
		g := &fakeGateway{config: readConfig(t, configPath), conns: make(chan net.Conn), perUse: perUse}
		folder := filepath.Dir(configPath)
		providerCA, err := os.ReadFile(filepath.Join(folder, providerCAFile))
		if err != nil {
			return nil, err
		}
		if g.client, err = newClient("", providerCA); err != nil {
			return nil, err
		}
		serverCA, err := os.ReadFile(filepath.Join(folder, serverCAFile))
		if err != nil {
			return nil, err
		}
		upstream, err := newClient("", serverCA)
		if err != nil {
			return nil, err
		}
		target, err := url.Parse(g.config["url"])
		if err != nil {
			return nil, err
		}
		g.inner = &httputil.ReverseProxy{
			Transport: upstream.http.Transport,
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(&url.URL{Scheme: "https", Host: target.Host})
				g.authorize(r.Out)
			},
		}
		leaf, caPEM, err := newCertificate()
		if err != nil {
			return nil, err
		}
		g.leaf = leaf
		caFile := filepath.Join(folder, "bundle.pem")
		if err := os.WriteFile(caFile, caPEM, 0o600); err != nil {
			return nil, err
		}
		front := httptest.NewServer(http.HandlerFunc(g.connect))
		inner := &http.Server{Handler: g.inner}
		listener := &connListener{conns: g.conns, closed: make(chan struct{})}
		var serving sync.WaitGroup
		serving.Go(func() { _ = inner.Serve(listener) })
		return &Running{
			ProxyAddr: front.Listener.Addr().String(), AdminAddr: "127.0.0.1:9", CAFile: caFile,
			Stop: func() error {
				front.Close()
				err := inner.Close()
				serving.Wait()
				return err
			},
		}, nil
	}
}

func (g *fakeGateway) connect(w http.ResponseWriter, r *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 200\r\n\r\n"); err != nil {
		_ = conn.Close()
		return
	}
	g.conns <- tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{g.leaf}})
}

func (g *fakeGateway) authorize(r *http.Request) {
	if g.perUse == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.uses%g.perUse == 0 {
		form := url.Values{
			"grant_type": {"client_credentials"}, "scope": {g.config["scopes"]},
			"client_id": {g.config["client_id"]}, "client_secret": {g.config["client_secret"]},
		}
		a, err := g.client.do(r.Context(), "POST", g.config["issuer"]+"/token", []byte(form.Encode()),
			"Content-Type", "application/x-www-form-urlencoded")
		if err != nil {
			return
		}
		var granted struct {
			AccessToken string `json:"access_token"`
		}
		if err := json.Unmarshal(a.body, &granted); err != nil {
			return
		}
		g.token = granted.AccessToken
	}
	g.uses++
	r.Header.Set("Authorization", "Bearer "+g.token)
}

// readConfig reads the strings of a simple TOML file.
func readConfig(t *testing.T, path string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	config := make(map[string]string)
	for _, match := range regexp.MustCompile(`(?m)^(\w+)\s*= \[?"([^"]*)"`).FindAllStringSubmatch(string(text), -1) {
		config[match[1]] = match[2]
	}
	return config
}

// connListener hands out connections that somebody else accepted.
type connListener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *connListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, errors.New("closed")
	}
}

func (l *connListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *connListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// lines is a writer that lets a test wait for a text. It is safe for concurrent use.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{}
}

func newLines() *lines { return &lines{more: make(chan struct{}, 1)} }

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) waitFor(ctx context.Context, text string) error {
	for !strings.Contains(l.String(), text) {
		select {
		case <-l.more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
