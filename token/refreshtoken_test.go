package token_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

const refresh0 = "refresh-token-0-of-the-config"

// rotating is a provider that replaces the refresh token at each use, and takes
// each one once.
func rotating(t *testing.T) (*endpoint, func() string) {
	t.Helper()
	valid := refresh0
	issued := 0
	e := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if current(r) != valid {
			answers(400, nil, `{"error":"invalid_grant","error_description":"`+planted+`"}`)(w, r)
			return
		}
		issued++
		valid = fmt.Sprintf("refresh-token-%d-of-the-provider", issued)
		answers(200, nil, `{"access_token":"`+accessToken+`","token_type":"bearer","expires_in":60,"refresh_token":"`+valid+`"}`)(w, r)
	})
	e.Config.Handler = withForm(e.Config.Handler)
	return e, func() string { return valid }
}

// withForm keeps the body for the handler behind the recorder, which reads it.
func withForm(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body)
		form, _ := url.ParseQuery(body.String())
		r.Body = http.NoBody
		r.Form = form
		r.Body = readCloser{&body}
		next.ServeHTTP(w, r)
	})
}

type readCloser struct{ *bytes.Buffer }

func (readCloser) Close() error { return nil }

func current(r *http.Request) string { return r.Form.Get("refresh_token") }

// refreshing is a profile for the provider, with the refresh token in a file.
func refreshing(t *testing.T, e *endpoint, rotation string) (*token.RefreshToken, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "refresh-token")
	overwrite(t, path, []byte(refresh0+"\n"))
	return &token.RefreshToken{OAuthClient: e.settings().OAuthClient, RefreshToken: token.SecretFile(path), Rotation: rotation}, path
}

// sentTokens are the refresh tokens that the provider has received.
func sentTokens(e *endpoint) []string {
	var sent []string
	for _, r := range e.requests() {
		sent = append(sent, r.Form.Get("refresh_token"))
	}
	return sent
}

func rotated(n int) string { return fmt.Sprintf("refresh-token-%d-of-the-provider", n) }

func TestRefreshTokenRequestOnTheWire(t *testing.T) {
	e := serve(t, answers(200, nil, goodAnswer))
	c, _ := refreshing(t, e, "")
	c.ClientAuth, c.Scopes, c.Params = "client_secret_post", []string{"a", "b"}, map[string]string{"x": "y"}
	if got := acquire(t, c); got.Warning != "" {
		t.Errorf("warning %q, want none", got.Warning)
	}
	want := url.Values{
		"grant_type": {"refresh_token"}, "refresh_token": {refresh0}, "scope": {"a b"}, "x": {"y"},
		"client_id": {"client"}, "client_secret": {clientSecret},
	}
	if diff := cmp.Diff(want, e.requests()[0].Form); diff != "" {
		t.Errorf("form (-want +got):\n%s", diff)
	}
}

// Google and many others keep the refresh token, or send the same one again.
func TestRefreshTokenThatIsNotReplacedGoesOn(t *testing.T) {
	for _, member := range []string{"", `,"refresh_token":""`, `,"refresh_token":null`, `,"refresh_token":"` + refresh0 + `"`} {
		e := serve(t, answers(200, nil, `{"access_token":"x","token_type":"Bearer"`+member+`}`))
		c, path := refreshing(t, e, "fail")
		a := build(t, c)
		for range 3 {
			got, err := a.Acquire(t.Context())
			if err != nil || got.Warning != "" {
				t.Fatalf("answer with %q: %v, warning %q; want neither", member, err, got.Warning)
			}
		}
		if diff := cmp.Diff([]string{refresh0, refresh0, refresh0}, sentTokens(e)); diff != "" {
			t.Errorf("refresh tokens (-want +got):\n%s", diff)
		}
		if text, _ := os.ReadFile(path); string(text) != refresh0+"\n" {
			t.Errorf("the file was written, to %q", text)
		}
	}
}

