package token

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Describe tells what an operator needs to know about the credential and never
// shows it: how long it is good and, of a JWT, for whom, by whom and for what.
func (t *Token) Describe() string {
	var said []string
	for _, claim := range [...]string{"aud", "iss", "scope", "scp", "roles"} {
		if v := t.claims()[claim]; v != nil {
			said = append(said, claim+" "+claimText(v))
		}
	}
	switch {
	case said != nil:
	case t.claims() != nil:
		said = append(said, "a JWT without aud, iss, scope or roles")
	case t.sign != nil:
		said = append(said, "signs each request")
	case t.header != "" || t.scheme != "":
		said = append(said, "configured")
	default:
		said = append(said, "not a JWT, so that its claims are unknown")
	}
	if !t.Expires.IsZero() {
		said = append(said, "expires in "+time.Until(t.Expires).Round(time.Second).String())
	}
	return strings.Join(said, ", ")
}

// claims returns the claims of a JWT, unverified, or nil.
func (t *Token) claims() map[string]any {
	parts := strings.Split(t.Value.Reveal(), ".")
	if len(parts) != 3 {
		return nil
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil
	}
	var claims map[string]any
	_ = json.Unmarshal(body, &claims) // anything else has no claims
	return claims
}

func claimText(v any) string {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	if len(list) == 0 {
		return "none"
	}
	var words []string
	for _, item := range list {
		words = append(words, fmt.Sprintf("%q", printable(fmt.Sprint(item))))
	}
	return strings.Join(words, " ")
}
