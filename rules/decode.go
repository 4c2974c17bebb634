package rules

import (
	"encoding"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"orthanc-dicomweb-oauth/token"
)

// decoder fills config structs from the generic TOML tree and collects every
// problem with file, line and key. The TOML library's own struct decoding stops
// at the first wrong type and does not know ${VAR}, x_file or relative paths.
type decoder struct {
	file     string // as shown in problems
	dir      string // base of relative paths
	lookup   func(string) (string, bool)
	lines    map[string]int
	problems Problems
	inClear  []string     // keys whose secret stands in the file itself
	files    []secretFile // files that hold a secret of ours to read
	private  []secretFile // files that hold a secret in a format of their own
	decoded  int          // how many of the problems are from decoding
}

// secretFile is a file with a secret in it, and the key that names it.
type secretFile struct{ key, path string }

func (d *decoder) problem(key, what, hint string) {
	for _, p := range d.problems[:d.decoded] {
		if p.Key != "" && strings.TrimSuffix(p.Key, "_file") == key {
			return // what did not decode is not "missing" as well
		}
	}
	line, parent := d.lines[key], key
	for line == 0 && parent != "" { // a missing key is reported at its table
		parent = parent[:max(0, strings.LastIndexAny(parent, ".["))]
		line = d.lines[parent]
	}
	d.problems = append(d.problems, Problem{File: d.file, Line: line, Key: key, What: what, Hint: hint})
}

// table decodes raw into the struct that dst points to. explain may say more
// about a key that the struct does not have; it may be nil.
func (d *decoder) table(path string, raw map[string]any, dst any, explain func(key string) (what, hint string)) {
	fields := tableFields(dst)
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		key := path + "." + name
		if field, ok := fields[name]; ok {
			d.value(key, raw[name], field)
			continue
		}
		base, isFile := strings.CutSuffix(name, "_file")
		if source, ok := fields[base].(*token.SecretSource); ok && isFile {
			d.secretFile(key, raw[name], source)
			if _, both := raw[base]; both {
				d.problem(key, fmt.Sprintf("both %s and %s are given", base, name), "keep one of them")
			}
			continue
		}
		what, hint := "unknown key", DidYouMean(name, slices.Sorted(maps.Keys(fields)))
		if explain != nil {
			if w, h := explain(name); w != "" {
				what, hint = w, h
			}
		}
		d.problem(key, what, hint)
	}
}

// tableFields returns pointers to the fields of the struct that dst points to,
// by their toml tag; embedded structs are part of the same table.
func tableFields(dst any) map[string]any {
	fields := map[string]any{}
	v := reflect.ValueOf(dst).Elem()
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Anonymous {
			maps.Copy(fields, tableFields(v.Field(i).Addr().Interface()))
		} else if name := f.Tag.Get("toml"); name != "" {
			fields[name] = v.Field(i).Addr().Interface()
		}
	}
	return fields
}

// value decodes one TOML value into what dst points to.
func (d *decoder) value(key string, raw, dst any) {
	switch dst := dst.(type) {
	case *token.SecretSource:
		if s, ok := d.secret(key, raw); ok {
			*dst = token.SecretValue(s)
		}
	case *token.Secret:
		if s, ok := d.secret(key, raw); ok {
			*dst = s
		}
	case *token.File:
		if s, ok := d.str(key, raw); ok {
			*dst = token.File(d.path(s))
		}
	case *token.PrivateFile:
		if s, ok := d.str(key, raw); ok {
			*dst = token.PrivateFile(d.path(s))
			d.private = append(d.private, secretFile{key, d.path(s)})
		}
	case *time.Duration:
		d.duration(key, raw, dst)
	case *token.Strings:
		if _, single := raw.(string); single {
			raw = []any{raw}
		}
		d.value(key, raw, (*[]string)(dst))
	case *map[string]token.Secret:
		decodeMap(d, key, raw, dst)
	case *map[string]string:
		decodeMap(d, key, raw, dst)
	case encoding.TextUnmarshaler:
		if s, ok := d.str(key, raw); ok {
			if err := dst.UnmarshalText([]byte(s)); err != nil {
				d.problem(key, fmt.Sprintf("%q is not a network", s), `write it as "10.1.2.0/24", or a single address as "10.1.2.3/32"`)
			}
		}
	default:
		d.kind(key, raw, reflect.ValueOf(dst).Elem())
	}
}

