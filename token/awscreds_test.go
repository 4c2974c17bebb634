package token_test

import (
	"context"
	"encoding/pem"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/token"
)

// awsEnv is an environment that says nothing of AWS, on a machine that has no
// instance metadata; then the test's own variables.
func awsEnv(t *testing.T, vars map[string]string) {
	t.Helper()
	for _, v := range os.Environ() {
		if name, value, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, value) // restores it
			os.Unsetenv(name)
		}
	}
	dir := t.TempDir()
	for name, value := range map[string]string{
		"HOME": dir, "AWS_CONFIG_FILE": filepath.Join(dir, "config"), "AWS_SHARED_CREDENTIALS_FILE": filepath.Join(dir, "credentials"),
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "5",
		"HTTPS_PROXY": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1",
	} {
		t.Setenv(name, value)
	}
	for name, value := range vars {
		t.Setenv(name, value)
	}
}

func awsFile(t *testing.T, variable, content string) {
	t.Helper()
	if err := os.WriteFile(os.Getenv(variable), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// chainSettings name no credentials.
func chainSettings() *token.AWSSigV4 { return &token.AWSSigV4{Region: "eu-central-1"} }

// signedBy sends a request and returns whose key has signed it.
func signedBy(t *testing.T, tok token.Token, secrets map[string]string) (id, session string) {
	t.Helper()
	r := httptest.NewRequest("GET", "https://dicom.test/studies?limit=1", nil)
	if err := tok.Apply(r); err != nil {
		t.Fatal(err)
	}
	w := wire{Method: r.Method, Target: r.URL.RequestURI(), Host: r.Host, Header: r.Header}
	if err := w.verify("eu-central-1", "medical-imaging", secrets); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	id, _, _ = strings.Cut(rest, "/")
	return id, r.Header.Get("X-Amz-Security-Token")
}

func wantSigner(t *testing.T, tok token.Token, wantID, secret, wantSession string) {
	t.Helper()
	wantHidden(t, tok, secret, wantID)
	if id, session := signedBy(t, tok, map[string]string{wantID: secret}); id != wantID || session != wantSession {
		t.Errorf("signed by %s with session %q, want %s and %q", id, session, wantID, wantSession)
	}
}

func acquireAWS(t *testing.T, a token.Acquirer) token.Token {
	t.Helper()
	tok, err := a.Acquire(t.Context())
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	return tok
}

func TestAWSStaticCredentialsAreReadEachTime(t *testing.T) {
	awsEnv(t, map[string]string{"AWS_ACCESS_KEY_ID": "AKIDENV", "AWS_SECRET_ACCESS_KEY": "env-secret"})
	dir := t.TempDir()
	write := func(id, secret, session string) {
		for name, value := range map[string]string{"id": id, "secret": secret, "session": session} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := chainSettings()
	s.AccessKeyID, s.SecretAccessKey, s.SessionToken = token.SecretFile(dir+"/id"), token.SecretFile(dir+"/secret"), token.SecretFile(dir+"/session")
	a := build(t, s)
	if got := failure(t.Context(), t, a); got.Code != "secret_unreadable" || got.Key != "access_key_id" {
		t.Errorf("no file: %+v", got)
	}
	for _, n := range []string{"1", "2"} {
		write("AKID"+n, "secret-content-"+n, "session-content-"+n)
		tok := acquireAWS(t, a)
		wantSigner(t, tok, "AKID"+n, "secret-content-"+n, "session-content-"+n)
		if !tok.Expires.IsZero() {
			t.Errorf("expires %v, want not said", tok.Expires)
		}
	}
	write("AKID3", "secret content", "x")
	if got := failure(t.Context(), t, a); got.Code != "secret_malformed" || got.Class != token.Permanent || got.Key != "secret_access_key" {
		t.Errorf("a space in the secret: %+v", got)
	}
}

func TestAWSEnvironmentIsReadEachTime(t *testing.T) {
	awsEnv(t, nil)
	a := build(t, chainSettings())
	for _, n := range []string{"1", "2"} {
		t.Setenv("AWS_ACCESS_KEY_ID", "AKIDENV"+n)
		t.Setenv("AWS_SECRET_ACCESS_KEY", "env-secret-"+n)
		t.Setenv("AWS_SESSION_TOKEN", "env-session-"+n)
		wantSigner(t, acquireAWS(t, a), "AKIDENV"+n, "env-secret-"+n, "env-session-"+n)
	}
}

func TestAWSSharedProfileIsReadEachTime(t *testing.T) {
	awsEnv(t, map[string]string{"AWS_ACCESS_KEY_ID": "AKIDENV", "AWS_SECRET_ACCESS_KEY": "env-secret"})
	s := chainSettings()
	s.SharedProfile = "pacs"
	a := build(t, s)
	if got := failure(t.Context(), t, a); got.Code != "no_credentials" || got.Class != token.Permanent || got.Key != "shared_profile" {
		t.Errorf("no such profile: %+v", got)
	}
	for _, n := range []string{"1", "2"} {
		awsFile(t, "AWS_SHARED_CREDENTIALS_FILE", "[default]\naws_access_key_id = AKIDOTHER\naws_secret_access_key = other\n"+
			"[pacs]\naws_access_key_id = AKIDPROFILE"+n+"\naws_secret_access_key = profile-secret-"+n+"\n")
		wantSigner(t, acquireAWS(t, a), "AKIDPROFILE"+n, "profile-secret-"+n, "")
	}
	awsFile(t, "AWS_CONFIG_FILE", "[profile pacs]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = pacs\nmfa_serial = arn:aws:iam::123456789012:mfa/u\n")
	if got := failure(t.Context(), t, a); got.Code != "no_credentials" || !strings.Contains(got.Hint, "MFA") {
		t.Errorf("a role that wants MFA: %+v", got)
	}
}

// awsProvider is a server that gives credentials, or what the test says.
type awsProvider struct {
	*httptest.Server
	hits   atomic.Int64
	handle atomic.Pointer[http.HandlerFunc]
}

func serveCredentials(t *testing.T) *awsProvider {
	t.Helper()
	p := &awsProvider{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.hits.Add(1)
		(*p.handle.Load())(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *awsProvider) answer(h http.HandlerFunc) { p.handle.Store(&h) }

// credentialsJSON are credentials as container and metadata services give them.
func credentialsJSON(n int64, life time.Duration) string {
	return fmt.Sprintf(`{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"ASIA%d","SecretAccessKey":"served-secret-%d","Token":"served-session-%d","Expiration":%q}`,
		n, n, n, time.Now().Add(life).UTC().Format(time.RFC3339))
}

// wantServed acquires twice, which must give fresh credentials with their life.
func wantServed(t *testing.T, a token.Acquirer, life time.Duration) {
	t.Helper()
	for _, n := range []string{"1", "2"} {
		tok := acquireAWS(t, a)
		wantSigner(t, tok, "ASIA"+n, "served-secret-"+n, "served-session-"+n)
		if left := time.Until(tok.Expires); left > life || left < life-time.Minute {
			t.Errorf("expires in %v, want %v", left, life)
		}
	}
}

func TestAWSContainerCredentials(t *testing.T) {
	p := serveCredentials(t)
	tokenFile := filepath.Join(t.TempDir(), "token")
	awsEnv(t, map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": p.URL + "/creds", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": tokenFile})
	a := build(t, chainSettings())
	if got := failure(t.Context(), t, a); got.Code != "secret_unreadable" || strings.Contains(got.Hint, tokenFile) || p.hits.Load() != 0 {
		t.Errorf("no token file: %+v, %d requests", got, p.hits.Load())
	}
	if err := os.WriteFile(tokenFile, []byte("pod-token-content"), 0o600); err != nil {
		t.Fatal(err)
	}
	var n int64
	p.answer(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Authorization"); got != "pod-token-content" {
			t.Errorf("Authorization is %q", got)
		}
		n++
		fmt.Fprint(w, credentialsJSON(n, 3*time.Minute)) // less than the SDK's own margin of 5 minutes
	})
	wantServed(t, a, 3*time.Minute)
	if hits := p.hits.Load(); hits != 2 {
		t.Errorf("%d requests for 2 acquisitions", hits)
	}

	for _, row := range []struct {
		name   string
		status int
		header http.Header
		body   string
		want   token.Error
	}{
		{name: "refused", status: 401, body: planted, want: token.Error{Class: token.Permanent, Code: "provider_answer", Status: 401}},
		{name: "refused, JSON", status: 400, header: http.Header{"Content-Type": {"application/json"}}, body: `{"code":"AccessDenied","message":"` + planted + `"}`, want: token.Error{Class: token.Permanent, Code: "AccessDenied", Status: 400}},
		{name: "unknown code", status: 400, header: http.Header{"Content-Type": {"application/json"}}, body: `{"code":"` + planted + `","message":"x"}`, want: token.Error{Class: token.Permanent, Code: "provider_answer", Status: 400}},
		{name: "throttled", status: 429, header: http.Header{"Retry-After": {"7"}}, body: planted, want: token.Error{Class: token.Throttled, Code: "provider_answer", Status: 429, RetryAfter: 7 * time.Second}},
		{name: "dead", status: 500, body: planted, want: token.Error{Class: token.Transient, Code: "provider_answer", Status: 500}},
		{name: "redirect", status: 307, header: http.Header{"Location": {"http://127.0.0.1:1/" + planted}}, want: token.Error{Class: token.Transient, Code: "provider_answer", Status: 307}},
		{name: "HTML", status: 200, body: "<html>" + planted, want: token.Error{Class: token.Transient, Code: "provider_answer"}},
		{name: "truncated", status: 200, body: `{"AccessKeyId":"` + planted, want: token.Error{Class: token.Transient, Code: "provider_answer"}},
		{name: "no credentials", status: 200, body: `{}`, want: token.Error{Class: token.Transient, Code: "provider_answer"}},
		{name: "2 MiB", status: 200, body: `{"Padding":"` + strings.Repeat("A", 2<<20) + `",` + credentialsJSON(1, time.Hour)[1:], want: token.Error{Class: token.Transient, Code: "provider_answer"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p.hits.Store(0)
			p.answer(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/html")
				maps.Copy(w.Header(), row.header)
				w.WriteHeader(row.status)
				fmt.Fprint(w, row.body)
			})
			got := failure(t.Context(), t, a)
			if got.Class != row.want.Class || got.Code != row.want.Code || got.Status != row.want.Status || got.RetryAfter != row.want.RetryAfter || got.Hint == "" {
				t.Errorf("got %+v, want %+v", got, row.want)
			}
			if hits := p.hits.Load(); hits != 1 {
				t.Errorf("%d requests for one attempt", hits)
			}
		})
	}
	p.Close()
	if got := failure(t.Context(), t, a); got.Class != token.Transient || got.Code != "provider_unreachable" || strings.Contains(got.Hint, "token_endpoint") {
		t.Errorf("no server: %+v", got)
	}
}

func TestAWSInstanceMetadata(t *testing.T) {
	p := serveCredentials(t)
	awsEnv(t, map[string]string{"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": p.URL})
	var n int64
	p.answer(func(w http.ResponseWriter, r *http.Request) {
		const session = "imds-session"
		switch {
		case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token" && r.Header.Get("X-Aws-Ec2-Metadata-Token-Ttl-Seconds") != "":
			w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
			fmt.Fprint(w, session)
		case r.Header.Get("X-Aws-Ec2-Metadata-Token") != session:
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/latest/meta-data/iam/security-credentials/":
			fmt.Fprint(w, "pacs-role")
		case r.URL.Path == "/latest/meta-data/iam/security-credentials/pacs-role":
			n++
			fmt.Fprint(w, credentialsJSON(n, 40*time.Minute))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	a := build(t, chainSettings())
	wantServed(t, a, 40*time.Minute)
	if hits := p.hits.Load(); hits != 6 {
		t.Errorf("%d requests for 2 acquisitions, want 3 each", hits)
	}

	t.Run("no role", func(t *testing.T) {
		p.answer(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
				return
			}
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, planted)
		})
		if got := failure(t.Context(), t, a); got.Class != token.Permanent || got.Code != "no_credentials" || got.Status != 404 || !strings.Contains(got.Hint, "instance profile") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("a role that cannot be assumed", func(t *testing.T) {
		p.answer(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
				return
			}
			fmt.Fprint(w, `{"Code":"AssumeRoleUnauthorizedAccess","Message":"`+planted+`"}`)
		})
		if got := failure(t.Context(), t, a); got.Class != token.Permanent || got.Code != "AssumeRoleUnauthorizedAccess" {
			t.Errorf("%+v", got)
		}
	})
	t.Run("expired credentials", func(t *testing.T) {
		p.answer(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
				return
			}
			fmt.Fprint(w, credentialsJSON(9, -time.Minute))
		})
		tok := acquireAWS(t, a)
		if tok.Expires.After(time.Now()) {
			t.Errorf("expires %v, want the past, for the Source to refuse", tok.Expires)
		}
	})
	t.Run("hangs", func(t *testing.T) {
		left := make(chan bool, 10)
		p.answer(func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
				left <- true
			case <-time.After(4 * time.Second):
				left <- false
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		began := time.Now()
		got := failure(ctx, t, a)
		if got.Class != token.Transient || got.Code != "provider_timeout" || !strings.Contains(got.Hint, "hop limit") {
			t.Errorf("%+v", got)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("took %v of a deadline of 100ms", took)
		}
		if !<-left {
			t.Error("the SDK went on after the deadline")
		}
	})
	t.Run("not there", func(t *testing.T) {
		p.Close()
		if got := failure(t.Context(), t, a); got.Class != token.Transient || got.Code != "provider_unreachable" || !strings.Contains(got.Hint, "shared_profile") {
			t.Errorf("%+v, want transient: the network may not be up yet", got)
		}
	})
}

