//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// portOf returns the port of host:port.
func portOf(authority string) string { return authority[strings.LastIndex(authority, ":")+1:] }

// An address is dialled under its one spelling, if a rule names it, and what only a resolver would take for an address
// is no host.
func TestAttackA04SpellingsOfAddresses(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s, hidden := startRecorder(t, p, nil), startRecorder(t, p, nil)
	port, other := portOf(s.authority), portOf(hidden.authority)
	a := startArena(t, `unmatched = "pass"`, p.inject("archive", "https://127.0.0.1:"+port+"/", ""))

	// Spellings of the rule's address are the rule's. Its certificate is for localhost only, so that none of them gets
	// further.
	for _, host := range []string{"127.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:7f00:0001]"} {
		c := tls.Client(a.connect(t, host+":"+port), &tls.Config{InsecureSkipVerify: true})
		if wrong := talk(c, "GET / HTTP/1.1\r\nHost: "+host+":"+port+"\r\n\r\n").is(502, "upstream_tls"); wrong != "" {
			t.Errorf("%s: %s", host, wrong)
		}
	}
	// What else a resolver may read as an address is none.
	for _, host := range []string{
		"2130706433", "0x7f000001", "0x7f.1", "0x7f.0.0.1", "017700000001", "0177.0.0.1", "127.1", "127.0.1", "127.0.0.01",
		"127.0.0.0x1", "127.0.0.1.", "0", "0x0", "1", "127.0.0.256",
		"[::1%25lo]", "[::1%lo]", "[fe80::1%25eth0]", "[::ffff:127.0.0.1%25lo]", "::ffff:127.0.0.1", "[127.0.0.1]", "[::1", "[]",
		"\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "\u2460.0.0.1",
	} {
		got := talk(a.dial(t), "CONNECT "+host+":"+other+" HTTP/1.1\r\nHost: x\r\n\r\n")
		if got.is(400, "bad_request") != "" && got.is(502, "address_refused") != "" {
			t.Errorf("%s: got %d %q %v, want a refusal", host, got.status, got.code(), got.err)
		}
	}
	// What is one is judged by what it is, though unmatched hosts pass.
	for _, host := range []string{
		"127.0.0.1", "127.99.0.1", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "0.0.0.0", "[::]", "[::ffff:0.0.0.0]",
		"169.254.169.254", "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]", "168.63.129.16",
		"100.100.100.200", "[fe80::1]", "224.0.0.1", "255.255.255.255", "localhost", "LOCALHOST.",
	} {
		if wrong := talk(a.dial(t), "CONNECT "+host+":"+other+" HTTP/1.1\r\nHost: x\r\n\r\n").is(502, "address_refused"); wrong != "" {
			t.Errorf("CONNECT %s: %s", host, wrong)
		}
		if wrong := talk(a.dial(t), "GET http://"+host+":"+other+"/ HTTP/1.1\r\nHost: x\r\n\r\n").is(502, "address_refused"); wrong != "" {
			t.Errorf("http://%s: %s", host, wrong)
		}
	}
	if n := hidden.dialled(); n > 0 {
		t.Errorf("an address that is refused was dialled %d times", n)
	}
	if n := len(s.seen()); n > 0 {
		t.Errorf("%d requests have reached a server with a certificate for another name", n)
	}
}

