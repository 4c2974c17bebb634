package gateway

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/rules"
)

// OpenCA loads the CA of a config, or makes it, constrained to the hosts of the
// inject rules. A rule whose host the CA cannot sign for is a problem of the
// config, and comes back as [rules.Problems]; a bad folder as
// [*certs.FolderError].
func OpenCA(c *rules.Config) (*certs.CA, error) {
	names, _ := caNames(c)
	ca, err := certs.Open(string(c.CA.Dir), names)
	if err != nil {
		return nil, err
	}
	if problems := unsigned(ca, c); problems != nil {
		return nil, problems
	}
	return ca, nil
}

// CheckCA tells what [OpenCA] would find wrong with the CA of a config, as
// [rules.Problems]. It makes none, and changes nothing.
func CheckCA(c *rules.Config) error {
	ca, err := certs.Find(string(c.CA.Dir))
	if err != nil {
		return asProblems(err, c.Path)
	}
	if ca == nil {
		return nil
	}
	if problems := unsigned(ca, c); problems != nil {
		return problems
	}
	return nil
}

// caFor returns the CA that the folder holds now, if it may sign for the hosts
// of the config; the errors are those of [OpenCA].
func (g *Gateway) caFor(c *rules.Config) (*certs.CA, error) {
	inUse := g.CA()
	ca, err := inUse.Latest()
	if err != nil {
		return nil, err
	}
	if ca == inUse && c == g.current.Load().config {
		return ca, nil // which was looked at when it was taken up
	}
	if problems := unsigned(ca, c); problems != nil {
		return nil, problems
	}
	return ca, nil
}

// unsigned returns a problem for each rule whose host the CA cannot sign for,
// with what to do about it.
func unsigned(ca *certs.CA, c *rules.Config) rules.Problems {
	return uncovered(ca, c, "the CA in %s is not allowed to sign for this host", func(host string) string {
		const same = "then ca activate; Orthanc trusts the new CA by the same bundle.pem"
		switch next := ca.Waiting(); {
		case next == nil:
			return "the CA was made for other rules: run ca rotate, " + same
		case !next.Covers(host):
			return "the CA that waits was made for other rules too: run ca rotate --force, " + same
		}
		return "a new CA that may sign for it waits: run ca activate"
	})
}

// RotateCA makes a new CA for the hosts of the config's inject rules, which
// waits beside the one that signs; see [certs.Rotate].
func RotateCA(c *rules.Config, force bool) (*certs.CA, error) {
	names, _ := caNames(c)
	return certs.Rotate(string(c.CA.Dir), names, force)
}

// ActivateCA lets the CA that waits sign from now on, unless the config has a
// rule whose host it cannot sign for; see [certs.Activate].
func ActivateCA(c *rules.Config) (*certs.CA, error) {
	ca, err := certs.Load(string(c.CA.Dir))
	if err != nil {
		return nil, err
	}
	if next := ca.Waiting(); next != nil {
		const what = "the CA that waits in %s is not allowed to sign for this host"
		problems := uncovered(next, c, what, func(string) string {
			return "it was made for other rules: run ca rotate --force, then ca activate"
		})
		if problems != nil {
			return nil, problems
		}
	}
	return certs.Activate(string(c.CA.Dir))
}

// caNames returns what a new CA of the config is constrained to (nil: nothing),
// and by host the index of the first inject rule that needs it.
func caNames(c *rules.Config) (names *certs.Names, hosts map[string]int) {
	names, hosts = &certs.Names{}, map[string]int{}
	for i, r := range c.Rules {
		host, wildcard := r.Host()
		probe := host
		if wildcard {
			probe = "any." + host
		}
		if _, seen := hosts[probe]; seen || r.Action != rules.Inject {
			continue
		}
		hosts[probe] = i
		if ip, err := netip.ParseAddr(host); err == nil {
			names.IPs = append(names.IPs, ip)
		} else if wildcard {
			names.Parents = append(names.Parents, host)
		} else {
			names.Hosts = append(names.Hosts, host)
		}
	}
	if !c.CA.NameConstraints {
		names = nil
	}
	return names, hosts
}

// uncovered returns a problem for each host that the CA cannot sign for.
func uncovered(ca *certs.CA, c *rules.Config, what string, hint func(host string) string) rules.Problems {
	var problems rules.Problems
	_, hosts := caNames(c)
	for _, host := range slices.SortedFunc(maps.Keys(hosts), func(a, b string) int { return hosts[a] - hosts[b] }) {
		if !ca.Covers(host) {
			problems = append(problems, rules.Problem{
				File: c.Path, Line: c.Rules[hosts[host]].Line(), Key: fmt.Sprintf("rule[%d].url", hosts[host]),
				What: fmt.Sprintf(what, c.CA.Dir), Hint: hint(host),
			})
		}
	}
	return problems
}
