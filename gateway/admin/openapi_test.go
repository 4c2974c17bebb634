package admin_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"orthanc-dicomweb-oauth/gateway/admin"
	"orthanc-dicomweb-oauth/token"
)

// openAPI is docs/openapi.yaml.
type openAPI struct {
	Paths      map[string]map[string]operation `yaml:"paths"`
	Components struct {
		Responses map[string]response `yaml:"responses"`
		Schemas   map[string]*schema  `yaml:"schemas"`
	} `yaml:"components"`

	seen map[string]bool // properties that an answer had
}

type operation struct {
	Security  []map[string]any    `yaml:"security"`
	Responses map[string]response `yaml:"responses"`

	open bool // it says security: [], as opposed to nothing
}

func (o *operation) UnmarshalYAML(node *yaml.Node) error {
	type plain operation
	for i := 0; i < len(node.Content); i += 2 {
		o.open = o.open || node.Content[i].Value == "security"
	}
	return node.Decode((*plain)(o))
}

type response struct {
	Ref     string `yaml:"$ref"`
	Content map[string]struct {
		Schema *schema `yaml:"schema"`
	} `yaml:"content"`
}

type schema struct {
	Ref        string             `yaml:"$ref"`
	Type       any                `yaml:"type"` // a name or a list of them
	Format     string             `yaml:"format"`
	Enum       []any              `yaml:"enum"`
	Required   []string           `yaml:"required"`
	Properties map[string]*schema `yaml:"properties"`
	Additional *schema            `yaml:"additionalProperties"`
	Items      *schema            `yaml:"items"`
	AnyOf      []*schema          `yaml:"anyOf"`
}

func readOpenAPI(t *testing.T) *openAPI {
	t.Helper()
	text, err := os.ReadFile("../../docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	d := &openAPI{seen: map[string]bool{}}
	if err := yaml.Unmarshal(text, d); err != nil {
		t.Fatal(err)
	}
	return d
}

// operations returns "METHOD /path" of all that is described.
func (d *openAPI) operations() map[string]operation {
	all := map[string]operation{}
	for path, methods := range d.Paths {
		for method, o := range methods {
			all[strings.ToUpper(method)+" "+path] = o
		}
	}
	return all
}

// content returns the schema of an answer, and whether that answer is described.
func (d *openAPI) content(r response, media string) (*schema, bool) {
	if name, ok := strings.CutPrefix(r.Ref, "#/components/responses/"); ok {
		r = d.Components.Responses[name]
	}
	media, _, _ = strings.Cut(media, ";")
	c, ok := r.Content[media]
	return c.Schema, ok
}

// check compares a value with its schema, and notes what it has seen.
func (d *openAPI) check(t *testing.T, at string, s *schema, v any) {
	t.Helper()
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
		if s = d.Components.Schemas[name]; s == nil {
			t.Fatalf("%s: there is no schema %s", at, name)
		}
		at = name
	}
	var types []any
	switch typ := s.Type.(type) {
	case []any:
		types = typ
	default:
		types = []any{typ}
	}
	is := func(name string) bool { return slices.Contains(types, any(name)) }
	if !is(kind(v)) && (kind(v) != "integer" || !is("number")) {
		t.Errorf("%s: got %T %v, described as %v", at, v, v, s.Type)
	}
	if s.Enum != nil && !slices.Contains(s.Enum, v) {
		t.Errorf("%s: got %v, described as one of %v", at, v, s.Enum)
	}
	switch v := v.(type) {
	case string:
		if _, err := time.Parse(time.RFC3339, v); s.Format == "date-time" && err != nil {
			t.Errorf("%s: %v", at, err)
		}
	case []any:
		for _, item := range v {
			d.check(t, at+"[]", s.Items, item)
		}
	case map[string]any:
		for _, key := range s.Required {
			if _, there := v[key]; !there {
				t.Errorf("%s: %s is missing", at, key)
			}
		}
		for key, value := range v {
			property := s.Properties[key]
			if property == nil {
				property = s.Additional
			}
			if property == nil {
				t.Errorf("%s: %s is not described", at, key)
				continue
			}
			d.seen[at+"."+key] = true
			d.check(t, at+"."+key, property, value)
		}
	}
}

// kind names the type of a value that JSON was decoded to.
func kind(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		return "string"
	case bool:
		return "boolean"
	case float64:
		if v == float64(int64(v)) {
			return "integer"
		}
		return "number"
	case []any:
		return "array"
	}
	return "object"
}

// unseen returns the described properties that no answer had.
func (d *openAPI) unseen() []string {
	var missing []string
	var walk func(at string, s *schema)
	walk = func(at string, s *schema) {
		for key, p := range s.Properties {
			if !d.seen[at+"."+key] {
				missing = append(missing, at+"."+key)
			}
			walk(at+"."+key, p)
		}
	}
	for name, s := range d.Components.Schemas {
		walk(name, s)
	}
	slices.Sort(missing)
	return missing
}

