package token

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// discoveryLife is how long a discovery document is believed.
const discoveryLife = time.Hour

// discovery finds a provider's token endpoint by its issuer (OpenID Connect
// Discovery 1.0, RFC 8414). It is safe for concurrent use.
type discovery struct {
	issuer   string
	insecure bool
	mtls     bool // prefer the endpoint for clients with certificates
	client   *http.Client

	mu    sync.Mutex
	found *metadata
	until time.Time
}

// metadata is the part of a discovery document that is used.
type metadata struct {
	Issuer        string   `json:"issuer"`
	TokenEndpoint string   `json:"token_endpoint"`
	AuthMethods   []string `json:"token_endpoint_auth_methods_supported"`
	// MTLS are the endpoints for clients with certificates (RFC 8705 section 5).
	MTLS struct {
		TokenEndpoint string `json:"token_endpoint"`
	} `json:"mtls_endpoint_aliases"`
}

// metadata returns the provider's metadata, from memory if it was read lately.
func (d *discovery) metadata(ctx context.Context) (*metadata, error) {
	d.mu.Lock()
	found, until := d.found, d.until
	d.mu.Unlock()
	if found != nil && time.Now().Before(until) {
		return found, nil
	}
	issuer, err := url.Parse(strings.TrimSuffix(d.issuer, "/"))
	if err != nil {
		return nil, &Error{Class: Permanent, Code: "discovery_failed", Key: "issuer", Hint: "check issuer: it is not a URL"}
	}
	found, failed := d.fetch(ctx, issuer.JoinPath(".well-known/openid-configuration"))
	if failed != nil && failed.Status == http.StatusNotFound {
		path := issuer.Path // RFC 8414 section 3.1: the well-known part comes before the issuer's path
		issuer.Path = "/.well-known/oauth-authorization-server"
		found, failed = d.fetch(ctx, issuer.JoinPath(path))
	}
	if failed != nil {
		return nil, failed
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.found, d.until = found, time.Now().Add(discoveryLife)
	return found, nil
}

func (d *discovery) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.found = nil
}

func (d *discovery) fetch(ctx context.Context, at *url.URL) (*metadata, *Error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, &Error{Class: Permanent, Code: "discovery_failed", Key: "issuer", Hint: "check issuer: it is not a URL"}
	}
	resp, err := d.client.Do(req)
	if err != nil {
		e := networkError(err)
		switch {
		case e.Status >= 400 && e.Status < 500 && e.Class != Throttled:
			e.Code, e.Key, e.Hint = "discovery_failed", "issuer", "check issuer: there is no discovery document below it"
		case e.Key == "token_endpoint":
			e.Key, e.Hint = "issuer", strings.ReplaceAll(e.Hint, "token_endpoint", "issuer")
		}
		return nil, e
	}
	defer resp.Body.Close()
	var m metadata
	bad := func(hint string) (*metadata, *Error) {
		return nil, &Error{Class: Permanent, Code: "discovery_failed", Status: resp.StatusCode, Key: "issuer", Hint: hint}
	}
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
		return bad("check issuer: its discovery document has the wrong form")
	}
	if m.Issuer != d.issuer {
		return bad("the discovery document names another issuer; check issuer to the letter, a trailing slash counts")
	}
	if d.mtls && m.MTLS.TokenEndpoint != "" {
		m.TokenEndpoint = m.MTLS.TokenEndpoint
	}
	if err := endpointError(m.TokenEndpoint, d.insecure); err != nil {
		return bad("the discovery document's token_endpoint cannot be used: it " + err.Error())
	}
	return &m, nil
}
