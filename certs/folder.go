package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// The files of a CA folder; the package doc tells what they mean.
const (
	certFile     = "ca.pem"
	keyFile      = "ca-key.pem"
	bundleFile   = "bundle.pem"
	nextCertFile = "next-ca.pem"
	nextKeyFile  = "next-ca-key.pem"
	previousFile = "previous-ca.pem"
	lockFile     = ".lock"
)

// FolderError is a CA folder that cannot be used as it is.
type FolderError struct {
	Dir  string
	What string
	Hint string
}

// Error implements error.
func (e *FolderError) Error() string { return fmt.Sprintf("CA folder %q: %s", e.Dir, e.What) }

// present reports whether the folder has a CA; half a one is an error.
func present(dir string) (bool, error) {
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return false, &FolderError{dir, "is a file, not a folder", "set dir under [ca] to a folder, or to where there is nothing yet"}
	}
	_, certErr := os.Stat(filepath.Join(dir, certFile))
	_, keyErr := os.Stat(filepath.Join(dir, keyFile))
	noCert, noKey := errors.Is(certErr, fs.ErrNotExist), errors.Is(keyErr, fs.ErrNotExist)
	switch {
	case noCert && noKey:
		return false, nil
	case noCert:
		return false, &FolderError{dir, keyFile + " is there, but " + certFile + " is missing", "restore " + certFile + ", or move the folder away to get a new CA"}
	case noKey:
		return false, &FolderError{dir, certFile + " is there, but " + keyFile + " is missing", "restore " + keyFile + ", or move the folder away to get a new CA"}
	}
	return true, nil
}

// Load reads the CA in dir, whether or not it is valid now, and changes nothing.
func Load(dir string) (*CA, error) {
	there, err := present(dir)
	if err != nil {
		return nil, err
	}
	if !there {
		return nil, &FolderError{dir, "there is no CA yet", "the first start of the gateway makes it: orthanc-dicomweb-oauth run"}
	}
	ca, _, err := read(dir)
	return ca, err
}

// Find returns the CA in dir if it can sign now, and nil if there is none, so that
// [Open] would make it. It changes nothing.
func Find(dir string) (*CA, error) {
	if there, err := present(dir); !there {
		return nil, err
	}
	return load(dir)
}

// load reads a CA that is to sign.
func load(dir string) (*CA, error) {
	ca, err := Load(dir)
	if err != nil {
		return nil, err
	}
	if err := ca.inForce(); err != nil {
		return nil, err
	}
	return ca, nil
}

// read reads the folder. An activation that has not come to its end has given
// ca-key.pem to the certificate in next-ca.pem: unfinished is true then.
func read(dir string) (ca *CA, unfinished bool, err error) {
	for range 3 { // files of one state and of the next do not fit together; then it is the next
		if ca, unfinished, err = readOnce(dir); err == nil {
			break
		}
	}
	return ca, unfinished, err
}

func readOnce(dir string) (ca *CA, unfinished bool, err error) {
	again := "restore the folder from a backup, or move it away to get a new CA (Orthanc must then trust the new bundle.pem)"
	keyPath := filepath.Join(dir, keyFile)
	info, err := os.Stat(keyPath)
	if err != nil {
		return nil, false, &FolderError{dir, err.Error(), "make the folder readable for the gateway's user"}
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, false, &FolderError{dir, fmt.Sprintf("%s can be read by other users (mode %04o)", keyFile, info.Mode().Perm()), "chmod 600 " + keyPath}
	}
	key, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, false, &FolderError{dir, err.Error(), "make the folder readable for the gateway's user"}
	}
	// The certificates after the key, and next-ca.pem before it is renamed to ca.pem.
	nextCert, nextErr := os.ReadFile(filepath.Join(dir, nextCertFile))
	cert, err := os.ReadFile(filepath.Join(dir, certFile))
	if err != nil {
		return nil, false, &FolderError{dir, err.Error(), again}
	}
	ca, err = parse(dir, certFile, cert, key)
	if err != nil && nextErr == nil {
		if activated, nextErr := parse(dir, nextCertFile, nextCert, key); nextErr == nil {
			ca, unfinished, err = activated, true, nil
		}
	}
	if err != nil {
		return nil, false, &FolderError{dir, err.Error(), again}
	}
	if !unfinished {
		ca.next = readNext(dir)
	}
	// An activation that has only begun has written the CA that still signs.
	if previous := readCertificate(filepath.Join(dir, previousFile)); previous != nil && !previous.Equal(ca.cert) {
		ca.previous = previous
	}
	return ca, unfinished, nil
}

// readNext returns the CA that waits; nil if there is none, or only a part of
// one, which must not keep the CA that signs from its work.
func readNext(dir string) *CA {
	cert, certErr := os.ReadFile(filepath.Join(dir, nextCertFile))
	key, keyErr := os.ReadFile(filepath.Join(dir, nextKeyFile))
	if certErr != nil || keyErr != nil {
		return nil
	}
	ca, err := parse(dir, nextCertFile, cert, key)
	if err != nil {
		return nil
	}
	return ca
}

