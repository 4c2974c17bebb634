package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // x5t is defined as a SHA-1 thumbprint (RFC 7515 section 4.1.7)
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// assertionLife is how long an assertion is valid; Auth0 and SMART accept no
// more than five minutes.
const assertionLife = 5 * time.Minute

// AssertionKey are the keys with which JWT assertions are signed (RFC 7523).
type AssertionKey struct {
	// KeyFile is the private key, PEM, RSA or EC. It is read at each acquisition.
	KeyFile PrivateFile `toml:"key_file"`
	// KeyID is the key's name at the provider (kid).
	KeyID string `toml:"key_id"`
	// KeyAlg is RS256, RS384, PS256, ES256 or ES384. Empty: RS256 for RSA, by its
	// curve for EC.
	KeyAlg string `toml:"key_alg"`
}

// check reports a key that cannot sign.
func (k *AssertionKey) check(report Report) {
	if k.KeyFile == "" {
		report("key_file", "is missing", "give the PEM file of the private key that signs the assertion")
		return
	}
	if _, method, err := k.load(); err != nil {
		key := "key_file"
		if method != nil {
			key = "key_alg"
		}
		report(key, err.Error(), "key_file is a PEM private key, RSA (key_alg RS256, RS384, PS256) or EC (ES256 on P-256, ES384 on P-384)")
	}
}

// load reads the key and chooses the algorithm. When the key is good and the
// algorithm is what does not fit, the method is returned with the error.
func (k *AssertionKey) load() (crypto.Signer, jwt.SigningMethod, error) {
	text, err := os.ReadFile(string(k.KeyFile))
	if err != nil {
		return nil, nil, err
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", k.KeyFile, err)
	}
	var fits []jwt.SigningMethod
	switch key := key.(type) {
	case *rsa.PrivateKey:
		fits = []jwt.SigningMethod{jwt.SigningMethodRS256, jwt.SigningMethodRS384, jwt.SigningMethodPS256}
	case *ecdsa.PrivateKey:
		switch key.Curve {
		case elliptic.P256():
			fits = []jwt.SigningMethod{jwt.SigningMethodES256}
		case elliptic.P384():
			fits = []jwt.SigningMethod{jwt.SigningMethodES384}
		}
	}
	if fits == nil {
		return nil, nil, fmt.Errorf("%s: neither an RSA key nor an EC key on P-256 or P-384", k.KeyFile)
	}
	for _, method := range fits {
		if k.KeyAlg == "" || k.KeyAlg == method.Alg() {
			return key, method, nil
		}
	}
	return nil, fits[0], fmt.Errorf("%q does not fit the key", k.KeyAlg)
}

// parseKey reads a PEM private key in any of its usual forms. Errors never show
// a part of it.
func parseKey(text []byte) (crypto.Signer, error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, errors.New("no PEM private key in it")
		}
		text = rest
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the private key is encrypted; give it unencrypted, readable for the gateway's user alone")
		default: // parameters or a certificate before the key
			continue
		}
		signer, ok := key.(crypto.Signer)
		if err != nil || !ok {
			return nil, errors.New("the private key cannot be read")
		}
		return signer, nil
	}
}

// sign makes a signed JWT of the claims.
func (k *AssertionKey) sign(claims jwt.MapClaims, header map[string]string) (string, error) {
	key, method, err := k.load()
	if err != nil {
		return "", &Error{Class: Transient, Code: "secret_unreadable", Key: "key_file", Hint: "check key_file: " + err.Error()}
	}
	t := jwt.NewWithClaims(method, claims)
	if k.KeyID != "" {
		t.Header["kid"] = k.KeyID
	}
	for name, value := range header {
		t.Header[name] = value
	}
	signed, err := t.SignedString(key)
	if err != nil {
		return "", &Error{Class: Permanent, Code: "assertion_failed", Key: "key_alg", Hint: "the assertion cannot be signed with key_file and key_alg"}
	}
	return signed, nil
}

// assertion returns the client's proof for private_key_jwt (OpenID Connect Core
// section 9). It has an id of its own each time: providers take each one once.
func (c *OAuthClient) assertion(endpoint string) (string, error) {
	audience := c.AssertionAudience
	switch audience {
	case "", "token_endpoint":
		audience = endpoint
	case "issuer":
		audience = c.Issuer
	}
	var header map[string]string
	if c.CertFile != "" {
		var err error
		if header, err = thumbprints(c.CertFile); err != nil {
			return "", &Error{Class: Transient, Code: "secret_unreadable", Key: "cert_file", Hint: "check cert_file: " + err.Error()}
		}
	}
	return c.sign(claims(c.ClientID, c.ClientID, audience), header)
}

// claims are what every assertion says (RFC 7523 section 3).
func claims(issuer, subject, audience string) jwt.MapClaims {
	now := time.Now()
	return jwt.MapClaims{
		"iss": issuer, "sub": subject, "aud": audience, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(assertionLife).Unix(),
	}
}

// thumbprints returns the JWS headers that name a certificate (RFC 7515
// sections 4.1.7 and 4.1.8). Entra wants the second, ADFS the first.
func thumbprints(f File) (map[string]string, error) {
	text, err := os.ReadFile(string(f))
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			one, two := sha1.Sum(block.Bytes), sha256.Sum256(block.Bytes)
			return map[string]string{
				"x5t":      base64.RawURLEncoding.EncodeToString(one[:]),
				"x5t#S256": base64.RawURLEncoding.EncodeToString(two[:]),
			}, nil
		}
	}
	return nil, fmt.Errorf("no PEM certificate in %s", f)
}
