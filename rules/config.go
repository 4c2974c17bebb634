// Package rules reads gateway.toml and answers two questions about a request:
// which rule does its URL belong to, and what does that rule decide? It opens
// no connection and asks no provider. A [Config] is immutable once loaded and
// safe for concurrent use.
package rules

import (
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"orthanc-dicomweb-oauth/token"
)

// Config is a whole gateway.toml, valid and with all defaults filled in.
type Config struct {
	// Path is the file it was read from, absolute.
	Path string
	// Info is that file's metadata from just before it was read; nil if unknown.
	Info fs.FileInfo
	// Revision names the file's content: the start of its SHA-256.
	Revision string

	Proxy Proxy
	Admin Admin
	CA    CA
	Log   Log
	// Token is the [token] table: what a profile does not say itself.
	Token    token.Lifecycle
	Rules    []*Rule
	Profiles map[string]*Profile
	// Table finds the rule of a request.
	Table *Table
	// Warnings are the keys that have no effect beside the others, or that hardly
	// say what was meant, in the order of the file.
	Warnings Problems
}

// AuditTarget returns where the audit log goes: "stderr", "stdout", "off", or the
// absolute path of a file.
func (c *Config) AuditTarget() string {
	switch t := c.Log.Audit; {
	case t == "stderr" || t == "stdout" || t == "off" || filepath.IsAbs(t):
		return t
	default:
		return filepath.Join(filepath.Dir(c.Path), t)
	}
}

