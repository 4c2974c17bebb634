package rules

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Explanation tells what would be done with one request, and why.
type Explanation struct {
	Method  string `json:"method"`
	URL     string `json:"url"`
	Rule    string `json:"rule,omitempty"` // "": no rule covers it
	Profile string `json:"profile,omitempty"`
	Would   string `json:"would"` // inject, pass, tunnel or refuse
	Why     string `json:"why"`
	Code    string `json:"code,omitempty"` // the problem code of a refusal
}

// Explain decides about a request as the gateway would. An error means that the
// method or URL is not one.
func (c *Config) Explain(method, rawURL string) (Explanation, error) {
	e := Explanation{Method: strings.ToUpper(method), URL: rawURL}
	u, err := url.Parse(rawURL)
	if err != nil {
		return e, errors.New("the URL is malformed") // nor is the error shown: it quotes the URL
	}
	if u.Scheme != "https" && u.Scheme != "http" {
		return e, errors.New("the URL does not begin with https:// or http://")
	}
	a, err := ParseAuthority(u.Host, defaultPort(u.Scheme))
	if err != nil || u.User != nil {
		return e, errors.New("the URL's host is not one") // and not shown: it may have a password
	}
	refuse := func(code, why string) (Explanation, error) {
		e.Would, e.Code, e.Why = "refuse", code, why
		return e, nil
	}
	site := c.Table.Site(u.Scheme, a)
	if site == nil {
		if c.Proxy.Unmatched == "pass" && (u.Scheme == "http" || c.Table.Site("http", a) == nil) {
			e.Would, e.Why = "tunnel", fmt.Sprintf("no rule names %s, and unmatched = \"pass\"", a)
			if u.Scheme == "http" {
				e.Would = "pass"
			}
			return e, nil
		}
		return refuse("no_rule", fmt.Sprintf("no rule names %s", a))
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	seen := u.Scheme == "http" || site.Terminated()
	rule := site.Whole()
	if seen {
		if rule, err = site.Match(path); err != nil {
			return refuse("bad_request", err.Error())
		}
	}
	if rule == nil {
		return refuse("no_rule", fmt.Sprintf("%s has rules, but none covers the path %s", a, path))
	}
	e.Rule, e.Profile = rule.Name, rule.Profile
	why := rule.URL + " is the most specific rule"
	switch {
	case rule.Decision() == Deny:
		return refuse("rule_denied", why+", and its action is deny")
	case seen && !rule.Allows(e.Method):
		return refuse("method_not_allowed", fmt.Sprintf("%s, and its methods are %s", why, strings.Join(rule.Methods, ", ")))
	case rule.Decision() == Inject:
		e.Would, e.Why = "inject", fmt.Sprintf("%s; the credential of profile %q replaces any Authorization", why, rule.Profile)
	case seen:
		e.Would, e.Why = "pass", why+"; the request goes on as it is"
	default:
		e.Would, e.Why = "tunnel", why+"; the gateway does not look inside the TLS of this host"
	}
	if rule.Mode == "report" {
		e.Why += fmt.Sprintf("; in mode \"report\" its action %s is not carried out", rule.Action)
	}
	return e, nil
}
