package rules

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestSecretsMustNotBeReadableByOthers(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such modes")
	}
	inClear := strings.ReplaceAll(minimal, "${SECRET}", "s3cr3t")
	inFile := strings.ReplaceAll(minimal, `client_secret  = "${SECRET}"`, `client_secret_file = "secret"`)
	rule := func(line string) string { return strings.Replace(minimal, "\n[profile", line+"\n\n[profile", 1) }
	const permissive = "[proxy]\npermissive_modes = true\n"
	for _, row := range []struct {
		name    string
		text    string
		config  fs.FileMode // of gateway.toml
		secret  fs.FileMode // of the secret file
		refused string      // the key, "" for none
		file    string      // the file to chmod
		mode    fs.FileMode
	}{
		{"a secret in clear, file for the owner only", inClear, 0o600, 0o600, "", "", 0},
		{"a secret in clear, file may not even be written", inClear, 0o400, 0o600, "", "", 0},
		{"a secret in clear, file for all", inClear, 0o644, 0o600, "profile.azure.client_secret", "gateway.toml", 0o644},
		{"a secret in clear, file for the group", inClear, 0o640, 0o600, "profile.azure.client_secret", "gateway.toml", 0o640},
		{"a secret in clear, file that others may write", inClear, 0o602, 0o600, "profile.azure.client_secret", "gateway.toml", 0o602},
		{"a secret in clear, permissive_modes", permissive + inClear, 0o644, 0o600, "", "", 0},
		{"a secret partly in clear", strings.ReplaceAll(minimal, "${SECRET}", "x${SECRET}"), 0o644, 0o600, "profile.azure.client_secret", "gateway.toml", 0o644},
		{"a secret as default of a variable", strings.ReplaceAll(minimal, "${SECRET}", "${NOT_SET:-x}"), 0o644, 0o600, "profile.azure.client_secret", "gateway.toml", 0o644},
		{"a default that is not used", strings.ReplaceAll(minimal, "${SECRET}", "${SECRET:-x}"), 0o644, 0o600, "", "", 0},
		{"a secret from a variable", minimal, 0o644, 0o600, "", "", 0},
		{"a secret file for the owner only", inFile, 0o644, 0o600, "", "", 0},
		{"a secret file for all", inFile, 0o644, 0o644, "profile.azure.client_secret_file", "secret", 0o644},
		{"a secret file for the group", inFile, 0o600, 0o440, "profile.azure.client_secret_file", "secret", 0o440},
		{"a secret file for all, permissive_modes", permissive + inFile, 0o644, 0o644, "", "", 0},
		{"a proxy with password in clear", "[proxy]\nupstream_proxy = 'http://u:p@proxy.example.org:8080'\n" + minimal, 0o644, 0o600, "proxy.upstream_proxy", "gateway.toml", 0o644},
		{"a proxy without password", "[proxy]\nupstream_proxy = 'http://proxy.example.org:8080'\n" + minimal, 0o644, 0o600, "", "", 0},
		{"a proxy password in clear", "[proxy]\nusername = 'u'\npassword = 'p'\n" + minimal, 0o644, 0o600, "proxy.password", "gateway.toml", 0o644},
		{"an admin password in clear", "[admin]\nusername = 'u'\npassword = 'p'\n" + minimal, 0o644, 0o600, "admin.password", "gateway.toml", 0o644},
		{"a static header that is a key", rule("headers = { X-Api-Key = 'k' }"), 0o644, 0o600, "rule[0].headers.X-Api-Key", "gateway.toml", 0o644},
		{"a static header that is no key", rule("headers = { X-Site = 'north' }"), 0o644, 0o600, "", "", 0},
		{"an audit key for all", "[log]\naudit_key_file = 'audit.key'\n" + minimal, 0o644, 0o644, "log.audit_key_file", "audit.key", 0o644},
		{"an audit key for the owner only", "[log]\naudit_key_file = 'audit.key'\n" + minimal, 0o644, 0o600, "", "", 0},
		{"empty secrets", "[proxy]\nusername = ''\npassword = ''\nupstream_proxy = ''\n" + minimal, 0o644, 0o600, "", "", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "gateway.toml")
			write(t, path, row.text, row.config)
			write(t, filepath.Join(dir, "secret"), "s3cr3t", row.secret)
			write(t, filepath.Join(dir, "audit.key"), strings.Repeat("k", 32), row.secret)
			_, err := Load(path, variables)
			if row.refused == "" {
				if err != nil {
					t.Errorf("got %v, want no problem", err)
				}
				return
			}
			file := filepath.Join(dir, row.file)
			want := fmt.Sprintf("%s: holds a secret in %s, which other users can read (mode %04o)"+
				" (chmod 600 %s; for a mount whose modes you cannot change: permissive_modes = true under [proxy])", row.refused, file, row.mode, file)
			problems, _ := errors.AsType[Problems](err)
			if len(problems) != 1 || problems[0].Line == 0 || !strings.HasSuffix(problems.Error(), want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

// systemd guards the folder of its credentials; what it shows as group bits is the mask of an access control list.
func TestCredentialsOfSystemdPassWithTheirModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no systemd")
	}
	for _, row := range []struct {
		name, below string // where the secret lies, below the folder of the credentials
		refused     bool
	}{
		{"a credential", "client_secret", false},
		{"a file deeper down", "sub/client_secret", true},
		{"a file beside the folder", "../client_secret", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			credentials := filepath.Join(t.TempDir(), "credentials")
			secret := filepath.Join(credentials, row.below)
			if err := os.MkdirAll(filepath.Join(credentials, "sub"), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, secret, "s3cr3t", 0o440)
			text := strings.ReplaceAll(minimal, `client_secret  = "${SECRET}"`, `client_secret_file = "${CREDENTIALS_DIRECTORY}/`+row.below+`"`)
			_, err := Load(writeConfig(t, text), func(name string) (string, bool) {
				if name == "CREDENTIALS_DIRECTORY" {
					return credentials, true
				}
				return variables(name)
			})
			if (err != nil) != row.refused {
				t.Errorf("got %v, want refused: %v", err, row.refused)
			}
		})
	}
}
