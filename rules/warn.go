package rules

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"orthanc-dicomweb-oauth/token"
)

// warn collects the keys that are right, each by itself, but have no effect
// beside the others, and secrets that look like a slip of the editor. Where nobody
// can have meant it so, it is a problem instead.
func (d *decoder) warn(c *Config) Problems {
	w := decoder{file: d.file, lines: d.lines}
	for key, given := range map[string]bool{"username": c.Admin.Username != "", "password": !c.Admin.Password.IsZero()} {
		if given && c.Admin.Listen == "" {
			w.problem("admin."+key, "has no effect, as the admin listener is turned off", "remove it, or set listen")
		}
	}
	if c.Log.AuditKeyFile != "" && c.Log.Audit == "off" {
		w.problem("log.audit_key_file", `has no effect with audit = "off"`, "remove it, or say where the audit log goes")
	}
	for i, r := range c.Rules {
		w.warnRule(fmt.Sprintf("rule[%d]", i), r)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Profiles)) {
		if s, ok := c.Profiles[name].Settings.(token.Warner); ok {
			s.Warn(func(k, what, hint string) { w.problem("profile."+name+"."+k, what, hint) })
		}
	}
	for _, f := range d.files {
		if s, err := token.SecretFile(f.path).Read(); err == nil && strings.TrimSpace(s.Reveal()) != s.Reveal() {
			w.problem(f.key, "the secret begins or ends with a space or a line end beyond the last, which is sent with it", "remove it from the file, unless it belongs to the secret")
		}
	}
	return w.problems.sorted()
}

func (d *decoder) warnRule(key string, r *Rule) {
	denies, clear := r.Decision() == Deny, r.target.scheme == "http"
	for _, k := range []struct {
		name         string
		given        bool
		deny, noTLS  bool // it has no effect there
		denyMeansAll string
	}{
		{name: "methods", given: !slices.Equal(r.Methods, defaultRule().Methods), deny: true, denyMeansAll: ": every method is refused"},
		{name: "headers", given: len(r.Headers) > 0, deny: true},
		{name: "ca_file", given: r.CAFile != "", deny: true, noTLS: true},
		{name: "client_cert", given: r.ClientCert != "", deny: true, noTLS: true},
		{name: "client_key", given: r.ClientKey != "", deny: true, noTLS: true},
		{name: "allow_networks", given: len(r.AllowNetworks) > 0, deny: true},
	} {
		switch {
		case k.given && k.deny && denies:
			d.problem(key+"."+k.name, `has no effect with action = "deny"`+k.denyMeansAll, "remove it, or change action")
		case k.given && k.noTLS && clear:
			d.problem(key+"."+k.name, "has no effect without TLS", "remove it, or give an https:// URL")
		}
	}
	if r.Mode == "report" && r.Action == Pass {
		d.problem(key+".mode", `has no effect with action = "pass", which report stands for`, "remove it, or change action")
	}
}
