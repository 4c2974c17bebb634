package gateway_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/gateway/demo"
)

// fussy is a double that accepts only the nth token and later ones that it
// sees, after it has read the whole body; it answers with the body's hash.
func fussy(t *testing.T, nth int) *double {
	t.Helper()
	var d *double
	d = newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		n, err := io.Copy(hash, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		tokens := map[string]bool{}
		position := 0
		for _, credential := range d.credentials() {
			if !tokens[credential] {
				tokens[credential] = true
				if "Bearer "+credential == r.Header.Get("Authorization") {
					position = len(tokens)
				}
			}
		}
		if position < nth {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			http.Error(w, "the token is not good", http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, "%d %s", n, hex.EncodeToString(hash.Sum(nil)))
	})
	return d
}

func TestRejectedTokenIsRenewedOnceForAllWaiters(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: fussy(t, 2)})
	var failed atomic.Int64
	parallel(20, func(int) {
		if a, err := h.try("GET", h.up.url+"/studies", nil); err != nil || a.status != 200 {
			failed.Add(1)
		}
	})
	if n := failed.Load(); n != 0 {
		t.Errorf("%d of 20 requests saw the 401", n)
	}
	if n := h.idp.TokenRequests(); n != 2 {
		t.Errorf("got %d token requests, want the first and one for all who were refused", n)
	}
}

// stream hides a body's length, so that it goes chunked.
type stream struct{ io.Reader }

func TestUploadsWithinTheWindowAreSentAgainWhole(t *testing.T) {
	t.Parallel()
	const window = 1 << 20
	for _, size := range []int{0, 1, 1000, 64 << 10, window - 1, window} {
		for _, framing := range []string{"chunked", "length"} {
			h := newHarness(t, setup{up: fussy(t, 2)})
			text := strings.Repeat("0123456789abcdef", size/16+1)[:size]
			var body io.Reader = strings.NewReader(text)
			if framing == "chunked" {
				body = stream{body}
			}
			sum := sha256.Sum256([]byte(text))
			a := h.request("POST", "/studies", body).want(t, 200)
			if want := fmt.Sprintf("%d %x", size, sum); a.body != want {
				t.Errorf("%s, %d bytes: got %s, want %s", framing, size, a.body, want)
			}
			if n := len(h.up.all()); n != 2 {
				t.Errorf("%s, %d bytes: got %d requests at the server, want 2", framing, size, n)
			}
		}
	}
}

func TestUploadsBeyondTheWindowPassThe401AndTheNextIsFresh(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]func() io.Reader{
		"chunked": func() io.Reader { return stream{io.LimitReader(zeros{}, 3<<20)} },
		"length":  func() io.Reader { return strings.NewReader(strings.Repeat("a", 1<<20+1)) },
	} {
		h := newHarness(t, setup{up: fussy(t, 2)})
		a := h.request("POST", "/studies", body()).want(t, 401)
		if !strings.Contains(a.body, "not good") || a.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: got %q %v, want the server's own answer", name, a.body, a.header)
		}
		h.request("POST", "/studies", body()).want(t, 200)
		if n := h.idp.TokenRequests(); n != 2 {
			t.Errorf("%s: got %d token requests, want 2", name, n)
		}
	}
}

// A server that answers 401 before it has read a large body: whatever comes of
// it, the body never arrives in part only and is taken for whole.
func TestEarly401ToALargeUpload(t *testing.T) {
	t.Parallel()
	for name, then := range map[string]string{"kept alive": "", "closed": "Connection: close\r\n"} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int64
			h := newHarness(t, setup{up: script(t, goodTLS(), func(c net.Conn, r *http1) {
				if n.Add(1) == 1 {
					_, _ = io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n"+then+"\r\nno")
					if then == "" {
						_, _ = io.Copy(io.Discard, r.Body)
					}
					return
				}
				got, err := io.Copy(io.Discard, r.Body)
				answer := fmt.Sprint(got, err)
				_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer)
			})})
			a, err := h.try("POST", h.up.url+"/", stream{io.LimitReader(zeros{}, 8<<20)})
			if err != nil {
				return // the client wrote on into the end of the connection, as with any server
			}
			if a.status == 200 && a.body != fmt.Sprint(8<<20, " <nil>") || a.status != 200 && a.status != 401 && a.status != 502 {
				t.Errorf("got %d %q, want the 401, an error or a whole upload", a.status, a.body)
			}
		})
	}
}