func TestAWSWithoutCredentialsSaysWhatToDo(t *testing.T) {
	awsEnv(t, nil)
	got := failure(t.Context(), t, build(t, chainSettings()))
	if got.Class != token.Permanent || got.Code != "no_credentials" || got.Key != "access_key_id" || !strings.Contains(got.Hint, "shared_profile") {
		t.Errorf("%+v", got)
	}
	t.Setenv("AWS_CA_BUNDLE", "/no/such/"+planted)
	if got := failure(t.Context(), t, build(t, chainSettings())); got.Key != "ca_file" || got.Class != token.Permanent {
		t.Errorf("AWS_CA_BUNDLE: %+v", got)
	}
}

const awsSTSAnswer = `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult>
<Credentials><AccessKeyId>ASIA%d</AccessKeyId><SecretAccessKey>served-secret-%d</SecretAccessKey><SessionToken>served-session-%d</SessionToken><Expiration>%s</Expiration></Credentials>
<AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/pacs/s</Arn><AssumedRoleId>AROA:s</AssumedRoleId></AssumedRoleUser>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`

func TestAWSWebIdentity(t *testing.T) {
	p := serveCredentials(t)
	tokenFile := filepath.Join(t.TempDir(), "web-identity")
	awsEnv(t, map[string]string{
		"AWS_ENDPOINT_URL_STS": p.URL, "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/pacs",
		"AWS_WEB_IDENTITY_TOKEN_FILE": tokenFile,
	})
	a := build(t, chainSettings())
	if got := failure(t.Context(), t, a); got.Code != "secret_unreadable" || got.Class != token.Transient || strings.Contains(got.Hint, tokenFile) {
		t.Errorf("no token file: %+v", got)
	}
	var n int64
	p.answer(func(w http.ResponseWriter, r *http.Request) {
		n++
		if got, want := r.FormValue("WebIdentityToken"), fmt.Sprintf("jwt-%d", n); got != want || r.FormValue("RoleArn") != "arn:aws:iam::123456789012:role/pacs" {
			t.Errorf("STS got %q for %q, want %q", got, r.FormValue("RoleArn"), want)
		}
		fmt.Fprintf(w, awsSTSAnswer, n, n, n, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	})
	for i := range 2 {
		if err := os.WriteFile(tokenFile, fmt.Appendf(nil, "jwt-%d", i+1), 0o600); err != nil {
			t.Fatal(err)
		}
		tok := acquireAWS(t, a)
		wantSigner(t, tok, fmt.Sprintf("ASIA%d", i+1), fmt.Sprintf("served-secret-%d", i+1), fmt.Sprintf("served-session-%d", i+1))
		if left := time.Until(tok.Expires); left > time.Hour || left < 59*time.Minute {
			t.Errorf("expires in %v", left)
		}
	}
	for code, want := range map[string]token.Class{
		"ExpiredTokenException": token.Transient, "InvalidIdentityToken": token.Permanent, "AccessDenied": token.Permanent,
		"IDPCommunicationError": token.Transient, "Throttling": token.Throttled,
	} {
		p.hits.Store(0)
		p.answer(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `<ErrorResponse><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>r</RequestId></ErrorResponse>`, code, planted)
		})
		if got := failure(t.Context(), t, a); got.Code != code || got.Class != want || got.Status != 400 {
			t.Errorf("%s: %+v, want %s", code, got, want)
		}
		if hits := p.hits.Load(); hits != 1 {
			t.Errorf("%s: %d requests for one attempt", code, hits)
		}
	}
	p.Close()
	if got := failure(t.Context(), t, a); got.Class != token.Transient || got.Code != "provider_unreachable" {
		t.Errorf("no server: %+v", got)
	}
}

