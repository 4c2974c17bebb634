package demo

import (
	"fmt"
	"os"
)

// Files in the demo's folder. The configuration names them relative to itself.
const (
	configFile     = "gateway.toml"
	serverCAFile   = "dicomweb-ca.pem"
	providerCAFile = "provider-ca.pem"
	auditFile      = "audit.log"
)

// configText is the gateway.toml of the demo: what a user would write, on free ports and with the throw-away CAs.
const configText = `[proxy]
listen = "127.0.0.1:0"

[admin]
listen = "127.0.0.1:0"

[ca]
dir = "ca"

[log]
level = "warn"
audit = "` + auditFile + `"

[[rule]]
name           = "demo"
url            = %q
profile        = "demo"
ca_file        = "` + serverCAFile + `"
allow_networks = ["127.0.0.0/8", "::1/128"]

[profile.demo]
type          = "client_credentials"
issuer        = %q
ca_file       = "` + providerCAFile + `"
client_id     = %q
client_secret = %q
scopes        = [%q]
`

// writeConfig writes gateway.toml and the CA files that it names, and returns its path.
func (s *stage) writeConfig() (string, error) {
	p := s.provider
	text := fmt.Sprintf(configText, s.server.URL(), p.Issuer(), p.ClientID(), p.ClientSecret(), p.options.Scopes[0])
	for _, f := range []struct {
		name string
		text []byte
	}{
		{serverCAFile, s.server.CAPEM()},
		{providerCAFile, p.CAPEM()},
		{configFile, []byte(text)},
	} {
		if err := os.WriteFile(s.file(f.name), f.text, 0o600); err != nil {
			return "", fmt.Errorf("write demo configuration: %w", err)
		}
	}
	return s.file(configFile), nil
}
