package token_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

const (
	azureResource  = "https://dicom.healthcareapis.azure.com"
	identityHeader = "identity-header-of-the-app"
)

// platform is a managed identity endpoint in clear, as all of them are.
type platform struct {
	*httptest.Server
	mu       sync.Mutex
	received []*http.Request
}

func servePlatform(t *testing.T, handler http.HandlerFunc) *platform {
	t.Helper()
	for _, name := range []string{
		"IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IDENTITY_SERVER_THUMBPRINT", "IMDS_ENDPOINT", "MSI_ENDPOINT", "MSI_SECRET",
	} {
		t.Setenv(name, "")
	}
	p := &platform{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.received = append(p.received, r.Clone(context.Background()))
		p.mu.Unlock()
		handler(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *platform) requests() []*http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]*http.Request(nil), p.received...)
}

// appService lets the SDK find the platform as App Service or Container Apps.
func appService(t *testing.T, handler http.HandlerFunc) (*platform, token.Env) {
	t.Helper()
	p := servePlatform(t, handler)
	t.Setenv("IDENTITY_ENDPOINT", p.URL+"/msi/token")
	t.Setenv("IDENTITY_HEADER", identityHeader)
	return p, token.Env{}
}

// imds lets the SDK find the platform as a virtual machine: the address of the
// metadata service leads to it.
func imds(t *testing.T, handler http.HandlerFunc) (*platform, token.Env) {
	t.Helper()
	p := servePlatform(t, handler)
	return p, token.Env{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != "169.254.169.254:80" {
			return nil, fmt.Errorf("dialled %s", address)
		}
		return (&net.Dialer{}).DialContext(ctx, network, p.Listener.Addr().String())
	}}
}

var azurePlatforms = map[string]func(*testing.T, http.HandlerFunc) (*platform, token.Env){"App Service": appService, "IMDS": imds}

func buildIn(t *testing.T, s token.Settings, env token.Env) token.Acquirer {
	t.Helper()
	a, err := s.Acquirer(env)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// The SDK's cache for managed identities belongs to the process, whatever the
// credential: all the same, each acquisition asks the platform, as two profiles
// of the same identity do.
func TestAzureManagedIdentityGivesANewTokenEachTime(t *testing.T) {
	for name, start := range azurePlatforms {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int64
			p, env := start(t, func(w http.ResponseWriter, r *http.Request) {
				answers(200, nil, fmt.Sprintf(`{"access_token":"%s-%d","token_type":"Bearer","expires_on":"%d","resource":"%s"}`,
					accessToken, n.Add(1), time.Now().Add(8*time.Hour).Unix(), azureResource))(w, r)
			})
			for i := 1; i <= 2; i++ {
				a := buildIn(t, &token.AzureManagedIdentity{}, env)
				for j := 1; j <= 2; j++ {
					got, err := a.Acquire(t.Context())
					if err != nil {
						t.Fatalf("Acquire: %v", err)
					}
					if want := fmt.Sprintf("%s-%d", accessToken, 2*i+j-2); got.Value.Reveal() != want {
						t.Errorf("token %s, want %s", got.Value.Reveal(), want)
					}
					if life := time.Until(got.Expires); life > 8*time.Hour || life < 8*time.Hour-5*time.Second {
						t.Errorf("life %v, want 8 h", life)
					}
					wantHidden(t, got, accessToken)
				}
			}
			if n := len(p.requests()); n != 4 {
				t.Errorf("%d requests, want 4", n)
			}
		})
	}
}

func TestAzureManagedIdentityOnTheWire(t *testing.T) {
	identities := map[string]struct {
		settings    token.AzureManagedIdentity
		query, imds string
	}{
		"system-assigned": {},
		"client id":       {token.AzureManagedIdentity{IdentityClientID: "id-1"}, "client_id", "client_id"},
		"object id":       {token.AzureManagedIdentity{IdentityObjectID: "id-1"}, "object_id", "object_id"},
		"resource id":     {token.AzureManagedIdentity{IdentityResourceID: "id-1"}, "mi_res_id", "msi_res_id"},
	}
	for platform, start := range azurePlatforms {
		for name, row := range identities {
			t.Run(platform+", "+name, func(t *testing.T) {
				p, env := start(t, numbered())
				if _, err := buildIn(t, &row.settings, env).Acquire(t.Context()); err != nil {
					t.Fatalf("Acquire: %v", err)
				}
				r := p.requests()[0]
				want := url.Values{"resource": {azureResource}}
				header := http.Header{}
				selector := row.query
				if platform == "IMDS" {
					want.Set("api-version", "2018-02-01")
					header.Set("Metadata", "true")
					selector = row.imds
				} else {
					want.Set("api-version", "2019-08-01")
					header.Set("X-Identity-Header", identityHeader)
				}
				if selector != "" {
					want.Set(selector, "id-1")
				}
				if diff := cmp.Diff(want, r.URL.Query()); diff != "" {
					t.Errorf("query (-want +got):\n%s", diff)
				}
				for name := range header {
					if got := r.Header.Get(name); got != header.Get(name) {
						t.Errorf("%s: %q, want %q", name, got, header.Get(name))
					}
				}
			})
		}
	}
}