func TestRotationFailWarnsThenStopsAndNamesRotation(t *testing.T) {
	for _, setting := range []string{"", "fail"} {
		e, _ := rotating(t)
		c, path := refreshing(t, e, setting)
		a := build(t, c)
		first, err := a.Acquire(t.Context())
		if err != nil || first.Value.Reveal() != accessToken {
			t.Fatalf("first: %v, want the access token", err)
		}
		if !strings.Contains(first.Warning, `rotation = "fail"`) {
			t.Errorf("warning %q, want one that names rotation", first.Warning)
		}
		wantHidden(t, first, refresh0, rotated(1))
		for range 3 {
			got := failure(t.Context(), t, a)
			if got.Class != token.Permanent || got.Key != "rotation" || !strings.Contains(got.Hint, "refresh_token_file") || !strings.Contains(got.Hint, "write-back") {
				t.Errorf("%+v, want a permanent error that names rotation and refresh_token_file", got)
			}
			wantHidden(t, &got, refresh0, rotated(1))
		}
		if n := len(e.requests()); n != 1 {
			t.Errorf("%d requests, want 1: the replay of a used refresh token may revoke its successor", n)
		}
		if text, _ := os.ReadFile(path); string(text) != refresh0+"\n" {
			t.Errorf("the file was written, to %q", text)
		}

		overwrite(t, path, []byte(rotated(1))) // the operator's remedy
		if got, err := a.Acquire(t.Context()); err != nil || got.Warning == "" {
			t.Errorf("with a new token in the file: %v, warning %q; want a token and the warning", err, got.Warning)
		}
	}
}

func TestRotationMemoryKeepsTheNewestUntilTheRestart(t *testing.T) {
	e, _ := rotating(t)
	c, path := refreshing(t, e, "memory")
	a := build(t, c)
	for range 3 {
		if got, err := a.Acquire(t.Context()); err != nil || got.Warning != "" {
			t.Fatalf("Acquire: %v, warning %q; want neither", err, got.Warning)
		}
	}
	if diff := cmp.Diff([]string{refresh0, rotated(1), rotated(2)}, sentTokens(e)); diff != "" {
		t.Errorf("refresh tokens (-want +got):\n%s", diff)
	}
	if text, _ := os.ReadFile(path); string(text) != refresh0+"\n" {
		t.Errorf("the file was written, to %q", text)
	}
	got := failure(t.Context(), t, build(t, c)) // a restart
	if got.Code != "invalid_grant" || got.Key != "refresh_token" {
		t.Errorf("after a restart: %+v, want invalid_grant that names refresh_token", got)
	}
	wantHidden(t, &got, refresh0)
}

func TestRotationWriteBackSurvivesTheRestart(t *testing.T) {
	e, _ := rotating(t)
	c, path := refreshing(t, e, "write-back")
	for range 3 { // restarts
		a := build(t, c)
		for range 2 {
			before, err := os.Open(path) // keeps the old file: replaced, not rewritten
			if err != nil {
				t.Fatal(err)
			}
			old, _ := before.Stat()
			if got, err := a.Acquire(t.Context()); err != nil || got.Warning != "" {
				t.Fatalf("Acquire: %v, warning %q; want neither", err, got.Warning)
			}
			now, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if os.SameFile(old, now) {
				t.Error("the file was rewritten in place, so a crash could leave half a token")
			}
			if now.Mode() != 0o600 {
				t.Errorf("the file has mode %v, want 0600", now.Mode())
			}
			before.Close()
		}
	}
	var want []string
	for n := range 6 {
		want = append(want, map[bool]string{true: refresh0, false: rotated(n)}[n == 0])
	}
	if diff := cmp.Diff(want, sentTokens(e)); diff != "" {
		t.Errorf("refresh tokens (-want +got):\n%s", diff)
	}
	if text, _ := os.ReadFile(path); string(text) != rotated(6)+"\n" {
		t.Errorf("the file has %q, want the newest", text)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("the folder has %v, want the one file", left)
	}
}

// Secrets are often links (Kubernetes, config management): the file behind is
// replaced, the link stays.
func TestRotationWriteBackGoesThroughALink(t *testing.T) {
	e, _ := rotating(t)
	c, path := refreshing(t, e, "write-back")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Skip("no links here")
	}
	c.RefreshToken = token.SecretFile(link)
	if _, err := build(t, c).Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(path); string(text) != rotated(1)+"\n" {
		t.Errorf("the file behind the link has %q, want the new token", text)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is no link any more: %v, %v", info.Mode(), err)
	}
}

