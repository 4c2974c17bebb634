package orthancjson

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// table is one TOML table with its comments.
type table struct {
	header string
	before []string // comment lines before the header
	lines  []line
}

// line is key = value, or a comment line where the key is empty.
type line struct{ key, value string }

// comment adds a comment, wrapped, before what comes next.
func (t *table) comment(text string) { t.lines = append(t.lines, commentLines(text)...) }

func (t *table) set(key, value string) { t.lines = append(t.lines, line{key, value}) }

func (t *table) String() string {
	var b strings.Builder
	width := 0
	for _, l := range t.lines {
		width = max(width, len(l.key))
	}
	for _, text := range t.before {
		for _, l := range commentLines(text) {
			b.WriteString(l.value + "\n")
		}
	}
	if t.header != "" {
		b.WriteString(t.header + "\n")
	}
	for _, l := range t.lines {
		if l.key == "" {
			b.WriteString(l.value + "\n")
		} else {
			fmt.Fprintf(&b, "%-*s = %s\n", width, l.key, l.value)
		}
	}
	return b.String()
}

// commentLines wraps a text into comment lines. A comment of TOML is valid
// UTF-8 without control characters.
func commentLines(text string) []line {
	const width = 118
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "\ufffd"))
	if text == "" {
		return []line{{value: "#"}}
	}
	var lines []line
	for now := "# " + text; ; {
		space := strings.LastIndexByte(now[:min(len(now), width)], ' ')
		if utf8.RuneCountInString(now) <= width || space < len("#    ") {
			return append(lines, line{value: strings.TrimRight(now, " ")})
		}
		lines = append(lines, line{value: strings.TrimRight(now[:space], " ")})
		now = "#   " + now[space+1:]
	}
}

// quote writes a TOML basic string (TOML 1.0, "String"). What is not UTF-8,
// which TOML cannot hold, becomes U+FFFD.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case r < ' ' || r >= 0x7f && r < 0xa0 || r == '\ufeff' || r == '\u2028' || r == '\u2029':
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// quoteList writes an array of strings that are quoted already.
func quoteList(quoted []string) string { return "[" + strings.Join(quoted, ", ") + "]" }

// bareKey writes a name as a part of a TOML key.
func bareKey(name string) string {
	if strings.Contains(name, ".") {
		return quote(name)
	}
	return name
}

// escaped is a string as the gateway expands it.
type escaped struct {
	text      string
	variables []string
	literal   bool // at least a part of it stands in the file itself
}

// escapeDollars keeps ${VAR} and ${VAR:-default}, and writes every other $ as $$,
// which the gateway reads as $.
func escapeDollars(s string) escaped {
	var e escaped
	var b strings.Builder
	for s != "" {
		plain, rest, found := strings.Cut(s, "$")
		b.WriteString(plain)
		e.literal = e.literal || plain != ""
		if !found {
			break
		}
		if body, after, isVariable := variable(rest); isVariable {
			name, fallback, _ := strings.Cut(body, ":-")
			e.variables = append(e.variables, name)
			e.literal = e.literal || fallback != ""
			b.WriteString("${" + body + "}")
			s = after
			continue
		}
		b.WriteString("$$")
		e.literal = true
		s = rest
	}
	e.text = b.String()
	return e
}

// variable splits the {VAR} or {VAR:-default} that s begins with from what
// follows.
func variable(s string) (body, after string, ok bool) {
	s, ok = strings.CutPrefix(s, "{")
	if !ok {
		return "", "", false
	}
	body, after, ok = strings.Cut(s, "}")
	name, _, _ := strings.Cut(body, ":-")
	for i := range len(name) {
		if c := name[i]; c != '_' && !isAlphanumeric(c) || i == 0 && '0' <= c && c <= '9' {
			return "", "", false
		}
	}
	return body, after, ok && name != ""
}

func hasVariable(s string) bool { return len(escapeDollars(s).variables) > 0 }

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
