package demo

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Request is what a [Server] saw of one request. Credentials are in it as fingerprints only.
type Request struct {
	Time   time.Time
	Method string
	Path   string      // as it was sent, without the query
	Query  string      // raw
	Host   string      // of the Host header
	Header http.Header // each Authorization as "Bearer " and the fingerprint
	Token  Token       // the bearer token; zero when there was none, or more than one Authorization header
	Status int         // of the answer; 0 when the request was cut off

	BodyBytes  int64  // read of the body before the answer
	BodySHA256 string // of these bytes, in hexadecimal
}

// Token describes a bearer token without giving it away.
type Token struct {
	Fingerprint string    // see Fingerprint; empty when there was no token
	Preview     string    // the first six characters: of a JWT, a part of its header that all have
	Length      int       // in characters
	ExpiresAt   time.Time // the exp claim of a JWT; zero where there is none
}

// Fingerprint names a credential without giving it away: 12 hexadecimal digits of its SHA-256.
func Fingerprint(credential string) string {
	sum := sha256.Sum256([]byte(credential))
	return hex.EncodeToString(sum[:6])
}

// String says of the token what may be shown of it.
func (t Token) String() string {
	if t.ExpiresAt.IsZero() {
		return fmt.Sprintf("%s… (%d characters)", t.Preview, t.Length)
	}
	return fmt.Sprintf("%s… (%d characters, expires in %d s)", t.Preview, t.Length, t.secondsLeft())
}

// secondsLeft is the rest of the token's life, or 0.
func (t Token) secondsLeft() int {
	return max(0, int(time.Until(t.ExpiresAt).Seconds()))
}

// describe makes the Token of a bearer token. The signature is not looked at: that is Verify's work.
func describe(token string) Token {
	t := Token{Fingerprint: Fingerprint(token), Length: len(token)}
	if len(token) >= 100 { // too long for a typed password
		t.Preview = token[:6]
	}
	var c jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(token, &c); err == nil && c.ExpiresAt != nil {
		t.ExpiresAt = c.ExpiresAt.Time
	}
	return t
}

// bearer returns the only bearer token of a request.
func bearer(r *http.Request) (token string, ok bool) {
	values := r.Header["Authorization"]
	if len(values) != 1 {
		return "", false
	}
	scheme, token, found := strings.Cut(values[0], " ")
	if !found || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", false
	}
	return token, true
}

// redact replaces each credential in a copy of the header.
func redact(header http.Header) http.Header {
	header = header.Clone()
	for i, value := range header["Authorization"] {
		scheme, credential, found := strings.Cut(value, " ")
		if !found {
			scheme, credential = "", value
		}
		header["Authorization"][i] = scheme + " " + Fingerprint(credential)
	}
	return header
}

// record notes each request in the journal, before the first byte of its answer leaves.
func (s *Server) record(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := &hashedBody{ReadCloser: r.Body, hash: sha256.New()}
		r.Body = body
		request := Request{
			Time: time.Now(), Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Host: r.Host, Header: redact(r.Header),
		}
		if token, ok := bearer(r); ok {
			request.Token = describe(token)
		}
		recorder := &recorder{ResponseWriter: w, note: func(status int) {
			request.Status = status
			request.BodyBytes = body.read
			request.BodySHA256 = hex.EncodeToString(body.hash.Sum(nil))
			s.requests.add(request)
		}}
		defer recorder.noteOnce(0)
		next.ServeHTTP(recorder, r)
	})
}

// recorder calls note once, with the status of the answer.
type recorder struct {
	http.ResponseWriter
	note func(status int)
}

func (r *recorder) noteOnce(status int) {
	if r.note != nil {
		r.note(status)
		r.note = nil
	}
}

func (r *recorder) WriteHeader(status int) {
	r.noteOnce(status)
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.noteOnce(http.StatusOK)
	return r.ResponseWriter.Write(b)
}

// Unwrap serves http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// hashedBody counts and hashes what is read through it.
type hashedBody struct {
	io.ReadCloser
	hash hash.Hash
	read int64
}

func (b *hashedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.hash.Write(p[:n])
	b.read += int64(n)
	return n, err
}

// authorize lets requests with a good token pass, and answers the others as RFC 6750 section 3 says.
func (s *Server) authorize(next http.Handler) http.Handler {
	if s.options.Verify == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := bearer(r)
		if !ok {
			challenge(w, http.StatusUnauthorized, "")
			return
		}
		switch err := s.options.Verify(token); {
		case errors.Is(err, ErrInsufficientScope):
			challenge(w, http.StatusForbidden, "insufficient_scope")
		case err != nil:
			challenge(w, http.StatusUnauthorized, "invalid_token")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// challenge refuses a request. A request that brought no token at all is told no error code.
func challenge(w http.ResponseWriter, status int, code string) {
	value := `Bearer realm="dicomweb-demo"`
	if code != "" {
		value += `, error="` + code + `"`
	}
	w.Header().Set("WWW-Authenticate", value)
	http.Error(w, http.StatusText(status), status)
}
