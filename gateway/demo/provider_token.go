package demo

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// ErrInsufficientScope is what [IdentityProvider.Verify] returns for a valid token without the scope that is needed.
var ErrInsufficientScope = errors.New("the token lacks the required scope")

// errRevoked is what Verify returns for a token from before RevokeAll.
var errRevoked = errors.New("the token has been revoked")

type claims struct {
	jwt.RegisteredClaims
	Scope string `json:"scope"`
}

// issue makes an access token.
func (p *IdentityProvider) issue(scopes []string) (string, error) {
	now := time.Now()
	expires := now.Add(p.lifetime()).Truncate(time.Second)
	if expires.Before(now.Add(p.lifetime())) {
		expires = expires.Add(time.Second) // exp counts in seconds, and the token must not die before its expires_in
	}
	token := jwt.NewWithClaims(jwt.SigningMethodES256, claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer:    p.Issuer(),
			Subject:   p.options.ClientID,
			Audience:  jwt.ClaimStrings{p.options.Audience},
			IssuedAt:  jwt.NewNumericDate(now),
			ExpiresAt: jwt.NewNumericDate(expires),
			ID:        p.currentEpoch() + "." + rand.Text(),
		},
		Scope: strings.Join(scopes, " "),
	})
	token.Header["kid"] = p.keyID
	return token.SignedString(p.key)
}

// Verify says whether a resource server should accept the token: signature, issuer, audience, expiry, revocation and
// scope. It returns [ErrInsufficientScope] when only the last is wrong.
func (p *IdentityProvider) Verify(token string) error {
	var c claims
	_, err := jwt.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return p.key.Public(), nil },
		jwt.WithValidMethods([]string{"ES256"}),
		jwt.WithIssuer(p.Issuer()),
		jwt.WithAudience(p.options.Audience),
		jwt.WithExpirationRequired(),
	)
	if err != nil {
		return fmt.Errorf("verify token: %w", err)
	}
	if epoch, _, _ := strings.Cut(c.ID, "."); epoch != p.currentEpoch() {
		return errRevoked
	}
	if !slices.Contains(strings.Fields(c.Scope), p.options.RequiredScope) {
		return ErrInsufficientScope
	}
	return nil
}

func (p *IdentityProvider) currentEpoch() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strconv.Itoa(p.epoch)
}

// lifetime is the configured one in whole seconds, because expires_in knows no others.
func (p *IdentityProvider) lifetime() time.Duration {
	return (p.options.TokenLifetime + time.Second - 1).Truncate(time.Second)
}
