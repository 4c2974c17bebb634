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
	names := &certs.Names{}
	first := map[string]int{} // name to sign for -> the first rule that needs it
	for i, r := range c.Rules {
		host, wildcard := r.Host()
		probe := host
		if wildcard {
			probe = "any." + host
		}
		if _, seen := first[probe]; seen || r.Action != rules.Inject {
			continue
		}
		first[probe] = i
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
	ca, err := certs.Open(string(c.CA.Dir), names)
	if err != nil {
		return nil, err
	}
	var problems rules.Problems
	for _, probe := range slices.SortedFunc(maps.Keys(first), func(a, b string) int { return first[a] - first[b] }) {
		if i := first[probe]; !ca.Covers(probe) {
			problems = append(problems, rules.Problem{
				File: c.Path, Key: fmt.Sprintf("rule[%d].url", i),
				What: fmt.Sprintf("the CA in %s is not allowed to sign for this host", c.CA.Dir),
				Hint: fmt.Sprintf("the CA was made for other rules: move %s away and start again, then let Orthanc trust the new bundle.pem", c.CA.Dir),
			})
		}
	}
	if problems != nil {
		return nil, problems
	}
	return ca, nil
}
