package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// names answers DNS queries over UDP on loopback: the first list of addresses to the first query for a name, the second
// to the next, and the last to all that follow.
type names struct {
	mu    sync.Mutex
	lists map[string][][]string
}

// next returns the addresses for one query.
func (n *names) next(name string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	lists := n.lists[name]
	if len(lists) == 0 {
		return nil
	}
	if len(lists) > 1 {
		n.lists[name] = lists[1:]
	}
	return lists[0]
}

func (n *names) serve(pc net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		size, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		var query dnsmessage.Message
		if query.Unpack(buf[:size]) != nil || len(query.Questions) != 1 {
			continue
		}
		q := query.Questions[0]
		answer := dnsmessage.Message{Header: dnsmessage.Header{ID: query.ID, Response: true, RecursionAvailable: true}, Questions: query.Questions}
		if q.Type == dnsmessage.TypeA {
			for _, address := range n.next(strings.TrimSuffix(q.Name.String(), ".")) {
				answer.Answers = append(answer.Answers, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
					Body:   &dnsmessage.AResource{A: netip.MustParseAddr(address).As4()},
				})
			}
		}
		if packed, err := answer.Pack(); err == nil {
			_, _ = pc.WriteTo(packed, from)
		}
	}
}

// Whatever DNS says, and if it says something else each time: the address that is dialled is the one that was judged,
// so that no answer leads inside, to a metadata service or to an own listener.
func TestDNSAnswersThatLeadInsideAreNotDialled(t *testing.T) { // not parallel: it replaces the process's resolver
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &names{lists: map[string][][]string{
		"inside.test":   {{"127.0.0.1"}},
		"metadata.test": {{"169.254.169.254"}},
		"azure.test":    {{"168.63.129.16"}},
		"nowhere.test":  {{"0.0.0.0"}},
		"several.test":  {{"127.0.0.1", "169.254.169.254", "127.0.0.2"}},
		"changes.test":  {{"127.0.0.2"}, {"127.0.0.1"}, {"127.0.0.2"}, {"169.254.169.254"}},
		"own.test":      {{"127.0.0.3"}},
	}}
	var serving sync.WaitGroup
	serving.Go(func() { n.serve(pc) })
	resolver := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = resolver
		pc.Close()
		serving.Wait()
	})

	good := listenOn(t, "127.0.0.2:0")
	_, port, _ := net.SplitHostPort(good.Addr().String())
	inside, mine := listenOn(t, "127.0.0.1:"+port), listenOn(t, "127.0.0.3:"+port)
	own := &ownAddresses{}
	own.add(mine.Addr())
	dial := own.guard(&addressPolicy{allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/31")}})
	for _, row := range []struct {
		host    string
		reached []bool // at each dial
	}{
		{"inside.test", []bool{false}},
		{"metadata.test", []bool{false}},
		{"azure.test", []bool{false}},
		{"nowhere.test", []bool{false}},
		{"own.test", []bool{false}},
		{"several.test", []bool{true}},
		{"changes.test", []bool{true, false, true, false}},
	} {
		for i, want := range row.reached {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			c, err := dial(ctx, "tcp", net.JoinHostPort(row.host, port))
			cancel()
			if (err == nil) != want {
				t.Errorf("%s, dial %d: got %v, want a connection: %v", row.host, i, err, want)
			}
			if err == nil {
				if got := c.RemoteAddr().String(); got != good.Addr().String() {
					t.Errorf("%s, dial %d: reached %s", row.host, i, got)
				}
				c.Close()
				continue
			}
			if _, refused := errors.AsType[*addressError](err); !refused {
				t.Errorf("%s, dial %d: got %v, want an address that is refused", row.host, i, err)
			}
		}
	}
	for _, l := range []*net.TCPListener{inside, mine} {
		_ = l.SetDeadline(time.Now().Add(20 * time.Millisecond))
		if c, err := l.Accept(); err == nil {
			c.Close()
			t.Errorf("%s was dialled", l.Addr())
		}
	}
}

func listenOn(t *testing.T, address string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}
