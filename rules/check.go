package rules

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"orthanc-dicomweb-oauth/token"
)

// check validates what decoded well, and builds the table.
func (d *decoder) check(c *Config) {
	d.checkProxy(&c.Proxy)
	d.checkAdmin(&c.Admin)
	d.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	d.oneOf("log.format", c.Log.Format, "auto", "text", "json")
	if c.Log.Audit == "" {
		d.problem("log.audit", "is empty", `write "off" to have no audit log`)
	}
	d.auditKey(c.Log.AuditKeyFile)
	if n := c.Token.MaxAttempts; n < 1 || n > 10 {
		d.problem("token.max_attempts", fmt.Sprintf("%d is not between 1 and 10", n), "")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Profiles)) {
		key := "profile." + name
		if !validName(name) {
			d.problem(key, "a profile's name has letters, digits, '.', '_' and '-' only", "")
		}
		if s := c.Profiles[name].Settings; s != nil {
			s.Check(func(k, what, hint string) { d.problem(key+"."+k, what, hint) })
		}
	}
	d.checkRules(c)
}

func (d *decoder) checkProxy(p *Proxy) {
	loopback := d.listenAddress("proxy.listen", p.Listen)
	d.bothOrNone("proxy", "tls_cert", string(p.TLSCert), "tls_key", string(p.TLSKey))
	d.keyPair("proxy.tls_cert", p.TLSCert, p.TLSKey)
	d.bothOrNone("proxy", "username", p.Username, "password", present(p.Password))
	if strings.Contains(p.Username, ":") {
		d.problem("proxy.username", "must not contain a colon", "RFC 7617 ends the user name at the first colon")
	}
	if !loopback && len(p.AllowClients) == 0 && p.Password.IsZero() {
		d.problem("proxy.listen", fmt.Sprintf("%q can be reached from other machines, and whoever reaches it may use your credentials", p.Listen),
			`set allow_clients = ["ADDRESS-OF-ORTHANC/32"], or username and password, or listen on 127.0.0.1`)
	}
	d.oneOf("proxy.unmatched", p.Unmatched, "deny", "pass")
	if p.MaxConnections < 1 {
		d.problem("proxy.max_connections", "must be at least 1", "Orthanc opens up to 60 connections at once")
	}
	if !p.UpstreamProxy.Empty() {
		u, err := url.Parse(p.UpstreamProxy.Reveal())
		if err != nil || u.Scheme != "http" || u.Host == "" || u.Port() == "" {
			d.problem("proxy.upstream_proxy", "is not an http:// URL with host and port", "write http://user:pass@proxy.example.org:8080")
		}
	}
}

func (d *decoder) checkAdmin(a *Admin) {
	d.bothOrNone("admin", "username", a.Username, "password", present(a.Password))
	if a.Listen == "" {
		return
	}
	if !d.listenAddress("admin.listen", a.Listen) && a.Password.IsZero() {
		d.problem("admin.listen", fmt.Sprintf("%q can be reached from other machines", a.Listen),
			"set username and password under [admin], or listen on 127.0.0.1")
	}
}

