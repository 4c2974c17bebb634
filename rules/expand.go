package rules

import (
	"fmt"
	"strings"
)

// expanded is a string value after ${VAR} expansion.
type expanded struct {
	text string
	// inClear tells that at least a part of the text stands in the file itself.
	inClear bool
}

// expand replaces ${VAR} and ${VAR:-default} (used when VAR is unset or empty)
// by the environment's value, and $$ by $. What a variable holds is not
// expanded again. Any other $ stands for itself.
func expand(s string, lookup func(string) (string, bool)) (expanded, error) {
	if !strings.Contains(s, "$") {
		return expanded{s, s != ""}, nil
	}
	var e expanded
	var b strings.Builder
	for s != "" {
		literal, rest, found := strings.Cut(s, "$")
		b.WriteString(literal)
		e.inClear = e.inClear || literal != ""
		switch {
		case !found:
			s = ""
		case strings.HasPrefix(rest, "$"):
			b.WriteByte('$')
			e.inClear = true
			s = rest[1:]
		case strings.HasPrefix(rest, "{"):
			body, after, closed := strings.Cut(rest[1:], "}")
			if !closed {
				return e, fmt.Errorf("${ without }; write $$ for a literal $")
			}
			name, fallback, hasFallback := strings.Cut(body, ":-")
			if !validVariable(name) {
				return e, fmt.Errorf("what stands in ${} is not a variable name; write $$ for a literal $") // and not shown: it may be a secret
			}
			value, set := lookup(name)
			switch {
			case value != "":
			case hasFallback:
				value = fallback
				e.inClear = e.inClear || fallback != ""
			case !set:
				return e, fmt.Errorf("variable %s is not set", name)
			}
			b.WriteString(value)
			s = after
		default:
			b.WriteByte('$')
			e.inClear = true
			s = rest
		}
	}
	e.text = b.String()
	return e, nil
}

func validVariable(name string) bool {
	for i := range len(name) {
		c := name[i]
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}