// kind decodes by the kind of the Go value: strings and named strings, bool,
// int and slices.
func (d *decoder) kind(key string, raw any, v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		if s, ok := d.str(key, raw); ok {
			v.SetString(s)
		}
	case reflect.Bool:
		if b, ok := raw.(bool); ok {
			v.SetBool(b)
		} else {
			d.wrongType(key, "true or false", raw)
		}
	case reflect.Int:
		if n, ok := raw.(int64); ok {
			v.SetInt(n)
		} else {
			d.wrongType(key, "a whole number", raw)
		}
	case reflect.Slice:
		list, ok := raw.([]any)
		if !ok {
			d.wrongType(key, "a list", raw)
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(list), len(list)))
		for i, element := range list {
			d.value(fmt.Sprintf("%s[%d]", key, i), element, v.Index(i).Addr().Interface())
		}
	default:
		panic("rules: config field of unsupported kind " + v.Kind().String()) // a programming error, found by any test
	}
}

func decodeMap[V any](d *decoder, key string, raw any, dst *map[string]V) {
	table, ok := raw.(map[string]any)
	if !ok {
		d.wrongType(key, "a table", raw)
		return
	}
	*dst = make(map[string]V, len(table))
	for _, name := range slices.Sorted(maps.Keys(table)) {
		var v V
		d.value(key+"."+name, table[name], &v)
		(*dst)[name] = v
	}
}

func (d *decoder) duration(key string, raw any, dst *time.Duration) {
	s, ok := d.str(key, raw)
	if !ok {
		return
	}
	v, err := time.ParseDuration(s)
	if err != nil || v <= 0 {
		d.problem(key, fmt.Sprintf("%q is not a duration above zero", s), `write it with a unit, such as "10s", "5m" or "1h"`)
		return
	}
	*dst = v
}

func (d *decoder) str(key string, raw any) (string, bool) {
	e, ok := d.expand(key, raw)
	return e.text, ok
}

func (d *decoder) secret(key string, raw any) (token.Secret, bool) {
	e, ok := d.expand(key, raw)
	if ok && e.inClear {
		d.inClear = append(d.inClear, key)
	}
	return token.NewSecret(e.text), ok
}

func (d *decoder) secretFile(key string, raw any, dst *token.SecretSource) {
	s, ok := d.str(key, raw)
	if !ok {
		return
	}
	if s == "" {
		d.problem(key, "is empty", "give the path of a file that holds the secret")
		return
	}
	*dst = token.SecretFile(d.path(s))
	d.files = append(d.files, secretFile{key, d.path(s)})
}

func (d *decoder) expand(key string, raw any) (expanded, bool) {
	s, ok := raw.(string)
	if !ok {
		d.wrongType(key, "a string", raw)
		return expanded{}, false
	}
	e, err := expand(s, d.lookup)
	if err != nil {
		d.problem(key, err.Error(), "set the variable in the environment of the gateway, or write ${VAR:-default}")
		return expanded{}, false
	}
	return e, true
}

// path resolves a path of the config against the config's own folder.
func (d *decoder) path(p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(d.dir, p)
}

func (d *decoder) wrongType(key, want string, got any) {
	what := map[reflect.Kind]string{
		reflect.String: "a string", reflect.Bool: "true or false", reflect.Int64: "a whole number",
		reflect.Float64: "a number", reflect.Slice: "a list", reflect.Map: "a table",
	}[reflect.TypeOf(got).Kind()]
	if what == "" {
		what = "a date or time"
	}
	d.problem(key, fmt.Sprintf("want %s, got %s", want, what), "")
}
