package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The names of the peers.
const (
	direct    = "direct"
	relayed   = "relay"
	nginx     = "nginx"
	mitmproxy = "mitmproxy"
	gateway   = "gateway"
	base      = "base" // another version of the gateway
)

// directPeer is the client alone, with a token of its own.
func (b *bench) directPeer(upstream string) peer {
	return peer{name: direct, target: target{
		Dial: numeric(upstream), Authority: upstream, CAFile: b.pki.CAFile, Token: bearer(alwaysValid, b.secret),
	}}
}

// relayPeer is the bare copy. The client brings the token, since the relay cannot.
func (b *bench) relayPeer(upstream string) (peer, error) {
	p, address, err := b.startServer("relay", relaySettings{b.pki, numeric(upstream)})
	return peer{name: relayed, process: p, target: target{
		Dial: address, Connect: true, Authority: upstream, CAFile: b.pki.CAFile, Token: bearer(alwaysValid, b.secret),
	}}, err
}

// nginxConf takes the folder, the port, the certificate and key files, the CA file, the token, and the upstream.
//
// It is what a careful administrator would write: as many workers as cores, no log, connections to the upstream kept and
// verified and their sessions resumed, no tickets for clients that never resume. Small answers are buffered, which is
// nginx's default and the faster way; bulk is not, since buffering would write it to disk, and has larger windows instead.
const nginxConf = `
daemon off;
pid %[1]s/nginx.pid;
error_log stderr error;
worker_processes auto;
worker_rlimit_nofile 16384;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path %[1]s/nginx-body;
  proxy_temp_path %[1]s/nginx-proxy;
  fastcgi_temp_path %[1]s/nginx-fastcgi;
  uwsgi_temp_path %[1]s/nginx-uwsgi;
  scgi_temp_path %[1]s/nginx-scgi;
  client_max_body_size 0;
  keepalive_timeout 120s;
  keepalive_requests 100000000;
  upstream dicomweb {
    server %[7]s;
    keepalive 64;
    keepalive_timeout 120s;
    keepalive_requests 100000000;
  }
  server {
    listen 127.0.0.1:%[2]d ssl backlog=4096;
    ssl_certificate %[3]s;
    ssl_certificate_key %[4]s;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_tickets off;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $http_host;
    proxy_set_header Authorization "Bearer %[6]s";
    proxy_ssl_protocols TLSv1.2 TLSv1.3;
    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate %[5]s;
    proxy_ssl_name localhost;
    proxy_ssl_server_name on;
    location / { proxy_pass https://dicomweb; }
    location ` + bulkPath + ` {
      proxy_pass https://dicomweb;
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_buffer_size 64k;
      proxy_buffers 4 64k; # unused, but nginx wants them to fit
      proxy_busy_buffers_size 128k;
      client_body_buffer_size 128k;
    }
  }
}
`

// nginxPeer starts nginx, or returns a peer without a name where it is not installed.
func (b *bench) nginxPeer(ctx context.Context, upstream string) (peer, error) {
	binary, err := find("nginx", "/usr/sbin/nginx")
	if err != nil {
		return peer{}, b.missing(err)
	}
	port, err := freePort()
	if err != nil {
		return peer{}, err
	}
	conf := filepath.Join(b.dir, "nginx.conf")
	text := fmt.Sprintf(nginxConf, b.dir, port, b.pki.CertFile, b.pki.KeyFile, b.pki.CAFile, bearer(alwaysValid, b.secret),
		numeric(upstream))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return peer{}, err
	}
	p, err := b.startProgram(nginx, binary, "-c", conf, "-e", "stderr")
	if err != nil {
		return peer{}, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	err = p.ready(ctx, func() error { return dials(ctx, address) })
	return peer{name: nginx, process: p, target: target{Dial: address, Authority: upstream, CAFile: b.pki.CAFile}}, err
}

