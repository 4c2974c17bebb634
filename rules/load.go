package rules

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"orthanc-dicomweb-oauth/token"
)

// Load reads the file at path, with variables from lookup (mostly
// [os.LookupEnv]). Whatever is wrong with its content comes back as [Problems],
// all at once.
func Load(path string, lookup func(string) (string, bool)) (*Config, error) {
	if path == "" {
		return nil, Problems{{File: "--config", What: "is empty", Hint: "name the file there, or in DICOMWEB_OAUTH_CONFIG; without both it is gateway.toml"}}
	}
	info, _ := os.Stat(path) // before the reading: a change in between is noticed by whoever looks again
	text, err := readConfig(path)
	if err != nil {
		hint := "name the file with --config, or in DICOMWEB_OAUTH_CONFIG"
		switch {
		case errors.Is(err, errTooLarge):
			hint = "is it a config at all? " + hint
		case errors.Is(err, fs.ErrPermission):
			hint = "let this user read it: it is for the user that the gateway runs as"
		}
		return nil, Problems{{File: path, What: readProblem(err), Hint: hint}}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, Problems{{File: path, What: "make the path absolute: " + err.Error()}}
	}
	d := &decoder{file: path, dir: filepath.Dir(abs), lookup: lookup, lines: keyLines(strings.TrimPrefix(string(text), "\ufeff"))}
	var tree map[string]any
	if _, err := toml.Decode(string(text), &tree); err != nil {
		return nil, Problems{syntaxProblem(path, err)}
	}
	sum := sha256.Sum256(text)
	c := Default()
	c.Path, c.Info, c.Revision = abs, info, hex.EncodeToString(sum[:6])
	c.Profiles = map[string]*Profile{}
	c.CA.Dir = token.File(d.path(string(c.CA.Dir)))
	d.config(tree, &c)
	d.decoded = len(d.problems)
	d.check(&c)
	d.checkModes(&c)
	if len(d.problems) > 0 {
		return nil, d.problems.sorted()
	}
	c.Warnings = d.warn(&c)
	return &c, nil
}

// maxConfig is far above what any site needs: some 100,000 rules.
const maxConfig = 16 << 20

var errTooLarge = fmt.Errorf("is larger than %d MiB", maxConfig>>20)

// readConfig reads a file, but not one without end.
func readConfig(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(text) > maxConfig {
		err = errTooLarge
	}
	return text, err
}

// readProblem drops the path from err: the problem names it already.
func readProblem(err error) string {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}

// quoted finds what the TOML library quotes from the file, in Go's syntax, and the
// number that a message about its range begins with. It may be a secret whose
// quotes were forgotten, or what stands before a wrong escape in one.
var quoted = regexp.MustCompile(`"(\\.|[^"\\]){2,}"|^[-+]?[0-9]\S*`)

func syntaxProblem(path string, err error) Problem {
	pe, ok := errors.AsType[toml.ParseError](err)
	if !ok {
		return Problem{File: path, What: "not TOML: " + err.Error()}
	}
	p := Problem{File: path, Line: pe.Position.Line, Key: pe.LastKey, What: pe.Message}
	if p.What == "" {
		_, p.What, _ = strings.Cut(pe.Error(), ": ")
	}
	p.What = quoted.ReplaceAllString(p.What, `"…"`)
	p.Hint = syntaxHint(p.What)
	return p
}

// syntaxHint says what to change about the mistakes that people make; "" for others.
func syntaxHint(what string) string {
	switch {
	case strings.Contains(what, "UTF-"):
		return "save the file as UTF-8"
	case strings.Contains(what, "invalid escape"):
		return `write a backslash twice, or the whole text in single quotes: 'C:\folder\file'`
	case strings.Contains(what, "newlines"):
		return "close the quotes on the same line"
	case strings.HasPrefix(what, "Invalid "), strings.HasPrefix(what, "expected value"), strings.Contains(what, "out of range"):
		return `put text into quotes: key = "text"`
	case strings.HasPrefix(what, "expected '.' or '='"):
		return `write key = "text"`
	}
	return ""
}

// config decodes the whole tree.
func (d *decoder) config(tree map[string]any, c *Config) {
	tables := map[string]any{"proxy": &c.Proxy, "admin": &c.Admin, "ca": &c.CA, "log": &c.Log, "token": &c.Token}
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		switch dst := tables[name]; {
		case dst != nil:
			if raw, ok := d.subtable(name, tree[name]); ok {
				d.table(name, raw, dst, nil)
			}
		case name == "rule":
			d.rules(tree[name], c)
		case name == "profile":
			// Profiles inherit from [token], which is decoded after this loop.
		default:
			d.problem(name, "unknown table or key", DidYouMean(name, append(slices.Sorted(maps.Keys(tables)), "rule", "profile")))
		}
	}
	raw, ok := d.subtable("profile", tree["profile"])
	if !ok {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		if table, ok := d.subtable("profile."+name, raw[name]); ok {
			d.profile(name, table, c)
		}
	}
}

// subtable returns raw as a table; false without a problem if there is none.
func (d *decoder) subtable(key string, raw any) (map[string]any, bool) {
	table, ok := raw.(map[string]any)
	if !ok && raw != nil {
		d.problem(key, "must be a table", fmt.Sprintf("write [%s]", key))
	}
	return table, ok
}

func (d *decoder) rules(raw any, c *Config) {
	list, ok := raw.([]map[string]any)
	if !ok {
		d.problem("rule", "must be an array of tables", "write [[rule]], with two brackets")
		return
	}
	for i, table := range list {
		r := defaultRule()
		d.table("rule["+strconv.Itoa(i)+"]", table, r, nil)
		c.Rules = append(c.Rules, r)
	}
}

func (d *decoder) profile(name string, raw map[string]any, c *Config) {
	key := "profile." + name
	p := &Profile{Name: name, Lifecycle: c.Token}
	c.Profiles[name] = p // also when it is broken: rules that name it are not wrong
	typ, ok := raw["type"]
	if !ok {
		d.problem(key+".type", "is missing", "one of "+strings.Join(token.Types(), ", "))
		return
	}
	said := len(d.problems)
	if d.value(key+".type", typ, &p.Type); len(d.problems) > said {
		return
	}
	if p.Settings = token.NewSettings(p.Type); p.Settings == nil {
		hint := DidYouMean(p.Type, token.Types())
		if hint == "" {
			hint = "one of " + strings.Join(token.Types(), ", ")
		}
		d.problem(key+".type", fmt.Sprintf("unknown type %q", p.Type), hint)
		return
	}
	body := maps.Clone(raw)
	delete(body, "type")
	d.table(key, body, p.Settings, func(k string) (string, string) { return foreignKey(k, p.Type) })
	p.Lifecycle = p.Settings.Lifecycle(c.Token)
}

// foreignKey explains a key that the type does not have but another one does.
func foreignKey(key, typ string) (what, hint string) {
	var owners []string
	for _, other := range token.Types() {
		fields := tableFields(token.NewSettings(other))
		_, secret := fields[strings.TrimSuffix(key, "_file")].(*token.SecretSource)
		if fields[key] != nil || secret && strings.HasSuffix(key, "_file") {
			owners = append(owners, other)
		}
	}
	if owners == nil {
		return "", ""
	}
	return fmt.Sprintf("has no meaning for type %q", typ), "it belongs to " + strings.Join(owners, ", ") + "; remove it or change type"
}
