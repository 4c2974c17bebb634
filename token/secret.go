package token

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
)

// maxSecretFile bounds a secret file: the longest known secrets, JWTs with
// group claims, stay well below it.
const maxSecretFile = 64 << 10

const redacted = "[redacted]"

// Secret is a string that no formatting verb, encoder or logger shows.
// [Secret.Reveal] is the only way to its content. The zero value is the empty
// secret.
type Secret struct {
	// A pointer, because package fmt calls no method on what is inside an
	// unexported field of another struct: it would print a string's content, of a
	// pointer it prints the address.
	content *string
}

// NewSecret returns content as a Secret.
func NewSecret(content string) Secret { return Secret{content: &content} }

// Reveal returns the content, to be put on the wire and nowhere else.
func (s Secret) Reveal() string {
	if s.content == nil {
		return ""
	}
	return *s.content
}

// Empty reports whether there is no content.
func (s Secret) Empty() bool { return s.Reveal() == "" }

// Format redacts under every verb of package fmt.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// String redacts.
func (s Secret) String() string { return redacted }

// GoString redacts.
func (s Secret) GoString() string { return redacted }

// LogValue redacts in log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText redacts in JSON and other encodings.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// SecretSource is a secret as a config gives it: by value, or as the path of a
// file that is read again at each use, so that rotating the file's content
// needs no restart. The zero value is no secret.
type SecretSource struct {
	value Secret
	file  string
}

// SecretValue is a source that holds the secret itself.
func SecretValue(s Secret) SecretSource { return SecretSource{value: s} }

// SecretFile is a source that reads the file at path.
func SecretFile(path string) SecretSource { return SecretSource{file: path} }

// IsZero reports whether no secret was configured.
func (s SecretSource) IsZero() bool { return s.value.Empty() && s.file == "" }

// File returns the path of a file source, else "".
func (s SecretSource) File() string { return s.file }

// Read returns the secret as it is now, without one trailing newline.
func (s SecretSource) Read() (Secret, error) {
	if s.file == "" {
		return s.value, nil
	}
	f, err := os.Open(s.file)
	if err != nil {
		return Secret{}, fmt.Errorf("read secret: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return Secret{}, fmt.Errorf("read secret: %w", err)
	}
	if len(b) > maxSecretFile {
		return Secret{}, fmt.Errorf("read secret: %q is larger than %d bytes", s.file, maxSecretFile)
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if text == "" {
		return Secret{}, fmt.Errorf("read secret: %q is empty", s.file)
	}
	return NewSecret(text), nil
}

// File is the path of a file named in a config. Relative paths have been made
// absolute against the config's own folder.
type File string

// CertPool reads the file as PEM certificates to trust.
func (f File) CertPool() (*x509.CertPool, error) {
	pem, err := os.ReadFile(string(f))
	if err != nil {
		return nil, err
	}
	return f.parse(pem)
}

func (f File) parse(pem []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("no PEM certificate in " + string(f))
	}
	return pool, nil
}

// PrivateFile is a [File] whose content must stay secret, such as a private key.
// Other users of the machine must not be able to read it.
type PrivateFile string

// Strings is a list of strings that a config may also give as one string.
type Strings []string
