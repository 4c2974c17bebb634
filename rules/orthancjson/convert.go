// Package orthancjson knows the orthanc.json. [Convert] turns the OAuth settings
// in one into a gateway.toml: those of the Python plugin (section DicomWebOAuth)
// and those of Orthanc's Google Cloud Platform plugin (section
// GoogleCloudPlatform); it reads no file, and whether the result holds is for
// package rules to say. [NewSettings] makes what an orthanc.json needs to use the
// gateway. The package asks no network and keeps no state.
package orthancjson

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

const program = "orthanc-dicomweb-oauth"

// Convert returns the gateway.toml that does what the sections DicomWebOAuth and
// GoogleCloudPlatform of an orthanc.json say. ${VAR} stays a variable. Relative
// paths are taken as relative to dir, the folder of the orthanc.json; with dir
// empty they stay as they are, and are then relative to the gateway.toml.
//
// What could not be decided is a comment "# decide: ..." right before the thing,
// and one of the notes. The error names every key that must be changed first.
func Convert(orthancJSON []byte, dir string) (toml []byte, notes []string, err error) {
	c := &converter{dir: dir, names: map[string]bool{}, urls: map[string]string{}}
	top, err := c.parse(orthancJSON)
	if err != nil {
		return nil, nil, err
	}
	plugin, google := c.object(top, "DicomWebOAuth"), c.object(top, "GoogleCloudPlatform")
	c.servers = c.object(c.object(top, "DicomWeb"), "Servers")
	if plugin == nil && google == nil && c.problems == nil {
		return nil, nil, errors.New(`there is no section "DicomWebOAuth" and no section "GoogleCloudPlatform"; ` +
			"give the file that has one (Orthanc itself merges all files of a folder)")
	}
	if plugin != nil {
		c.sections = append(c.sections, plugin.path)
		c.pythonPlugin(plugin)
	}
	if google != nil {
		c.sections = append(c.sections, google.path)
		c.googlePlugin(google)
	}
	c.orthanc(top)
	if c.problems != nil {
		said := map[string]bool{} // a key may have been asked for twice
		return nil, nil, errors.Join(slices.DeleteFunc(c.problems, func(p error) bool {
			again := said[p.Error()]
			said[p.Error()] = true
			return again
		})...)
	}
	body, err := c.body()
	if err != nil {
		return nil, nil, err
	}
	return append(c.header(string(body)), body...), c.notes, nil
}

type converter struct {
	dir      string
	sections []string
	servers  *object // DicomWeb.Servers; may be nil

	blocks    []*block
	names     map[string]bool   // taken names of rules and profiles
	urls      map[string]string // canonical URL -> name of its rule
	variables []string
	inClear   bool // a secret stands in the output
	global    table
	notes     []string
	problems  []error
}

// block is what one server becomes: a rule and its profile.
type block struct {
	c             *converter
	from          *object
	name          string
	url           string // as written in the orthanc.json
	rule, profile table
	off           string // why the block is commented out; empty: it is not
}

func (c *converter) problem(key, what, remedy string) {
	c.problems = append(c.problems, fmt.Errorf("%s: %s; %s", key, what, remedy))
}

func (c *converter) note(key, text string) { c.notes = append(c.notes, key+": "+text) }

// begin starts the block of a server or account.
func (c *converter) begin(name string, from *object) *block {
	b := &block{c: c, from: from, name: c.uniqueName(name)}
	b.rule.header = "[[rule]]"
	b.profile.header = "[profile." + bareKey(b.name) + "]"
	if b.name != name {
		b.decide(&b.rule, "", fmt.Sprintf("the name was %q; the server in DicomWeb.Servers may keep that", name))
	}
	b.rule.set("name", quote(b.name))
	c.blocks = append(c.blocks, b)
	return b
}

// uniqueName returns name with what a name cannot have replaced, different from
// all before it.
func (c *converter) uniqueName(name string) string {
	valid := strings.Map(func(r rune) rune {
		if r < 0x80 && (isAlphanumeric(byte(r)) || strings.ContainsRune("._-", r)) {
			return r
		}
		return '-'
	}, name)
	valid = cmp.Or(strings.Trim(valid, "-"), "server")
	unique := valid
	for n := 2; c.names[unique]; n++ {
		unique = fmt.Sprintf("%s-%d", valid, n)
	}
	c.names[unique] = true
	return unique
}

