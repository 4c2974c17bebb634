package gateway

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
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
		"log.level",
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
