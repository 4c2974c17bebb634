package token_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

// applied returns the headers of a request that came with headers of its own.
func applied(t *testing.T, tok token.Token) http.Header {
	t.Helper()
	r := httptest.NewRequest("GET", "https://dicom.test/studies", nil)
	r.Header = http.Header{"Authorization": {"Basic client", "Bearer client"}, "X-Api-Key": {"client"}, "Accept": {"application/dicom+json"}}
	if err := tok.Apply(r); err != nil {
		t.Fatal(err)
	}
	return r.Header
}

func TestStaticCredentialsGoOutAsDocumented(t *testing.T) {
	for _, row := range []struct {
		name     string
		settings token.Settings
		want     http.Header
	}{
		{
			name: "StaticBearer", settings: &token.StaticBearer{Token: secretValue("abc.DEF-_~+/=")},
			want: http.Header{"Authorization": {"Bearer abc.DEF-_~+/="}, "X-Api-Key": {"client"}},
		},
		{ // the example of RFC 7617 section 2.1
			name: "Basic", settings: &token.Basic{Username: "test", Password: secretValue("123£")},
			want: http.Header{"Authorization": {"Basic dGVzdDoxMjPCow=="}, "X-Api-Key": {"client"}},
		},
		{
			name: "Basic, colons in the password", settings: &token.Basic{Username: "orthanc", Password: secretValue("a:b c")},
			want: http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte("orthanc:a:b c"))}, "X-Api-Key": {"client"}},
		},
		{
			name: "APIKey", settings: &token.APIKey{Key: secretValue("key-1")},
			want: http.Header{"X-Api-Key": {"key-1"}},
		},
		{
			name: "APIKey in a header of its own", settings: &token.APIKey{Header: "ocp-apim-subscription-key", Key: secretValue("key-1")},
			want: http.Header{"Ocp-Apim-Subscription-Key": {"key-1"}, "X-Api-Key": {"client"}},
		},
		{
			name: "APIKey with a scheme of its own", settings: &token.APIKey{Header: "Authorization", Key: secretValue("Token abc")},
			want: http.Header{"Authorization": {"Token abc"}, "X-Api-Key": {"client"}},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := problems(t, row.settings); got != nil {
				t.Errorf("Check: %v", got)
			}
			row.want.Set("Accept", "application/dicom+json")
			if diff := cmp.Diff(row.want, applied(t, acquire(t, row.settings))); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestStaticCheckNamesEachMistake(t *testing.T) {
	const secret = "static-secret"
	good := secretValue(secret)
	for _, row := range []struct {
		name     string
		settings token.Settings
		want     []string
	}{
		{name: "a file to come", settings: &token.StaticBearer{Token: token.SecretFile("/later")}},
		{name: "no token", settings: &token.StaticBearer{}, want: []string{"token: is missing"}},
		{name: "the word Bearer", settings: &token.StaticBearer{Token: secretValue("Bearer " + secret)}, want: []string{"token: begins with the word Bearer"}},
		{name: "a line end", settings: &token.StaticBearer{Token: secretValue(secret + "\r\nX: y")}, want: []string{"token: has characters that no bearer token may have (RFC 6750), such as a space or a line end"}},
		{name: "no username, no password", settings: &token.Basic{}, want: []string{"username: is missing", "password: is missing"}},
		{name: "a colon in the username", settings: &token.Basic{Username: "user:" + secret, Password: good}, want: []string{"username: has a colon, which ends the name (RFC 7617)"}},
		{name: "a control character in the username", settings: &token.Basic{Username: "user\x00", Password: good}, want: []string{"username: has a control character, such as a line end"}},
		{name: "a control character in the password", settings: &token.Basic{Username: "user", Password: secretValue(secret + "\n")}, want: []string{"password: has a control character, such as a line end"}},
		{name: "no key", settings: &token.APIKey{}, want: []string{"key: is missing"}},
		{name: "a header that is none", settings: &token.APIKey{Header: "X-Api-Key:", Key: good}, want: []string{`header: "X-Api-Key:" is not the name of a header`}},
		{name: "a line end in the header", settings: &token.APIKey{Header: "X\r\nY", Key: good}, want: []string{`header: "X  Y" is not the name of a header`}},
		{name: "a hop-by-hop header", settings: &token.APIKey{Header: "connection", Key: good}, want: []string{"header: Connection belongs to HTTP itself"}},
		{name: "a header of the proxy", settings: &token.APIKey{Header: "Proxy-Authorization", Key: good}, want: []string{"header: Proxy-Authorization belongs to HTTP itself"}},
		{name: "a header of the way", settings: &token.APIKey{Header: "X-Forwarded-For", Key: good}, want: []string{"header: X-Forwarded-For belongs to HTTP itself"}},
		{name: "Host", settings: &token.APIKey{Header: "Host", Key: good}, want: []string{"header: Host belongs to HTTP itself"}},
		{name: "a line end in the key", settings: &token.APIKey{Key: secretValue(secret + "\n")}, want: []string{"key: has a control or non-ASCII character, such as a line end"}},
		{name: "a space at the end of the key", settings: &token.APIKey{Key: secretValue(secret + " ")}, want: []string{"key: begins or ends with a space"}},
		{name: "a character of a word processor in the key", settings: &token.APIKey{Key: secretValue(secret + "\u200b")}, want: []string{"key: has a control or non-ASCII character, such as a line end"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			if diff := cmp.Diff(row.want, problems(t, row.settings, secret)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestStaticSecretFilesAreReadEachTime(t *testing.T) {
	path := t.TempDir() + "/secret"
	source := token.SecretFile(path)
	for key, s := range map[string]token.Settings{
		"token": &token.StaticBearer{Token: source}, "password": &token.Basic{Username: "u", Password: source}, "key": &token.APIKey{Key: source},
	} {
		t.Run(key, func(t *testing.T) {
			os.Remove(path)
			a := build(t, s)
			if got := failure(t.Context(), t, a); got.Class != token.Transient || got.Code != "secret_unreadable" || got.Key != key || !strings.Contains(got.Hint, key+"_file") {
				t.Errorf("no file: %+v", got)
			}
			for _, content := range []string{"first", "second"} {
				if err := os.WriteFile(path, []byte(content+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				got, err := a.Acquire(t.Context())
				want := content
				if key == "password" {
					want = base64.StdEncoding.EncodeToString([]byte("u:" + content))
				}
				if err != nil || got.Value.Reveal() != want || !got.Expires.IsZero() {
					t.Errorf("got %q, %v, want %q", got.Value.Reveal(), err, want)
				}
			}
			if err := os.WriteFile(path, []byte(clientSecret+"\nX: y"), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := failure(t.Context(), t, a); got.Class != token.Permanent || got.Code != "secret_malformed" || got.Key != key {
				t.Errorf("a line end within: %+v", got)
			}
		})
	}
}

func unsignedJWT(claims string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"RS256"}`)) + "." + enc([]byte(claims)) + ".c2lnbmF0dXJl"
}

func TestStaticBearerEndsWithItsJWT(t *testing.T) {
	end := time.Now().Add(time.Hour).Truncate(time.Second)
	for _, row := range []struct {
		name, token string
		want        time.Time
		expired     bool
	}{
		{name: "opaque", token: "opaque"},
		{name: "not quite a JWT", token: "a.b.c"},
		{name: "a JWT without exp", token: unsignedJWT(`{"iss":"x"}`)},
		{name: "an exp that is none", token: unsignedJWT(`{"exp":"tomorrow"}`)},
		{name: "an hour left", token: unsignedJWT(fmt.Sprintf(`{"exp":%d}`, end.Unix())), want: end},
		{name: "for ever", token: unsignedJWT(`{"exp":1e300}`), want: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)},
		{name: "expired", token: unsignedJWT(fmt.Sprintf(`{"exp":%d}`, time.Now().Unix()-1)), expired: true},
		{name: "expired long ago", token: unsignedJWT(`{"exp":-1e300}`), expired: true},
		{name: "about to expire", token: unsignedJWT(fmt.Sprintf(`{"exp":%d}`, time.Now().Unix()+5)), expired: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := build(t, &token.StaticBearer{Token: secretValue(row.token)})
			if row.expired {
				if got := failure(t.Context(), t, a); got.Class != token.Permanent || got.Code != "token_expired" || got.Key != "token" || !strings.Contains(got.Hint, "exp") {
					t.Errorf("%+v", got)
				}
				return
			}
			got, err := a.Acquire(t.Context())
			if err != nil || !got.Expires.Equal(row.want) {
				t.Errorf("expires %v, %v, want %v", got.Expires, err, row.want)
			}
		})
	}
}

// A file's content is taken over without a restart, and an end that nobody
// postponed is reached without a storm.
func TestStaticBearerInASource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := t.TempDir() + "/token"
		write := func(content string) {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("first")
		s := token.NewSource(build(t, &token.StaticBearer{Token: token.SecretFile(path)}), token.DefaultLifecycle(), slog.New(slog.DiscardHandler))
		defer s.Close()
		value := func() string {
			t.Helper()
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return tok.Value.Reveal()
		}
		if got := value(); got != "first" {
			t.Errorf("got %q", got)
		}
		jwt := unsignedJWT(fmt.Sprintf(`{"exp":%d}`, time.Now().Add(time.Hour).Unix()))
		write(jwt)
		time.Sleep(5 * time.Minute)
		if got := value(); got != jwt {
			t.Errorf("got %q, want what is in the file", got)
		}
		before := s.Status().Acquisitions
		time.Sleep(time.Hour)
		_, err := s.Token(t.Context())
		if u, ok := errors.AsType[*token.Unavailable](err); !ok || u.Cause == nil || u.Cause.Code != "token_expired" {
			t.Errorf("after the end: %v, want token_expired", err)
		}
		if asked := s.Status().Acquisitions - before; asked > 12 {
			t.Errorf("the file was read %d times in the last hour", asked)
		}
	})
}

func TestStaticSettingsAreShownByNothing(t *testing.T) {
	const content = "static-content"
	for name, s := range map[string]token.Settings{
		"static_bearer": &token.StaticBearer{Token: secretValue(content)},
		"basic":         &token.Basic{Username: "u", Password: secretValue(content)},
		"api_key":       &token.APIKey{Key: secretValue(content)},
	} {
		t.Run(name, func(t *testing.T) {
			encoded := base64.StdEncoding.EncodeToString([]byte("u:" + content))
			tok := acquire(t, s)
			for _, v := range []any{s, build(t, s), tok, &tok} {
				wantHidden(t, v, content, encoded)
			}
			if diff := cmp.Diff(token.DefaultLifecycle(), s.Lifecycle(token.DefaultLifecycle())); diff != "" {
				t.Errorf("life cycle (-want +got):\n%s", diff)
			}
		})
	}
}
