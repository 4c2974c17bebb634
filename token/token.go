// Package token holds the credential of one profile: how it is acquired from
// its provider, how it is kept fresh, and how it is put on a request. It knows
// nothing of rules, proxies or Orthanc.
//
// An [Acquirer] makes one attempt to get a token from a provider; there is one
// file per provider family. A [Source] owns the life cycle of the token: it
// caches, renews ahead of the end, shares one acquisition among all who wait,
// and remembers a failure so that a broken provider is not asked again too
// soon. A Source is safe for concurrent use.
package token

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Token is one acquired credential, mostly an access token. It is immutable.
type Token struct {
	// Value is the access token itself (RFC 6750), or whatever else goes into a header.
	Value Secret
	// Expires is the end of its life, counted from before it was asked for. The
	// zero value stands for "not said": the default lifetime is assumed.
	Expires time.Time
	// Warning is what an operator should know though the token works, for
	// example that fewer scopes were granted than asked for.
	Warning string

	header string                    // where Value goes; empty: Authorization
	scheme string                    // before Value in Authorization; empty: Bearer
	sign   func(*http.Request) error // instead of a header, for credentials that sign each request

	prepared   Secret // the value of Authorization, made once; empty: not yet
	acquired   time.Time
	generation uint64
	refresh    deadline // renew from here on
	end        deadline // not used from here on
}

// deadline is a moment on two clocks: the monotonic one is immune to a stepped
// wall clock, the wall clock goes on while the machine sleeps. It has come when
// either says so.
type deadline struct{ monotonic, wall time.Time }

func deadlineAt(t time.Time) deadline { return deadline{t, t.Round(0)} }

func (d deadline) come(now time.Time) bool {
	return !now.Before(d.monotonic) || !now.Round(0).Before(d.wall)
}

// Apply puts the credential on a request that is otherwise ready to go out, in
// place of any Authorization it has. A signing credential may read the body and
// replace it by an equal one.
func (t *Token) Apply(r *http.Request) error {
	delete(r.Header, "Authorization")
	switch {
	case t.sign != nil:
		return t.sign(r)
	case t.header != "":
		r.Header.Set(t.header, t.Value.Reveal())
	default:
		r.Header["Authorization"] = []string{t.authorization()}
	}
	return nil
}

// authorization returns the value of the Authorization header.
func (t *Token) authorization() string {
	if !t.prepared.Empty() {
		return t.prepared.Reveal()
	}
	return cmp.Or(t.scheme, "Bearer") + " " + t.Value.Reveal()
}

// Age returns how long ago the token was acquired.
func (t *Token) Age() time.Duration { return time.Since(t.acquired) }

// Generation numbers the tokens of a source, from 1. See [Source.Reject].
func (t *Token) Generation() uint64 { return t.generation }

// usable reports whether the token still lives.
func (t *Token) usable(now time.Time) bool { return t != nil && !t.end.come(now) }

// due reports whether the token should be renewed.
func (t *Token) due(now time.Time) bool { return t.refresh.come(now) }

// Acquirer gets a token from a provider: one attempt, no cache, no retry. It
// returns an [*Error] when the provider is the cause. It is called by one
// goroutine at a time.
type Acquirer interface {
	Acquire(ctx context.Context) (Token, error)
}

// idleCloser is an [Acquirer] that keeps connections. Its source closes them at
// its own end.
type idleCloser interface{ CloseIdleConnections() }

// Lifecycle says when a token is renewed and how hard its provider is asked.
type Lifecycle struct {
	// RefreshBuffer is how long before its end a token is renewed, in effect
	// never more than half of the token's life.
	RefreshBuffer time.Duration `toml:"refresh_buffer"`
	// DefaultLifetime is assumed where the provider names no expires_in.
	DefaultLifetime time.Duration `toml:"default_lifetime"`
	// RequestTimeout limits one call to the provider.
	RequestTimeout time.Duration `toml:"request_timeout"`
	// MaxAttempts bounds the calls of one acquisition.
	MaxAttempts int `toml:"max_attempts"`
	// MaxBackoff bounds the pause between acquisitions that fail.
	MaxBackoff time.Duration `toml:"max_backoff"`
}

// DefaultLifecycle returns what an empty [token] table stands for.
func DefaultLifecycle() Lifecycle {
	return Lifecycle{
		RefreshBuffer:   5 * time.Minute,
		DefaultLifetime: 5 * time.Minute,
		RequestTimeout:  10 * time.Second,
		MaxAttempts:     3,
		MaxBackoff:      time.Minute,
	}
}

