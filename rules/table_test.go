package rules

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// table builds a table from lines "name action url"; an action in capitals is in report mode.
func table(t testing.TB, lines ...string) *Table {
	t.Helper()
	var text strings.Builder
	for _, line := range lines {
		f := strings.Fields(line)
		fmt.Fprintf(&text, "[[rule]]\nname = %q\naction = %q\nurl = %q\n", f[0], strings.ToLower(f[1]), f[2])
		if f[1] != strings.ToLower(f[1]) {
			text.WriteString("mode = \"report\"\n")
		}
		if strings.EqualFold(f[1], "inject") {
			text.WriteString("profile = \"azure\"\n")
		}
	}
	return load(t, text.String()+azure).Table
}

// match returns the name of the rule for a URL: "-" for no site, "none" for no rule, else the error.
func match(t testing.TB, table *Table, url string) string {
	t.Helper()
	scheme, rest, _ := strings.Cut(url, "://")
	host, path, _ := strings.Cut(rest, "/")
	a, err := ParseAuthority(host, defaultPort(scheme))
	if err != nil {
		t.Fatal(err)
	}
	site := table.Site(scheme, a)
	if site == nil {
		return "-"
	}
	rule, err := site.Match("/" + path)
	switch {
	case errors.Is(err, ErrDotSegment):
		return "dot"
	case errors.Is(err, ErrAmbiguousPath):
		return "ambiguous"
	case err != nil:
		t.Fatal(err)
	case rule == nil:
		return "none"
	}
	return rule.Name
}

