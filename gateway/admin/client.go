package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// maxAnswer bounds what is read of an answer of the admin API.
const maxAnswer = 4 << 20

// client asks admin listeners. They are near, so no proxy stands between.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// URL returns the base URL of the admin listener for programs on the same
// machine: a wildcard address is asked on loopback. The listener must be on.
func URL(a rules.Admin) string {
	host, port, _ := net.SplitHostPort(a.Listen) // checked at load
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// Ready asks /readyz of the admin listener at a base URL, and returns the state
// of the profiles. An error means that the gateway is not ready, or not there.
func Ready(ctx context.Context, base string) (string, error) {
	status, body, err := ask(ctx, http.MethodGet, base+"/readyz", "", token.Secret{})
	if err != nil {
		return "", err
	}
	var r readiness
	if json.Unmarshal(body, &r) != nil || status != http.StatusOK && status != http.StatusServiceUnavailable {
		return "", fmt.Errorf("what listens at %s is not the gateway: HTTP %d", base, status)
	}
	var states []string
	for _, name := range slices.Sorted(maps.Keys(r.Profiles)) {
		states = append(states, name+" "+string(r.Profiles[name]))
	}
	detail := strings.Join(states, ", ")
	switch {
	case r.Draining:
		return "", errors.New("not ready: the gateway is stopping")
	case status != http.StatusOK:
		return "", errors.New("not ready: no profile is usable: " + detail)
	}
	return strings.TrimSuffix("ready: "+detail, ": "), nil
}

// Client asks the guarded part of the admin API of a running gateway. It is safe
// for concurrent use.
type Client struct {
	base, username string
	password       token.SecretSource
}

// NewClient returns a client for the admin listener of a config, which must be on.
func NewClient(a rules.Admin) *Client {
	return &Client{base: URL(a), username: a.Username, password: a.Password}
}

// Observation is what the gateway has seen of its clients so far.
type Observation struct {
	// UntrustedCA counts clients that refused the gateway's certificate.
	UntrustedCA int64
	// Refused counts the gateway's own answers by code.
	Refused map[string]uint64
	// Rules are the requests by the name of their rule.
	Rules map[string]Requests
}

// Requests are those of one rule.
type Requests struct {
	Count      uint64
	LastStatus int // 0: none yet
}

// Observe returns what the gateway has seen so far.
func (c *Client) Observe(ctx context.Context) (Observation, error) {
	var st status
	if err := c.get(ctx, "/dicomweb-oauth/status", &st); err != nil {
		return Observation{}, err
	}
	var list []server
	if err := c.get(ctx, "/dicomweb-oauth/servers", &list); err != nil {
		return Observation{}, err
	}
	o := Observation{UntrustedCA: st.UntrustedCA, Refused: st.Refused, Rules: map[string]Requests{}}
	for _, s := range list {
		r := Requests{Count: s.Requests}
		if s.LastStatus != nil {
			r.LastStatus = *s.LastStatus
		}
		o.Rules[s.Name] = r
	}
	return o, nil
}

// Test lets the gateway test a rule, with its own token.
func (c *Client) Test(ctx context.Context, rule string) (gateway.Report, error) {
	var report gateway.Report
	status, body, err := c.ask(ctx, http.MethodPost, "/dicomweb-oauth/servers/"+url.PathEscape(rule)+"/test")
	if err != nil {
		return report, err
	}
	if err := json.Unmarshal(body, &report); err != nil || report.Steps == nil {
		return report, fmt.Errorf("the gateway did not test rule %q: HTTP %d", rule, status)
	}
	return report, nil
}

func (c *Client) get(ctx context.Context, path string, result any) error {
	status, body, err := c.ask(ctx, http.MethodGet, path)
	if err != nil {
		return err
	}
	if status != http.StatusOK || json.Unmarshal(body, result) != nil {
		return fmt.Errorf("what listens at %s is not the gateway: HTTP %d", c.base, status)
	}
	return nil
}

func (c *Client) ask(ctx context.Context, method, path string) (int, []byte, error) {
	password, err := c.password.Read()
	if err != nil {
		return 0, nil, fmt.Errorf("admin.password: %w", err)
	}
	status, body, err := ask(ctx, method, c.base+path, c.username, password)
	if status == http.StatusUnauthorized {
		return 0, nil, fmt.Errorf("the gateway at %s has another admin password than this config", c.base)
	}
	return status, body, err
}

func ask(ctx context.Context, method, at, username string, password token.Secret) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, at, nil)
	if err != nil {
		return 0, nil, errors.New("the URL of the admin listener is not one")
	}
	if username != "" {
		req.SetBasicAuth(username, password.Reveal())
	}
	resp, err := client.Do(req)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err // without the URL, which the caller says
		}
		return 0, nil, fmt.Errorf("the gateway does not answer at %s: %w", req.URL.Scheme+"://"+req.URL.Host, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, body, err
}