// decide puts a comment before what comes next in t, and a note. Key is the key
// in the orthanc.json; empty for the server as a whole.
func (b *block) decide(t *table, key, text string) {
	t.comment("decide: " + text)
	b.c.note(b.path(key), text)
}

func (b *block) path(key string) string {
	if key == "" {
		return b.from.path
	}
	return b.from.path + "." + key
}

// setURL writes the rule's URL and what is wrong with it.
func (b *block) setURL(key, raw string) {
	b.url = raw
	canonical, err := canonicalURL(raw)
	switch first := b.c.urls[canonical]; {
	case err != nil:
		b.turnOff(key, err.Error())
	case first != "":
		b.turnOff(key, fmt.Sprintf("is the same URL as that of %q, and one URL has one credential; keep one of the two", first))
	default:
		b.c.urls[canonical] = b.name
	}
	b.rule.set("url", b.c.value(withoutUser(raw)))
	b.rule.set("profile", quote(b.name))
	if known := b.c.object(b.c.servers, b.from.name); known != nil {
		if now, _ := known.values["Url"].(string); now != "" && now != raw && b.off == "" {
			b.c.note(known.path+".Url", fmt.Sprintf("is %q; make it %q, the real server, as in the rule", withoutUser(now), withoutUser(raw)))
		}
	}
}

// withoutUser hides user and password of a URL.
func withoutUser(raw string) string {
	scheme, rest, found := strings.Cut(raw, "://")
	authority, path, _ := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(authority, '@'); found && i >= 0 {
		return scheme + "://…@" + authority[i+1:] + "/" + path
	}
	return raw
}

// turnOff comments the whole block out.
func (b *block) turnOff(key, reason string) {
	if b.off == "" {
		b.off = b.path(key) + ": " + reason
		b.c.note(b.path(key), reason+" (commented out)")
	}
}

// rest notes every key that nobody has read.
func (b *block) rest(why map[string]string) {
	for _, key := range b.from.unread() {
		if reason := why[key]; reason != "" {
			b.rule.comment(key + " " + reason)
			b.c.note(b.path(key), reason)
		} else {
			b.decide(&b.rule, key, unknown(key))
		}
	}
}

// unknown says that a key was not taken over, and which one was perhaps meant.
func unknown(key string) string {
	text := fmt.Sprintf("%q is unknown and was not taken over", key)
	for _, known := range knownKeys {
		if strings.EqualFold(key, known) {
			return text + fmt.Sprintf("; did you mean %q?", known)
		}
	}
	return text
}

// value writes a string for the gateway: variables stay, any other $ is escaped.
func (c *converter) value(s string) string {
	e := escapeDollars(s)
	for _, v := range e.variables {
		if !slices.Contains(c.variables, v) {
			c.variables = append(c.variables, v)
		}
	}
	return quote(e.text)
}

// secret writes a secret, and advises against one in clear.
func (b *block) secret(key, tomlKey, s string) {
	if escapeDollars(s).literal {
		b.c.inClear = true
		b.profile.comment(fmt.Sprintf("better: %s_file = %q, so that the secret stands in a file of its own", tomlKey, tomlKey+".txt"))
		b.c.note(b.path(key), fmt.Sprintf("stands in clear in the gateway.toml; better: %s_file", tomlKey))
	}
	b.profile.set(tomlKey, b.c.value(s))
}

// file writes a path.
func (b *block) file(t *table, key, tomlKey, path string) {
	drive := len(path) > 2 && path[1] == ':' && strings.ContainsRune(`\/`, rune(path[2]))
	if !filepath.IsAbs(path) && !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "${") && !drive {
		where := "relative to this file now"
		if b.c.dir != "" {
			path, where = filepath.Join(b.c.dir, path), "beside the orthanc.json now"
		}
		b.decide(t, key, fmt.Sprintf("%s was relative to the folder that Orthanc was started in; %s", key, where))
	}
	t.set(tomlKey, b.c.value(path))
}

