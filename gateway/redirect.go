package gateway

import (
	"crypto/sha256"
	"net/url"
	"sync"
	"time"

	"orthanc-dicomweb-oauth/rules"
)

const (
	// maxHops cuts a chain of redirects: old Orthanc follows for ever.
	maxHops = 10
	// hopMemory is how long a passed redirect is remembered.
	hopMemory = time.Minute
	// maxRedirects bounds the memory.
	maxRedirects = 4096
)

// redirects remembers how many redirects led a client to a URL. Each hop comes
// on a connection of its own, so that only the URL ties them together; it is
// kept as a hash, since it may name a patient. The zero value is ready.
type redirects struct {
	mu   sync.Mutex
	seen map[hopKey]hop
}

type hopKey [sha256.Size]byte

type hop struct {
	count int
	until time.Time
}

func hopOf(client, url string) hopKey { return sha256.Sum256([]byte(client + " " + url)) }

// follow notes that client is sent from one URL to another, and reports whether
// the chain may go on.
func (r *redirects) follow(client, from, to string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	count := 1
	if h, ok := r.seen[hopOf(client, from)]; ok && now.Before(h.until) {
		count = h.count + 1
	}
	key := hopOf(client, to)
	if count > maxHops {
		delete(r.seen, key)
		return false
	}
	if r.seen == nil {
		r.seen = map[hopKey]hop{}
	}
	if len(r.seen) >= maxRedirects {
		for k, h := range r.seen {
			if now.After(h.until) || len(r.seen) >= maxRedirects {
				delete(r.seen, k)
			}
		}
	}
	r.seen[key] = hop{count, now.Add(hopMemory)}
	return true
}

// covered reports whether an inject or pass rule covers a redirect's target, and
// returns the target as the client's next request will name it.
func covered(t *rules.Table, to *url.URL) (target string, ok bool) {
	if to.User != nil || to.Scheme != "https" && to.Scheme != "http" {
		return "", false
	}
	port := uint16(443)
	if to.Scheme == "http" {
		port = 80
	}
	a, err := rules.ParseAuthority(to.Host, port)
	if err != nil {
		return "", false
	}
	site := t.Site(to.Scheme, a)
	if site == nil {
		return "", false
	}
	path := to.EscapedPath()
	if path == "" {
		path = "/"
	}
	next := &url.URL{Scheme: to.Scheme, Host: a.String(), Opaque: "//" + a.String() + path, RawQuery: to.RawQuery}
	if to.Scheme == "https" && !site.Terminated() {
		path = "/" // tunnelled whole
	}
	rule, err := site.Match(path)
	return next.String(), err == nil && rule != nil && rule.Decision() != rules.Deny
}
