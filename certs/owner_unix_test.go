//go:build unix

package certs_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Root may rotate the CA of a gateway that runs as another user; that one must be able to read the new key.
func TestNewFilesBelongToTheOwnerOfTheFolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := filepath.Join(t.TempDir(), "ca")
	open(t, dir, hosts)
	const user = 12345
	for _, name := range []string{"", "ca.pem", "ca-key.pem", "bundle.pem"} {
		if err := os.Chown(filepath.Join(dir, name), user, user); err != nil {
			t.Skip(err)
		}
	}
	for _, command := range []func(){func() { rotate(t, dir, false) }, func() { activate(t, dir) }} {
		command()
		for name := range files(t, dir) {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if owner := info.Sys().(*syscall.Stat_t).Uid; owner != user {
				t.Errorf("%s belongs to %d, want the owner of the folder", name, owner)
			}
		}
	}
}