// orthanc looks at what Orthanc itself was told about its outgoing HTTP.
func (c *converter) orthanc(top *object) {
	if proxy, _ := top.values["HttpProxy"].(string); proxy != "" && !strings.HasSuffix(proxy, "127.0.0.1:3128") && !strings.HasSuffix(proxy, "localhost:3128") {
		_, host, found := strings.Cut(proxy, "@")
		if !found {
			_, host, found = strings.Cut(proxy, "://")
		}
		if !found {
			host = proxy
		}
		text := "Orthanc's HttpProxy was another proxy. If the gateway is to go through it, set upstream_proxy under [proxy]"
		c.note("HttpProxy", text)
		c.global.comment("decide: " + text + ":")
		if strings.Contains(proxy, "@") {
			host = "USER:PASSWORD@" + host
		}
		c.global.comment("[proxy]")
		c.global.comment("upstream_proxy = " + c.value("http://"+host))
	}
	if ca, _ := top.values["HttpsCACertificates"].(string); ca != "" && !slices.Contains(systemBundles, ca) {
		text := fmt.Sprintf("Orthanc's HttpsCACertificates was %q; the gateway trusts the system's CAs. "+
			"If a DICOMweb server has a certificate of a CA of yours, give its rule ca_file", ca)
		c.note("HttpsCACertificates", text)
		c.global.comment("decide: " + text)
	}
	if verify, isBool := top.values["HttpsVerifyPeers"].(bool); isBool && !verify {
		text := "Orthanc's HttpsVerifyPeers was false; the gateway always verifies. " +
			"If a DICOMweb server has a certificate of a CA of yours, give its rule ca_file. Orthanc can verify again, too"
		c.note("HttpsVerifyPeers", text)
		c.global.comment("decide: " + text)
	}
}

// systemBundles are where systems have the CAs that the gateway trusts anyway.
var systemBundles = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem",
}

// header tells what body was made from, and what it needs.
func (c *converter) header(body string) []byte {
	var active strings.Builder
	for line := range strings.Lines(body) {
		if !strings.HasPrefix(line, "#") {
			active.WriteString(line)
		}
	}
	variables := slices.DeleteFunc(c.variables, func(v string) bool {
		return !strings.Contains(active.String(), "${"+v+"}") && !strings.Contains(active.String(), "${"+v+":-")
	})
	var t table
	t.comment(fmt.Sprintf("Made by %q from %s of an orthanc.json.", program+" import", strings.Join(c.sections, " and ")))
	t.comment("")
	t.comment(`In the orthanc.json these two lines take the place of the plugin (remove it from "Plugins", and its section):`)
	t.comment(`  "HttpProxy": "http://127.0.0.1:3128",`)
	t.comment(`  "HttpsCACertificates": "/path/to/ca/bundle.pem"`)
	t.comment(fmt.Sprintf("DicomWeb.Servers names each server by its real URL, the url of its rule; %q prints all that, ready to merge.", program+" orthanc config"))
	if len(variables) > 0 {
		t.comment("")
		t.comment("The gateway needs these variables in its environment: " + strings.Join(variables, ", "))
	}
	if c.inClear {
		t.comment("")
		t.comment("This file holds a secret in clear: chmod 600 it, or " + `"` + program + ` check" refuses it.`)
		c.note("gateway.toml", "holds a secret in clear: chmod 600 it")
	}
	if c.global.lines != nil {
		t.comment("")
		t.lines = append(t.lines, c.global.lines...)
	}
	return []byte(t.String())
}

func (c *converter) body() ([]byte, error) {
	var text strings.Builder
	var reasons []error
	for _, b := range c.blocks {
		text.WriteByte('\n')
		both := b.rule.String() + "\n" + b.profile.String()
		if b.off == "" {
			text.WriteString(both)
			continue
		}
		reasons = append(reasons, errors.New(b.off))
		var reason table
		reason.comment("decide: " + b.off)
		text.WriteString(reason.String())
		for line := range strings.Lines(both) {
			text.WriteString(strings.TrimSpace("# "+line) + "\n")
		}
	}
	if len(reasons) == len(c.blocks) {
		if reasons == nil {
			return nil, fmt.Errorf("%s: names no server; there is nothing to do", strings.Join(c.sections, " and "))
		}
		return nil, errors.Join(reasons...)
	}
	return []byte(text.String()), nil
}
