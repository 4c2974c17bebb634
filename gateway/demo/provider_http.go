package demo

import (
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The two ways of RFC 6749 section 2.3.1 to send a client secret, as the discovery document calls them.
const (
	authBasic = "client_secret_basic"
	authPost  = "client_secret_post"
)

// maxTokenRequest bounds the body of a token request.
const maxTokenRequest = 64 << 10

func (p *IdentityProvider) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", p.serveDiscovery)
	mux.HandleFunc("GET /jwks", p.serveKeys)
	mux.HandleFunc("POST /token", p.serveToken)
	return mux
}

// misbehave gives the answer of the current fault, if there is one for this endpoint.
func (p *IdentityProvider) misbehave(w http.ResponseWriter, r *http.Request, tokenEndpoint bool) bool {
	for {
		f := p.currentFault()
		if f == nil || !f.everywhere && !tokenEndpoint {
			return false
		}
		if f.release == nil {
			for name, values := range f.header {
				w.Header()[http.CanonicalHeaderKey(name)] = values
			}
			w.WriteHeader(f.status)
			_, _ = io.WriteString(w, f.body)
			return true
		}
		select {
		case <-f.release:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler) // or the caller would get an empty 200
		}
	}
}

func (p *IdentityProvider) serveDiscovery(w http.ResponseWriter, r *http.Request) {
	if p.misbehave(w, r, false) {
		return
	}
	writeJSON(w, "application/json", http.StatusOK, map[string]any{
		"issuer":                                p.Issuer(),
		"token_endpoint":                        p.TokenEndpoint(),
		"jwks_uri":                              p.Issuer() + "/jwks",
		"grant_types_supported":                 []string{"client_credentials"},
		"response_types_supported":              []string{},
		"scopes_supported":                      p.options.Scopes,
		"token_endpoint_auth_methods_supported": p.options.AuthMethods,
	})
}

func (p *IdentityProvider) serveKeys(w http.ResponseWriter, r *http.Request) {
	if p.misbehave(w, r, false) {
		return
	}
	point, err := p.key.PublicKey.Bytes() // 0x04, then X and Y of 32 bytes each
	if err != nil {
		http.Error(w, "no key", http.StatusInternalServerError)
		return
	}
	b64 := base64.RawURLEncoding.EncodeToString
	writeJSON(w, "application/json", http.StatusOK, map[string]any{"keys": []map[string]string{{
		"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": p.keyID,
		"x": b64(point[1:33]), "y": b64(point[33:]),
	}}})
}

// serveToken is the token endpoint, RFC 6749 section 4.4.
func (p *IdentityProvider) serveToken(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	form, wellFormed := readForm(r)
	id, secret, method := clientCredential(r, form)
	p.requests.add(TokenRequest{
		Time: time.Now(), Grant: form.Get("grant_type"), AuthMethod: method, ClientID: id, Scope: form.Get("scope"),
	})
	if p.misbehave(w, r, true) {
		return
	}
	switch grant := form.Get("grant_type"); {
	case !wellFormed:
		refuseToken(w, http.StatusBadRequest, "invalid_request", "the body is not a proper form, or a parameter is repeated")
	case method == authBasic && form.Has("client_secret"):
		refuseToken(w, http.StatusBadRequest, "invalid_request", "more than one way of client authentication")
	case !p.authenticates(id, secret, method):
		if method == authBasic {
			w.Header().Set("WWW-Authenticate", `Basic realm="demo"`)
		}
		refuseToken(w, http.StatusUnauthorized, "invalid_client", "unknown client, wrong secret or wrong way to send it")
	case grant == "":
		refuseToken(w, http.StatusBadRequest, "invalid_request", "grant_type is missing")
	case grant != "client_credentials":
		refuseToken(w, http.StatusBadRequest, "unsupported_grant_type", "only client_credentials")
	default:
		p.grant(w, strings.Fields(form.Get("scope")))
	}
}

// grant issues a token for the scopes that were asked for, or for all when none were.
func (p *IdentityProvider) grant(w http.ResponseWriter, scopes []string) {
	for _, scope := range scopes {
		if !slices.Contains(p.options.Scopes, scope) {
			refuseToken(w, http.StatusBadRequest, "invalid_scope", "the client may not ask for this scope")
			return
		}
	}
	if len(scopes) == 0 {
		scopes = p.options.Scopes
	}
	token, err := p.issue(scopes)
	if err != nil {
		refuseToken(w, http.StatusInternalServerError, "server_error", "the token could not be signed")
		return
	}
	writeJSON(w, "application/json", http.StatusOK, map[string]any{
		"access_token": token,
		"token_type":   "Bearer",
		"expires_in":   int(p.lifetime().Seconds()),
		"scope":        strings.Join(scopes, " "),
	})
}

func (p *IdentityProvider) authenticates(id, secret, method string) bool {
	return slices.Contains(p.options.AuthMethods, method) &&
		id == p.options.ClientID &&
		subtle.ConstantTimeCompare([]byte(secret), []byte(p.ClientSecret())) == 1
}

// readForm reads the body as a form in which no parameter stands twice (RFC 6749 section 3.2).
func readForm(r *http.Request) (form url.Values, ok bool) {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/x-www-form-urlencoded" {
		return nil, false
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxTokenRequest+1))
	if err != nil || len(body) > maxTokenRequest {
		return nil, false
	}
	if form, err = url.ParseQuery(string(body)); err != nil {
		return nil, false
	}
	for _, values := range form {
		if len(values) > 1 {
			return form, false
		}
	}
	return form, true
}

// clientCredential finds id and secret. In the Authorization header both are form-encoded (RFC 6749 section 2.3.1),
// which many a client forgets: a secret with a % or a + shows it.
func clientCredential(r *http.Request, form url.Values) (id, secret, method string) {
	user, password, basic := r.BasicAuth()
	if !basic {
		if form.Has("client_secret") {
			method = authPost
		}
		return form.Get("client_id"), form.Get("client_secret"), method
	}
	id, idErr := url.QueryUnescape(user)
	secret, secretErr := url.QueryUnescape(password)
	if idErr != nil || secretErr != nil {
		return user, "", authBasic
	}
	return id, secret, authBasic
}

// refuseToken writes an error answer of RFC 6749 section 5.2.
func refuseToken(w http.ResponseWriter, status int, code, description string) {
	writeJSON(w, "application/json", status, map[string]string{"error": code, "error_description": description})
}

// writeJSON writes body, which must be of a kind that encoding/json knows, as the whole answer.
func writeJSON(w http.ResponseWriter, contentType string, status int, body any) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // fails only when the client is gone
}