// Neither listener of the gateway is reached through the gateway, by any name, though rules permit loopback.
func TestAttackA10OwnListeners(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	ports := freePorts(t, 2)
	var tables string
	var authorities []string
	for i, port := range ports {
		for _, host := range []string{"localhost", "127.0.0.1", "[::ffff:127.0.0.1]", "0.0.0.0"} {
			authority := fmt.Sprintf("%s:%d", host, port)
			if !strings.HasPrefix(host, "[") { // the same host as 127.0.0.1
				tables += fmt.Sprintf("[[rule]]\nname = \"own-%d-%s\"\nurl = \"https://%s/\"\naction = \"pass\"\nallow_networks = [\"127.0.0.0/8\", \"0.0.0.0/8\", \"::1/128\"]\n", i, host, authority)
			}
			authorities = append(authorities, authority)
		}
		tables += fmt.Sprintf("[[rule]]\nname = \"clear-%d\"\nurl = \"http://localhost:%d/\"\naction = \"pass\"\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n", i, port)
	}
	s := startRecorder(t, p, nil)
	a := startArenaAt(t, ports, "", tables+p.inject("archive", s.url(), ""))
	for _, authority := range authorities {
		if wrong := talk(a.dial(t), "CONNECT "+authority+" HTTP/1.1\r\nHost: x\r\n\r\n").is(502, "address_refused"); wrong != "" {
			t.Errorf("CONNECT %s: %s", authority, wrong)
		}
	}
	for _, port := range ports {
		if wrong := talk(a.dial(t), fmt.Sprintf("GET http://localhost:%d/metrics HTTP/1.1\r\nHost: x\r\n\r\n", port)).is(502, "address_refused"); wrong != "" {
			t.Errorf("port %d: %s", port, wrong)
		}
	}
}

// A gateway that names itself as its upstream_proxy, and two that name each other, give an answer and go on.
func TestAttackA10ProxyLoops(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorder(t, p, nil)
	rule := p.inject("archive", "https://loop.test/", "")
	request := "GET / HTTP/1.1\r\nHost: loop.test\r\n\r\n"

	ports := freePorts(t, 2)
	self := startArenaAt(t, ports, fmt.Sprintf("upstream_proxy = \"http://127.0.0.1:%d\"", ports[0]), rule)
	if wrong := talk(self.tunnel(t, "loop.test:443"), request).is(502, "address_refused"); wrong != "" {
		t.Errorf("upstream_proxy is the gateway itself: %s", wrong)
	}

	ports = freePorts(t, 4)
	mutual := "max_connections = 64\nunmatched = \"pass\"\nupstream_proxy = \"http://127.0.0.1:%d\""
	one := startArenaAt(t, ports[:2], fmt.Sprintf(mutual, ports[2]), rule+p.inject("direct", s.url(), ""))
	startArenaAt(t, ports[2:], fmt.Sprintf(mutual, ports[0]), rule)
	// Each ends the TLS of the other, whose CA it does not trust.
	if wrong := talk(one.tunnel(t, "loop.test:443"), request).is(502, "upstream_tls"); wrong != "" {
		t.Errorf("two gateways, a rule's host: %s", wrong)
	}
	// A host that passes both goes round until one of them has no place left, and all of it unwinds.
	for range 3 {
		got := talk(one.dial(t), "CONNECT round.test:443 HTTP/1.1\r\nHost: x\r\n\r\n")
		if got.status != 502 && got.status != 503 {
			t.Errorf("two gateways, a host that passes: got %d %q %v", got.status, got.code(), got.err)
		}
		eventually(t, patience, func() error { // the places are free again
			if n := openFiles(t, one); n > 30 {
				return fmt.Errorf("%d descriptors are open", n)
			}
			return nil
		})
	}
	if n := len(s.seen()); n > 0 {
		t.Errorf("%d requests have reached a server", n)
	}
}

// openFiles returns how many descriptors the gateway has open.
func openFiles(t *testing.T, a *arena) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.process.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// residentMemory returns the resident set of the gateway, in MiB.
func residentMemory(t *testing.T, a *arena) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.process.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(status), "VmRSS:")
	var kibibytes int
	if _, err := fmt.Sscan(line, &kibibytes); err != nil {
		t.Fatal(err)
	}
	return kibibytes >> 10
}