// No proxy could reach the address, and none must see what comes from it.
func TestAzureManagedIdentityIsNotAskedThroughTheProxy(t *testing.T) {
	for name, start := range azurePlatforms {
		t.Run(name, func(t *testing.T) {
			_, env := start(t, numbered())
			env.Proxy = &url.URL{Scheme: "http", Host: "127.0.0.1:1"}
			if _, err := buildIn(t, &token.AzureManagedIdentity{}, env).Acquire(t.Context()); err != nil {
				t.Errorf("Acquire: %v", err)
			}
		})
	}
}

func TestAzureManagedIdentityLife(t *testing.T) {
	in := func(d time.Duration) string { return strconv.FormatInt(time.Now().Add(d).Unix(), 10) }
	for _, row := range []struct {
		name, members string
		want          time.Duration
		none, bad     bool
	}{
		{name: "expires_on as a string", members: `,"expires_on":"` + in(time.Hour) + `"`, want: time.Hour},
		{name: "expires_on as a number", members: `,"expires_on":` + in(time.Hour), want: time.Hour},
		{name: "expires_on as a date", members: `,"expires_on":"` + time.Now().Add(time.Hour).UTC().Format("01/02/2006 15:04:05") + `"`, want: time.Hour},
		{name: "both, as IMDS", members: `,"expires_in":"3599","expires_on":"` + in(30*time.Minute) + `"`, want: 30 * time.Minute},
		{name: "both, expires_in is earlier", members: `,"expires_in":"600","expires_on":"` + in(time.Hour) + `"`, want: 10 * time.Minute},
		{name: "expires_in alone", members: `,"expires_in":"600"`, want: 10 * time.Minute},
		{name: "expires_in with a fraction", members: `,"expires_in":600.0`, want: 10 * time.Minute},
		{name: "more than a day", members: `,"expires_on":"` + in(90*time.Hour) + `"`, want: 24 * time.Hour},
		{name: "neither", none: true},
		{name: "empty", members: `,"expires_in":"","expires_on":""`, none: true},
		{name: "expires_on as a word", members: `,"expires_on":"` + planted + `"`, bad: true},
		{name: "expires_in below zero", members: `,"expires_in":-1`, bad: true},
		{name: "expires_in as a word", members: `,"expires_in":"` + planted + `"`, bad: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, env := imds(t, answers(200, nil, `{"access_token":"`+accessToken+`","token_type":"Bearer"`+row.members+`}`))
			a := buildIn(t, &token.AzureManagedIdentity{}, env)
			if row.bad {
				if got := failure(t.Context(), t, a); got.Class != token.Transient || got.Code != "provider_answer" {
					t.Errorf("%+v, want a transient provider_answer", got)
				}
				return
			}
			got, err := a.Acquire(t.Context())
			if err != nil {
				t.Fatalf("Acquire: %v", err)
			}
			life := time.Until(got.Expires)
			if row.none != got.Expires.IsZero() || !row.none && (life > row.want || life < row.want-5*time.Second) {
				t.Errorf("expires at %v, in %v, want %v", got.Expires, life, row.want)
			}
		})
	}
}

