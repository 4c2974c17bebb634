package gateway

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// dialTimeout is how long one upstream may take to accept a connection.
const dialTimeout = 10 * time.Second

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// addressError is an address that is not dialled.
type addressError struct {
	address netip.Addr
	why     string
}

// Error implements error.
func (e *addressError) Error() string { return fmt.Sprintf("address %s is %s", e.address, e.why) }

// metadata are the addresses of cloud metadata services, which give credentials
// to whoever asks: AWS, Azure, Google and others; AWS over IPv6; Azure's
// wire server; Alibaba.
var metadata = [...]netip.Addr{
	netip.MustParseAddr("169.254.169.254"),
	netip.MustParseAddr("fd00:ec2::254"),
	netip.MustParseAddr("168.63.129.16"),
	netip.MustParseAddr("100.100.100.200"),
}

// addressPolicy decides which addresses the data plane may dial. It is asked
// after DNS, with the very address that is about to be dialled, so that no DNS
// answer gets around it.
type addressPolicy struct {
	allow []netip.Prefix
	// metadataOnly refuses cloud metadata services and nothing else, for the
	// token plane: providers may well be on loopback.
	metadataOnly bool
}

func (p *addressPolicy) check(ip netip.Addr) error {
	ip = embeddedIPv4(ip.WithZone(""))
	for _, prefix := range p.allow {
		if prefix.Contains(ip) {
			return nil
		}
	}
	for _, m := range metadata {
		if ip == m {
			return &addressError{ip, "a cloud metadata service"}
		}
	}
	if p.metadataOnly {
		return nil
	}
	switch {
	case ip.IsUnspecified():
		return &addressError{ip, "unspecified"}
	case ip.IsLoopback():
		return &addressError{ip, "loopback"}
	case ip.IsLinkLocalUnicast():
		return &addressError{ip, "link-local"}
	case ip.IsMulticast(), ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return &addressError{ip, "multicast or broadcast"}
	}
	return nil
}

var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// embeddedIPv4 returns the IPv4 address that packets to ip end up at: mapped
// (RFC 4291) and NAT64 (RFC 6052) addresses are IPv4 in disguise.
func embeddedIPv4(ip netip.Addr) netip.Addr {
	ip = ip.Unmap()
	if nat64.Contains(ip) {
		b := ip.As16()
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return ip
}

// ownAddresses are the addresses that this process listens on. Dialling one
// would be a loop, or a way into the admin API.
type ownAddresses struct {
	mu     sync.RWMutex
	listen []netip.AddrPort
}

func (o *ownAddresses) add(addr net.Addr) {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	ap := tcp.AddrPort()
	o.listen = append(o.listen, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
}

func (o *ownAddresses) check(to netip.AddrPort) error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, l := range o.listen {
		if l.Port() != to.Port() {
			continue
		}
		if l.Addr() == to.Addr() || l.Addr().IsUnspecified() && isLocal(to.Addr()) || to.Addr().IsUnspecified() && isLocal(l.Addr()) {
			return &addressError{to.Addr(), "a listener of this gateway"}
		}
	}
	return nil
}

// isLocal reports whether packets to ip stay on this machine.
func isLocal(ip netip.Addr) bool {
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return true // not known: refuse rather than loop
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip.AsSlice()) {
			return true
		}
	}
	return false
}

// guard returns a dialler that never reaches an own listener and, with a
// policy, only what the policy permits.
func (o *ownAddresses) guard(policy *addressPolicy) dialFunc {
	d := &net.Dialer{
		Timeout: dialTimeout,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return err
			}
			to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
			if policy != nil {
				if err := policy.check(to.Addr()); err != nil {
					return err
				}
			}
			return o.check(to)
		},
	}
	return d.DialContext
}
