// Package docs_test keeps the documentation true: what it names exists, what it shows loads, and the configuration
// reference is made from the comments of the types that decode the file.
package docs_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/rules"
	oauth "orthanc-dicomweb-oauth/token"
)

var update = flag.Bool("update", false, "write docs/configuration.md anew")

const generated = "<!-- From here on written by `go test ./docs -update`: change the comments in rules/ and token/ instead. -->\n"

func TestConfigurationReferenceIsThatOfTheCode(t *testing.T) {
	page, err := os.ReadFile("configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	byHand, have, found := strings.Cut(string(page), generated)
	if !found {
		t.Fatalf("configuration.md has lost the line\n%s", generated)
	}
	var want strings.Builder
	for _, s := range sections(t) {
		s.write(t, &want)
	}
	switch {
	case have == want.String():
	case *update:
		if err := os.WriteFile("configuration.md", []byte(byHand+generated+want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Error("configuration.md is not what the code says; run: go test ./docs -run TestConfigurationReference -update")
	}
}

// Each key of the reference is given a value of a wrong type: that is then the problem, and not that the key is unknown or
// belongs elsewhere.
func TestEachKeyOfTheReferenceIsDecoded(t *testing.T) {
	for _, s := range sections(t) {
		for _, k := range s.allKeys() {
			names := []string{k.name}
			if k.kind == "secret" {
				names = append(names, k.name+"_file")
			}
			for _, name := range names {
				path := filepath.Join(t.TempDir(), "gateway.toml")
				if err := os.WriteFile(path, []byte(s.header+"\n"+name+" = 1979-05-27\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				_, err := rules.Load(path, os.LookupEnv)
				if err == nil || !strings.Contains(err.Error(), "."+name+": want ") {
					t.Errorf("%s %s: the decoder says %v", s.title, name, err)
				}
			}
		}
	}
}

// section is one table of gateway.toml, or keys that several profile types share.
type section struct {
	title  string
	header string // the TOML that its keys stand below
	text   string
	keys   []key
	shared []*section
}

type key struct{ name, kind, fallback, text string }

func (s *section) allKeys() []key {
	all := slices.Clone(s.keys)
	for _, other := range s.shared {
		all = append(all, other.allKeys()...)
	}
	return all
}

func (s *section) write(t *testing.T, b *strings.Builder) {
	t.Helper()
	level := "##"
	if !strings.HasPrefix(s.title, "[") && s.title != "Profiles" {
		level = "###"
	}
	fmt.Fprintf(b, "\n%s %s\n", level, s.title)
	if s.text != "" {
		fmt.Fprintf(b, "\n%s\n", s.text)
	}
	if len(s.shared) > 0 {
		var links []string
		for _, other := range s.shared {
			links = append(links, fmt.Sprintf("[%s](#%s)", other.title, anchor(other.title)))
		}
		fmt.Fprintf(b, "\nTakes also: %s.\n", strings.Join(links, ", "))
	}
	if len(s.keys) > 0 {
		b.WriteString("\n")
	}
	for i, k := range s.keys {
		if k.text == "" {
			t.Errorf("%s %s: its field has no comment", s.title, k.name)
		}
		separator, text := "- ", ""
		if i > 0 && s.keys[i-1].text == k.text {
			separator = ", "
		}
		fmt.Fprintf(b, "%s**`%s`** (%s", separator, k.name, k.kind)
		if k.kind == "secret" {
			fmt.Fprintf(b, ", or `%s_file`", k.name)
		}
		if k.fallback != "" {
			fmt.Fprintf(b, ", default `%s`", k.fallback)
		}
		b.WriteString(")")
		if i+1 == len(s.keys) || s.keys[i+1].text != k.text {
			text = ": " + alone(k) + "\n"
		}
		b.WriteString(regexp.MustCompile(`\n(.)`).ReplaceAllString(text, "\n  $1"))
	}
}

// alone is the text of a key without its name at the beginning, which stands there already.
func alone(k key) string {
	name := "`" + k.name + "` "
	text := strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(k.text, name), "is "), "are ")
	if !strings.HasPrefix(k.text, name) || text == "" {
		return k.text
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

// sections is the whole reference, read from the types that decode gateway.toml.
func sections(t *testing.T) []*section {
	t.Helper()
	comments := readComments(t, "../rules", "../token")
	defaults := rules.Default()
	all := []*section{
		tableSection("[proxy]", reflect.ValueOf(defaults.Proxy), comments),
		tableSection("[admin]", reflect.ValueOf(defaults.Admin), comments),
		tableSection("[ca]", reflect.ValueOf(defaults.CA), comments),
		tableSection("[log]", reflect.ValueOf(defaults.Log), comments),
		tableSection("[token]", reflect.ValueOf(defaults.Token), comments),
		tableSection("[[rule]]", reflect.ValueOf(*defaultRule(t)), comments),
	}
	all = append(all, &section{title: "Profiles", text: "Each `[profile.NAME]` has a `type` (string), and the keys of that type."})
	shared := map[reflect.Type]*section{}
	var kinds []*section
	for _, name := range oauth.Types() {
		settings := reflect.ValueOf(oauth.NewSettings(name)).Elem()
		s := structSection("`"+name+"`", "[profile.x]\ntype = \""+name+"\"", settings, comments, shared)
		kinds = append(kinds, s)
	}
	all = append(all, kinds...)
	for _, s := range shared {
		all = append(all, s)
	}
	slices.SortStableFunc(all[7+len(kinds):], func(a, b *section) int { return strings.Compare(a.title, b.title) })
	return all
}

// sharedTitles names the embedded structs.
var sharedTitles = map[string]string{
	"Fetching":     "Keys of every type that fetches a token",
	"OAuthClient":  "Keys of an OAuth client",
	"AssertionKey": "Keys of a client that signs",
	"Azure":        "Keys of all Azure types",
}

func tableSection(title string, v reflect.Value, comments map[string]string) *section {
	return structSection(title, title, v, comments, nil)
}

func structSection(title, header string, v reflect.Value, comments map[string]string, shared map[reflect.Type]*section) *section {
	s := &section{title: title, header: header, text: introduction(comments[v.Type().Name()])}
	names := map[string]string{}
	for _, f := range reflect.VisibleFields(v.Type()) {
		if tag := f.Tag.Get("toml"); tag != "" {
			names[f.Name] = tag
		}
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		tag := f.Tag.Get("toml")
		switch {
		case f.Anonymous && sharedTitles[f.Name] == "": // a type that is nothing but another one
			embedded := structSection(title, header, v.Field(i), comments, shared)
			s.keys, s.shared = append(s.keys, embedded.keys...), append(s.shared, embedded.shared...)
		case f.Anonymous:
			other := structSection(sharedTitles[f.Name], header, v.Field(i), comments, shared)
			if shared[f.Type] == nil {
				shared[f.Type] = other
			}
			s.shared = append(s.shared, other)
		case tag != "":
			s.keys = append(s.keys, key{tag, kindOf(f.Type), fallback(v.Field(i)), inKeys(comments[v.Type().Name()+"."+f.Name], names)})
		}
	}
	return s
}

func kindOf(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[oauth.SecretSource]():
		return "secret"
	case reflect.TypeFor[oauth.Secret]():
		return "string, a secret"
	case reflect.TypeFor[oauth.File]():
		return "path"
	case reflect.TypeFor[oauth.PrivateFile]():
		return "path of a file that others must not read"
	case reflect.TypeFor[oauth.Strings]():
		return "string or list of strings"
	case reflect.TypeFor[[]netip.Prefix]():
		return `list of networks such as "10.1.2.0/24"`
	case reflect.TypeFor[time.Duration]():
		return "duration"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "number"
	case reflect.Slice:
		return "list of strings"
	case reflect.Map:
		return "table"
	default:
		return "string"
	}
}

// fallback is the default as TOML, "" for none.
func fallback(v reflect.Value) string {
	switch d := v.Interface().(type) {
	case time.Duration:
		if d == 0 {
			return ""
		}
		text := strings.TrimSuffix(d.String(), "m0s")
		if text != d.String() {
			text += "m"
		}
		return `"` + text + `"`
	case []string:
		if d == nil {
			return ""
		}
		return `["` + strings.Join(d, `", "`) + `"]`
	}
	switch v.Kind() {
	case reflect.Bool:
		return fmt.Sprint(v.Bool())
	case reflect.Int:
		return fmt.Sprint(v.Int())
	case reflect.String:
		if v.String() != "" {
			return fmt.Sprintf("%q", v.String())
		}
	}
	return ""
}

var (
	tableIntroduction = regexp.MustCompile(`^\w+ is (the|one) \[+\w+\]+( table)?[:.]\s*`)
	keysIntroduction  = regexp.MustCompile(`^\w+ are the `)
	docLink           = regexp.MustCompile(`\[([A-Z]\w+)\]`)
)

// introduction makes a type's comment the text of its section.
func introduction(comment string) string {
	text := tableIntroduction.ReplaceAllString(comment, "")
	text = keysIntroduction.ReplaceAllString(text, "The ")
	text = strings.Replace(text, "Lifecycle says", "Says", 1)
	text = docLink.ReplaceAllString(text, "$1")
	text = strings.ReplaceAll(text, "\n\t", "\n    ")
	if text != "" {
		text = strings.ToUpper(text[:1]) + text[1:]
	}
	return text
}

// inKeys writes the names of Go fields as those of TOML keys.
func inKeys(comment string, names map[string]string) string {
	return regexp.MustCompile(`[\w-]+`).ReplaceAllStringFunc(strings.TrimSpace(comment), func(word string) string {
		if name := names[word]; name != "" {
			return "`" + name + "`"
		}
		return word
	})
}

// defaultRule is what a rule is that says only what it must.
func defaultRule(t *testing.T) *rules.Rule {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gateway.toml")
	text := "[[rule]]\nname = 'x'\nurl = 'https://dicom.example.org/'\nprofile = 'x'\n[profile.x]\ntype = 'google_metadata'\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := rules.Load(path, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	r := *c.Rules[0]
	r.Name, r.URL, r.Profile = "", "", ""
	return &r
}

// readComments returns the comments of struct types, by type, and of their fields, by Type.Field. A field right below
// another one shares that one's comment.
func readComments(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	comments := map[string]string{}
	for _, dir := range dirs {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", dir, len(files), err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			set := token.NewFileSet()
			parsed, err := parser.ParseFile(set, file, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range parsed.Decls {
				if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.TYPE {
					for _, spec := range g.Specs {
						typeComments(set, g, spec.(*ast.TypeSpec), comments)
					}
				}
			}
		}
	}
	return comments
}

func typeComments(set *token.FileSet, g *ast.GenDecl, spec *ast.TypeSpec, comments map[string]string) {
	structure, ok := spec.Type.(*ast.StructType)
	if !ok || !spec.Name.IsExported() {
		return
	}
	comments[spec.Name.Name] = strings.TrimSpace(g.Doc.Text())
	var last string
	var line int
	for _, f := range structure.Fields.List {
		begin := set.Position(f.Pos()).Line
		if text := f.Doc.Text(); text != "" {
			last = text
		} else if begin != line+1 {
			last = ""
		}
		line = set.Position(f.End()).Line
		for _, name := range f.Names {
			comments[spec.Name.Name+"."+name.Name] = last
		}
	}
}
