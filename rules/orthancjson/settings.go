package orthancjson

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"orthanc-dicomweb-oauth/rules"
)

// transferTimeout is the advice for HttpTimeout, in seconds. It limits a whole
// transfer in Orthanc, and the default of 60 s cuts large studies.
const transferTimeout = 3600

// proxyHostPlaceholder stands for a name that only the user knows.
const proxyHostPlaceholder = "GATEWAY-HOST"

// Settings are what an Orthanc needs to use the gateway, under Orthanc's own
// names, to be merged into an orthanc.json.
type Settings struct {
	HTTPProxy      string `json:"HttpProxy"`
	CACertificates string `json:"HttpsCACertificates"`
	// HTTPTimeout is in seconds.
	HTTPTimeout int      `json:"HttpTimeout"`
	DicomWeb    DicomWeb `json:"DicomWeb"`
}

// DicomWeb is the section of that name.
type DicomWeb struct {
	Servers map[string]Server `json:"Servers"` // by name
}

// Server is one DICOMweb server. It has no credential: that is the gateway's.
type Server struct {
	URL       string `json:"Url"`
	HasDelete bool   `json:"HasDelete,omitempty"`
}

// SettingsOptions are what a config does not say.
type SettingsOptions struct {
	// Bundle is the absolute path of the CA bundle, as Orthanc sees it.
	Bundle string
	// ProxyHost is the name by which Orthanc reaches the gateway; empty means
	// the host of [proxy] listen, or a placeholder where that is a wildcard.
	ProxyHost string
	// Reveal writes user and password of the proxy instead of placeholders.
	Reveal bool
}

// NewSettings makes the settings for a config. The notes tell what to look at,
// and why. The error is a proxy password that cannot be read.
func NewSettings(c *rules.Config, o SettingsOptions) (s Settings, notes []string, err error) {
	note := func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) }
	host, port, _ := net.SplitHostPort(c.Proxy.Listen) // checked at load
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = proxyHostPlaceholder
		if o.ProxyHost == "" {
			note("HttpProxy: replace %s by the name under which Orthanc reaches this machine, or give --proxy-host; the gateway listens on all addresses", host)
		}
	}
	scheme := "http"
	if c.Proxy.TLSCert != "" {
		scheme = "https"
		note("HttpProxy: Orthanc compares the certificate of an https:// proxy with the system's CAs, never with HttpsCACertificates")
	}
	credentials := ""
	if c.Proxy.Username != "" {
		credentials = "USER:PASSWORD@"
		if o.Reveal {
			password, err := c.Proxy.Password.Read()
			if err != nil {
				return Settings{}, nil, fmt.Errorf("proxy.password: %w", err)
			}
			credentials = percentEncode(c.Proxy.Username) + ":" + percentEncode(password.Reveal()) + "@"
			note("HttpProxy: the password stands in it in clear; let nobody but Orthanc read the file, and do not start Orthanc with --verbose, which logs it")
		} else {
			note("HttpProxy: replace USER:PASSWORD by username and password of [proxy], special characters percent-encoded; --reveal does it for you")
		}
	}
	s = Settings{
		HTTPProxy:      scheme + "://" + credentials + net.JoinHostPort(cmp.Or(o.ProxyHost, host), port),
		CACertificates: o.Bundle,
		HTTPTimeout:    transferTimeout,
		DicomWeb:       DicomWeb{Servers: Servers(c)},
	}
	note("HttpProxy: all outgoing HTTP of Orthanc goes there, to peers and by plugins too; keep what is local away with NO_PROXY in Orthanc's environment")
	note("HttpsCACertificates: the path as this machine has it; in a container it is where that file is mounted. If Orthanc speaks with other https servers: `ca bundle --system` prints one with the system's CAs")
	note("HttpTimeout: in seconds, for a whole transfer and not for a wait; Orthanc's default of 60 cuts large studies, and before Orthanc 1.13 a 0 means 60")
	for _, r := range c.Rules {
		if _, wildcard := r.Host(); wildcard && r.Action == rules.Inject {
			note("DicomWeb.Servers: rule %q is for many hosts; add each of them yourself, with its own Url", r.Name)
		}
		if r.Action == rules.Inject && r.Mode == "report" {
			note("DicomWeb.Servers: rule %q is in mode report and puts no credential on yet; Orthanc's own must stay until it does", r.Name)
		}
	}
	return s, notes, nil
}

// Servers are the DICOMweb servers that the inject rules with an exact host
// name, by the names of the rules.
func Servers(c *rules.Config) map[string]Server {
	servers := map[string]Server{}
	for _, r := range c.Rules {
		if _, wildcard := r.Host(); r.Action == rules.Inject && !wildcard {
			servers[r.Name] = Server{URL: r.URL, HasDelete: r.Allows("DELETE")}
		}
	}
	return servers
}

// JSON returns the settings as one JSON object.
func (s Settings) JSON() ([]byte, error) { return encode(s, "  ") }

// Env returns the settings as lines NAME=value, as the Docker image
// orthancteam/orthanc takes them from its environment.
func (s Settings) Env() ([]byte, error) {
	servers, err := encode(s.DicomWeb.Servers, "")
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "ORTHANC__HTTP_PROXY=%s\nORTHANC__HTTPS_CA_CERTIFICATES=%s\nORTHANC__HTTP_TIMEOUT=%s\nORTHANC__DICOM_WEB__SERVERS=%s",
		s.HTTPProxy, s.CACertificates, strconv.Itoa(s.HTTPTimeout), servers), nil
}

// encode ends with a newline, and leaves & in a URL as it is.
func encode(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	err := e.Encode(v)
	return b.Bytes(), err
}

// percentEncode leaves nothing that a URL, a shell or an orthanc.json reads as
// more than a character.
func percentEncode(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