// Whoever is not meant to use the gateway cannot, and a gateway for everyone does not start.
func TestAttackA11OpenProxy(t *testing.T) {
	t.Parallel()
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	p := newPKI(t)
	s := startRecorder(t, p, nil)
	rule := p.inject("archive", s.url(), "")
	for _, listen := range []string{"0.0.0.0:0", ":0", "[::]:0"} {
		config := filepath.Join(t.TempDir(), "gateway.toml")
		text := fmt.Sprintf("[proxy]\nlisten = %q\n[admin]\nlisten = \"\"\n%s[profile.main]\ntype = \"static_bearer\"\ntoken = \"${E2E_CLIENT_SECRET}\"\n", listen, rule)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		cmd := exec.CommandContext(ctx, gatewayBinary, "run", "--config", config)
		cmd.Env = []string{"E2E_CLIENT_SECRET=" + ownCredential}
		out, err := cmd.CombinedOutput()
		cancel()
		if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "allow_clients") {
			t.Errorf("listen = %q: %v, %s; want exit code 2 and allow_clients named", listen, err, out)
		}
	}

	stranger := startArena(t, `allow_clients = ["192.0.2.0/24"]`, rule)
	for _, request := range []string{"CONNECT " + s.authority, "CONNECT unknown.test:443", "GET http://unknown.test/", "GET /"} {
		if wrong := talk(stranger.dial(t), request+" HTTP/1.1\r\nHost: x\r\n\r\n").is(403, "client_not_allowed"); wrong != "" {
			t.Errorf("a client of another network, %s: %s", request, wrong)
		}
	}

	if n := len(s.seen()); n > 0 {
		t.Errorf("the server was asked %d times", n)
	}
}

// basic is Basic credentials.
func basic(userAndPassword string) string {
	return base64.StdEncoding.EncodeToString([]byte(userAndPassword))
}

// A thousand wrong passwords cost the client time and the gateway nothing; whoever has the right one does not notice.
func TestAttackA11WrongPasswordsByTheThousand(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorder(t, p, nil)
	a := startArena(t, "username = \"orthanc\"\npassword = \"right\"", p.inject("archive", s.url(), ""))
	head := "CONNECT " + s.authority + " HTTP/1.1\r\nHost: x\r\n"
	if wrong := talk(a.dial(t), head+"\r\n").is(407, "proxy_auth_required"); wrong != "" {
		t.Errorf("no password: %s", wrong)
	}
	before := residentMemory(t, a)
	const guesses = 2000
	began := time.Now()
	conns := make([]*net.TCPConn, guesses)
	for i := range conns {
		conns[i] = a.dial(t)
		_, _ = fmt.Fprintf(conns[i], head+"Proxy-Authorization: Basic %s\r\n\r\n", basic("orthanc:guess-"+fmt.Sprint(i)))
	}
	asked := time.Now()
	c := a.dial(t)
	_, _ = fmt.Fprintf(c, head+"Proxy-Authorization: Basic %s\r\n\r\n", basic("orthanc:right"))
	if answer := readHead(t, c); !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
		t.Errorf("the right password got %q", answer)
	}
	if waited := time.Since(asked); waited > 2*time.Second {
		t.Errorf("the right password waited %v", waited)
	}
	refused, busy := 0, 0
	for _, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		switch got := talk(c, ""); {
		case got.is(407, "proxy_auth_required") == "":
			refused++
		case got.status == http.StatusServiceUnavailable || got.err != nil:
			busy++
		default:
			t.Fatalf("a wrong password got %d", got.status)
		}
	}
	t.Logf("%d wrong passwords refused, %d with no place, in %v; resident %d MiB, then %d", refused, busy, time.Since(began), before, residentMemory(t, a))
	if refused < 256 {
		t.Errorf("%d wrong passwords got an answer", refused)
	}
	if after := residentMemory(t, a); after > before+48 {
		t.Errorf("the gateway has grown from %d to %d MiB", before, after)
	}
	if n := len(s.seen()); n > 0 {
		t.Errorf("%d requests have reached the server", n)
	}
}