func TestAzureManagedIdentityErrorsNameTheKey(t *testing.T) {
	const notFound = `{"error":"invalid_request","error_description":"Identity not found ` + planted + `"}`
	in := func(v string) http.Header { return http.Header{"Retry-After": {v}} }
	for _, row := range []struct {
		name     string
		settings token.AzureManagedIdentity
		status   int
		header   http.Header
		body     string
		want     token.Error // Status is the row's, Hint a part
	}{
		{
			name: "identity not found, by client id", settings: token.AzureManagedIdentity{IdentityClientID: "x"}, status: 400, body: notFound,
			want: token.Error{Class: token.Permanent, Code: "invalid_request", Key: "identity_client_id", Hint: "is not assigned to this machine or app; check identity_client_id"},
		},
		{
			name: "identity not found, by object id", settings: token.AzureManagedIdentity{IdentityObjectID: "x"}, status: 400, body: notFound,
			want: token.Error{Class: token.Permanent, Code: "invalid_request", Key: "identity_object_id", Hint: "check identity_object_id"},
		},
		{
			name: "no such identity, as App Service says it", settings: token.AzureManagedIdentity{IdentityResourceID: "x"}, status: 400,
			body: `{"statusCode":400,"message":"No User Assigned or Delegated Managed Identity found for specified ClientId/ResourceId/PrincipalId.` + planted + `"}`,
			want: token.Error{Class: token.Permanent, Code: "provider_answer", Key: "identity_resource_id", Hint: "check identity_resource_id"},
		},
		{
			name: "no system-assigned identity", status: 400, body: notFound,
			want: token.Error{Class: token.Permanent, Code: "invalid_request", Hint: "no system-assigned identity"},
		},
		{
			name: "unknown audience", status: 400, body: `{"error":"invalid_resource","error_description":"AADSTS500011: The resource principal named ` + planted + `"}`,
			want: token.Error{Class: token.Permanent, Code: "provider_answer", Key: "scopes", Description: "AADSTS500011", Hint: "audience in scopes"},
		},
		{
			name: "unknown audience without a code", status: 400, body: `{"error":"invalid_resource","error_description":"` + planted + `"}`,
			want: token.Error{Class: token.Permanent, Code: "provider_answer", Key: "scopes", Hint: "audience in scopes"},
		},
		{name: "404", status: 404, body: planted, want: token.Error{Class: token.Transient, Code: "provider_answer", Hint: "not ready"}},
		{name: "410", status: 410, body: planted, want: token.Error{Class: token.Transient, Code: "provider_answer", Hint: "not ready"}},
		{name: "401 without a challenge", status: 401, body: planted, want: token.Error{Class: token.Permanent, Code: "provider_answer", Hint: "refused the gateway"}},
		{name: "403", status: 403, body: planted, want: token.Error{Class: token.Permanent, Code: "provider_answer", Hint: "refused the gateway"}},
		{name: "429", status: 429, header: in("7"), body: planted, want: token.Error{Class: token.Throttled, Code: "provider_answer", RetryAfter: 7 * time.Second, Hint: "asks to wait"}},
		{name: "500", status: 500, body: planted, want: token.Error{Class: token.Transient, Code: "provider_answer", Hint: "problem of its own"}},
		{name: "503", status: 503, body: planted, want: token.Error{Class: token.Transient, Code: "provider_answer", Hint: "problem of its own"}},
		{name: "redirect", status: 302, header: http.Header{"Location": {"/" + planted}}, want: token.Error{Class: token.Transient, Code: "provider_answer", Hint: "never followed"}},
		{name: "HTML", status: 200, body: "<html>" + planted, want: token.Error{Class: token.Transient, Code: "provider_answer", Hint: "not JSON"}},
	} {
		for platform, start := range azurePlatforms {
			t.Run(row.name+", "+platform, func(t *testing.T) {
				p, env := start(t, answers(row.status, row.header, row.body))
				got := failure(t.Context(), t, buildIn(t, &row.settings, env))
				want := row.want
				if !strings.Contains(got.Hint, want.Hint) {
					t.Errorf("hint %q, want %q in it", got.Hint, want.Hint)
				}
				if strings.Contains(got.Hint, "token_endpoint") {
					t.Errorf("hint %q names a key that the type does not have", got.Hint)
				}
				want.Hint, want.Status = got.Hint, row.status
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("error (-want +got):\n%s", diff)
				}
				if n := len(p.requests()); n != 1 {
					t.Errorf("%d requests, want 1: the SDK's retries are off", n)
				}
			})
		}
	}
}

func TestAzureMachineWithoutManagedIdentity(t *testing.T) {
	for name, dial := range map[string]func(context.Context, string, string) (net.Conn, error){
		"refused": func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: net.UnknownNetworkError(planted)}
		},
		"black hole": func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			servePlatform(t, nil)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			a := buildIn(t, &token.AzureManagedIdentity{}, token.Env{Dial: dial})
			began := time.Now()
			_, err := a.Acquire(ctx)
			got := networkCause(err)
			if got == nil || got.Class != token.Transient || !strings.Contains(got.Hint, "this machine has no managed identity endpoint") {
				t.Errorf("%+v, want a transient error with the hint", got)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %v, want the attempt's own timeout", took)
			}
		})
	}
}

func TestAzureServiceFabricIsRefusedBeforeAnythingIsSent(t *testing.T) {
	p, env := appService(t, numbered())
	t.Setenv("IDENTITY_SERVER_THUMBPRINT", strings.Repeat("ab", 20))
	got := failure(t.Context(), t, buildIn(t, &token.AzureManagedIdentity{}, env))
	if got.Class != token.Permanent || !strings.Contains(got.Hint, "Service Fabric") {
		t.Errorf("%+v, want a permanent error that names Service Fabric", got)
	}
	if n := len(p.requests()); n != 0 {
		t.Errorf("%d requests, want none", n)
	}
}