func TestOpenAPIDescribesEveryRoute(t *testing.T) {
	s := start(t, "")
	var served []string
	for _, pattern := range admin.Routes(s.options) {
		served = append(served, strings.Replace(pattern, "{$}", "", 1))
	}
	slices.Sort(served)
	described := slices.Sorted(maps.Keys(readOpenAPI(t).operations()))
	described = slices.DeleteFunc(described, func(o string) bool {
		return o == "POST /dicomweb-oauth/reload" && !slices.Contains(served, o) // for a gateway that cannot reload
	})
	if !slices.Equal(served, described) {
		t.Errorf("served    %q\ndescribed %q", served, described)
	}
}

// Each answer has the described status, media type and fields, and no others.
func TestAnswersAreAsOpenAPIDescribes(t *testing.T) {
	d := readOpenAPI(t)
	s := start(t, "")
	s.until(t, "good", token.Fresh)
	s.until(t, "wrong", token.Unusable)
	ask := func(status int, operation, path string, headers ...string) {
		t.Helper()
		method, _, _ := strings.Cut(operation, " ")
		var w *httptest.ResponseRecorder
		if method == http.MethodPost {
			w = s.post(t, path, headers...)
		} else {
			w = s.get(t, path, headers...)
		}
		content, ok := d.content(d.operations()[operation].Responses[fmt.Sprint(w.Code)], w.Header().Get("Content-Type"))
		if !ok || w.Code != status {
			t.Errorf("%s %v: got %d %s, want %d, and it described", path, headers, w.Code, w.Header().Get("Content-Type"), status)
			return
		}
		switch media, _, _ := strings.Cut(w.Header().Get("Content-Type"), ";"); media {
		case "application/json":
			var v any
			if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
				t.Fatal(err)
			}
			d.check(t, operation, content, v)
		case "application/x-ndjson":
			for line := range bytes.Lines(w.Body.Bytes()) {
				var v map[string]any
				if err := json.Unmarshal(line, &v); err != nil {
					t.Fatal(err)
				}
				which := content.AnyOf[0] // a step
				if v["steps"] != nil {
					which = content.AnyOf[1]
				}
				d.check(t, operation, which, v)
			}
		}
	}
	ask(200, "GET /livez", "/livez")
	ask(200, "GET /readyz", "/readyz")
	ask(503, "GET /readyz", "/readyz?rule=broken")
	ask(404, "GET /readyz", "/readyz?rule=none")
	ask(200, "GET /", "/")
	ask(200, "GET /metrics", "/metrics")
	ask(200, "GET /dicomweb-oauth/status", "/dicomweb-oauth/status")
	ask(200, "GET /dicomweb-oauth/servers", "/dicomweb-oauth/servers")
	const test = "POST /dicomweb-oauth/servers/{name}/test"
	ask(502, test, "/dicomweb-oauth/servers/archive/test")
	ask(502, test, "/dicomweb-oauth/servers/archive/test", "Accept", "text/html")
	ask(200, test, "/dicomweb-oauth/servers/archive/test", "Accept", "application/x-ndjson")
	ask(404, test, "/dicomweb-oauth/servers/none/test")
	ask(409, test, "/dicomweb-oauth/servers/closed/test")
	ask(409, test, "/dicomweb-oauth/servers/closed/test", "Accept", "application/x-ndjson")
	if err := s.gateway.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	ask(503, "GET /readyz", "/readyz")
	if missing := d.unseen(); len(missing) > 0 {
		t.Errorf("described, but in no answer: %q", missing)
	}
}

// Which operations ask for a password, refuse a foreign Host and refuse other origins.
func TestGuardsAreAsOpenAPIDescribes(t *testing.T) {
	d := readOpenAPI(t)
	open := start(t, "")
	locked := start(t, "username = \"admin\"\npassword_file = \"admin-password\"")
	served := admin.Routes(open.options)
	served = append(served, "GET /") // as described, without net/http's {$}
	for name, o := range d.operations() {
		if !slices.Contains(served, name) {
			continue // TestOpenAPIDescribesEveryRoute has a word about it
		}
		method, path, _ := strings.Cut(strings.Replace(name, "{name}", "closed", 1), " ")
		for _, row := range []struct {
			status  int
			s       *stack
			host    string
			headers map[string]string
		}{
			{401, locked, "localhost", nil},
			{421, open, "evil.test", nil},
			{403, open, "localhost", map[string]string{"Sec-Fetch-Site": "cross-site"}},
		} {
			r := httptest.NewRequest(method, path, nil)
			r.Host = row.host
			for key, value := range row.headers {
				r.Header.Set(key, value)
			}
			w := httptest.NewRecorder()
			row.s.handler.ServeHTTP(w, r)
			described, ok := o.Responses[fmt.Sprint(row.status)]
			got, media := w.Code == row.status, w.Header().Get("Content-Type")
			if got != ok {
				t.Errorf("%s: %d: described %v, answered %v (%d)", name, row.status, ok, got, w.Code)
			}
			if _, ok := d.content(described, media); got && !ok {
				t.Errorf("%s: %d: %s is not described", name, row.status, media)
			}
			if row.status == 401 && o.open == got {
				t.Errorf("%s: asks for a password: %v, described: %v", name, got, !o.open)
			}
		}
	}
}
