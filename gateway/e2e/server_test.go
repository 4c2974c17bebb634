//go:build e2e

package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

// server is the protected DICOMweb server as the gateway sees it: TLS, and a bearer token of the provider on each request.
// What it lets in goes to an Orthanc. It verifies with the provider's keys, which it keeps, so it works without the provider.
type server struct {
	url      string // what stands in DicomWeb.Servers
	provider *provider
	inner    http.Handler

	mu       sync.Mutex
	keys     map[string]crypto.PublicKey // by key id
	requests []request
}

// request is what the protected server saw of one request, and why it refused it, if it did.
type request struct {
	method, path, host string
	authorization      []string
	refused            error
}

// quiet is for servers whose clients break off, as tests mean them to.
var quiet = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)

// startServer serves the DICOMweb root of an Orthanc, or any other handler.
func startServer(t *testing.T, provider *provider, inner http.Handler) *server {
	t.Helper()
	s := &server{provider: provider, inner: inner, keys: make(map[string]crypto.PublicKey)}
	cert, err := tls.LoadX509KeyPair(provider.pki.certFile, provider.pki.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewUnstartedServer(s)
	front.Config.ErrorLog = quiet
	front.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert} // for tokens that are bound to one
	front.StartTLS()
	t.Cleanup(front.Close)
	s.url = "https://localhost:" + front.URL[strings.LastIndex(front.URL, ":")+1:] + "/dicom-web/"
	return s
}

// forward hands requests on to an Orthanc, with the Host of the client, from which Orthanc builds its URLs. DELETE is not
// known to the DICOMweb root of older versions (405), so it becomes the same call of Orthanc's own REST API.
func forward(t *testing.T, o *orthanc) http.Handler {
	t.Helper()
	target, err := url.Parse(o.url)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	// Orthanc ends kept connections after a second, and Go does not send a POST again.
	once := &http.Transport{DisableKeepAlives: true}
	mux.Handle("/", &httputil.ReverseProxy{ErrorLog: quiet, Transport: once, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host
	}})
	mux.HandleFunc("DELETE /dicom-web/studies/{uid}", func(w http.ResponseWriter, r *http.Request) {
		var found []struct{ Path string }
		err := o.call(http.MethodPost, "/tools/lookup", []byte(r.PathValue("uid")), &found)
		if err == nil && len(found) != 1 {
			err = fmt.Errorf("%d studies have this UID", len(found))
		}
		if err == nil {
			err = o.call(http.MethodDelete, found[0].Path, nil, nil)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	err := s.admit(r.Header.Values("Authorization"), r.TLS.PeerCertificates)
	s.mu.Lock()
	s.requests = append(s.requests, request{
		method: r.Method, path: r.URL.Path, host: r.Host, authorization: r.Header.Values("Authorization"), refused: err,
	})
	s.mu.Unlock()
	if err != nil {
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	s.inner.ServeHTTP(w, r)
}

// admit verifies the one bearer token of a request, to the second: a token that has just ended is refused. A token that is
// bound to a certificate is good only beside it (RFC 8705 section 3).
func (s *server) admit(authorization []string, certificates []*x509.Certificate) error {
	if len(authorization) != 1 {
		return fmt.Errorf("%d Authorization headers instead of one", len(authorization))
	}
	bearer, ok := strings.CutPrefix(authorization[0], "Bearer ")
	if !ok {
		return errors.New("no bearer token")
	}
	claims := jwt.MapClaims{}
	_, err := jwt.ParseWithClaims(bearer, claims, s.key, jwt.WithValidMethods([]string{"ES256", "RS256"}),
		jwt.WithIssuer(s.provider.issuer), jwt.WithAudience(resource), jwt.WithExpirationRequired())
	if err != nil {
		return err
	}
	if confirmation, ok := claims["cnf"].(map[string]any); ok {
		if len(certificates) == 0 {
			return errors.New("the token is bound to a certificate, and none was shown")
		}
		if print := sha256.Sum256(certificates[0].Raw); confirmation["x5t#S256"] != base64.RawURLEncoding.EncodeToString(print[:]) {
			return errors.New("the token is bound to another certificate")
		}
	}
	return nil
}

// key returns the provider's key that signed a token. A key that it does not know it asks the provider for.
func (s *server) key(token *jwt.Token) (any, error) {
	id, _ := token.Header["kid"].(string)
	s.mu.Lock()
	defer s.mu.Unlock()
	if key := s.keys[id]; key != nil {
		return key, nil
	}
	body, err := get(s.provider.pki.client(), s.provider.jwks)
	if err != nil {
		return nil, err
	}
	var set struct {
		Keys []struct{ Kid, Kty, Use, X, Y, N, E string }
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, fmt.Errorf("read the provider's keys: %w", err)
	}
	for _, jwk := range set.Keys {
		if jwk.Use != "sig" {
			continue // Keycloak has keys for encryption too
		}
		if jwk.Kty == "RSA" {
			n, nErr := base64.RawURLEncoding.DecodeString(jwk.N)
			e, eErr := base64.RawURLEncoding.DecodeString(jwk.E)
			if err := errors.Join(nErr, eErr); err != nil {
				return nil, fmt.Errorf("read the provider's key %q: %w", jwk.Kid, err)
			}
			s.keys[jwk.Kid] = &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
			continue
		}
		x, xErr := base64.RawURLEncoding.DecodeString(jwk.X)
		y, yErr := base64.RawURLEncoding.DecodeString(jwk.Y)
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
		if err := errors.Join(xErr, yErr, err); err != nil {
			return nil, fmt.Errorf("read the provider's key %q: %w", jwk.Kid, err)
		}
		s.keys[jwk.Kid] = key
	}
	if key := s.keys[id]; key != nil {
		return key, nil
	}
	return nil, fmt.Errorf("the provider has no key %q", id)
}

// seen returns all requests that have arrived so far.
func (s *server) seen() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// wantOnlyAdmitted fails the test if the protected server had to refuse a request, or was never asked.
func (s *server) wantOnlyAdmitted(t *testing.T) {
	t.Helper()
	seen := s.seen()
	if len(seen) == 0 {
		t.Error("no request has reached the protected server")
	}
	for _, r := range seen {
		if r.refused != nil {
			t.Errorf("%s %s reached the protected server without a valid token: %v", r.method, r.path, r.refused)
		}
	}
}
