package certs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

const writable = "run this as the gateway's user, or as root"

// Rotate makes a new CA for names (nil: any host) beside the one that signs,
// and puts it into the bundle. It waits there until [Activate]. The previous CA
// leaves the bundle. Where a CA waits already, Rotate refuses, or replaces it
// if force is true. It returns the folder's CA; its Waiting is the new one.
func Rotate(dir string, names *Names, force bool) (*CA, error) {
	if _, err := Load(dir); err != nil {
		return nil, err
	}
	err := change(dir, "make a new CA", writable, func() error {
		ca, err := settle(dir)
		if err != nil {
			return err
		}
		if ca.next != nil && !force {
			return &FolderError{
				dir, "a new CA waits already, made on " + ca.next.cert.NotBefore.Add(backdate).Format("2006-01-02 15:04 MST"),
				"let it sign: ca activate; or make another one instead: ca rotate --force",
			}
		}
		// Out of the bundle first: a CA that waits gets into it again, one that is gone would stay for ever.
		old := readCertificate(filepath.Join(dir, nextCertFile))
		if err := ca.writeBundle(without(ca.Bundle(), old)); err != nil {
			return err
		}
		if err := remove(filepath.Join(dir, nextCertFile)); err != nil {
			return err
		}
		if err := writePair(dir, nextCertFile, nextKeyFile, names); err != nil {
			return err
		}
		if ca, _, err = read(dir); err != nil {
			return err
		}
		if err := ca.writeBundle(without(ca.Bundle(), ca.previous)); err != nil {
			return err
		}
		return remove(filepath.Join(dir, previousFile))
	})
	if err != nil {
		return nil, err
	}
	return Load(dir)
}

// Activate lets the CA that waits sign from now on. The one before stays in the
// bundle until the next [Rotate], but its key is gone: there is no way back.
// Activate returns the CA that signs now.
func Activate(dir string) (*CA, error) {
	if _, err := Load(dir); err != nil {
		return nil, err
	}
	err := change(dir, "activate the new CA", writable, func() error {
		before, unfinished, err := read(dir)
		if err != nil {
			return err
		}
		if unfinished {
			_, err := settle(dir)
			return err
		}
		if before.next == nil {
			return &FolderError{dir, "no new CA waits", "make one: ca rotate"}
		}
		if err := before.next.inForce(); err != nil {
			return err
		}
		// The CA before this one is to leave the bundle while its file still tells which one that is.
		if err := before.writeBundle(without(before.Bundle(), before.previous)); err != nil {
			return err
		}
		if err := replaceFile(filepath.Join(dir, previousFile), certificatePEM(before.cert), 0o644); err != nil {
			return err
		}
		// With its key, the new CA signs.
		if err := move(filepath.Join(dir, nextKeyFile), filepath.Join(dir, keyFile)); err != nil {
			return err
		}
		_, err = settle(dir)
		return err
	})
	if err != nil {
		return nil, err
	}
	return Load(dir)
}

// settle reads the folder, and brings an unfinished activation to its end.
func settle(dir string) (*CA, error) {
	ca, unfinished, err := read(dir)
	if err != nil || !unfinished {
		return ca, err
	}
	return ca, move(filepath.Join(dir, nextCertFile), filepath.Join(dir, certFile))
}

// remove removes a file that need not be there.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