func TestMostSpecificRuleWins(t *testing.T) {
	for name, row := range map[string]struct {
		rules []string
		want  map[string]string // URL -> rule
	}{
		"longest prefix, on segment boundaries": {
			[]string{"root inject https://a.test/", "v2 inject https://a.test/v2/", "deep deny https://a.test/v2/admin/x/", "v20 pass https://a.test/v20"},
			map[string]string{
				"https://a.test/": "root", "https://a.test/v": "root", "https://a.test/studies": "root",
				"https://a.test/v2": "v2", "https://a.test/v2/": "v2", "https://a.test/v2/studies": "v2", "https://a.test/v2x": "root", "https://a.test/v2x/": "root",
				"https://a.test/V2/": "root", "https://a.test/v20": "v20", "https://a.test/v20/v2/": "v20", "https://a.test/x/v2/": "root",
				"https://a.test/v2/admin": "v2", "https://a.test/v2/admin/": "v2", "https://a.test/v2/admin/x": "deep", "https://a.test/v2/admin/x/": "deep",
				"https://a.test/v2/admin/x/y/z": "deep", "https://a.test/v2/admin/xy": "v2",
			},
		},
		"no rule for the rest of a host": {
			[]string{"v2 inject https://a.test/v2/"},
			map[string]string{
				"https://a.test/": "none", "https://a.test/v2x": "none", "https://a.test/v": "none", "https://a.test/v2": "v2", "https://b.test/v2/": "-",
			},
		},
		"exact host before wildcard, whatever the prefix": {
			[]string{"wild inject https://*.example.test/a/long/prefix/", "exact inject https://x.example.test/"},
			map[string]string{
				"https://x.example.test/a/long/prefix/": "exact", "https://y.example.test/a/long/prefix/": "wild", "https://y.example.test/": "none",
			},
		},
		"fallback to the wildcard for paths that no exact rule covers": {
			[]string{"wild inject https://*.example.test/", "wildv3 deny https://*.example.test/v3/", "exact pass https://x.example.test/v2/"},
			map[string]string{
				"https://x.example.test/v2/": "exact", "https://x.example.test/v3/": "wildv3", "https://x.example.test/": "wild", "https://x.example.test/v2x": "wild",
			},
		},
		"a wildcard that denies is not asked where an exact rule covers": {
			[]string{"wild deny https://*.example.test/", "exact inject https://x.example.test/v2/"},
			map[string]string{
				"https://x.example.test/v2/studies": "exact", "https://x.example.test/v3/": "wild", "https://y.example.test/v2/": "wild",
			},
		},
		"a wildcard stands for one label": {
			[]string{"wild inject https://*.example.test/"},
			map[string]string{
				"https://a.example.test/": "wild", "https://a.b.example.test/": "-", "https://example.test/": "-", "https://aexample.test/": "-", "https://example.test.evil/": "-",
			},
		},
		"ports and schemes are different places": {
			[]string{"tls inject https://a.test/", "alt inject https://a.test:8443/", "plain pass http://a.test/", "wild inject https://*.a.test:444/"},
			map[string]string{
				"https://a.test/": "tls", "https://a.test:443/": "tls", "https://a.test:8443/": "alt", "https://a.test:80/": "-", "https://a.test:444/": "-",
				"http://a.test/": "plain", "http://a.test:80/": "plain", "http://a.test:443/": "-", "https://b.a.test:444/": "wild", "https://b.a.test/": "-",
			},
		},
		"hosts in canonical form": {
			[]string{"dot inject https://A.Test./", "ip inject https://192.0.2.1/", "six inject https://[2001:db8:0::1]/", "idn inject https://bücher.test/"},
			map[string]string{
				"https://a.test/": "dot", "https://A.TEST.:443/": "dot", "https://192.0.2.1/": "ip", "https://[::ffff:192.0.2.1]/": "ip", "https://192.0.2.2/": "-",
				"https://[2001:DB8::1]/": "six", "https://[2001:db8::2]/": "-", "https://xn--bcher-kva.test/": "idn",
			},
		},
		"an http rule may have a path": {
			[]string{"a pass http://a.test/x/", "b deny http://a.test/x/y/"},
			map[string]string{"http://a.test/x/z": "a", "http://a.test/x/y": "b", "http://a.test/": "none", "https://a.test/x/": "-"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			// The order of the rules decides nothing.
			for _, rules := range [][]string{row.rules, reversed(row.rules)} {
				table := table(t, rules...)
				got := map[string]string{}
				for url := range row.want {
					got[url] = match(t, table, url)
				}
				if diff := cmp.Diff(row.want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

func reversed(list []string) []string {
	list = slices.Clone(list)
	slices.Reverse(list)
	return list
}

// No path may be one thing to the rules and another to the upstream.
func TestPathsWithTwoReadings(t *testing.T) {
	table := table(t, "v2 inject https://a.test/v2/", "admin deny https://a.test/v2/admin/", "pub pass https://a.test/public/")
	for path, want := range map[string]string{
		// dot segments
		"/v2/../admin":                "dot",
		"/v2/..":                      "dot",
		"/v2/.":                       "dot",
		"/v2/./studies":               "dot",
		"/..":                         "dot",
		"/../v2/":                     "dot",
		"/v2/%2e%2e/admin":            "dot",
		"/v2/%2E%2E/":                 "dot",
		"/v2/.%2e/":                   "dot",
		"/v2/%2e./":                   "dot",
		"/v2/%2e/":                    "dot",
		"/v2/%252e%252e/":             "dot",
		"/v2/%25252e%25252e/":         "dot",
		"/v2/%25%32%65%25%32%65/":     "dot",
		"/v2/..;/public":              "dot",
		"/v2/..;jsessionid=1/":        "dot",
		"/v2/%2e%2e;x/":               "dot",
		"/v2/..%3b/":                  "dot",
		"/v2/..%3bx/":                 "dot",
		`/v2\..\public`:               "dot",
		`/v2/..\public`:               "dot",
		"/v2/..%5cpublic":             "dot",
		"/v2/%2e%2e%5cpublic":         "dot",
		"/v2/..%2fpublic":             "dot",
		"/v2/x%2f..%2fadmin":          "dot",
		"/v2//..//public":             "dot",
		"/public/..%252fv2/":          "dot",
		"/nowhere/../v2/":             "dot",
		"/v2/%252525252525252e%2e/":   "ambiguous", // too deep to follow
		"/v2/" + deep(".", 5) + "./":  "ambiguous",
		"/v2/" + deep(".", 40) + "./": "ambiguous",
		// one rule raw, another one decoded
		"/v2%2fstudies":   "ambiguous",
		"/v2%2Fadmin/":    "ambiguous",
		"/v2/admin%2fx":   "ambiguous",
		"/v2/%61dmin/x":   "ambiguous",
		"/v2/%2561dmin/x": "ambiguous",
		"/v2/admin;x/y":   "ambiguous",
		"/v2;x/studies":   "ambiguous",
		"/v2%3bx/studies": "ambiguous",
		`/v2/admin\x`:     "ambiguous",
		"//v2/studies":    "ambiguous",
		"/v2//admin/x":    "ambiguous",
		"/%76%32/":        "ambiguous",
		"/public%2f":      "ambiguous",
		// one reading only
		"/v2/studies/1.2.840.10008":        "v2",
		"/v2/studies/1.2%2E840":            "v2",
		"/v2/...":                          "v2",
		"/v2/..x/":                         "v2",
		"/v2/x../":                         "v2",
		"/v2/.well-known":                  "v2",
		"/v2/a%20b":                        "v2",
		"/v2/100%":                         "v2",
		"/v2/%zz/%":                        "v2",
		"/v2/a%2fb":                        "v2",
		"/v2/a;b=c":                        "v2",
		"/v2//studies":                     "v2",
		"/v2/studies//":                    "v2",
		"/v2/%E2%80%A6/":                   "v2",
		"/v2/administrators":               "v2",
		"/v2/admin":                        "admin",
		"/v2/admin/%2Fx":                   "admin",
		"/v2/frames/1;transfer-syntax=*/x": "v2",
		"/none%20":                         "none",
		"/none;v2":                         "none",
	} {
		if got := match(t, table, "https://a.test"+path); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
}

// deep escapes a character n times.
func deep(s string, n int) string {
	s = fmt.Sprintf("%%%02x", s[0])
	for range n - 1 {
		s = strings.ReplaceAll(s, "%", "%25")
	}
	return s
}

func TestTLSIsEndedOnlyWhereARuleInjects(t *testing.T) {
	for name, row := range map[string]struct {
		rules      []string
		host       string
		terminated bool
		whole      string // the rule for a tunnel
	}{
		"inject":                           {[]string{"a inject https://a.test/x/"}, "a.test", true, ""},
		"pass":                             {[]string{"a pass https://a.test/"}, "a.test", false, "a"},
		"deny":                             {[]string{"a deny https://a.test/"}, "a.test", false, "a"},
		"pass beside inject":               {[]string{"a pass https://a.test/", "b inject https://a.test/x/"}, "a.test", true, "a"},
		"inject on another port":           {[]string{"a pass https://a.test/", "b inject https://a.test:444/"}, "a.test", false, "a"},
		"report":                           {[]string{"a INJECT https://a.test/"}, "a.test", false, "a"},
		"report with a path":               {[]string{"a INJECT https://a.test/x/"}, "a.test", false, "a"},
		"report with two paths":            {[]string{"a INJECT https://a.test/x/", "b INJECT https://a.test/y/"}, "a.test", false, "a"},
		"report beside inject":             {[]string{"a INJECT https://a.test/", "b inject https://a.test/x/"}, "a.test", true, "a"},
		"wildcard injects":                 {[]string{"w inject https://*.a.test/"}, "b.a.test", true, "w"},
		"wildcard injects, exact part":     {[]string{"w inject https://*.a.test/", "x pass https://b.a.test/y/"}, "b.a.test", true, "w"},
		"wildcard injects, exact all":      {[]string{"w inject https://*.a.test/", "x pass https://b.a.test/"}, "b.a.test", false, "x"},
		"wildcard passes, exact injects":   {[]string{"w pass https://*.a.test/", "x inject https://b.a.test/y/"}, "b.a.test", true, "w"},
		"wildcard in report, exact report": {[]string{"w INJECT https://*.a.test/z/", "x INJECT https://b.a.test/y/"}, "b.a.test", false, "x"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := ParseAuthority(row.host, 443)
			if err != nil {
				t.Fatal(err)
			}
			site := table(t, row.rules...).Site("https", a)
			if site == nil || site.Terminated() != row.terminated {
				t.Fatalf("got %+v, want terminated: %v", site, row.terminated)
			}
			if row.whole == "" {
				return
			}
			if whole := site.Whole(); whole == nil || whole.Name != row.whole {
				t.Errorf("as a whole: got %+v, want rule %q", whole, row.whole)
			}
		})
	}
}

func TestRuleKnowsItsHostAndPrefix(t *testing.T) {
	for url, want := range map[string][3]any{
		"https://A.test":            {"a.test", false, "/"},
		"https://a.test/x":          {"a.test", false, "/x/"},
		"https://*.a.test:444/x/y/": {"a.test", true, "/x/y/"},
		"https://[2001:DB8::1]/x":   {"2001:db8::1", false, "/x/"},
	} {
		c, err := Load(writeConfig(t, fmt.Sprintf("[[rule]]\nname = 'a'\nprofile = 'azure'\nurl = %q\n", url)+azure), variables)
		if err != nil {
			t.Fatal(err)
		}
		host, wildcard := c.Rules[0].Host()
		if got := [3]any{host, wildcard, c.Rules[0].Prefix()}; got != want {
			t.Errorf("%s: got %v, want %v", url, got, want)
		}
	}
}

// The central promise to whoever writes a rule: what it matches is below its prefix, however the upstream reads it.
func FuzzMatchedPathIsBelowThePrefix(f *testing.F) {
	for _, seed := range [][2]string{
		{"https://a.test/v2/", "/v2/studies"},
		{"https://a.test/v2/", "/v2/%2e%2e/x"},
		{"https://a.test/v2/", "/v2/..;/x"},
		{"https://a.test/v2/", `/v2\..\x`},
		{"https://a.test/v2", "/v2"},
		{"https://a.test/v2/admin", "/v2/%2561dmin/"},
		{"https://a.test/a/b/c", "/a//b/c"},
		{"https://a.test/", "*"},
		{"https://a.test/x", "/%252525252e%252525252e/x"},
		{"https://a.test/%0", "0"},
		{"https://a.test/.well-known/", "/.well-known/x"},
		{"https://*.a.test:44/x", ""},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, url, path string) {
		target, err := parseTarget(url)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without words")
			}
			return
		}
		prefix := target.prefix
		if !strings.HasPrefix(prefix, "/") || !strings.HasSuffix(prefix, "/") || strings.ContainsAny(prefix, `%\;`) || strings.Contains(prefix, "//") {
			t.Fatalf("%q: the prefix %q is not plain", url, prefix)
		}
		rule := &Rule{Name: "fuzz", Action: Inject, target: target}
		other := &Rule{Name: "root", Action: Deny, target: target}
		other.target.prefix = "/"
		rules := []*Rule{rule}
		if prefix != "/" && len(path)%2 == 0 { // with and without a rule for the rest
			rules = append(rules, other)
		}
		site := newTable(rules, func(*Rule, *Rule) { t.Fatal("duplicate") }).sites[target.siteKey]
		if got, err := site.Match(prefix); err != nil || got != rule {
			t.Errorf("%q: its own prefix %q: %v, %v", url, prefix, got, err)
		}
		got, err := site.Match(path)
		if err != nil || got != rule {
			return
		}
		for reading, p := range readings(path) {
			if p != strings.TrimSuffix(prefix, "/") && !strings.HasPrefix(p, prefix) && p != "" && (prefix != "/" || p != "*") {
				t.Errorf("%q matches %q, but %s it is %q", prefix, path, reading, p)
			}
			for segment := range strings.SplitSeq(p, "/") {
				if segment == "." || segment == ".." {
					t.Errorf("%q matches %q, but %s it is %q", prefix, path, reading, p)
				}
			}
		}
	})
}

// readings are what upstreams may make of a path. They are written anew here, apart from the code under test.
func readings(path string) map[string]string {
	decoded := path
	for {
		next := unescapeOnce(decoded)
		if next == decoded {
			break
		}
		decoded = next
	}
	lenient := strings.NewReplacer(`\`, "/").Replace(decoded)
	var kept []string
	for i, segment := range strings.Split(lenient, "/") {
		segment = strings.Split(segment, ";")[0]
		if segment != "" || i == 0 {
			kept = append(kept, segment)
		}
	}
	lenient = strings.Join(kept, "/")
	if strings.HasSuffix(decoded, "/") {
		lenient += "/"
	}
	return map[string]string{"raw": path, "decoded": decoded, "read leniently": lenient}
}

func unescapeOnce(s string) string {
	var out []byte
	for s != "" {
		var c byte
		if n, err := fmt.Sscanf(s[:min(3, len(s))], "%%%02x", &c); n == 1 && err == nil && len(s) >= 3 && !strings.ContainsAny(s[:3], "+- ") {
			out, s = append(out, c), s[3:]
			continue
		}
		out, s = append(out, s[0]), s[1:]
	}
	return string(out)
}

// manyRules returns a table of n hosts with three rules each.
func manyRules(t testing.TB, n int) *Table {
	var list []*Rule
	for i := range n {
		for _, path := range []string{"/", "/dicom-web/", "/dicom-web/admin/"} {
			r := defaultRule()
			var err error
			if r.target, err = parseTarget(fmt.Sprintf("https://host%d.example.test%s", i, path)); err != nil {
				t.Fatal(err)
			}
			list = append(list, r)
		}
	}
	return newTable(list, func(r, _ *Rule) { t.Fatalf("duplicate %v", r.target) })
}

func TestLookupAllocatesNothing(t *testing.T) {
	table := manyRules(t, 3334)
	for path, want := range map[string]string{
		"/dicom-web/studies/1.2.840.113619.2.55/series": "/dicom-web/",
		"/dicom-web/admin/x":                            "/dicom-web/admin/",
		"/elsewhere":                                    "/",
	} {
		a, err := ParseAuthority("host7.example.test", 443)
		if err != nil {
			t.Fatal(err)
		}
		var rule *Rule
		allocated := testing.AllocsPerRun(100, func() { rule, _ = table.Site("https", a).Match(path) })
		if rule == nil || rule.Prefix() != want {
			t.Errorf("%s: got %v, want the rule for %s", path, rule, want)
		}
		if allocated != 0 {
			t.Errorf("%s: %v allocations, want none", path, allocated)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{4, 3334} { // hosts with three rules each
		b.Run(fmt.Sprintf("rules=%d", 3*n), func(b *testing.B) {
			table := manyRules(b, n)
			a, err := ParseAuthority(fmt.Sprintf("host%d.example.test", n-1), 443)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if r, err := table.Site("https", a).Match("/dicom-web/studies/1.2.840.113619.2.55/series/1.2/instances/1.3/frames/1"); r == nil || err != nil {
					b.Fatal(r, err)
				}
			}
		})
	}
}

// Load must stand any text: it says what is wrong, and does not fall over.
func FuzzLoad(f *testing.F) {
	for _, seed := range []string{
		minimal, "rule = 1", "[rule]", "[[profile]]", "[profile]\na = 1", "[profile.a]\ntype = 1", "proxy.listen = []", "[[rule]]\nheaders = { a = 1 }", "[[rule]]\nmethods = [[]]",
		"[proxy]\nallow_clients = [{}]", "[token]\nmax_attempts = 99999999999", "a = 1979-05-27", "\ufeff[ca]", "[proxy]\npassword_file = 'x'", "[[rule]]\nurl = \"https://${A:-b}/\"",
		"[profile.a]\ntype='client_credentials'\nresource=[1]\nparams=1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Load(writeConfig(t, text), func(name string) (string, bool) { return name, len(name)%2 == 0 })
		if err == nil {
			if c == nil || len(c.Rules) == 0 || c.Table == nil {
				t.Errorf("got %+v without an error", c)
			}
			return
		}
		problems, ok := errors.AsType[Problems](err)
		if !ok || c != nil || len(problems) == 0 {
			t.Fatalf("got %+v, %v, want problems", c, err)
		}
		last := strings.Count(text, "\n") + 1
		for i, p := range problems {
			if p.What == "" || p.File == "" || p.Line < 0 || p.Line > last {
				t.Errorf("got %+v in %d lines", p, last)
			}
			if i > 0 && p.Line < problems[i-1].Line {
				t.Errorf("%v comes after %v", p, problems[i-1])
			}
			if utf8.ValidString(text) && !utf8.ValidString(p.String()) {
				t.Errorf("%q is not UTF-8", p.String())
			}
		}
	})
}
