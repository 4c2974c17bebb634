package rules

import (
	"errors"
	"fmt"
	"strings"
)

// target is a rule's URL, parsed.
type target struct {
	siteKey
	prefix string // begins and ends with a slash
}

// defaultPort returns the port of a URL that names none (RFC 9110 section 4.2).
func defaultPort(scheme string) uint16 {
	if scheme == "http" {
		return 80
	}
	return 443
}

// parseTarget reads https://HOST[:PORT][/PREFIX/], HOST exact or *.parent.
func parseTarget(s string) (target, error) {
	var t target
	scheme, rest, found := strings.Cut(s, "://")
	t.scheme = strings.ToLower(scheme)
	if !found || t.scheme != "https" && t.scheme != "http" {
		return t, errors.New("the URL must begin with https://")
	}
	host, path, _ := strings.Cut(rest, "/")
	if strings.ContainsAny(rest, "?#") {
		return t, errors.New("a rule's URL has no query and no fragment")
	}
	if strings.Contains(host, "@") {
		return t, errors.New("a rule's URL has no user or password; credentials belong into a profile")
	}
	if parent, ok := strings.CutPrefix(host, "*."); ok {
		t.wildcard, host = true, parent
	}
	if strings.Contains(host, "*") {
		return t, errors.New("a wildcard stands for the whole first label only: *.example.org")
	}
	var err error
	if t.authority, err = ParseAuthority(host, defaultPort(t.scheme)); err != nil {
		return t, err
	}
	if _, isIP := t.authority.IP(); isIP && t.wildcard {
		return t, errors.New("a wildcard cannot stand before an IP address")
	}
	if t.wildcard && !strings.Contains(t.authority.Host(), ".") {
		return t, fmt.Errorf("*.%s would cover a whole top-level domain", t.authority.Host())
	}
	t.prefix = "/" + path
	if !strings.HasSuffix(t.prefix, "/") {
		t.prefix += "/"
	}
	if strings.ContainsFunc(t.prefix, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
		return t, errors.New("the path has a character that no request's path can have as it stands")
	}
	if decoded, err := decodedPath(t.prefix); err != nil || decoded != t.prefix || strings.Contains(t.prefix, "%") {
		return t, errors.New("the path must be plain: no dot segment, empty segment, backslash, semicolon or % escape")
	}
	return t, nil
}
