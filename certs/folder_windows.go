package certs

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"
)

// What package syscall does not name.
const (
	fileFlagDeleteOnClose = 0x04000000
	errSharingViolation   = syscall.Errno(32)
)

// tryLock locks the folder by its lock file, or returns errLocked. Windows
// removes the file when the process closes it or ends.
func tryLock(dir string) (unlock func(), err error) {
	path := filepath.Join(dir, lockFile)
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	const alone = 0 // shared with nobody
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, alone, nil, syscall.OPEN_ALWAYS, fileFlagDeleteOnClose, 0)
	if errors.Is(err, errSharingViolation) || errors.Is(err, syscall.ERROR_ACCESS_DENIED) && exists(path) {
		return nil, errLocked
	}
	if err != nil {
		return nil, &os.PathError{Op: "lock", Path: path, Err: err}
	}
	return func() { _ = syscall.CloseHandle(h) }, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// giveToOwner does nothing: a new file has the access list of its folder.
func giveToOwner(*os.File) {}

// rename waits for readers: Windows does not replace a file that somebody reads,
// and does not tell when they have done, so that it has to be tried again.
func rename(from, to string) error {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err := os.Rename(from, to); err == nil || time.Now().After(end) {
			return err
		}
	}
}

// systemRoots returns the certificates of the ROOT store in PEM.
func systemRoots() ([]byte, error) {
	name, err := syscall.UTF16PtrFromString("ROOT")
	if err != nil {
		return nil, err
	}
	store, err := syscall.CertOpenSystemStore(0, name)
	if err != nil {
		return nil, err
	}
	defer syscall.CertCloseStore(store, 0) //nolint:errcheck // it was only read
	var text []byte
	var cert *syscall.CertContext
	for {
		if cert, _ = syscall.CertEnumCertificatesInStore(store, cert); cert == nil { // the error is that there are no more
			return text, nil
		}
		text = append(text, pemBlock("CERTIFICATE", unsafe.Slice(cert.EncodedCert, cert.Length))...)
	}
}