func TestAWSTrustsWhatCAFileSaysForSTS(t *testing.T) {
	sts := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, awsSTSAnswer, 1, 1, 1, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	}))
	defer sts.Close()
	awsEnv(t, map[string]string{
		"AWS_ENDPOINT_URL_STS": sts.URL, "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/pacs",
		"AWS_WEB_IDENTITY_TOKEN_FILE": string(file(t, []byte("jwt"))),
	})
	s := chainSettings()
	if got := failure(t.Context(), t, build(t, s)); got.Code != "provider_tls" || got.Key != "ca_file" {
		t.Errorf("unknown CA: %+v", got)
	}
	s.CAFile = file(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: sts.Certificate().Raw}))
	wantSigner(t, acquireAWS(t, build(t, s)), "ASIA1", "served-secret-1", "served-session-1")
}

func TestAWSSendsNoSecretInClear(t *testing.T) {
	awsEnv(t, map[string]string{
		"AWS_ENDPOINT_URL_STS": "http://sts.test", "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/pacs",
		"AWS_WEB_IDENTITY_TOKEN_FILE": string(file(t, []byte("jwt"))),
	})
	if got := failure(t.Context(), t, build(t, chainSettings())); got.Class != token.Permanent || !strings.Contains(got.Hint, "in clear") {
		t.Errorf("%+v", got)
	}
}