// listenAddress reports whether the address is on loopback.
func (d *decoder) listenAddress(key, address string) (loopback bool) {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		d.problem(key, fmt.Sprintf("%q is not host:port", address), `write it as "127.0.0.1:PORT"`)
		return true
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func (d *decoder) checkRules(c *Config) {
	if len(c.Rules) == 0 {
		d.problem("", "there is no [[rule]], so there is nothing to do",
			`add a [[rule]] with name, url and profile`)
	}
	names := map[string]bool{}
	index := map[*Rule]string{}
	var good []*Rule
	for i, r := range c.Rules {
		key := fmt.Sprintf("rule[%d]", i)
		index[r] = key
		r.line = d.lines[key+".url"]
		switch {
		case r.Name == "":
			d.problem(key+".name", "is missing", `give the rule a name of its own, such as "azure-dicom"`)
		case !validName(r.Name):
			d.problem(key+".name", "a rule's name has letters, digits, '.', '_' and '-' only", "")
		case names[r.Name]:
			d.problem(key+".name", fmt.Sprintf("%q is taken by an earlier rule", r.Name), "names are unique")
		}
		names[r.Name] = true
		d.checkRule(key, r, c)
		if r.URL == "" {
			d.problem(key+".url", "is missing", "copy the Url of the server from DicomWeb.Servers")
			continue
		}
		var err error
		if r.target, err = parseTarget(r.URL); err != nil {
			d.problem(key+".url", err.Error(), "write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/")
			continue
		}
		if r.target.scheme == "http" && r.Action == Inject {
			d.problem(key+".url", "a credential is never sent over http://", "use https://, or action = \"pass\" or \"deny\"")
			continue
		}
		good = append(good, r)
	}
	c.Table = newTable(good, func(r, earlier *Rule) {
		d.problem(index[r]+".url", fmt.Sprintf("is the same URL as that of rule %q", earlier.Name), "remove one of the two")
	})
	for _, r := range good {
		d.checkVisible(index[r], r, c.Table)
	}
}

func (d *decoder) checkRule(key string, r *Rule, c *Config) {
	d.oneOf(key+".action", string(r.Action), string(Inject), string(Pass), string(Deny))
	d.oneOf(key+".mode", r.Mode, "enforce", "report")
	typo := !slices.Contains([]Action{Inject, Pass, Deny}, r.Action)
	if typo {
		r.Action = Inject // what would follow from it is no news
	}
	switch {
	case r.Action == Inject && r.Profile == "" && !typo:
		d.problem(key+".profile", "is missing", "name the [profile.NAME] whose credential this rule injects")
	case r.Action != Inject && r.Profile != "":
		d.problem(key+".profile", fmt.Sprintf("has no meaning for action %q", r.Action), "remove it, or use action = \"inject\"")
	case r.Profile != "" && c.Profiles[r.Profile] == nil:
		hint := DidYouMean(r.Profile, slices.Sorted(maps.Keys(c.Profiles)))
		d.problem(key+".profile", fmt.Sprintf("there is no [profile.%s]", r.Profile), cmp.Or(hint, "add the table"))
	}
	if len(r.Methods) == 0 {
		d.problem(key+".methods", "is empty", "leave it out for the usual methods")
	}
	for i, m := range r.Methods {
		switch m {
		case "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS":
		default:
			d.problem(fmt.Sprintf("%s.methods[%d]", key, i), fmt.Sprintf("%q is not a method that DICOMweb uses", m),
				"methods are upper case: GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
		if what := badHeader(name, r.Headers[name].Reveal()); what != "" {
			d.problem(key+".headers."+name, what, "")
		}
	}
	d.certPool(key+".ca_file", r.CAFile)
	d.bothOrNone(key, "client_cert", string(r.ClientCert), "client_key", string(r.ClientKey))
	d.keyPair(key+".client_cert", r.ClientCert, r.ClientKey)
}

// checkVisible refuses keys of a rule that cannot work because nobody sees
// inside the TLS of its host.
func (d *decoder) checkVisible(key string, r *Rule, t *Table) {
	if r.target.scheme == "http" || r.Action == Inject || t.sites[r.target.siteKey].terminated {
		return
	}
	hint := "TLS of a host without an inject rule is not terminated; remove this, or add an inject rule for the host"
	if r.target.prefix != "/" {
		d.problem(key+".url", fmt.Sprintf("nobody can see the path %s of this host", r.target.prefix), hint)
	}
	for name, given := range map[string]bool{
		"headers":     len(r.Headers) > 0,
		"ca_file":     r.CAFile != "",
		"client_cert": r.ClientCert != "",
		"methods":     !slices.Equal(r.Methods, defaultRule().Methods),
	} {
		if given {
			d.problem(key+"."+name, "has no effect inside a tunnel", hint)
		}
	}
}

// badHeader says why a static header is refused: the proxy owns it, or it
// cannot be written.
func badHeader(name, value string) string {
	if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.!#$%&'*+^`|~") != "" {
		return "is not a header name"
	}
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return "the value has a control character"
		}
	}
	switch lower := strings.ToLower(name); lower {
	case "authorization":
		return "the profile sets this header"
	case "host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect",
		"proxy-authorization", "proxy-connection", "forwarded", "via":
		return "the gateway owns this header"
	default:
		if strings.HasPrefix(lower, "x-forwarded-") {
			return "the gateway owns this header"
		}
	}
	return ""
}

