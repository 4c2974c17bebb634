package orthancjson

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/tailscale/hujson"
)

const maxNesting = 100_000 // an orthanc.json has some ten levels; the parser recurses

// object is a JSON object that remembers the order of the file and what of it
// was read.
type object struct {
	path, name string // "DicomWebOAuth.Servers.azure", "azure"
	keys       []string
	values     map[string]any // string, number, bool, nil, *object, []any
	read       map[string]bool
}

// number is a JSON number as it stands.
type number string

// parse reads JSON as jsoncpp does: with comments and trailing commas. A key
// that comes twice has its last value.
func (c *converter) parse(text []byte) (*object, error) {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	if !utf8.Valid(text) {
		line := 1
		for rest := text; len(rest) > 0; {
			r, n := utf8.DecodeRune(rest)
			if r == utf8.RuneError && n == 1 {
				break
			}
			if r == '\n' {
				line++
			}
			rest = rest[n:]
		}
		return nil, fmt.Errorf("line %d: the file is not UTF-8; save it as UTF-8", line)
	}
	if bytes.Count(text, []byte("["))+bytes.Count(text, []byte("{")) > maxNesting {
		return nil, errors.New("this is too large for an orthanc.json; name the configuration file of Orthanc")
	}
	// A line comment may end with the file.
	root, err := hujson.Parse(append(bytes.Clone(text), '\n'))
	if err != nil {
		what := strings.TrimPrefix(err.Error(), "hujson: ")
		if strings.Contains(what, "'$'") {
			return nil, fmt.Errorf(`%s; put quotes round it: "${VARIABLE}"`, what)
		}
		return nil, fmt.Errorf("not the JSON that Orthanc reads: %s; correct the file", what)
	}
	top, ok := c.build("", "", root.Value).(*object)
	if !ok {
		return nil, errors.New("not the JSON that Orthanc reads: the file is not one object {...}; give an orthanc.json")
	}
	return top, nil
}

func (c *converter) build(path, name string, v hujson.ValueTrimmed) any {
	switch v := v.(type) {
	case *hujson.Object:
		o := &object{path: path, name: name, values: map[string]any{}, read: map[string]bool{}}
		for _, m := range v.Members {
			key := m.Name.Value.(hujson.Literal).String()
			inner := key
			if path != "" {
				inner = path + "." + key
			}
			if _, twice := o.values[key]; twice {
				c.note(inner, "is given twice; the last one counts, as in Orthanc")
			} else {
				o.keys = append(o.keys, key)
			}
			o.values[key] = c.build(inner, key, m.Value.Value)
		}
		return o
	case *hujson.Array:
		list := []any{}
		for _, e := range v.Elements {
			list = append(list, c.build(path, name, e.Value))
		}
		return list
	case hujson.Literal:
		switch v.Kind() {
		case '"':
			return v.String()
		case 't', 'f':
			return v.Bool()
		case '0':
			return number(v)
		}
	}
	return nil
}

// object returns the object at key, or nil if there is none.
func (c *converter) object(o *object, key string) *object {
	v, _ := c.get(o, key)
	inner, ok := v.(*object)
	if !ok && v != nil {
		c.problem(o.key(key), "must be an object, got "+kind(v), "write it as {...}")
	}
	return inner
}

// get returns the value of the first of keys that is there and not null.
func (c *converter) get(o *object, keys ...string) (value any, key string) {
	if o == nil {
		return nil, keys[0]
	}
	for _, k := range keys {
		o.read[k] = true
		if v := o.values[k]; v != nil && value == nil {
			value, key = v, k
		}
	}
	if value == nil {
		return nil, keys[0]
	}
	return value, key
}

// text returns the string of the first of keys that is there, and that key.
func (c *converter) text(o *object, keys ...string) (s, key string) {
	v, key := c.get(o, keys...)
	s, ok := v.(string)
	if !ok && v != nil {
		c.problem(o.key(key), "want a string, got "+kind(v), "write it in quotes")
	}
	return s, key
}

// required is text that must not be empty.
func (c *converter) required(o *object, keys ...string) (s, key string) {
	before := len(c.problems)
	s, key = c.text(o, keys...)
	if s == "" && len(c.problems) == before {
		what := "is missing"
		if _, there := o.values[key]; there {
			what = "is empty"
		}
		remedy := "add it"
		for _, k := range o.keys {
			if k != key && strings.EqualFold(k, key) {
				remedy = fmt.Sprintf("there is %q, but upper and lower case count: write %q", k, key)
			}
		}
		c.problem(o.key(key), what, remedy)
	}
	return s, key
}

func (o *object) key(key string) string { return strings.TrimPrefix(o.path+"."+key, ".") }

// unread returns the keys that nobody asked for, in the order of the file.
func (o *object) unread() []string {
	var keys []string
	for _, k := range o.keys {
		if !o.read[k] {
			keys = append(keys, k)
		}
	}
	return keys
}

func kind(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case number:
		return "a number"
	case bool:
		return "true or false"
	case []any:
		return "a list"
	case *object:
		return "an object"
	}
	return "null"
}
