//go:build unix

package certs

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// tryLock locks the folder by its lock file, or returns errLocked.
func tryLock(dir string) (unlock func(), err error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	giveToOwner(f)
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, &os.PathError{Op: "lock", Path: path, Err: err}
	}
	// Whoever had the lock before has removed the file, so this must be the one that is there now.
	mine, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if there, err := os.Stat(path); err != nil || !os.SameFile(mine, there) {
		f.Close()
		return nil, errLocked
	}
	return func() {
		_ = os.Remove(path)
		f.Close()
	}, nil
}

// giveToOwner gives a new file to the owner of its folder: root may rotate the
// CA of a gateway that runs as another user, who must be able to read the key.
func giveToOwner(f *os.File) {
	if os.Geteuid() != 0 {
		return
	}
	info, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil {
		return
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(owner.Uid), int(owner.Gid)) // a file system that cannot has no owners either
	}
}

func rename(from, to string) error { return os.Rename(from, to) }

// rootFiles are where systems keep the CAs that they trust, in PEM: Debian,
// Fedora and its kin, SUSE, and last Alpine, macOS and the BSDs.
var rootFiles = [...]string{
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/ssl/cert.pem",
}

// systemRoots returns the system's roots in PEM, from SSL_CERT_FILE if it is
// set, as OpenSSL and Go do.
func systemRoots() ([]byte, error) {
	if path := os.Getenv("SSL_CERT_FILE"); path != "" {
		return os.ReadFile(path)
	}
	for _, path := range rootFiles {
		if text, err := os.ReadFile(path); err == nil {
			return text, nil
		}
	}
	return nil, errors.New("no file with the system's roots found; name it in SSL_CERT_FILE")
}