func (d *decoder) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		d.problem(key, fmt.Sprintf("%q is not one of %s", value, strings.Join(allowed, ", ")), DidYouMean(value, allowed))
	}
}

func (d *decoder) bothOrNone(table, a, aValue, b, bValue string) {
	if (aValue == "") != (bValue == "") {
		if aValue == "" {
			a, b = b, a
		}
		d.problem(table+"."+b, "is missing", fmt.Sprintf("%s and %s go together", a, b))
	}
}

func present(s token.SecretSource) string {
	if s.IsZero() {
		return ""
	}
	return "given"
}

func (d *decoder) certPool(key string, f token.File) {
	if f == "" {
		return
	}
	if _, err := f.CertPool(); err != nil {
		d.problem(key, err.Error(), "give a PEM file with CA certificates")
	}
}

func (d *decoder) keyPair(key string, cert token.File, priv token.PrivateFile) {
	if cert == "" || priv == "" {
		return
	}
	if _, err := tls.LoadX509KeyPair(string(cert), string(priv)); err != nil {
		d.problem(key, err.Error(), "give a PEM certificate (chain) and its private key")
	}
}

// minAuditKey is the length of SHA-256: a shorter key would be the weakest part.
const minAuditKey = 32

func (d *decoder) auditKey(f token.PrivateFile) {
	if f == "" {
		return
	}
	const key, hint = "log.audit_key_file", "make it with: head -c 32 /dev/urandom > FILE"
	if text, err := os.ReadFile(string(f)); err != nil {
		d.problem(key, err.Error(), hint)
	} else if len(text) < minAuditKey {
		d.problem(key, fmt.Sprintf("the file has %d bytes, want at least %d", len(text), minAuditKey), hint)
	}
}

// checkModes refuses secrets that other users of the machine can read.
func (d *decoder) checkModes(c *Config) {
	for _, f := range d.files {
		if _, err := token.SecretFile(f.path).Read(); err != nil {
			d.problem(f.key, err.Error(), "the file must exist, hold the secret, and be readable for the gateway's user")
			continue
		}
		d.checkMode(f.key, f.path, c)
	}
	for _, f := range d.private {
		d.checkMode(f.key, f.path, c)
	}
	for _, key := range d.inClear {
		if secretKey(key, c) {
			d.checkMode(key, c.Path, c)
			return // one problem for the file is enough
		}
	}
}

// secretKey tells true secrets from values that are merely never shown: a proxy
// URL without a password, a static header that is no key.
func secretKey(key string, c *Config) bool {
	if key == "proxy.upstream_proxy" {
		return strings.Contains(c.Proxy.UpstreamProxy.Reveal(), "@")
	}
	_, header, isHeader := strings.Cut(key, ".headers.")
	if !isHeader {
		return true
	}
	header = strings.ToLower(header)
	return slices.ContainsFunc([]string{"key", "token", "secret", "auth", "password", "cookie"},
		func(word string) bool { return strings.Contains(header, word) })
}

func (d *decoder) checkMode(key, path string, c *Config) {
	info, err := os.Stat(path)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) { // reported where the file is read
			d.problem(key, err.Error(), "")
		}
		return
	}
	if runtime.GOOS == "windows" || info.Mode().Perm()&0o077 == 0 || c.Proxy.PermissiveModes || d.credential(path) {
		return
	}
	d.problem(key, fmt.Sprintf("holds a secret in %s, which other users can read (mode %04o)", path, info.Mode().Perm()),
		fmt.Sprintf("chmod 600 %s; for a mount whose modes you cannot change: permissive_modes = true under [proxy]", path))
}

// credential reports whether path lies in the folder of systemd's LoadCredential,
// which is the service's alone. On a tmpfs its files show mode 0440, of which the
// group bits are the mask of an access control list.
func (d *decoder) credential(path string) bool {
	dir, ok := d.lookup("CREDENTIALS_DIRECTORY")
	return ok && filepath.IsAbs(dir) && filepath.Dir(path) == filepath.Clean(dir)
}

func validName(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}