// Rule returns the rule of that name, or nil.
func (c *Config) Rule(name string) *Rule {
	for _, r := range c.Rules {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// Only returns a copy of c that has no profile but the named one.
func (c *Config) Only(profile string) *Config {
	only := *c
	only.Profiles = map[string]*Profile{}
	if p := c.Profiles[profile]; p != nil {
		only.Profiles[profile] = p
	}
	return &only
}

// Proxy is the [proxy] table: the listener that Orthanc talks to, and its limits.
type Proxy struct {
	// Listen is the address in Orthanc's HttpProxy, host:port.
	Listen string `toml:"listen"`
	// TLSCert and TLSKey, PEM files, serve the proxy itself over TLS, for an
	// https:// HttpProxy. Both or none.
	TLSCert token.File        `toml:"tls_cert"`
	TLSKey  token.PrivateFile `toml:"tls_key"`
	// Username and Password ask clients for Basic proxy authentication, as in
	// http://user:pass@host:3128. Both or none.
	Username string             `toml:"username"`
	Password token.SecretSource `toml:"password"`
	// AllowClients are the networks that clients may come from. Empty: any that
	// can reach the listener; one of AllowClients and Password is needed when
	// the listener is not on loopback.
	AllowClients []netip.Prefix `toml:"allow_clients"`
	// Unmatched decides about a host that no rule names: "deny" or "pass".
	Unmatched string `toml:"unmatched"`
	// MaxConnections bounds the client connections that are served at once.
	MaxConnections int `toml:"max_connections"`
	// HeaderTimeout limits the TLS handshake and the wait for a request's line and headers.
	HeaderTimeout time.Duration `toml:"header_timeout"`
	// StallTimeout ends a transfer whose body moves no byte for this long.
	// There is no limit on a body's total time.
	StallTimeout time.Duration `toml:"stall_timeout"`
	// ResponseTimeout is the wait for the upstream's response headers, counted
	// from the end of the request; then 504.
	ResponseTimeout time.Duration `toml:"response_timeout"`
	// IdleTimeout closes kept-alive connections that carry no request.
	IdleTimeout time.Duration `toml:"idle_timeout"`
	// DrainTimeout is how long a stop waits for running transfers.
	DrainTimeout time.Duration `toml:"drain_timeout"`
	// UpstreamProxy is an http:// proxy for the data plane and the token plane:
	// http://user:pass@corp:8080. Empty: none; the environment is not asked.
	UpstreamProxy token.Secret `toml:"upstream_proxy"`
	// PermissiveModes accepts secret files that group or others can read, for
	// mounts whose modes the user cannot change.
	PermissiveModes bool `toml:"permissive_modes"`
}

// Admin is the [admin] table: status, health and metrics.
type Admin struct {
	// Listen is the address, host:port; "" turns it off.
	Listen string `toml:"listen"`
	// Username and Password guard all but /livez and /readyz; needed when
	// Listen is not on loopback.
	Username string             `toml:"username"`
	Password token.SecretSource `toml:"password"`
}

// CA is the [ca] table: the local certificate authority.
type CA struct {
	// Dir is the folder of ca.pem, ca-key.pem and bundle.pem; made on first start.
	Dir token.File `toml:"dir"`
	// NameConstraints limits what a new CA can sign for to the hosts of the inject rules.
	NameConstraints bool `toml:"name_constraints"`
}

// Log is the [log] table.
type Log struct {
	// Level is "debug", "info", "warn" or "error".
	Level string `toml:"level"`
	// Format is "text", "json", or "auto": text on a terminal, else JSON.
	Format string `toml:"format"`
	// Audit is where the one line per request goes: "stderr", "stdout", "off" or a file path.
	Audit string `toml:"audit"`
	// AuditKeyFile gives each audit record of a request for a study a study_hash,
	// keyed by all bytes of the file, at least 32 of them.
	AuditKeyFile token.PrivateFile `toml:"audit_key_file"`
}

// Action is what a rule does with a request.
type Action string

// The actions of a rule.
const (
	Inject Action = "inject" // put the profile's credential on
	Pass   Action = "pass"   // forward untouched, never a credential
	Deny   Action = "deny"   // refuse
)

// Rule is one [[rule]].
type Rule struct {
	// Name is unique; logs, metrics and the admin API use it.
	Name string `toml:"name"`
	// URL is exactly what stands in DicomWeb.Servers: https://HOST[:PORT][/PREFIX/],
	// HOST exact or *.parent. http:// for pass and deny only.
	URL string `toml:"url"`
	// Profile names the [profile.NAME] whose credential is injected.
	Profile string `toml:"profile"`
	// Action is inject, pass or deny; empty means inject.
	Action Action `toml:"action"`
	// Methods are the HTTP methods that are let through.
	Methods []string `toml:"methods"`
	// Headers are static headers that are set on each request.
	Headers map[string]token.Secret `toml:"headers"`
	// CAFile is trusted for this upstream instead of the system roots.
	CAFile token.File `toml:"ca_file"`
	// ClientCert and ClientKey authenticate to this upstream (mutual TLS).
	ClientCert token.File        `toml:"client_cert"`
	ClientKey  token.PrivateFile `toml:"client_key"`
	// AllowNetworks permits address ranges that are otherwise refused:
	// loopback, link-local, cloud metadata.
	AllowNetworks []netip.Prefix `toml:"allow_networks"`
	// Mode is "enforce", or "report": log what would be done and treat as pass.
	Mode string `toml:"mode"`

	target target
	line   int // of url in the file
}

// Decision returns the action that is carried out: Pass for a rule in report mode.
func (r *Rule) Decision() Action {
	if r.Mode == "report" {
		return Pass
	}
	return r.Action
}

// Allows reports whether the rule lets the method through.
func (r *Rule) Allows(method string) bool {
	return slices.Contains(r.Methods, method)
}

// Line is where the file has the rule's url; 0 if it was not read from a file.
func (r *Rule) Line() int { return r.line }

// Host returns the rule's host in canonical form and whether it is a wildcard,
// in which case the host is the parent of the names it stands for.
func (r *Rule) Host() (host string, wildcard bool) {
	return r.target.authority.Host(), r.target.wildcard
}

// Authority returns the one place that the rule is for; false for a wildcard.
func (r *Rule) Authority() (Authority, bool) { return r.target.authority, !r.target.wildcard }

// Prefix returns the path prefix of the rule's URL, with a slash at both ends.
func (r *Rule) Prefix() string { return r.target.prefix }

// Profile is one [profile.NAME].
type Profile struct {
	Name string
	Type string
	// Lifecycle says when and how hard to ask the provider.
	Lifecycle token.Lifecycle
	// Settings are the keys of the profile's type.
	Settings token.Settings
}

// Default returns the configuration that an empty file stands for.
func Default() Config {
	return Config{
		Proxy: Proxy{
			Listen:          "127.0.0.1:3128",
			Unmatched:       "deny",
			MaxConnections:  1024,
			HeaderTimeout:   10 * time.Second,
			StallTimeout:    2 * time.Minute,
			ResponseTimeout: 10 * time.Minute,
			IdleTimeout:     2 * time.Minute,
			DrainTimeout:    30 * time.Second,
		},
		Admin: Admin{Listen: "127.0.0.1:3129"},
		CA:    CA{Dir: "ca", NameConstraints: true},
		Log:   Log{Level: "info", Format: "auto", Audit: "stderr"},
		Token: token.DefaultLifecycle(),
	}
}

// defaultRule is what a [[rule]] starts from.
func defaultRule() *Rule {
	return &Rule{
		Action:  Inject,
		Methods: []string{"GET", "HEAD", "POST", "PUT", "DELETE"},
		Mode:    "enforce",
	}
}
