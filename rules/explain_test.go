package rules

import (
	"strings"
	"testing"
)

// sites is a config with each kind of decision. What the gateway does with such
// rules is compared with Explain in package gateway.
const sites = `
[[rule]]
name    = "archive"
url     = "https://dicom.example.org/dicom-web/"
profile = "azure"
[[rule]]
name    = "locked"
url     = "https://dicom.example.org/dicom-web/locked/"
action  = "deny"
[[rule]]
name    = "query"
url     = "https://dicom.example.org/query/"
profile = "azure"
methods = ["GET", "HEAD"]
[[rule]]
name    = "open"
url     = "https://dicom.example.org/open/"
action  = "pass"
[[rule]]
name    = "trial"
url     = "https://dicom.example.org/trial/"
profile = "azure"
mode    = "report"
[[rule]]
name    = "through"
url     = "https://through.example.org/"
action  = "pass"
[[rule]]
name    = "denied"
url     = "https://denied.example.org/"
action  = "deny"
[[rule]]
name    = "watched"
url     = "https://watched.example.org:8443/dicom-web/"
profile = "azure"
mode    = "report"
[[rule]]
name    = "cloud"
url     = "https://*.cloud.example.org/dicom/"
profile = "azure"
[[rule]]
name    = "plain"
url     = "http://plain.example.org/open/"
action  = "pass"
methods = ["GET"]
[[rule]]
name    = "plain-locked"
url     = "http://plain.example.org/locked/"
action  = "deny"
` + azure

