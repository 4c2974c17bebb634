package orthancjson

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// canonicalURL returns one spelling for all that are the same rule, or why a
// rule cannot have this URL. It is a little stricter than package rules: it
// knows no wildcard and no IDNA. What has a variable is taken as it stands.
func canonicalURL(raw string) (string, error) {
	if hasVariable(raw) {
		switch {
		case strings.HasPrefix(strings.ToLower(raw), "http:"):
			return "", errNotHTTPS
		case withoutUser(raw) != raw:
			return "", errUser
		}
		return strings.TrimSuffix(raw, "/"), nil
	}
	scheme, rest, found := strings.Cut(raw, "://")
	if scheme = strings.ToLower(scheme); scheme == "http" {
		return "", errNotHTTPS
	} else if !found || scheme != "https" {
		return "", errors.New("is not a URL; write https://HOST/PREFIX/")
	}
	authority, path, _ := strings.Cut(rest, "/")
	switch {
	case strings.ContainsAny(rest, "?#"):
		return "", errors.New("has a query or a fragment; a rule's URL ends with the path that all requests have in common")
	case strings.Contains(authority, "@"):
		return "", errUser
	}
	authority, err := canonicalAuthority(authority)
	if err != nil {
		return "", err
	}
	path = "/" + path
	if !strings.HasSuffix(path, "/") {
		path += "/"
	}
	if strings.ContainsAny(path, `%\;`) || strings.Contains(path, "//") || strings.Contains(path, "/.") ||
		strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", errors.New("has a path that is not plain; a rule's path has no dot segment, empty segment, space, backslash, semicolon or % escape")
	}
	return "https://" + authority + path, nil
}

var (
	errNotHTTPS = errors.New("is not https; a credential is never sent over http. Use https, and ca_file for a CA of your own")
	errUser     = errors.New("has a user or password; a credential belongs into the profile")
)

func canonicalAuthority(s string) (string, error) {
	host, port := s, ""
	if end := strings.LastIndexByte(s, ']'); strings.HasPrefix(s, "[") && end > 0 {
		host, port = s[1:end], s[end+1:]
		if ip, err := netip.ParseAddr(host); err != nil || !ip.Is6() || ip.Zone() != "" || port != "" && port[0] != ':' {
			return "", fmt.Errorf("has a host %q that is no IPv6 address", s)
		}
	} else if colon := strings.IndexByte(s, ':'); colon >= 0 {
		host, port = s[:colon], s[colon:]
	}
	number := uint64(443)
	if port != "" {
		var err error
		if number, err = strconv.ParseUint(port[1:], 10, 16); err != nil || number == 0 {
			return "", fmt.Errorf("has no valid port (%q)", port)
		}
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(ip.Unmap(), uint16(number)).String(), nil
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	labels := strings.Split(host, ".")
	for i, label := range labels {
		last := i == len(labels)-1
		if label == "" || len(label) > 63 || len(host) > 253 ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" || last && endsInNumber(label) {
			return "", fmt.Errorf("has a host %q that is no name in the DNS; write it in ASCII (xn-- for other letters)", host)
		}
	}
	return host + ":" + strconv.FormatUint(number, 10), nil
}

func endsInNumber(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

// endpoint is a token endpoint, as far as it can be known.
type endpoint struct {
	host, path string // empty host: a variable has it
	loopback   bool   // http:// to loopback, which needs insecure_http
}

func (e endpoint) is(hosts ...string) bool {
	for _, h := range hosts {
		if e.host == h || strings.HasPrefix(h, ".") && strings.HasSuffix(e.host, h) {
			return true
		}
	}
	return false
}

// parseEndpoint refuses a URL that secrets must not be sent to.
func parseEndpoint(raw string) (endpoint, error) {
	if strings.HasPrefix(raw, "$") && hasVariable(raw) {
		return endpoint{}, nil
	}
	scheme, rest, _ := strings.Cut(raw, "://")
	authority, _, _ := strings.Cut(rest, "/")
	if strings.EqualFold(scheme, "https") && hasVariable(authority) {
		return endpoint{}, nil
	}
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
		return endpoint{}, errors.New("is not the URL of a token endpoint; write https://HOST/PATH")
	}
	e := endpoint{host: strings.ToLower(u.Hostname()), path: u.Path}
	switch ip, err := netip.ParseAddr(u.Hostname()); {
	case u.Scheme == "https":
		return e, nil
	case u.Scheme == "http" && (u.Hostname() == "localhost" || err == nil && ip.IsLoopback()):
		e.loopback = true
		return e, nil
	}
	return endpoint{}, errors.New("is not https; it would send the secret in clear. Use the provider's https URL, and ca_file for a CA of your own")
}
