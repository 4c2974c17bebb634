package token

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// StaticBearer are the keys of the type static_bearer: a bearer token
// (RFC 6750) that somebody else renews. It goes out as
//
//	Authorization: Bearer <token>
//
// A token in a file is read again at each renewal, so that a side car can rotate
// it. If it is a JWT, its exp claim is taken for its end.
type StaticBearer struct {
	// Token is the token alone, without the word Bearer.
	Token SecretSource `toml:"token"`
}

// Check implements [Settings].
func (s *StaticBearer) Check(report Report) {
	checkSecret(report, "token", s.Token, "give the token, or token_file", bearerProblem)
}

// Lifecycle implements [Settings].
func (s *StaticBearer) Lifecycle(defaults Lifecycle) Lifecycle { return defaults }

// Acquirer implements [Settings].
func (s *StaticBearer) Acquirer(Env) (Acquirer, error) {
	return acquirerFunc(func(context.Context) (Token, error) {
		value, err := readSecret("token", s.Token, bearerProblem)
		if err != nil {
			return Token{}, err
		}
		t := Token{Value: value}
		exp, ok := t.claims()["exp"].(float64)
		if !ok {
			return t, nil
		}
		t.Expires = time.Unix(int64(min(max(exp, 0), maxUnix)), 0)
		if time.Until(t.Expires) < staticMargin { // every server would refuse it; saying so here names the cause
			return Token{}, &Error{
				Class: Permanent, Code: "token_expired", Key: "token",
				Hint: fmt.Sprintf("the token's exp claim is %s; put a new token there", t.Expires.UTC().Format(time.RFC3339)),
			}
		}
		return t, nil
	}), nil
}

const (
	// maxUnix is the last second that RFC 3339 can show.
	maxUnix = 253402300799
	// staticMargin is how long before its end a static token counts as expired,
	// which is also when a [Source] stops using it.
	staticMargin = 10 * time.Second
)

// bearerProblem says what no bearer token can contain (RFC 6750 section 2.1).
func bearerProblem(s string) (problem, remedy string) {
	switch {
	case len(s) > 7 && strings.EqualFold(s[:7], "bearer "):
		return "begins with the word Bearer", "give the token alone"
	case strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return "has characters that no bearer token may have (RFC 6750), such as a space or a line end", "copy the token again"
	}
	return "", ""
}

// Basic are the keys of the type basic: HTTP Basic authentication (RFC 7617),
//
//	Authorization: Basic base64(username:password)
//
// with both encoded as UTF-8.
type Basic struct {
	// Username is the user's name at the DICOMweb server. It has no colon.
	Username string `toml:"username"`
	// Password is the user's password.
	Password SecretSource `toml:"password"`
}

// Check implements [Settings].
func (b *Basic) Check(report Report) {
	problem, _ := controlProblem(b.Username)
	switch {
	case b.Username == "":
		report("username", "is missing", "give the user's name at the DICOMweb server")
	case strings.Contains(b.Username, ":"):
		report("username", "has a colon, which ends the name (RFC 7617)", "give the name alone, and the password as password")
	case problem != "":
		report("username", problem, "copy the name again")
	}
	checkSecret(report, "password", b.Password, "give the password, or password_file", controlProblem)
}

// Lifecycle implements [Settings].
func (b *Basic) Lifecycle(defaults Lifecycle) Lifecycle { return defaults }

// Acquirer implements [Settings].
func (b *Basic) Acquirer(Env) (Acquirer, error) {
	return acquirerFunc(func(context.Context) (Token, error) {
		password, err := readSecret("password", b.Password, controlProblem)
		if err != nil {
			return Token{}, err
		}
		pair := base64.StdEncoding.EncodeToString([]byte(b.Username + ":" + password.Reveal()))
		return Token{Value: NewSecret(pair), scheme: "Basic"}, nil
	}), nil
}

// controlProblem says what neither name nor password can contain (RFC 7617 section 2).
func controlProblem(s string) (problem, remedy string) {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "has a control character, such as a line end", "copy it again"
	}
	return "", ""
}

// APIKey are the keys of the type api_key: a secret in a header of the server's
// choice,
//
//	X-Api-Key: <key>
//
// in place of one that the client sent. The header may be Authorization, for
// schemes of a server's own: key = "Token abc" then goes out as
// Authorization: Token abc.
type APIKey struct {
	// Header is the header's name, X-Api-Key if empty.
	Header string `toml:"header"`
	// Key is the header's value.
	Key SecretSource `toml:"key"`
}

// Check implements [Settings].
func (k *APIKey) Check(report Report) {
	switch name := textproto.CanonicalMIMEHeaderKey(k.Header); {
	case k.Header == "":
	case !httpguts.ValidHeaderFieldName(k.Header):
		report("header", fmt.Sprintf("%q is not the name of a header", printable(k.Header)), "give the name alone, such as X-Api-Key")
	case slices.Contains(ownHeaders, name) || strings.HasPrefix(name, "Proxy-") || strings.HasPrefix(name, "X-Forwarded-"):
		report("header", fmt.Sprintf("%s belongs to HTTP itself", name), "give the header that the server expects its key in, such as X-Api-Key")
	}
	checkSecret(report, "key", k.Key, "give the key, or key_file", headerProblem)
}

// ownHeaders are about the connection, the message or its way, so that a key in
// one of them would break the request or never arrive.
var ownHeaders = []string{
	"Accept", "Accept-Encoding", "Connection", "Content-Encoding", "Content-Length", "Content-Type", "Expect",
	"Forwarded", "Host", "Keep-Alive", "Range", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Via",
}

// Lifecycle implements [Settings].
func (k *APIKey) Lifecycle(defaults Lifecycle) Lifecycle { return defaults }

// Acquirer implements [Settings].
func (k *APIKey) Acquirer(Env) (Acquirer, error) {
	return acquirerFunc(func(context.Context) (Token, error) {
		key, err := readSecret("key", k.Key, headerProblem)
		return Token{Value: key, header: cmp.Or(k.Header, "X-Api-Key")}, err
	}), nil
}

// headerProblem says what would not arrive as it is in a header's value
// (RFC 9110 section 5.5).
func headerProblem(s string) (problem, remedy string) {
	switch {
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f }):
		return "has a control or non-ASCII character, such as a line end", "copy the key again"
	case strings.TrimSpace(s) != s:
		return "begins or ends with a space", "copy the key again"
	}
	return "", ""
}

// checkSecret reports a secret that is missing, or unfit for where it goes. What
// is in a file is looked at when it is read.
func checkSecret(report Report, key string, s SecretSource, missing string, unfit func(string) (problem, remedy string)) {
	if s.IsZero() {
		report(key, "is missing", missing)
		return
	}
	if s.File() == "" {
		if problem, remedy := unfit(s.value.Reveal()); problem != "" {
			report(key, problem, remedy)
		}
	}
}

// readSecret reads a secret and refuses one that is unfit for where it goes.
func readSecret(key string, s SecretSource, unfit func(string) (problem, remedy string)) (Secret, error) {
	secret, err := s.Read()
	if err != nil {
		return Secret{}, unreadable(key, err)
	}
	if problem, remedy := unfit(secret.Reveal()); problem != "" {
		return Secret{}, &Error{Class: Permanent, Code: "secret_malformed", Key: key, Hint: key + " " + problem + "; " + remedy}
	}
	return secret, nil
}
