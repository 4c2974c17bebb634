package gateway

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// probeTimeout limits a whole test of a rule.
const probeTimeout = 45 * time.Second

// Report is the result of testing one rule, step by step: dns, tcp, tls, token,
// query. It ends at the first step that fails.
type Report struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Steps []Step `json:"steps"`
}

// Step is one step of a [Report].
type Step struct {
	Step         string  `json:"step"`
	OK           bool    `json:"ok"`
	Milliseconds float64 `json:"milliseconds"`
	Detail       string  `json:"detail"`
	Hint         string  `json:"hint"` // "" when it went well
}

// Probe tests whether the rule that covers a URL works, with the credential and
// the connections that a request would use, ending in one QIDO-RS query below
// that URL. Each step is also given to onStep when it is done, if that is not
// nil. An error means that there is nothing to test.
func (g *Gateway) Probe(ctx context.Context, rawURL string, onStep func(Step)) (Report, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "https" {
		return Report{}, fmt.Errorf("%q is not an https:// URL", rawURL)
	}
	a, err := rules.ParseAuthority(u.Host, 443)
	if err != nil {
		return Report{}, fmt.Errorf("test %q: %w", rawURL, err)
	}
	snap := g.hold()
	defer snap.release()
	site := snap.config.Table.Site("https", a)
	if site == nil {
		return Report{}, fmt.Errorf("no rule names the host %s", a)
	}
	if u.Path == "" {
		u.Path = "/" // else JoinPath makes a path without its first slash
	}
	query := u.JoinPath("studies")
	rule, err := site.Match(query.EscapedPath()) // the very request that will be sent
	switch {
	case err != nil:
		return Report{}, err
	case rule == nil:
		return Report{}, fmt.Errorf("no rule covers the path %s", query.Path)
	case rule.Decision() == rules.Deny:
		return Report{}, fmt.Errorf("rule %q denies %s", rule.Name, query.Path)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	p := &probe{g: g, snap: snap, rule: rule, authority: a, url: query, report: Report{Name: rule.Name, OK: true, Steps: []Step{}}, onStep: onStep}
	p.run(ctx)
	return p.report, nil
}

type probe struct {
	g         *Gateway
	snap      *snapshot
	rule      *rules.Rule
	authority rules.Authority
	url       *url.URL // of the query
	report    Report
	onStep    func(Step)

	conn  net.Conn
	token *token.Token
}

func (p *probe) run(ctx context.Context) {
	defer func() {
		if p.conn != nil {
			p.conn.Close()
		}
	}()
	steps := []struct {
		name string
		do   func(context.Context) (detail string, failed *problem)
	}{
		{"dns", p.dns}, {"tcp", p.tcp}, {"tls", p.tls}, {"token", p.acquire}, {"query", p.query},
	}
	for _, s := range steps {
		began := time.Now()
		detail, failed := s.do(ctx)
		step := Step{Step: s.name, OK: failed == nil, Milliseconds: milliseconds(time.Since(began)), Detail: detail}
		if failed != nil && errors.Is(ctx.Err(), context.Canceled) {
			failed = &problem{detail: "the test was ended"}
		}
		if failed != nil {
			step.Detail, step.Hint = failed.detail, failed.hint
			p.report.OK = false
		}
		p.report.Steps = append(p.report.Steps, step)
		if p.onStep != nil {
			p.onStep(step)
		}
		if failed != nil {
			return
		}
	}
}

func (p *probe) dns(ctx context.Context) (string, *problem) {
	if p.snap.corporate != nil {
		return "left to upstream_proxy", nil
	}
	if ip, ok := p.authority.IP(); ok {
		return ip.String() + " is an address", nil
	}
	addrs, err := net.DefaultResolver.LookupHost(ctx, p.authority.Host())
	if err != nil {
		failed := classify(err)
		return "", &failed
	}
	return p.authority.Host() + " is " + strings.Join(addrs, ", "), nil
}

func (p *probe) tcp(ctx context.Context) (string, *problem) {
	conn, err := p.snap.upstream(p.rule).tunnel(ctx, p.authority)
	if err != nil {
		failed := classify(err)
		return "", &failed
	}
	p.conn = conn
	if p.snap.corporate != nil {
		return "connected through upstream_proxy " + p.snap.corporate.Host, nil
	}
	return "connected to " + conn.RemoteAddr().String(), nil
}

func (p *probe) tls(ctx context.Context) (string, *problem) {
	conn, err := p.snap.upstream(p.rule).secure(ctx, p.conn, p.authority)
	if err != nil {
		failed := classify(err)
		return "", &failed
	}
	state := conn.ConnectionState()
	leaf := state.PeerCertificates[0]
	return fmt.Sprintf("%s, certificate by %q until %s", tls.VersionName(state.Version), leaf.Issuer.CommonName, leaf.NotAfter.UTC().Format(time.DateOnly)), nil
}

func (p *probe) acquire(ctx context.Context) (string, *problem) {
	source := p.snap.sources[p.rule.Profile]
	switch {
	case source == nil:
		return "none: the rule's action is " + string(p.rule.Action), nil
	case p.rule.Decision() != rules.Inject:
		return `none: in mode "report" no credential is sent`, nil
	}
	t, err := source.Token(ctx)
	if err != nil {
		failed := unavailable(p.snap.config.Profiles[p.rule.Profile], err)
		return "", &failed
	}
	p.token = t
	return t.Describe(), nil
}

func (p *probe) query(ctx context.Context) (string, *problem) {
	if !p.rule.Allows(http.MethodGet) {
		return "not asked: the rule lets no GET through", nil
	}
	at := *p.url
	at.RawQuery = "limit=1"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return "", &problem{detail: "the URL cannot be asked"}
	}
	req.URL.Host, req.Host = p.authority.String(), p.authority.HostHeader(443)
	req.Header = http.Header{"Accept": {"application/dicom+json"}}
	for name, value := range p.rule.Headers {
		req.Header.Set(name, value.Reveal())
	}
	if p.token != nil {
		if err := p.token.Apply(req); err != nil {
			failed := unavailable(p.snap.config.Profiles[p.rule.Profile], err)
			return "", &failed
		}
	}
	c, err := p.snap.upstream(p.rule).connect(ctx, place{"https", p.authority})
	if err != nil {
		failed := classify(err)
		return "", &failed
	}
	resp, err := c.send(ctx, req, nil, nil)
	if err != nil {
		failed := classify(err)
		return "", &failed
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // its end tells nothing more
	if p.token == nil && (resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden) {
		return "", &problem{detail: fmt.Sprintf("HTTP %d: the server wants a credential, and none was sent", resp.StatusCode), hint: statusRemedy(resp.StatusCode, false)}
	}
	return judge(resp, body)
}

// judge tells what the answer to a QIDO-RS query means for whoever set up the
// rule. Of the answer itself it shows the status and the media type only.
func judge(resp *http.Response, body []byte) (string, *problem) {
	status := fmt.Sprintf("HTTP %d", resp.StatusCode)
	media, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	media = strings.ToLower(strings.TrimSpace(media))
	switch resp.StatusCode {
	case http.StatusOK:
		if media != "application/dicom+json" && media != "application/json" {
			return "", &problem{detail: status + ", but the answer is " + mediaName(media) + ", not DICOM JSON", hint: "compare the rule's url with the documentation of the DICOMweb server: this may be a login page"}
		}
		var studies []json.RawMessage
		if json.Unmarshal(body, &studies) == nil {
			return fmt.Sprintf("%s, %d study in the answer to limit=1", status, len(studies)), nil
		}
		return status, nil
	case http.StatusNoContent:
		return status + ", no study there yet", nil
	}
	detail := status
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		detail += ": the DICOMweb server does not accept the credential"
	case resp.StatusCode == http.StatusForbidden:
		detail += ": the credential is good, but it may not do this"
	case resp.StatusCode == http.StatusNotFound:
		detail += ": there is no DICOMweb service at this URL"
	case resp.StatusCode >= 300 && resp.StatusCode <= 399:
		detail += ": the server redirects"
	}
	return "", &problem{detail: detail, hint: statusRemedy(resp.StatusCode, true)}
}

// mediaName returns a media type if it is a usual one; anything else is foreign
// text that may hold anything.
func mediaName(media string) string {
	switch media {
	case "text/html", "text/plain", "text/xml", "application/xml", "application/problem+json", "application/octet-stream", "multipart/related":
		return media
	case "":
		return "of no stated type"
	}
	return "of another type"
}
