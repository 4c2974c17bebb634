package rules

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// Authority is a host and port in canonical form: lower case, no trailing dot,
// IDNA ASCII, explicit port; an IP address in its one canonical spelling. Two
// authorities are the same place exactly when they are equal (==). It is made
// once per CONNECT, and the rule, the leaf, the TLS verification, the Host
// header, the dialler and the log all read this one value. The zero value is
// no authority.
type Authority struct {
	text string // host:port, an IPv6 address in brackets
	port uint16
}

func newAuthority(host string, port uint16) Authority {
	return Authority{net.JoinHostPort(host, strconv.Itoa(int(port))), port}
}

// ParseAuthority reads "host" or "host:port" ("[v6]:port" for IPv6). Without a
// port it takes defaultPort; with defaultPort 0 the port must be there.
func ParseAuthority(s string, defaultPort uint16) (Authority, error) {
	host, port := s, ""
	switch {
	case strings.HasPrefix(s, "["):
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return Authority{}, errors.New("missing ] after IPv6 address")
		}
		host = s[1:end]
		if ip, err := netip.ParseAddr(host); err != nil || !ip.Is6() {
			return Authority{}, fmt.Errorf("%q is not an IPv6 address", host)
		}
		rest := s[end+1:]
		if rest != "" && rest[0] != ':' {
			return Authority{}, errors.New("unexpected text after ]")
		}
		port = strings.TrimPrefix(rest, ":")
		if rest == ":" {
			return Authority{}, errors.New("empty port")
		}
	case strings.Count(s, ":") == 1:
		host, port, _ = strings.Cut(s, ":")
		if port == "" {
			return Authority{}, errors.New("empty port")
		}
	case strings.Contains(s, ":"):
		return Authority{}, errors.New("an IPv6 address needs brackets")
	}
	number := defaultPort
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port[0] == '+' {
			return Authority{}, fmt.Errorf("bad port %q", port)
		}
		number = uint16(n)
	}
	if number == 0 {
		return Authority{}, errors.New("missing port")
	}
	host, err := canonicalHost(host)
	if err != nil {
		return Authority{}, err
	}
	return newAuthority(host, number), nil
}

// Host returns the host without port; an IPv6 address without brackets.
func (a Authority) Host() string { return strings.Trim(a.bracketed(), "[]") }

// bracketed is the host, an IPv6 address in brackets.
func (a Authority) bracketed() string { return a.text[:max(0, strings.LastIndexByte(a.text, ':'))] }

// Port returns the port, never 0.
func (a Authority) Port() uint16 { return a.port }

// IP returns the address if the host is an IP literal.
func (a Authority) IP() (netip.Addr, bool) {
	ip, err := netip.ParseAddr(a.Host())
	return ip, err == nil
}

// String returns host:port, an IPv6 address in brackets.
func (a Authority) String() string { return a.text }

// HostHeader returns the value of a Host header for this authority: without
// the port where it is defaultPort (RFC 9110 section 4.2.2).
func (a Authority) HostHeader(defaultPort uint16) string {
	if a.port != defaultPort {
		return a.text
	}
	return a.bracketed()
}

// parent returns the authority without its first label, for wildcard rules;
// false for an IP address or a single label.
func (a Authority) parent() (Authority, bool) {
	_, parent, ok := strings.Cut(a.Host(), ".")
	if _, isIP := a.IP(); !ok || isIP {
		return Authority{}, false
	}
	return newAuthority(parent, a.port), true
}

// canonicalHost returns the one spelling under which a host is compared. It
// refuses what a resolver may read as an IP address though it does not look
// like one (decimal, octal, hexadecimal, short forms), as browsers do
// (WHATWG URL, "ends in a number").
func canonicalHost(host string) (string, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.Zone() != "" {
			return "", errors.New("an address with a zone is not supported")
		}
		return ip.Unmap().String(), nil
	}
	host = strings.TrimSuffix(host, ".")
	for i := range len(host) {
		if host[i] >= 0x80 {
			ascii, err := idna.Lookup.ToASCII(host)
			if err != nil {
				return "", fmt.Errorf("host %q: %w", host, err)
			}
			host = ascii
			break
		}
	}
	host = strings.ToLower(host)
	if host == "" {
		return "", errors.New("empty host")
	}
	if len(host) > 253 {
		return "", errors.New("host is longer than 253 characters")
	}
	last := ""
	for label := range strings.SplitSeq(host, ".") {
		if err := checkLabel(label); err != nil {
			return "", fmt.Errorf("host %q: %w", host, err)
		}
		last = label
	}
	if endsInNumber(last) {
		return "", fmt.Errorf("host %q looks like an IP address but is not in its canonical form", host)
	}
	return host, nil
}

func checkLabel(label string) error {
	if label == "" {
		return errors.New("empty label")
	}
	if len(label) > 63 {
		return errors.New("label is longer than 63 characters")
	}
	for i := range len(label) {
		switch c := label[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return fmt.Errorf("character %q is not allowed", c)
		}
	}
	return nil
}

func endsInNumber(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}
