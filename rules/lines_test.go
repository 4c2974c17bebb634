package rules

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
)

func TestKeyLines(t *testing.T) {
	const text = `top = 1
dotted.key = 2 # not = a key
"quoted.key" = 3

[proxy] # a table
listen = "a # b" # listen
  tls_cert   =   'x = y'
allow_clients = [ "10.0.0.0/8", # first
  # nothing
  "fd00::/8",
]
text = """
[fake]
fake = 1
\"""
still = 2
"""
raw = '''
fake = 3
'\'''
[[rule]]
name = "one"
headers = { X-A = "1", "X B" = "]}" }
[rule.deep]
key = 1
[[rule]]

url = "two" # url = "three"
[profile."my azure"]
type = "x"
[profile.azure.params]
nested = [[1, 2], [3,
4]]
date = 2026-01-01T00:00:00Z
last = true`
	want := map[string]int{
		"top": 1, "dotted": 2, "dotted.key": 2, "quoted.key": 3,
		"proxy": 5, "proxy.listen": 6, "proxy.tls_cert": 7, "proxy.allow_clients": 8, "proxy.allow_clients[0]": 8, "proxy.allow_clients[1]": 10,
		"proxy.text": 12, "proxy.raw": 18,
		"rule": 21, "rule[0]": 21, "rule[0].name": 22, "rule[0].headers": 23, "rule[0].headers.X-A": 23, "rule[0].headers.X B": 23,
		"rule[0].deep": 24, "rule[0].deep.key": 25, "rule[1]": 26, "rule[1].url": 28,
		"profile.my azure": 29, "profile.my azure.type": 30,
		"profile.azure.params": 31, "profile.azure.params.nested": 32,
		"profile.azure.params.nested[0]": 32, "profile.azure.params.nested[0][0]": 32, "profile.azure.params.nested[0][1]": 32,
		"profile.azure.params.nested[1]": 32, "profile.azure.params.nested[1][0]": 32, "profile.azure.params.nested[1][1]": 33,
		"profile.azure.params.date": 34, "profile.azure.params.last": 35,
	}
	var tree map[string]any
	if _, err := toml.Decode(text, &tree); err != nil {
		t.Fatalf("the test's own text: %v", err)
	}
	if diff := cmp.Diff(want, keyLines(text)); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, keyLines(strings.ReplaceAll(text, "\n", "\r\n"))); diff != "" {
		t.Errorf("lines with CRLF (-want +got):\n%s", diff)
	}
}

func TestQuotesBeforeTheClosingQuotes(t *testing.T) {
	text := "a = \"\"\"x\"\"\"\"\nb = '''y'''''\nc = \"\"\n"
	want := map[string]int{"a": 1, "b": 2, "c": 3}
	if diff := cmp.Diff(want, keyLines(text)); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

// Whatever the text: no panic, no endless loop, and no line beyond the text. In well-formed text that has no escaped
// key, each key has a line, or something below it has.
func FuzzKeyLines(f *testing.F) {
	for _, seed := range []string{
		minimal, "[[a]]\nb = [1, {c = '''x\n'''}]\n[a.d]\n", "a = \"\\\"\"\r\nb.c = {}", "[", "[[", "= 1", "a = [", "a = {", "a = '''", "\"a\"=\"\"\"\"\"\"", "[[fruit]]\n[[fruit.kind]]\nname = 1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		lines := keyLines(text)
		last := strings.Count(text, "\n") + 1
		for key, line := range lines {
			if line < 1 || line > last {
				t.Errorf("%q is in line %d of %d", key, line, last)
			}
		}
		var tree map[string]any
		if _, err := toml.Decode(text, &tree); err != nil || strings.ContainsAny(text, "\\\ufeff") {
			return
		}
		for key := range tree {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(lines)), func(path string) bool {
				return path == key || strings.HasPrefix(path, key+".") || strings.HasPrefix(path, key+"[")
			}) {
				t.Errorf("%q has no line", key)
			}
		}
	})
}
