package token

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
)

// What happens when the provider replaces the refresh token.
const (
	rotationFail      = "fail"
	rotationMemory    = "memory"
	rotationWriteBack = "write-back"
)

// RefreshToken are the keys of the type refresh_token (RFC 6749 section 6).
type RefreshToken struct {
	OAuthClient
	// RefreshToken is the token that access tokens are got with.
	RefreshToken SecretSource `toml:"refresh_token"`
	// Rotation says what happens when the provider answers with a new refresh
	// token, so that the configured one is used up: "fail" (the default) stops and
	// says so, "memory" keeps the new one until the next restart or change of the
	// profile, after which the configured one no longer works, "write-back" puts it into
	// refresh_token_file.
	Rotation string `toml:"rotation"`
}

// Check implements [Settings].
func (r *RefreshToken) Check(report Report) {
	r.OAuthClient.Check(report)
	if r.RefreshToken.IsZero() {
		report("refresh_token", "is missing", "give refresh_token_file")
	}
	if !slices.Contains([]string{"", rotationFail, rotationMemory, rotationWriteBack}, r.Rotation) {
		report("rotation", fmt.Sprintf("%q is not one of fail, memory, write-back", r.Rotation), "leave it out for fail")
	}
	if r.Rotation == rotationWriteBack && r.RefreshToken.File() == "" {
		report("rotation", "write-back needs a file to write to", "give refresh_token_file instead of refresh_token")
	}
}

// Acquirer implements [Settings].
func (r *RefreshToken) Acquirer(env Env) (Acquirer, error) {
	endpoint, err := newTokenEndpoint(&r.OAuthClient, env)
	if err != nil {
		return nil, err
	}
	return &refreshToken{settings: r, endpoint: endpoint}, nil
}

type refreshToken struct {
	settings *RefreshToken
	endpoint *tokenEndpoint

	// Acquire is called by one goroutine at a time.
	configured Secret // what the config held when rotated came
	rotated    Secret // the newest refresh token; empty: the configured one
	stuck      *Error // rotation = "fail", and it was rotated
}

// Acquire implements [Acquirer].
func (a *refreshToken) Acquire(ctx context.Context) (Token, error) {
	configured, err := a.settings.RefreshToken.Read()
	if err != nil {
		return Token{}, unreadable("refresh_token", err)
	}
	if configured.Reveal() != a.configured.Reveal() { // first call, or somebody put a new one there
		a.configured, a.rotated, a.stuck = configured, Secret{}, nil
	}
	if a.stuck != nil {
		return Token{}, a.stuck
	}
	current := configured
	if !a.rotated.Empty() {
		current = a.rotated
	}
	got, err := a.endpoint.ask(ctx, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {current.Reveal()}})
	if next := got.refresh; !next.Empty() && next.Reveal() != current.Reveal() {
		a.rotate(next, &got.Token) // even if the access token is of no use: the old one is used up
	}
	if err != nil {
		return Token{}, explainGrant(err, "refresh_token", "the refresh token is expired, revoked or used up; put a new one into refresh_token")
	}
	return got.Token, nil
}

// rotate keeps the new refresh token as the settings say. The access token that
// came with it is good in any case.
func (a *refreshToken) rotate(next Secret, t *Token) {
	a.rotated = next
	switch a.settings.Rotation {
	case rotationMemory:
	case rotationWriteBack:
		path := a.settings.RefreshToken.File()
		if err := replaceSecret(path, next); err != nil {
			t.Warning = "the new refresh token could not be written to refresh_token_file and is kept in memory only: " + err.Error()
			return
		}
		a.configured = next
	default:
		t.Warning = `the provider replaces the refresh token at each use, and rotation = "fail"; the next refresh will fail`
		a.stuck = &Error{
			Class: Permanent, Code: "refresh_token_rotated", Key: "rotation",
			Hint: `the provider has replaced the refresh token; put a new one into refresh_token_file and set rotation = "write-back"`,
		}
	}
}

// replaceSecret writes a secret file anew in one step, readable for us alone.
func replaceSecret(path string, s Secret) error {
	path, err := filepath.EvalSymlinks(path) // the file itself is replaced, not a link to it
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(s.Reveal() + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