// The proxy gets what goes to AWS, and never what stays on the machine.
func TestAWSMetadataGoesPastTheProxy(t *testing.T) {
	var proxied atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		proxied.Add(1)
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer proxy.Close()
	proxyURL, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPut:
			w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
		case strings.HasSuffix(r.URL.Path, "/"):
			fmt.Fprint(w, "role")
		default:
			fmt.Fprint(w, credentialsJSON(1, time.Hour))
		}
	}))
	defer metadata.Close()
	env := token.Env{Proxy: proxyURL, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == "169.254.169.254:80" || address == "169.254.170.2:80" {
			address = metadata.Listener.Addr().String()
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}

	awsEnv(t, map[string]string{"AWS_EC2_METADATA_DISABLED": "false"})
	a, err := chainSettings().Acquirer(env)
	if err != nil {
		t.Fatal(err)
	}
	wantSigner(t, acquireAWS(t, a), "ASIA1", "served-secret-1", "served-session-1")
	t.Setenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/task") // ECS
	wantSigner(t, acquireAWS(t, a), "ASIA1", "served-secret-1", "served-session-1")
	if proxied.Load() != 0 {
		t.Error("the metadata service was asked through the proxy")
	}

	t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pacs")
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", string(file(t, []byte("jwt"))))
	failure(t.Context(), t, a)
	if proxied.Load() != 1 {
		t.Errorf("STS was asked %d times through the proxy", proxied.Load())
	}
}

func TestAWSIsShownByNothing(t *testing.T) {
	awsEnv(t, nil)
	s := awsSettings("")
	s.SessionToken = secretValue(awsSession)
	a := build(t, s)
	tok := acquireAWS(t, a)
	for name, v := range map[string]any{"settings": s, "settings by value": *s, "acquirer": a, "token": tok, "pointer to token": &tok, "settings in interface": []token.Settings{s}} {
		t.Run(name, func(t *testing.T) { wantHidden(t, v, awsID, awsSecret, awsSession) })
	}
}
