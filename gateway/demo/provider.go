package demo

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// ProviderOptions configures an [IdentityProvider]. The zero value is a provider with one client and the scope
// "dicomweb".
type ProviderOptions struct {
	ClientID      string        // default "orthanc"
	ClientSecret  string        // default random
	Scopes        []string      // what the client may ask for; default "dicomweb"
	RequiredScope string        // what a token needs to pass Verify; default the first of Scopes
	Audience      string        // the aud claim; default "https://dicomweb.demo"
	TokenLifetime time.Duration // rounded up to seconds; default 5 minutes
	AuthMethods   []string      // default client_secret_basic and client_secret_post
	Port          int           // default a free one
}

// IdentityProvider is an OAuth 2.0 authorization server with the client credentials grant (RFC 6749), OpenID Connect
// discovery and a JWKS. Its access tokens are JWTs signed with ES256. It can be told to misbehave.
type IdentityProvider struct {
	options  ProviderOptions
	key      *ecdsa.PrivateKey
	keyID    string
	loopback *loopback
	requests journal[TokenRequest]

	mu     sync.Mutex
	secret string
	epoch  int // part of each token's jti; RevokeAll counts it up
	fault  *fault
}

// TokenRequest is what the token endpoint saw of one request, secrets left out.
type TokenRequest struct {
	Time       time.Time
	Grant      string
	AuthMethod string // client_secret_basic, client_secret_post, or empty when there was no credential
	ClientID   string
	Scope      string
}

// fault is one way to misbehave.
type fault struct {
	release    chan struct{} // not nil: do not answer until it is closed
	status     int
	header     http.Header
	body       string
	everywhere bool // also the discovery document and the JWKS, not just the token endpoint
}

// NewIdentityProvider starts an identity provider on loopback. Like httptest.NewServer it panics when that cannot be
// had. Close it.
func NewIdentityProvider(o ProviderOptions) *IdentityProvider {
	p, err := startIdentityProvider(o)
	if err != nil {
		panic(fmt.Sprintf("demo: start identity provider: %v", err))
	}
	return p
}

func startIdentityProvider(o ProviderOptions) (*IdentityProvider, error) {
	if o.ClientID == "" {
		o.ClientID = "orthanc"
	}
	if o.ClientSecret == "" {
		o.ClientSecret = rand.Text()
	}
	if len(o.Scopes) == 0 {
		o.Scopes = []string{"dicomweb"}
	}
	if o.RequiredScope == "" {
		o.RequiredScope = o.Scopes[0]
	}
	if o.Audience == "" {
		o.Audience = "https://dicomweb.demo"
	}
	if o.TokenLifetime <= 0 {
		o.TokenLifetime = 5 * time.Minute
	}
	if len(o.AuthMethods) == 0 {
		o.AuthMethods = []string{authBasic, authPost}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate signing key: %w", err)
	}
	l, err := newLoopback(o.Port)
	if err != nil {
		return nil, err
	}
	p := &IdentityProvider{options: o, key: key, keyID: rand.Text()[:8], loopback: l, secret: o.ClientSecret}
	l.serve(p.routes())
	return p, nil
}

// Issuer is the issuer URL, from which the discovery document is found.
func (p *IdentityProvider) Issuer() string { return p.loopback.origin() }

// TokenEndpoint is the URL of the token endpoint.
func (p *IdentityProvider) TokenEndpoint() string { return p.Issuer() + "/token" }

// CAPEM is the certificate of the CA to trust for it.
func (p *IdentityProvider) CAPEM() []byte { return slices.Clone(p.loopback.caPEM) }

// ClientID is the name of its only client.
func (p *IdentityProvider) ClientID() string { return p.options.ClientID }

// ClientSecret is the secret that is valid now.
func (p *IdentityProvider) ClientSecret() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.secret
}

// SetClientSecret changes the secret of the client. Issued tokens stay valid.
func (p *IdentityProvider) SetClientSecret(secret string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.secret = secret
}

// RevokeAll makes Verify refuse every token issued so far.
func (p *IdentityProvider) RevokeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.epoch++
}

// Down makes every endpoint answer 503 until Recover, with a Retry-After where retryAfter is at least a second. Verify
// goes on.
func (p *IdentityProvider) Down(retryAfter time.Duration) {
	header := http.Header{}
	if s := int(retryAfter.Seconds()); s > 0 {
		header.Set("Retry-After", strconv.Itoa(s))
	}
	p.setFault(&fault{status: http.StatusServiceUnavailable, header: header, everywhere: true})
}

// Hang makes every endpoint keep its callers waiting until Recover (then they are answered), or until they give up.
func (p *IdentityProvider) Hang() {
	p.setFault(&fault{release: make(chan struct{}), everywhere: true})
}

// Answer makes the token endpoint give this answer to every request until Recover, whatever was asked.
func (p *IdentityProvider) Answer(status int, header http.Header, body string) {
	p.setFault(&fault{status: status, header: header.Clone(), body: body})
}

// Recover ends Down, Hang and Answer.
func (p *IdentityProvider) Recover() { p.setFault(nil) }

// setFault replaces the fault; who hangs looks at the new one.
func (p *IdentityProvider) setFault(f *fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault != nil && p.fault.release != nil {
		close(p.fault.release)
	}
	p.fault = f
}

func (p *IdentityProvider) currentFault() *fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault
}

// TokenRequests counts the requests that reached the token endpoint, answered or not.
func (p *IdentityProvider) TokenRequests() int { return p.requests.count() }

// WaitTokenRequests blocks until n requests have reached the token endpoint, or ctx ends.
func (p *IdentityProvider) WaitTokenRequests(ctx context.Context, n int) error {
	return p.requests.wait(ctx, n)
}

// Log is what the token endpoint saw, oldest first; of very many requests, the latest.
func (p *IdentityProvider) Log() []TokenRequest { return p.requests.all() }

// Close stops the provider and waits for it. A second call does no harm.
func (p *IdentityProvider) Close() { p.loopback.close() }