func TestSecond401Passes(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: fussy(t, 1000)})
	if a := h.get("/studies").want(t, 401); !strings.Contains(a.body, "not good") || a.header.Get("Www-Authenticate") == "" || a.header.Get("X-Gateway-Error") != "" {
		t.Errorf("got %q %v, want the server's own answer", a.body, a.header)
	}
	if n := len(h.up.all()); n != 2 {
		t.Errorf("got %d requests at the server, want 2", n)
	}
	// For the next 30 s there is no other token: the 401 passes at once.
	for range 10 {
		h.get("/studies").want(t, 401)
	}
	h.get("/studies/1", wado).empty(t, 401)
	if n := h.idp.TokenRequests(); n != 2 {
		t.Errorf("got %d token requests, want 2", n)
	}
	if n := len(h.up.all()); n != 13 {
		t.Errorf("got %d requests at the server, want one for each of the later ones", n)
	}
}

// With no other token to be had the refused one stays in use, since another
// server may accept it; nobody waits for the provider.
func Test401PassesWhenTheProviderIsDown(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: fussy(t, 2), token: "max_attempts = 1"})
	eventually(t, "there is a token", func() bool { return h.gw.Status().Profiles[0].State == "fresh" })
	h.idp.Down(0)
	for range 5 {
		if a := h.get("/studies").want(t, 401); !strings.Contains(a.body, "not good") {
			t.Errorf("got %q, want the server's own answer", a.body)
		}
	}
	if n := h.idp.TokenRequests(); n != 2 {
		t.Errorf("got %d token requests, want the first and one that fails", n)
	}
}

func Test403IsNoReasonForANewToken(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) })})
	for range 5 {
		h.get("/").want(t, 403)
	}
	if n := h.idp.TokenRequests(); n != 1 {
		t.Errorf("got %d token requests, want 1", n)
	}
}

func Test401OfAPassRuleIsNotOurs(t *testing.T) {
	t.Parallel()
	up := newDouble(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) })
	h := newHarness(t, setup{up: up, more: fmt.Sprintf("[[rule]]\nname = \"open\"\nurl = \"%s/open/\"\naction = \"pass\"\nca_file = \"up.pem\"\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n", up.url)})
	h.get("/open/x").want(t, 401)
	if n := len(up.all()); n != 1 {
		t.Errorf("got %d requests at the server, want 1", n)
	}
	eventually(t, "the first token", func() bool { return h.idp.TokenRequests() == 1 })
}

// The whole thing with the real verifier: a provider that revokes.
func TestRevokedTokenIsReplacedUnseen(t *testing.T) {
	t.Parallel()
	idp := demo.ProviderOptions{}
	var verify atomic.Pointer[demo.IdentityProvider]
	up := newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		_, value, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if err := verify.Load().Verify(value); errors.Is(err, demo.ErrInsufficientScope) {
			w.WriteHeader(403)
		} else if err != nil {
			w.WriteHeader(401)
		}
	})
	h := newHarness(t, setup{up: up, provider: idp, before: func(p *demo.IdentityProvider) { verify.Store(p) }})
	h.get("/").want(t, 200)
	h.idp.RevokeAll()
	h.get("/").want(t, 200)
	h.get("/").want(t, 200)
	if n := h.idp.TokenRequests(); n != 2 {
		t.Errorf("got %d token requests, want 2", n)
	}
	if st := h.gw.Status().Profiles[0]; st.State != "fresh" || time.Until(st.ExpiresAt) < time.Minute {
		t.Errorf("got %+v, want a fresh token", st.Status)
	}
}
