package gateway

import (
	"errors"
	"reflect"
	"time"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/rules"
)

// ErrDraining is the error of a reload after [Gateway.Shutdown] has begun.
var ErrDraining = errors.New("the gateway is stopping")

// Reloaded is what a reload did.
type Reloaded struct {
	// Revision is that of the configuration which now holds.
	Revision string `json:"revision"`
	// RestartNeeded are the keys of the file that differ from what runs and cannot
	// change while it runs. They keep their value until a restart.
	RestartNeeded []string `json:"restart_needed"`
}

// reloadStatus is what the last reloads came to. It is immutable.
type reloadStatus struct {
	loadedAt, triedAt time.Time
	failure           string
	restartNeeded     []string
}

// Reload takes up the configuration that load returns. It is built whole first
// and then swapped in one step, so a configuration that does not work changes
// nothing: everything that is wrong with it comes back as [rules.Problems].
// Requests under way end as they began; profiles and upstream connections whose
// settings are the same are kept, with their tokens. Calls wait for each other.
func (g *Gateway) Reload(load func() (*rules.Config, error)) (Reloaded, error) {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	now := time.Now()
	done, err := g.reload(load)
	if errors.Is(err, ErrDraining) {
		return Reloaded{}, err
	}
	if problems, bad := errors.AsType[rules.Problems](err); bad {
		last := *g.reloaded.Load()
		last.triedAt, last.failure = now, err.Error()
		g.reloaded.Store(&last)
		for _, p := range problems {
			g.log.Error("configuration not reloaded, the one before holds", "problem", p.String(), "hint", p.Hint)
		}
		return Reloaded{}, err
	}
	g.reloaded.Store(&reloadStatus{loadedAt: now, triedAt: now, restartNeeded: done.RestartNeeded})
	c := g.current.Load().config
	g.log.Info("configuration reloaded", "revision", c.Revision, "rules", len(c.Rules), "profiles", len(c.Profiles))
	if len(done.RestartNeeded) > 0 {
		g.log.Warn("some changed keys take effect at the next restart only", "keys", done.RestartNeeded)
	}
	return done, nil
}

// reload returns [rules.Problems] or ErrDraining.
func (g *Gateway) reload(load func() (*rules.Config, error)) (Reloaded, error) {
	if g.Draining() {
		return Reloaded{}, ErrDraining
	}
	running := g.current.Load()
	loaded, err := load()
	if err != nil {
		return Reloaded{}, asProblems(err, running.config.Path)
	}
	c := *loaded
	waiting := keepFixed(running.config, &c)
	ca, err := g.caFor(&c)
	if err != nil {
		return Reloaded{}, asProblems(err, c.Path)
	}
	next, err := g.newSnapshot(&c, running)
	if err != nil {
		return Reloaded{}, asProblems(err, c.Path)
	}
	if !g.install(next) {
		return Reloaded{}, ErrDraining
	}
	g.useCA(ca)
	g.setLevel(&c)
	return Reloaded{Revision: c.Revision, RestartNeeded: waiting}, nil
}

func (g *Gateway) setLevel(c *rules.Config) {
	if g.level != nil {
		_ = g.level.UnmarshalText([]byte(c.Log.Level)) // checked at load
	}
}

// asProblems puts what is wrong with the file at path, or with what it names,
// into the form of all problems.
func asProblems(err error, path string) error {
	if problems, ok := errors.AsType[rules.Problems](err); ok {
		return problems
	}
	if folder, ok := errors.AsType[*certs.FolderError](err); ok {
		return rules.Problems{{File: path, Key: "ca.dir", What: folder.Error(), Hint: folder.Hint}}
	}
	return rules.Problems{{File: path, What: err.Error()}}
}

// fixedKey is a key of two configurations that may have to keep its value.
type fixedKey struct {
	name       string
	have, want any // pointers to the field of the running config and of the new one
}

// keepFixed gives c the running values of the keys that cannot change while the
// gateway runs, and returns those that differ.
func keepFixed(running, c *rules.Config) []string {
	keys := []fixedKey{{"proxy.listen", &running.Proxy.Listen, &c.Proxy.Listen}}
	if running.Proxy.Listen != c.Proxy.Listen {
		// Who may use the listener belongs to its address: without a password the
		// new one may be safe, on loopback, and the running one wide open.
		keys = append(
			keys,
			fixedKey{"proxy.tls_cert", &running.Proxy.TLSCert, &c.Proxy.TLSCert},
			fixedKey{"proxy.tls_key", &running.Proxy.TLSKey, &c.Proxy.TLSKey},
			fixedKey{"proxy.username", &running.Proxy.Username, &c.Proxy.Username},
			fixedKey{"proxy.password", &running.Proxy.Password, &c.Proxy.Password},
			fixedKey{"proxy.allow_clients", &running.Proxy.AllowClients, &c.Proxy.AllowClients},
		)
	}
	keys = append(
		keys,
		fixedKey{"proxy.header_timeout", &running.Proxy.HeaderTimeout, &c.Proxy.HeaderTimeout}, // net/http has read both
		fixedKey{"proxy.idle_timeout", &running.Proxy.IdleTimeout, &c.Proxy.IdleTimeout},
		fixedKey{"admin.listen", &running.Admin.Listen, &c.Admin.Listen},
		fixedKey{"admin.username", &running.Admin.Username, &c.Admin.Username},
		fixedKey{"admin.password", &running.Admin.Password, &c.Admin.Password},
		fixedKey{"ca.dir", &running.CA.Dir, &c.CA.Dir},
		fixedKey{"log.format", &running.Log.Format, &c.Log.Format},
		fixedKey{"log.audit", &running.Log.Audit, &c.Log.Audit},
	)
	differ := []string{}
	for _, key := range keys {
		have, want := reflect.ValueOf(key.have).Elem(), reflect.ValueOf(key.want).Elem()
		if !reflect.DeepEqual(have.Interface(), want.Interface()) {
			want.Set(have)
			differ = append(differ, key.name)
		}
	}
	return differ
}
