package token_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

// plainServer is a server without TLS; it returns the URL.
func plainServer(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestGoogleMetadataRequestOnTheWire(t *testing.T) {
	for _, row := range []struct {
		change      func(*token.GoogleMetadata)
		path, query string
	}{
		{
			change: func(*token.GoogleMetadata) {},
			path:   "/computeMetadata/v1/instance/service-accounts/default/token", query: url.Values{"scopes": {googleScope}}.Encode(),
		},
		{
			change: func(g *token.GoogleMetadata) { g.ServiceAccount, g.Scopes = googleEmail, []string{"a", "b"} },
			path:   "/computeMetadata/v1/instance/service-accounts/" + googleEmail + "/token", query: url.Values{"scopes": {"a,b"}}.Encode(),
		},
	} {
		var got *http.Request
		server := plainServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got = r.Clone(context.Background())
			answers(200, http.Header{"Metadata-Flavor": {"Google"}}, goodAnswer)(w, r)
		}))
		t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(server, "http://"))
		s := googleSettings(t, "google_metadata", row.change)
		s.Check(func(key, problem, _ string) { t.Errorf("Check: %s %s", key, problem) })
		// A proxy would be asked for its own metadata.
		a, err := s.Acquirer(token.Env{Proxy: &url.URL{Scheme: "http", Host: "proxy.test:8080"}})
		if err != nil {
			t.Fatal(err)
		}
		if acquired, err := a.Acquire(t.Context()); err != nil || acquired.Value.Reveal() != accessToken {
			t.Fatalf("Acquire: %v", err)
		}
		if diff := cmp.Diff([]string{"GET", row.path, row.query, "Google"}, []string{got.Method, got.URL.Path, got.URL.RawQuery, got.Header.Get("Metadata-Flavor")}); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
	}
}

func TestGoogleMetadataIsAskedAtItsFixedAddress(t *testing.T) {
	t.Setenv("GCE_METADATA_HOST", "")
	server := plainServer(t, answers(200, nil, goodAnswer))
	a, err := googleSettings(t, "google_metadata", func(*token.GoogleMetadata) {}).Acquirer(token.Env{
		Proxy: &url.URL{Scheme: "http", Host: "proxy.test:8080"},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "169.254.169.254:80" {
				t.Errorf("dialled %s", address)
			}
			return new(net.Dialer).DialContext(ctx, network, strings.TrimPrefix(server, "http://"))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Acquire(t.Context()); err != nil {
		t.Errorf("Acquire: %v", err)
	}
}

func TestGoogleMetadataThatDoesNotAnswerIsNotGoogleCloud(t *testing.T) {
	t.Setenv("GCE_METADATA_HOST", "")
	for name, dial := range map[string]func(context.Context, string, string) (net.Conn, error){
		"refused": func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)} // Google's library would try it six times
		},
		"no route": func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}
		},
		"a black hole": func(ctx context.Context, _, _ string) (net.Conn, error) {
			if end, ok := ctx.Deadline(); !ok || time.Until(end) > 5*time.Second {
				t.Errorf("the connection may take until %v", end)
			}
			return nil, &net.OpError{Op: "dial", Err: context.DeadlineExceeded}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dials := 0
			a, err := googleSettings(t, "google_metadata", func(*token.GoogleMetadata) {}).Acquirer(token.Env{
				Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					dials++
					return dial(ctx, network, address)
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			got := googleFailure(t.Context(), t, a)
			if got.Class != token.Transient || got.Key != "type" || !strings.Contains(got.Hint, "this machine is not on Google Cloud") {
				t.Errorf("%+v, want that this is not Google Cloud", got)
			}
			if dials != 1 {
				t.Errorf("%d connections, want 1", dials)
			}
		})
	}
}

func TestGoogleMetadataRefusalsNameTheKey(t *testing.T) {
	for _, row := range []struct {
		status    int
		key, says string
	}{
		{404, "service_account", "not attached to this machine"},
		{403, "service_account", "roles/iam.workloadIdentityUser"},
		{400, "scopes", "check scopes"},
	} {
		s, requests := googleFamilies[4].start(t, answers(row.status, nil, planted))
		got := googleFailure(t.Context(), t, build(t, s))
		if got.Class != token.Permanent || got.Status != row.status || got.Key != row.key || !strings.Contains(got.Hint, row.says) || requests() != 1 {
			t.Errorf("%d: %+v, want key %q with %q", row.status, got, row.key, row.says)
		}
	}
}
