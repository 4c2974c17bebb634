package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// A new key must either take effect at a reload or be named as one that waits
// for a restart.
func TestEveryKeyOfTheTablesIsLiveOrNeedsARestart(t *testing.T) {
	live := []string{
		"proxy.tls_cert", "proxy.tls_key", "proxy.username", "proxy.password", "proxy.allow_clients", "proxy.unmatched",
		"proxy.max_connections", "proxy.stall_timeout", "proxy.response_timeout", "proxy.drain_timeout", "proxy.upstream_proxy",
		"proxy.permissive_modes",
		"ca.name_constraints", // for the next CA
		"log.level", "log.audit_key_file",
	}
	var known []string
	for _, table := range []struct {
		name string
		of   func(*rules.Config) any
	}{
		{"proxy", func(c *rules.Config) any { return &c.Proxy }},
		{"admin", func(c *rules.Config) any { return &c.Admin }},
		{"ca", func(c *rules.Config) any { return &c.CA }},
		{"log", func(c *rules.Config) any { return &c.Log }},
	} {
		running := rules.Default()
		fields := reflect.ValueOf(table.of(&running)).Elem()
		for i := range fields.NumField() {
			key := table.name + "." + fields.Type().Field(i).Tag.Get("toml")
			known = append(known, key)
			c := rules.Default()
			change(t, reflect.ValueOf(table.of(&c)).Elem().Field(i))
			want := []string{key}
			if slices.Contains(live, key) {
				want = []string{}
			}
			if got := keepFixed(&running, &c); !slices.Equal(got, want) {
				t.Errorf("a change of %s needs a restart for %q, want %q", key, got, want)
			}
			if kept := reflect.DeepEqual(table.of(&c), table.of(&running)); kept != (len(want) == 1) {
				t.Errorf("after a change of %s the running value is kept: %v", key, kept)
			}
		}
	}
	for _, key := range live {
		if !slices.Contains(known, key) {
			t.Errorf("there is no key %s", key)
		}
	}
}

// A file that moves the listener to loopback may drop its password. The running
// listener must not: it stays where other machines reach it.
func TestListenerThatStaysKeepsItsPasswordAndItsClients(t *testing.T) {
	running, c := rules.Default(), rules.Default()
	running.Proxy.Listen, running.Proxy.Username = "0.0.0.0:3128", "orthanc"
	running.Proxy.Password = token.SecretValue(token.NewSecret("let-me-in"))
	running.Proxy.AllowClients = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	running.Proxy.TLSCert, running.Proxy.TLSKey = "cert.pem", "key.pem"
	want := []string{"proxy.listen", "proxy.tls_cert", "proxy.tls_key", "proxy.username", "proxy.password", "proxy.allow_clients"}
	if got := keepFixed(&running, &c); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if !reflect.DeepEqual(c, running) {
		t.Errorf("got %+v, want the running values", c.Proxy)
	}
}

// change gives a field another value.
func change(t *testing.T, v reflect.Value) {
	t.Helper()
	switch p := v.Addr().Interface().(type) {
	case *token.Secret:
		*p = token.NewSecret("changed")
	case *token.SecretSource:
		*p = token.SecretValue(token.NewSecret("changed"))
	case *time.Duration:
		*p += time.Second
	case *bool:
		*p = !*p
	case *int:
		*p++
	default:
		switch v.Kind() {
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		default:
			t.Fatalf("this test cannot change a %s", v.Type())
		}
	}
}

// never is an acquirer that gets no answer.
type never struct{}

func (never) Acquire(ctx context.Context) (token.Token, error) {
	<-ctx.Done()
	return token.Token{}, ctx.Err()
}

// waits reports whether a source still asks its provider.
func waits(s *token.Source) bool {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := s.Token(ctx)
	return errors.Is(err, context.Canceled) // else it says at once that there is none
}

func TestSnapshotsCloseWhatNoneOfThemUses(t *testing.T) {
	source := func() *token.Source {
		return token.NewSource(never{}, token.DefaultLifecycle(), slog.New(slog.DiscardHandler))
	}
	with := func(sources ...*token.Source) *snapshot {
		s := &snapshot{sources: map[string]*token.Source{}}
		for i, source := range sources {
			s.sources[fmt.Sprint(i)] = source
		}
		return s
	}
	want := func(when string, s *token.Source, open bool) {
		t.Helper()
		if waits(s) != open {
			t.Errorf("%s a source is open: %v, want %v", when, !open, open)
		}
	}
	l := &snapshots{}
	first, both, second, late := source(), source(), source(), source()
	a, b := with(first, both), with(both, second)
	if !l.add(a) || !l.add(b) {
		t.Fatal("not taken in")
	}
	l.unused(a)
	l.closing.Wait()
	want("after its last snapshot", first, false)
	want("in the snapshot that is left", both, true)
	l.closeAll()
	want("after the stop", both, false)
	want("after the stop", second, false)
	if l.add(with(second, late)) {
		t.Error("taken in after the stop")
	}
	want("that came after the stop", late, false)
	l.unused(b) // by a request that outlives the stop
}

// hourly is an acquirer of tokens that live for an hour.
type hourly struct{ asked atomic.Int64 }

func (h *hourly) Acquire(context.Context) (token.Token, error) {
	h.asked.Add(1)
	return token.Token{Value: token.NewSecret("t"), Expires: time.Now().Add(time.Hour)}, nil
}

func TestReplacedSourceIsNotRenewedForARequestThatLastsForHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept, replaced, g := &hourly{}, &hourly{}, &Gateway{}
		open := func(a token.Acquirer) *token.Source {
			return token.NewSource(a, token.DefaultLifecycle(), slog.New(slog.DiscardHandler))
		}
		k := open(kept)
		g.install(&snapshot{sources: map[string]*token.Source{"kept": k, "replaced": open(replaced)}})
		request := g.hold()
		g.install(&snapshot{sources: map[string]*token.Source{"kept": k}})
		time.Sleep(10 * time.Hour)
		if n := replaced.asked.Load(); n != 1 {
			t.Errorf("the replaced source asked %d times, want once", n)
		}
		if n := kept.asked.Load(); n < 10 {
			t.Errorf("the other one asked %d times, want each hour", n)
		}
		request.release()
		g.snapshots.closeAll()
	})
}

func TestSnapshotIsClosedByItsLastUserOnly(t *testing.T) {
	var ended int
	s := &snapshot{unused: func() { ended++ }}
	s.users.Store(1)
	if !s.hold() {
		t.Fatal("a snapshot in use cannot be held")
	}
	s.release()
	if ended != 0 {
		t.Error("closed while it is in use")
	}
	s.release()
	if ended != 1 || s.hold() {
		t.Errorf("closed %d times, want once and for good", ended)
	}
}