// mitmproxyPeer starts mitmdump, or returns a peer without a name where it is not installed.
func (b *bench) mitmproxyPeer(ctx context.Context, upstream string) (peer, error) {
	binary, err := find("mitmdump")
	if err != nil {
		return peer{}, b.missing(err)
	}
	port, err := freePort()
	if err != nil {
		return peer{}, err
	}
	dir := filepath.Join(b.dir, "mitmproxy")
	p, err := b.startProgram(mitmproxy, binary, "-q", "--listen-host", "127.0.0.1", "--listen-port", fmt.Sprint(port),
		"--set", "confdir="+dir, "--set", "stream_large_bodies=1m", "--set", "http2=false", "--set", "flow_detail=0",
		"--set", "ssl_verify_upstream_trusted_ca="+b.pki.CAFile, "--set", "connection_strategy=lazy",
		"--modify-headers", "/~q/Authorization/Bearer "+bearer(alwaysValid, b.secret))
	if err != nil {
		return peer{}, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	if err := p.ready(ctx, func() error { return dials(ctx, address) }); err != nil {
		return peer{}, err
	}
	return peer{name: mitmproxy, process: p, target: target{
		Dial: address, Connect: true, Authority: upstream, CAFile: filepath.Join(dir, "mitmproxy-ca-cert.pem"),
	}}, nil
}

// gatewayTOML takes the two ports and the limit of connections. Rules and profiles follow.
const gatewayTOML = `
[proxy]
listen = "127.0.0.1:%d"
max_connections = %d
[admin]
listen = "127.0.0.1:%d"
[log]
level = "info"
audit = "audit.log"
`

// ruleTOML takes a name, a URL, a profile, and the CA file.
const ruleTOML = `
[[rule]]
name = %q
url = %q
profile = %q
ca_file = %q
allow_networks = ["127.0.0.0/8"]
`

// profileTOML takes a name, the provider's address, and the CA file.
const profileTOML = `
[profile.%s]
type = "client_credentials"
token_endpoint = "https://%s/token"
client_id = "orthanc"
client_secret = "none"
ca_file = %q
`

// gatewaySettings say what the gateway knows.
type gatewaySettings struct {
	name           string // of the peer
	binary         string // empty: the one that is measured
	upstreams      []string
	provider       string
	maxConnections int
	rules          int // in all
	profiles       int
}

// config writes gateway.toml. The rules of the upstreams come last, behind those that are there to be many: every second one
// is for another path of the first upstream, every other for another host. The last profile is that of the upstreams, each
// other one has a rule of its own as long as there are rules.
func (b *bench) config(dir string, proxy, admin int, s gatewaySettings) (path string, err error) {
	var text strings.Builder
	fmt.Fprintf(&text, gatewayTOML, proxy, s.maxConnections, admin)
	profile := func(i int) string { return fmt.Sprintf("p%d", i%s.profiles) }
	for i := range s.rules - len(s.upstreams) {
		url := fmt.Sprintf("https://h%d.example.org/dicom-web/", i)
		if i%2 == 0 {
			url = fmt.Sprintf("https://%s/tenant-%d/dicom-web/", s.upstreams[0], i)
		}
		fmt.Fprintf(&text, ruleTOML, fmt.Sprintf("filler-%d", i), url, profile(i), b.pki.CAFile)
	}
	for i, upstream := range s.upstreams {
		fmt.Fprintf(&text, ruleTOML, fmt.Sprintf("upstream-%d", i), "https://"+upstream+servicePath, profile(s.profiles-1), b.pki.CAFile)
	}
	for i := range s.profiles {
		fmt.Fprintf(&text, profileTOML, profile(i), s.provider, b.pki.CAFile)
	}
	path = filepath.Join(dir, "gateway.toml")
	return path, os.WriteFile(path, []byte(text.String()), 0o600)
}

// gatewayPeer starts the gateway and waits until it has a token for every profile.
func (b *bench) gatewayPeer(ctx context.Context, s gatewaySettings) (p peer, admin string, err error) {
	if s.name == "" {
		s.name = gateway
	}
	if s.binary == "" {
		s.binary = b.binary
	}
	s.rules, s.profiles = max(s.rules, len(s.upstreams)), max(s.profiles, 1)
	if s.maxConnections == 0 {
		s.maxConnections = 1024 // the default
	}
	dir, err := os.MkdirTemp(b.dir, "gateway-")
	if err != nil {
		return peer{}, "", err
	}
	proxyPort, err := freePort()
	if err != nil {
		return peer{}, "", err
	}
	adminPort, err := freePort()
	if err != nil {
		return peer{}, "", err
	}
	config, err := b.config(dir, proxyPort, adminPort, s)
	if err != nil {
		return peer{}, "", err
	}
	running, err := b.startProgram(gateway, s.binary, "run", "--config", config)
	if err != nil {
		return peer{}, "", err
	}
	admin = fmt.Sprintf("http://127.0.0.1:%d", adminPort)
	err = running.ready(ctx, func() error {
		status, err := b.gatewayStatus(ctx, admin)
		if err != nil {
			return err
		}
		if len(status.Profiles) != s.profiles {
			return fmt.Errorf("%d profiles", len(status.Profiles))
		}
		for _, profile := range status.Profiles {
			if profile.State != "fresh" {
				return fmt.Errorf("a profile is %s", profile.State)
			}
		}
		return nil
	})
	return peer{name: s.name, process: running, target: target{
		Dial: fmt.Sprintf("127.0.0.1:%d", proxyPort), Connect: true, Authority: s.upstreams[0], CAFile: filepath.Join(dir, "ca", "bundle.pem"),
	}}, admin, err
}

// gatewayStatus is what counts of the gateway's status page.
type gatewayStatus struct {
	Profiles []struct {
		State            string  `json:"state"`
		ExpiresInSeconds float64 `json:"expires_in_seconds"`
	} `json:"profiles"`
}

func (b *bench) gatewayStatus(ctx context.Context, admin string) (s gatewayStatus, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, admin+"/dicomweb-oauth/status", nil)
	if err != nil {
		return s, err
	}
	response, err := b.http.Do(r)
	if err != nil {
		return s, err
	}
	defer func() { _ = response.Body.Close() }()
	err = json.NewDecoder(response.Body).Decode(&s)
	return s, err
}

// dials says whether something listens.
func dials(ctx context.Context, address string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return c.Close()
}

// missing goes on without a program that is not installed, but not in CI.
func (b *bench) missing(err error) error {
	if os.Getenv("CI") == "true" {
		return err
	}
	b.say("  left out: %v", err)
	return nil
}

// find returns the path of a program.
func find(names ...string) (string, error) {
	var errs []error
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err == nil {
			return path, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}
