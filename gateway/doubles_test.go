package gateway_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// pki is a CA for the doubles.
type pki struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// testPKI is the CA that the rules' ca_file names.
var testPKI = sync.OnceValue(newPKI)

func newPKI() *pki {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	p := &pki{key: key}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		Subject: pkix.Name{CommonName: "test CA"}, SerialNumber: big.NewInt(1),
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, &x509.Certificate{Subject: pkix.Name{CommonName: "test CA"}}, key.Public(), key)
	if err != nil {
		panic(err)
	}
	if p.cert, err = x509.ParseCertificate(der); err != nil {
		panic(err)
	}
	p.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return p
}

// leaf signs a server certificate; the names may be IP addresses.
func (p *pki) leaf(notAfter time.Time, names ...string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip, err := netip.ParseAddr(name); err == nil {
			template.IPAddresses = append(template.IPAddresses, ip.AsSlice())
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, p.cert, key.Public(), p.key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (p *pki) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.cert)
	return pool
}

func serverTLS(cert tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
}

func clientTLS(roots *x509.CertPool) *tls.Config {
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

// goodTLS is what a double speaks if nothing is said.
var goodTLS = sync.OnceValue(func() *tls.Config {
	return serverTLS(testPKI().leaf(time.Now().Add(time.Hour), "localhost", "127.0.0.1", "good.test", "other.test"))
})

// seen is a request as it arrived.
type seen struct {
	method, target, host, sni string
	remote                    string // which connection it came on
	header                    http.Header
}

// double is an HTTPS server on localhost that remembers connections, their first
// bytes and requests.
type double struct {
	url    string // https://localhost:PORT
	server *httptest.Server

	mu       sync.Mutex
	conns    int
	open     int          // of conns
	clear    bytes.Buffer // what arrived below TLS
	requests []seen
}

// newDouble starts a double with this handler; nil answers 200 "ok".
func newDouble(t testing.TB, handler http.HandlerFunc) *double {
	t.Helper()
	return newDoubleWith(t, goodTLS(), handler)
}

func newDoubleWith(t testing.TB, conf *tls.Config, handler http.HandlerFunc) *double {
	t.Helper()
	if handler == nil {
		handler = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }
	}
	d := &double{}
	d.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := seen{method: r.Method, target: r.RequestURI, host: r.Host, remote: r.RemoteAddr, header: r.Header.Clone()}
		if r.TLS != nil {
			s.sni = r.TLS.ServerName
		}
		d.mu.Lock()
		d.requests = append(d.requests, s)
		d.mu.Unlock()
		handler(w, r)
	}))
	d.server.Listener.Close()
	d.server.Listener = &wiretap{listen(t), d}
	d.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	scheme := "http"
	if conf != nil {
		d.server.TLS = conf
		d.server.StartTLS()
		scheme = "https"
	} else {
		d.server.Start()
	}
	_, port, _ := net.SplitHostPort(d.server.Listener.Addr().String())
	d.url = scheme + "://localhost:" + port
	t.Cleanup(d.server.Close)
	return d
}

// authority is the double's host:port.
func (d *double) authority() string { return d.url[strings.LastIndex(d.url, "/")+1:] }

func (d *double) connections() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conns
}

// stillOpen counts the connections that have not ended.
func (d *double) stillOpen() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open
}

// below returns what arrived below TLS.
func (d *double) below() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.clear.String()
}

func (d *double) all() []seen {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]seen(nil), d.requests...)
}

// last returns the newest request.
func (d *double) last(t testing.TB) seen {
	t.Helper()
	all := d.all()
	if len(all) == 0 {
		t.Fatal("no request reached the server")
	}
	return all[len(all)-1]
}

// credentials returns the different bearer tokens that arrived.
func (d *double) credentials() []string {
	var list []string
	for _, r := range d.all() {
		for _, value := range r.header["Authorization"] {
			if _, credential, _ := strings.Cut(value, " "); len(credential) > 8 && !slices.Contains(list, credential) {
				list = append(list, credential)
			}
		}
	}
	return list
}

// wiretap notes the connections of a double and what arrives on them.
type wiretap struct {
	net.Listener
	d *double
}

func (l *wiretap) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.d.mu.Lock()
	l.d.conns++
	l.d.open++
	l.d.mu.Unlock()
	return &tapped{Conn: c, d: l.d}, nil
}

type tapped struct {
	net.Conn
	d      *double
	closed sync.Once
}

func (c *tapped) Close() error {
	c.closed.Do(func() {
		c.d.mu.Lock()
		defer c.d.mu.Unlock()
		c.d.open--
	})
	return c.Conn.Close()
}

func (c *tapped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.d.mu.Lock()
	if c.d.clear.Len() < 64<<10 {
		c.d.clear.Write(p[:n])
	}
	c.d.mu.Unlock()
	return n, err
}

// newRaw starts a server on localhost that leaves what is said on each connection
// to serve; the connection ends with it. Without conf it speaks no TLS.
func newRaw(t testing.TB, conf *tls.Config, serve func(c net.Conn, br *bufio.Reader)) *double {
	t.Helper()
	d := &double{}
	var all sync.WaitGroup
	t.Cleanup(all.Wait) // after the end of the listener, which was begun later
	ln, scheme := net.Listener(&wiretap{listen(t), d}), "http"
	if conf != nil {
		ln, scheme = tls.NewListener(ln, conf), "https"
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	d.url = scheme + "://localhost:" + port
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				serve(c, bufio.NewReader(c))
			})
		}
	})
	return d
}

// script starts a server whose answers are raw bytes: play is called with each
// connection and the first request on it, and the connection ends with it.
// Without conf it speaks no TLS, though its URL says so: play gets a nil request.
func script(t testing.TB, conf *tls.Config, play func(c net.Conn, r *http.Request)) *double {
	t.Helper()
	var d *double
	d = newRaw(t, conf, func(c net.Conn, br *bufio.Reader) {
		r, err := http.ReadRequest(br)
		if err != nil && conf != nil {
			return
		}
		if r != nil {
			d.mu.Lock()
			d.requests = append(d.requests, seen{method: r.Method, target: r.RequestURI, host: r.Host, header: r.Header.Clone()})
			d.mu.Unlock()
		}
		play(c, r)
	})
	d.url = "https://" + d.authority()
	return d
}

// says is a script that answers every request with these bytes.
func says(raw string) func(net.Conn, *http.Request) {
	return func(c net.Conn, _ *http.Request) { _, _ = io.WriteString(c, raw) }
}
