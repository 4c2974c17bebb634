package rules

import (
	"errors"
	"strings"
)

// Errors of [Site.Match]. Both mean 400: the path is not forwarded.
var (
	// ErrDotSegment is a path that, in some reading, leaves the prefix it seems
	// to be under.
	ErrDotSegment = errors.New("path has a dot segment")
	// ErrAmbiguousPath is a path that one rule matches as it stands and another
	// after decoding, so that the upstream may see a path that the rule did not.
	ErrAmbiguousPath = errors.New("path means different rules raw and decoded")
)

// plainPath reports whether p has one reading only, so that it needs neither
// decoding nor a look at its segments.
func plainPath(p string) bool {
	for i := range len(p) {
		switch p[i] {
		case '%', '\\', ';':
			return false
		case '/':
			if i+1 < len(p) && (p[i+1] == '/' || p[i+1] == '.') {
				return false
			}
		}
	}
	return true
}

// decodedPath returns the path as the most lenient upstream would read it:
// percent-decoded until nothing changes, backslashes as slashes, repeated
// slashes as one, path parameters cut off. It fails where that reading has a
// dot segment.
func decodedPath(p string) (string, error) {
	for round, next := 0, unescape(p); next != p; round, next = round+1, unescape(next) {
		if round == 4 {
			return "", ErrAmbiguousPath // no honest client escapes this deep
		}
		p = next
	}
	p = strings.ReplaceAll(p, `\`, "/")
	for strings.Contains(p, "//") {
		p = strings.ReplaceAll(p, "//", "/")
	}
	segments := strings.Split(p, "/")
	for i, segment := range segments {
		name, _, _ := strings.Cut(segment, ";")
		if name == "." || name == ".." {
			return "", ErrDotSegment
		}
		segments[i] = name
	}
	return strings.Join(segments, "/"), nil
}

// unescape decodes every valid percent escape once and leaves the rest.
func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			hi, okHi := unhex(s[i+1])
			lo, okLo := unhex(s[i+2])
			if okHi && okLo {
				b.WriteByte(hi<<4 | lo)
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