// Root may write anywhere, but nobody may make a file whose path is too long:
// the secret's own path just fits, that of the new file beside it does not.
func TestRotationWriteBackIntoAFolderThatCannotBeWritten(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the limit is Linux's")
	}
	e, _ := rotating(t)
	c, path := refreshing(t, e, "write-back")
	const longest = 4095
	dir := filepath.Dir(path)
	for len(dir) < longest-4 {
		dir += "/" + strings.Repeat("d", min(200, longest-4-len(dir)))
	}
	deep := filepath.Join(dir, "t")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Rename(path, deep)); err != nil {
		t.Fatal(err)
	}
	c.RefreshToken = token.SecretFile(deep)
	var log bytes.Buffer
	a := build(t, c)
	s := token.NewSource(a, token.DefaultLifecycle(), slog.New(slog.NewJSONHandler(&log, nil)))
	_, err := s.Token(t.Context())
	s.Close()
	if err != nil {
		t.Fatalf("Token: %v, want the access token", err)
	}
	for _, word := range []string{`"level":"WARN"`, "refresh_token_file", "memory"} {
		if !strings.Contains(log.String(), word) {
			t.Errorf("the log does not say %s: %s", word, &log)
		}
	}
	wantHidden(t, log.String(), refresh0, rotated(1))
	if got, err := a.Acquire(t.Context()); err != nil || got.Warning == "" {
		t.Errorf("Acquire: %v, warning %q; want a token by the one in memory, and the warning", err, got.Warning)
	}
	if diff := cmp.Diff([]string{refresh0, rotated(1)}, sentTokens(e)); diff != "" {
		t.Errorf("refresh tokens (-want +got):\n%s", diff)
	}
}

// Whatever the rotation: what an operator puts into the file is used at once.
func TestNewRefreshTokenInTheFileIsUsed(t *testing.T) {
	for _, rotation := range []string{"fail", "memory", "write-back"} {
		t.Run(rotation, func(t *testing.T) {
			e := serve(t, answers(200, nil, `{"access_token":"x","token_type":"Bearer","refresh_token":"`+rotated(9)+`"}`))
			c, path := refreshing(t, e, rotation)
			a := build(t, c)
			for _, content := range []string{refresh0, "from-the-operator"} {
				overwrite(t, path, []byte(content+"\n"))
				if _, err := a.Acquire(t.Context()); err != nil {
					t.Fatalf("Acquire: %v", err)
				}
			}
			if diff := cmp.Diff([]string{refresh0, "from-the-operator"}, sentTokens(e)); diff != "" {
				t.Errorf("refresh tokens (-want +got):\n%s", diff)
			}
		})
	}
}

// The old refresh token is used up even when the access token beside the new one
// is of no use.
func TestRotationIsKeptWhenTheAccessTokenIsOfNoUse(t *testing.T) {
	e := serve(t, answers(200, nil, `{"access_token":"x","token_type":"Bearer","expires_in":-1,"refresh_token":"`+rotated(1)+`"}`))
	c, path := refreshing(t, e, "write-back")
	a := build(t, c)
	failure(t.Context(), t, a)
	if text, _ := os.ReadFile(path); string(text) != rotated(1)+"\n" {
		t.Errorf("the file has %q, want the new refresh token", text)
	}
}

func TestRefreshTokenFileThatCannotBeReadIsNamed(t *testing.T) {
	e, _ := rotating(t)
	c, path := refreshing(t, e, "write-back")
	a := build(t, c)
	for name, spoil := range map[string]func(){"gone": func() { _ = os.Remove(path) }, "empty": func() { overwrite(t, path, nil) }} {
		spoil()
		got := failure(t.Context(), t, a)
		if got.Class != token.Transient || got.Code != "secret_unreadable" || got.Key != "refresh_token" || !strings.Contains(got.Hint, "refresh_token_file") {
			t.Errorf("%s: %+v, want secret_unreadable that names refresh_token_file", name, got)
		}
	}
	if n := len(e.requests()); n != 0 {
		t.Errorf("%d requests without a refresh token", n)
	}
}

func TestCheckNamesEachMistakeOfRefreshToken(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(*token.RefreshToken)
		want   []string
	}{
		{name: "none", change: func(*token.RefreshToken) {}},
		{name: "none, memory", change: func(c *token.RefreshToken) { c.Rotation = "memory" }},
		{name: "none, write-back to a file", change: func(c *token.RefreshToken) {
			c.Rotation, c.RefreshToken = "write-back", token.SecretFile("/some/where")
		}},
		{name: "no refresh token", change: func(c *token.RefreshToken) { c.RefreshToken = token.SecretSource{} }, want: []string{"refresh_token: is missing"}},
		{name: "a rotation that is none", change: func(c *token.RefreshToken) { c.Rotation = "write_back" }, want: []string{`rotation: "write_back" is not one of fail, memory, write-back`}},
		{name: "write-back without a file", change: func(c *token.RefreshToken) { c.Rotation = "write-back" }, want: []string{"rotation: write-back needs a file to write to"}},
		{name: "no client", change: func(c *token.RefreshToken) { c.ClientID = "" }, want: []string{"client_id: is missing"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := &token.RefreshToken{OAuthClient: oauthClient(), RefreshToken: token.SecretValue(token.NewSecret(refresh0))}
			row.change(c)
			got := reported(t, c)
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			wantHidden(t, got, refresh0)
		})
	}
}