// readCertificate returns nil where there is none.
func readCertificate(path string) *x509.Certificate {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return cert
}

func parse(dir, name string, cert, key []byte) (*CA, error) {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s with its key: %w", name, err)
	}
	private, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New(keyFile + " is not an ECDSA key")
	}
	if !pair.Leaf.IsCA || pair.Leaf.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, errors.New(name + " is not a CA certificate")
	}
	return &CA{dir: dir, cert: pair.Leaf, key: private, leaves: &leaves{}}, nil
}

// trusted are the certificates of the bundle.
func (ca *CA) trusted() []*x509.Certificate {
	list := []*x509.Certificate{ca.cert}
	switch {
	case ca.next != nil:
		list = append(list, ca.next.cert)
	case ca.previous != nil:
		list = append(list, ca.previous)
	}
	return list
}

// Bundle returns what clients are to trust, in PEM: the bundle.pem of the folder,
// completed where it lacks a CA.
func (ca *CA) Bundle() []byte {
	have, _ := os.ReadFile(ca.BundlePath()) // what cannot be read is made anew
	return ca.complete(have)
}

// complete returns a bundle with every certificate that is to be trusted. A
// bundle without the CA that signs is not ours, or is cut: it is made anew.
func (ca *CA) complete(have []byte) []byte {
	if !carries(have, ca.cert) {
		have = nil
	}
	for _, cert := range ca.trusted() {
		if carries(have, cert) {
			continue
		}
		if len(have) > 0 && !bytes.HasSuffix(have, newline) {
			have = append(have, '\n')
		}
		have = append(have, certificatePEM(cert)...)
	}
	return have
}

var newline = []byte("\n")

// carries reports whether the bundle has the certificate; an editor may have cut
// the newline at its end.
func carries(bundle []byte, cert *x509.Certificate) bool {
	return bytes.Contains(bundle, bytes.TrimSuffix(certificatePEM(cert), newline))
}

// without returns the bundle without the certificate, which may be nil.
func without(bundle []byte, cert *x509.Certificate) []byte {
	if cert == nil {
		return bundle
	}
	block := certificatePEM(cert)
	bundle = bytes.ReplaceAll(bundle, block, nil)
	return bytes.ReplaceAll(bundle, bytes.TrimSuffix(block, newline), nil)
}

// ensureBundle writes bundle.pem unless it carries all that it must.
func (ca *CA) ensureBundle() error {
	if have, err := os.ReadFile(ca.BundlePath()); err == nil && bytes.Equal(have, ca.complete(have)) {
		return nil
	}
	return change(ca.dir, "write "+bundleFile, "let the gateway's user write there", func() error {
		now, _, err := read(ca.dir) // somebody may have rotated meanwhile
		if err != nil {
			return err
		}
		return now.writeBundle(now.Bundle())
	})
}

func (ca *CA) writeBundle(content []byte) error {
	return replaceFile(ca.BundlePath(), content, 0o644)
}

// patience is how long to wait for another process that changes the folder.
// That takes milliseconds.
const patience = 10 * time.Second

// change runs f while no other process changes the folder. What goes wrong comes
// back as a [*FolderError] that names what was to be done.
func change(dir, what, hint string, f func() error) error {
	fail := func(err error) error {
		if _, ok := errors.AsType[*FolderError](err); ok {
			return err
		}
		return &FolderError{dir, what + ": " + err.Error(), hint}
	}
	unlock, err := lock(dir)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	leftovers, err := filepath.Glob(filepath.Join(dir, newFiles)) // of a crash
	if err != nil {
		return fail(err)
	}
	for _, path := range leftovers {
		_ = os.Remove(path)
	}
	if err := f(); err != nil {
		return fail(err)
	}
	return nil
}

// lock keeps all others from changing the folder. A process that ends gives the
// lock back, however it ends.
//
// It asks again and again, since no system tells when it is worth it: flock(2)
// cannot wait with a limit, a goroutine that waits in it would outlive the limit
// and then hold the lock, and what it gets may be the lock of a file that is no
// longer there; Windows does not wait for a file at all.
func lock(dir string) (unlock func(), err error) {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if unlock, err = tryLock(dir); !errors.Is(err, errLocked) || time.Now().After(end) {
			return unlock, err
		}
	}
}

var errLocked = errors.New("another process is changing the folder")

func certificatePEM(cert *x509.Certificate) []byte { return pemBlock("CERTIFICATE", cert.Raw) }

func pemBlock(typ string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
}

// newFiles are files that are still being written.
const newFiles = ".new-*"

// replaceFile replaces a file in one step, so that no reader sees a half.
func replaceFile(path string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), newFiles)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	giveToOwner(f)
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return move(f.Name(), path)
}

// move renames a file over another, and makes that last before it returns: what
// is done after it must not come first in a crash.
func move(from, to string) error {
	if err := rename(from, to); err != nil {
		return err
	}
	if d, err := os.Open(filepath.Dir(to)); err == nil {
		_ = d.Sync() // not every system can
		d.Close()
	}
	return nil
}
