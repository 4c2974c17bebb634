package rules

import (
	"strconv"
	"strings"
)

// keyLines returns the line of every key and table of a TOML document, by key
// path: "proxy.listen", "rule[1].url", "profile.azure.scopes". The TOML library
// tells the path of a key but not its place. The document has been parsed
// before, so that no care is taken to report errors here; on malformed text the
// result is incomplete.
func keyLines(text string) map[string]int {
	s := &lineScanner{text: text, line: 1, lines: map[string]int{}, count: map[string]int{}}
	for s.pos < len(s.text) {
		start := s.pos
		s.statement()
		if s.pos == start {
			s.next()
		}
	}
	return s.lines
}

type lineScanner struct {
	text  string
	pos   int
	line  int
	table string
	lines map[string]int
	count map[string]int // array of tables -> how many so far
}

func (s *lineScanner) peek() byte {
	if s.pos < len(s.text) {
		return s.text[s.pos]
	}
	return 0
}

func (s *lineScanner) next() byte {
	c := s.peek()
	if c == '\n' {
		s.line++
	}
	s.pos++
	return c
}

// blank skips white space, newlines and comments.
func (s *lineScanner) blank() {
	for s.pos < len(s.text) {
		switch s.peek() {
		case ' ', '\t', '\r', '\n':
			s.next()
		case '#':
			for s.pos < len(s.text) && s.peek() != '\n' {
				s.next()
			}
		default:
			return
		}
	}
}

func (s *lineScanner) statement() {
	s.blank()
	if s.peek() != '[' {
		s.keyValue(s.table)
		return
	}
	s.next()
	array := s.peek() == '['
	if array {
		s.next()
	}
	s.table = s.path("", s.key())
	if array {
		s.note(s.table)
		n := s.count[s.table]
		s.count[s.table]++
		s.table += "[" + strconv.Itoa(n) + "]"
	}
	s.note(s.table)
	for s.peek() == ']' {
		s.next()
	}
}

func (s *lineScanner) note(path string) {
	if _, seen := s.lines[path]; !seen {
		s.lines[path] = s.line
	}
}

// path joins a dotted key to a prefix; inside an array of tables it goes
// through the array's newest element.
func (s *lineScanner) path(prefix string, parts []string) string {
	for _, part := range parts {
		if prefix != "" {
			prefix += "."
		}
		prefix += part
		if n := s.count[prefix]; n > 0 && len(parts) > 1 {
			prefix += "[" + strconv.Itoa(n-1) + "]"
		}
	}
	return prefix
}

// key reads a possibly dotted and quoted key up to = or ].
func (s *lineScanner) key() []string {
	var parts []string
	for s.pos < len(s.text) {
		switch c := s.peek(); c {
		case ' ', '\t', '.':
			s.next()
		case '"', '\'':
			parts = append(parts, s.quoted())
		default:
			start := s.pos
			for s.pos < len(s.text) && !strings.ContainsRune(" \t.=]\"'\r\n#", rune(s.peek())) {
				s.next()
			}
			if s.pos == start {
				return parts
			}
			parts = append(parts, s.text[start:s.pos])
		}
	}
	return parts
}

func (s *lineScanner) keyValue(table string) {
	line := s.line
	parts := s.key()
	if len(parts) == 0 || s.peek() != '=' {
		return
	}
	s.next()
	path := table
	for _, part := range parts {
		path = strings.TrimPrefix(path+"."+part, ".")
		if _, seen := s.lines[path]; !seen {
			s.lines[path] = line
		}
	}
	s.value(path)
}

func (s *lineScanner) value(path string) {
	for s.peek() == ' ' || s.peek() == '\t' {
		s.next()
	}
	switch s.peek() {
	case '"', '\'':
		s.quoted()
	case '[':
		s.next()
		for i := 0; ; i++ {
			s.blank()
			if s.pos >= len(s.text) || s.peek() == ']' {
				break
			}
			element := path + "[" + strconv.Itoa(i) + "]"
			s.note(element)
			start := s.pos
			s.value(element)
			s.blank()
			if s.peek() == ',' || s.pos == start {
				s.next()
			}
		}
		s.next()
	case '{':
		s.next()
		for s.pos < len(s.text) && s.peek() != '}' {
			start := s.pos
			s.blank()
			s.keyValue(path)
			s.blank()
			if s.peek() == ',' || s.pos == start {
				s.next()
			}
		}
		s.next()
	default:
		for s.pos < len(s.text) && !strings.ContainsRune(",]}#\r\n", rune(s.peek())) {
			s.next()
		}
	}
}

// quoted reads a string of any of the four kinds and returns its raw content.
func (s *lineScanner) quoted() string {
	quote := s.text[s.pos : s.pos+1]
	if long := strings.Repeat(quote, 3); strings.HasPrefix(s.text[s.pos:], long) {
		quote = long
	}
	s.pos += len(quote)
	start := s.pos
	for s.pos < len(s.text) && !strings.HasPrefix(s.text[s.pos:], quote) {
		if s.next() == '\\' && quote[0] == '"' && s.pos < len(s.text) {
			s.next()
		}
	}
	content := s.text[start:min(s.pos, len(s.text))]
	s.pos = min(s.pos+len(quote), len(s.text))
	for len(quote) == 3 && s.pos < len(s.text) && s.text[s.pos] == quote[0] {
		s.pos++ // up to two quotes may stand right before the closing three
	}
	return content
}
