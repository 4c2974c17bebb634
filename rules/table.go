package rules

import (
	"maps"
	"slices"
	"strings"
)

// Table finds the rule of a request. A lookup costs the same with ten rules
// and with ten thousand. It is immutable and safe for concurrent use.
type Table struct {
	sites map[siteKey]*Site
}

type siteKey struct {
	scheme    string
	wildcard  bool
	authority Authority
}

// Site is what the rules say about one authority.
type Site struct {
	prefixes   map[string]*Rule // path prefix, "/" at both ends, to its rule
	depth      int              // slashes in the longest prefix
	fallback   *Site            // the wildcard's site, for paths that no exact rule covers
	terminated bool
	// folded has the prefixes in lower case, if some of them are denied: many
	// servers ignore case, and a deny rule must hold there too.
	folded *Site
}

// Terminated reports whether the gateway ends TLS for this site, because at
// least one rule injects a credential there. If not, the site is tunnelled or
// refused whole, as [Site.Whole] says.
func (s *Site) Terminated() bool { return s.terminated }

// Whole returns the rule that decides about the site without seeing a path.
func (s *Site) Whole() *Rule {
	if r := s.lookup("/"); r != nil {
		return r
	}
	// Only rules in report mode have a path here; each of them lets pass.
	return s.prefixes[slices.Min(slices.Collect(maps.Keys(s.prefixes)))]
}

// Site returns what the rules say about a, or nil if no rule names it. Scheme
// is "https" or "http".
func (t *Table) Site(scheme string, a Authority) *Site {
	if s := t.sites[siteKey{scheme, false, a}]; s != nil {
		return s
	}
	if parent, ok := a.parent(); ok {
		return t.sites[siteKey{scheme, true, parent}]
	}
	return nil
}

// Match returns the most specific rule for a path as it stands in the request
// line (still percent-encoded, without query), or nil if no rule covers it.
func (s *Site) Match(path string) (*Rule, error) {
	rule := s.lookup(path)
	if !plainPath(path) {
		decoded, err := decodedPath(path)
		if err != nil {
			return nil, err
		}
		if s.lookup(decoded) != rule {
			return nil, ErrAmbiguousPath
		}
		path = decoded
	}
	for at := s; at != nil; at = at.fallback {
		if at.folded != nil {
			if r := at.folded.longest(strings.ToLower(path)); r != nil && r.Decision() == Deny {
				return r, nil
			}
		}
		if at.longest(path) != nil {
			break // an exact host's rule goes before the wildcard's
		}
	}
	return rule, nil
}

// fold builds the folded prefixes; of two that differ in case only, the denied one stays.
func (s *Site) fold() {
	f := &Site{prefixes: map[string]*Rule{}, depth: s.depth}
	denied := false
	for prefix, r := range s.prefixes {
		low := strings.ToLower(prefix)
		if have := f.prefixes[low]; have == nil || r.Decision() == Deny {
			f.prefixes[low] = r
		}
		denied = denied || r.Decision() == Deny
	}
	if denied {
		s.folded = f
	}
}

func (s *Site) lookup(path string) *Rule {
	for ; s != nil; s = s.fallback {
		if r := s.longest(path); r != nil {
			return r
		}
	}
	return nil
}

func (s *Site) longest(path string) *Rule {
	var found *Rule
	slashes := 0
	for i := 0; i < len(path) && slashes < s.depth; i++ {
		if path[i] == '/' {
			slashes++
			if r := s.prefixes[path[:i+1]]; r != nil {
				found = r
			}
		}
	}
	if slashes < s.depth && !strings.HasSuffix(path, "/") {
		// "/v2" is the prefix "/v2/" itself, without its slash.
		if r := s.prefixes[path+"/"]; r != nil {
			found = r
		}
	}
	return found
}

// newTable builds the table and reports two rules for the same URL.
func newTable(list []*Rule, duplicate func(r, earlier *Rule)) *Table {
	t := &Table{sites: map[siteKey]*Site{}}
	for _, r := range list {
		s := t.sites[r.target.siteKey]
		if s == nil {
			s = &Site{prefixes: map[string]*Rule{}}
			t.sites[r.target.siteKey] = s
		}
		if earlier := s.prefixes[r.target.prefix]; earlier != nil {
			duplicate(r, earlier)
			continue
		}
		s.prefixes[r.target.prefix] = r
		s.depth = max(s.depth, strings.Count(r.target.prefix, "/"))
		s.terminated = s.terminated || r.Decision() == Inject
	}
	for key, s := range t.sites {
		s.fold()
		if key.wildcard || s.prefixes["/"] != nil {
			continue
		}
		if parent, ok := key.authority.parent(); ok {
			if s.fallback = t.sites[siteKey{key.scheme, true, parent}]; s.fallback != nil {
				s.terminated = s.terminated || s.fallback.terminated
			}
		}
	}
	return t
}
