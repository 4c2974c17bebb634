package token_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"orthanc-dicomweb-oauth/token"
)

// showings are all the ways in which a value may end up in a log or an answer.
func showings(v any) map[string]string {
	shown := map[string]string{"Sprint": fmt.Sprint(v), "Sprintln": fmt.Sprintln("x", v)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%#q", "%x", "%X", "% x", "%d", "%t", "%o", "%U", "%c", "%e", "%b", "%p", "%T", "%10.3v", "%!"} {
		shown[verb] = fmt.Sprintf(verb, v)
		shown["wrapped "+verb] = fmt.Errorf("x: "+verb, v).Error()
	}
	for _, group := range []string{"", "g"} {
		var text, js bytes.Buffer
		for _, h := range []slog.Handler{slog.NewTextHandler(&text, nil), slog.NewJSONHandler(&js, nil)} {
			if group != "" {
				h = h.WithGroup(group)
			}
			slog.New(h).With("with", v).LogAttrs(context.Background(), slog.LevelInfo, "m", slog.Any("v", v), slog.Group("inner", "v", v))
		}
		shown["slog text "+group], shown["slog JSON "+group] = text.String(), js.String()
	}
	if b, err := json.Marshal(v); err == nil {
		shown["json"] = string(b)
	} else {
		shown["json error"] = err.Error()
	}
	return shown
}

// wantHidden checks that no way to show v shows any of the secrets, plain or in hexadecimal.
func wantHidden(t *testing.T, v any, secrets ...string) {
	t.Helper()
	for how, text := range showings(v) {
		for _, secret := range secrets {
			if lower := strings.ToLower(strings.ReplaceAll(text, " ", "")); strings.Contains(text, secret) || strings.Contains(lower, hex.EncodeToString([]byte(secret))) {
				t.Errorf("%s of a %T shows the secret %q: %s", how, v, secret, text)
			}
		}
	}
}

func TestSecretIsShownByNothing(t *testing.T) {
	const content = "hunter2-content"
	secret := token.NewSecret(content)
	held := token.Token{Value: secret, Warning: "w"}
	settings := token.ClientCredentials{OAuthClient: token.OAuthClient{TokenEndpoint: "https://login.test/token", ClientID: "id", ClientSecret: token.SecretValue(secret)}}
	acquirer, err := settings.Acquirer(token.Env{})
	if err != nil {
		t.Fatal(err)
	}
	type exported struct{ S token.Secret }
	type deep struct {
		P *exported
		M map[string]*token.Secret
		L []any
	}
	type hidden struct{ s token.Secret }
	for name, v := range map[string]any{
		"value":                 secret,
		"pointer":               &secret,
		"struct":                exported{secret},
		"pointer to struct":     &exported{secret},
		"unexported field":      hidden{secret},
		"unexported, pointer":   &hidden{secret},
		"slice":                 []token.Secret{secret},
		"array":                 [1]any{secret},
		"map value":             map[string]token.Secret{"k": secret},
		"map key":               map[token.Secret]int{secret: 1},
		"nested":                deep{P: &exported{secret}, M: map[string]*token.Secret{"k": &secret}, L: []any{secret, &secret, exported{secret}}},
		"token":                 held,
		"pointer to token":      &held,
		"secret source":         token.SecretValue(secret),
		"settings":              settings,
		"pointer to settings":   &settings,
		"settings in interface": []token.Settings{&settings},
		"map of settings":       map[string]any{"profile": settings},
		"acquirer":              acquirer,
		"error with a secret":   fmt.Errorf("odd: %v", secret),
		"slog attr":             slog.Any("k", secret),
	} {
		t.Run(name, func(t *testing.T) { wantHidden(t, v, content) })
	}
	if secret.Reveal() != content || secret.Empty() || !(token.Secret{}).Empty() || (token.Secret{}).Reveal() != "" {
		t.Error("Reveal or Empty is wrong")
	}
	if got := fmt.Sprint(secret, token.Secret{}); got != "[redacted] [redacted]" {
		t.Errorf("an empty secret is told apart: %s", got)
	}
}

func TestErrorsShowWhatTheyAreMadeOfOnly(t *testing.T) {
	e := &token.Error{Class: token.Permanent, Code: "invalid_client", Status: 401, Description: "d", Key: "client_secret", Hint: "check client_secret"}
	if got, want := e.Error(), "invalid_client (HTTP 401); check client_secret"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := (&token.Unavailable{Cause: e}).Error(), "no usable token: "+e.Error(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for class, want := range map[token.Class]string{token.Transient: "transient", token.Throttled: "throttled", token.Permanent: "permanent"} {
		if class.String() != want {
			t.Errorf("class %d is %q, want %q", class, class, want)
		}
	}
}

func TestSecretFileIsReadAtEachUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	source := token.SecretFile(path)
	if source.IsZero() || source.File() != path {
		t.Errorf("IsZero %v, File %q", source.IsZero(), source.File())
	}
	if _, err := source.Read(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v, want not exist", err)
	}
	for _, row := range []struct{ content, want, problem string }{
		{content: "first", want: "first"},
		{content: "second\n", want: "second"},
		{content: "third\r\n", want: "third"},
		{content: " spaces \n", want: " spaces "},
		{content: "two\n\n", want: "two\n"},
		{content: "", problem: "is empty"},
		{content: "\n", problem: "is empty"},
		{content: "\r\n", problem: "is empty"},
		{content: strings.Repeat("x", 64<<10), want: strings.Repeat("x", 64<<10)},
		{content: strings.Repeat("x", 64<<10+1), problem: "is larger than 65536 bytes"},
	} {
		if err := os.WriteFile(path, []byte(row.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := source.Read()
		switch {
		case row.problem != "" && (err == nil || !strings.Contains(err.Error(), row.problem)):
			t.Errorf("%.20q: %v, want %q", row.content, err, row.problem)
		case row.problem == "" && (err != nil || got.Reveal() != row.want):
			t.Errorf("%.20q: %.20q, %v, want %.20q", row.content, got.Reveal(), err, row.want)
		}
	}
	if !(token.SecretSource{}).IsZero() || token.SecretValue(token.NewSecret("x")).IsZero() {
		t.Error("IsZero is wrong")
	}
	if _, err := token.SecretFile(t.TempDir()).Read(); err == nil {
		t.Error("a folder was read as a secret")
	}
}