// Report takes one problem of a profile: the key in its TOML table, what is
// wrong, and what to change.
type Report func(key, problem, remedy string)

// Settings are the keys of one profile type, filled from TOML by the fields'
// toml tags.
type Settings interface {
	// Check reports what is missing, contradictory or malformed. It touches no network.
	Check(report Report)
	// Lifecycle returns the defaults with the profile's own keys laid over them.
	Lifecycle(defaults Lifecycle) Lifecycle
	// Acquirer builds what asks the provider. It touches no network.
	Acquirer(env Env) (Acquirer, error)
}

// Warner is implemented by the settings of types whose keys may have no effect
// beside each other. What nobody can have meant so is left to Check.
type Warner interface {
	// Warn reports each such key of settings that Check finds nothing wrong with.
	Warn(report Report)
}

// Env is what the house lends to every acquirer.
type Env struct {
	// Dial opens connections of the token plane; nil means a plain dialler.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Proxy is the proxy of the token plane; nil means none. The environment's
	// HTTPS_PROXY is never obeyed: it may point at this very gateway.
	Proxy *url.URL
	// Kept is given what closes the kept connections of each HTTP client that is
	// built. Nil: they end by themselves, half a minute after their last use.
	Kept func(closeIdle func())
}

// types are the profile types, in the order of the documentation.
var types = [...]struct {
	name string
	make func() Settings
}{
	{"client_credentials", func() Settings { return &ClientCredentials{} }},
	{"refresh_token", func() Settings { return &RefreshToken{} }},
	{"jwt_bearer", func() Settings { return &JWTBearer{} }},
	{"token_exchange", func() Settings { return &Exchange{} }},
	{"azure_managed_identity", func() Settings { return &AzureManagedIdentity{} }},
	{"azure_workload_identity", func() Settings { return &AzureWorkloadIdentity{} }},
	{"azure_client_secret", func() Settings { return &AzureClientSecret{} }},
	{"azure_client_certificate", func() Settings { return &AzureClientCertificate{} }},
	{"google_service_account", func() Settings { return &GoogleServiceAccount{Fetching: googleFetching()} }},
	{"google_authorized_user", func() Settings { return &GoogleAuthorizedUser{Fetching: googleFetching()} }},
	{"google_external_account", func() Settings { return &GoogleExternalAccount{Fetching: googleFetching()} }},
	{"google_metadata", func() Settings { return &GoogleMetadata{Fetching: googleFetching(), ServiceAccount: "default"} }},
	{"aws_sigv4", func() Settings { return &AWSSigV4{} }},
	{"static_bearer", func() Settings { return &StaticBearer{} }},
	{"basic", func() Settings { return &Basic{} }},
	{"api_key", func() Settings { return &APIKey{} }},
}

// MetadataUser is implemented by the settings of types that ask the cloud's
// metadata service; the token plane of all others cannot reach it.
type MetadataUser interface{ AsksMetadata() bool }

// Types returns the names of the profile types.
func Types() []string {
	var names []string
	for _, t := range types {
		names = append(names, t.name)
	}
	return names
}

// NewSettings returns empty settings of a profile type, or nil if there is no such type.
func NewSettings(typ string) Settings {
	for _, t := range types {
		if t.name == typ {
			return t.make()
		}
	}
	return nil
}

// Fetching are the keys that every type that fetches a token knows.
type Fetching struct {
	// Scopes are asked for, space-separated on the wire.
	Scopes []string `toml:"scopes"`
	// RefreshBuffer and RequestTimeout override [token] for this profile.
	RefreshBuffer  time.Duration `toml:"refresh_buffer"`
	RequestTimeout time.Duration `toml:"request_timeout"`
	// CAFile is trusted for the token endpoint instead of the system roots.
	CAFile File `toml:"ca_file"`
}

// Lifecycle implements [Settings].
func (f *Fetching) Lifecycle(l Lifecycle) Lifecycle {
	if f.RefreshBuffer > 0 {
		l.RefreshBuffer = f.RefreshBuffer
	}
	if f.RequestTimeout > 0 {
		l.RequestTimeout = f.RequestTimeout
	}
	return l
}

// TrustFile returns CAFile. It is read at each call to the provider, but one that
// is broken shows only when the config is loaded.
func (f *Fetching) TrustFile() File { return f.CAFile }

func (f *Fetching) check(report Report) {
	if f.CAFile != "" {
		if _, err := f.CAFile.CertPool(); err != nil {
			report("ca_file", err.Error(), "give a PEM file with the CA certificates of the token endpoint")
		}
	}
}