func TestExplainTellsWhatWouldBeDoneAndWhy(t *testing.T) {
	c := load(t, sites)
	for _, row := range []struct {
		name, request string
		rule, profile string
		would, code   string
		why           string // a part of it
	}{
		{"inject", "GET https://dicom.example.org/dicom-web/studies?limit=1", "archive", "azure", "inject", "", `the credential of profile "azure"`},
		{"a prefix without its slash", "GET https://dicom.example.org/dicom-web", "archive", "azure", "inject", "", "most specific"},
		{"a host in other letters, its port written", "GET https://DICOM.Example.org.:443/dicom-web/", "archive", "azure", "inject", "", "most specific"},
		{"a method in lower case", "delete https://dicom.example.org/dicom-web/studies/1", "archive", "azure", "inject", "", "most specific"},
		{"a wildcard", "GET https://eu.cloud.example.org/dicom/studies", "cloud", "azure", "inject", "", "https://*.cloud.example.org/dicom/"},
		{"deny below inject", "GET https://dicom.example.org/dicom-web/locked/1", "locked", "", "refuse", "rule_denied", "action is deny"},
		{"deny in other letters", "GET https://dicom.example.org/DICOM-web/Locked/1", "locked", "", "refuse", "rule_denied", "action is deny"},
		{"a method that the rule does not have", "POST https://dicom.example.org/query/studies", "query", "azure", "refuse", "method_not_allowed", "its methods are GET, HEAD"},
		{"pass beside inject", "GET https://dicom.example.org/open/x", "open", "", "pass", "", "goes on as it is"},
		{"report beside inject", "GET https://dicom.example.org/trial/studies", "trial", "azure", "pass", "", `mode "report"`},
		{"a path that no rule covers", "GET https://dicom.example.org/", "", "", "refuse", "no_rule", "none covers the path /"},
		{"no path at all", "GET https://dicom.example.org", "", "", "refuse", "no_rule", "none covers the path /"},
		{"a path that begins like a prefix", "GET https://dicom.example.org/dicom-web2/", "", "", "refuse", "no_rule", "none covers the path /dicom-web2/"},
		{"a path outside of a wildcard's", "GET https://eu.cloud.example.org/other", "", "", "refuse", "no_rule", "none covers"},
		{"two labels for a wildcard", "GET https://a.b.cloud.example.org/dicom/", "", "", "refuse", "no_rule", "no rule names a.b.cloud.example.org:443"},
		{"a host that no rule names", "GET https://other.example.org/", "", "", "refuse", "no_rule", "no rule names other.example.org:443"},
		{"another port", "GET https://dicom.example.org:8443/dicom-web/", "", "", "refuse", "no_rule", "no rule names dicom.example.org:8443"},
		{"dot segments", "GET https://dicom.example.org/dicom-web/../open/x", "", "", "refuse", "bad_request", "dot segment"},
		{"encoded dot segments", "GET https://dicom.example.org/dicom-web/%252e%252E/x", "", "", "refuse", "bad_request", "dot segment"},
		{"backslashes", `GET https://dicom.example.org/dicom-web\..\open`, "", "", "refuse", "bad_request", "dot segment"},
		{"a path with two meanings", "GET https://dicom.example.org/dicom-web%2flocked/1", "", "", "refuse", "bad_request", "different rules"},
		{"a tunnel", "GET https://through.example.org/any/../path", "through", "", "tunnel", "", "does not look inside"},
		{"a tunnel hides the method", "PATCH https://through.example.org/", "through", "", "tunnel", "", "does not look inside"},
		{"a host denied whole", "GET https://denied.example.org/x", "denied", "", "refuse", "rule_denied", "action is deny"},
		{"report alone on its host", "GET https://watched.example.org:8443/dicom-web/studies", "watched", "azure", "tunnel", "", `mode "report"`},
		{"report, whose path nobody sees", "POST https://watched.example.org:8443/other", "watched", "azure", "tunnel", "", `mode "report"`},
		{"http", "GET http://plain.example.org/open/x", "plain", "", "pass", "", "goes on as it is"},
		{"http, denied", "GET http://plain.example.org:80/locked/x", "plain-locked", "", "refuse", "rule_denied", "action is deny"},
		{"http, a method that the rule does not have", "PUT http://plain.example.org/open/x", "plain", "", "refuse", "method_not_allowed", "its methods are GET"},
		{"http, dot segments", "GET http://plain.example.org/open/%2e%2e/locked/", "", "", "refuse", "bad_request", "dot segment"},
		{"http, a path that no rule covers", "GET http://plain.example.org/", "", "", "refuse", "no_rule", "none covers"},
		{"http, a host with https rules only", "GET http://dicom.example.org/dicom-web/", "", "", "refuse", "no_rule", "no rule names dicom.example.org:80"},
		{"https, a host with http rules only", "GET https://plain.example.org/open/x", "", "", "refuse", "no_rule", "no rule names plain.example.org:443"},
	} {
		t.Run(row.name, func(t *testing.T) {
			method, url, _ := strings.Cut(row.request, " ")
			got, err := c.Explain(method, url)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(got.Why, row.why) {
				t.Errorf("got the reason %q, want one with %q", got.Why, row.why)
			}
			want := Explanation{Method: strings.ToUpper(method), URL: url, Rule: row.rule, Profile: row.profile, Would: row.would, Why: got.Why, Code: row.code}
			if got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestExplainWithUnmatchedPass(t *testing.T) {
	c := load(t, "[proxy]\nunmatched = \"pass\"\n"+sites+`
[[rule]]
name   = "odd"
url    = "http://odd.example.org:443/"
action = "deny"
`)
	for _, row := range []struct{ name, url, would, code string }{
		{"a host that no rule names", "https://other.example.org/x", "tunnel", ""},
		{"a host that no rule names, http", "http://other.example.org/x", "pass", ""},
		{"a host with https rules only, http", "http://dicom.example.org/x", "pass", ""},
		{"no way around an http rule", "https://odd.example.org/", "refuse", "no_rule"},
		{"a path of a rule's host", "https://dicom.example.org/x", "refuse", "no_rule"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := c.Explain("GET", row.url)
			if err != nil || got.Would != row.would || got.Code != row.code || got.Rule != "" || got.Why == "" {
				t.Errorf("got %+v, %v, want %s %s and no rule", got, err, row.would, row.code)
			}
		})
	}
}

func TestExplainRefusesWhatIsNoURL(t *testing.T) {
	c := load(t, sites)
	for _, url := range []string{
		"", "archive", "dicom.example.org/dicom-web/", "dicom.example.org:443", "/dicom-web/studies", "ftp://dicom.example.org/", "https:dicom.example.org",
		"https://", "https:///dicom-web/", "https://dicom.example.org:0/", "https://dicom.example.org:/", "https://dicom.example.org:65536/",
		"https://*.cloud.example.org/", "https://dicom example.org/", "https://dicom.example.org/%zz", "https://0x7f.1/", "https://2130706433/",
		"https://user@dicom.example.org/dicom-web/", "https://user:pass@dicom.example.org/dicom-web/", "https://dicom.example.org/\n", "://",
	} {
		if got, err := c.Explain("GET", url); err == nil {
			t.Errorf("%q: got %+v, want an error", url, got)
		} else if strings.ContainsAny(err.Error(), "\n\r") {
			t.Errorf("%q: the error has more than one line: %v", url, err)
		}
	}
}
