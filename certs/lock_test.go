package certs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestFolderIsChangedByOneAtATime(t *testing.T) {
	dir := t.TempDir()
	unlock, err := tryLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tryLock(dir); !errors.Is(err, errLocked) {
		t.Errorf("got %v, want that it is locked", err)
	}
	unlock()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("got %v, %v, want nothing left behind", left, err)
	}
	// The file of a process that has crashed locks nobody out.
	if err := os.WriteFile(filepath.Join(dir, lockFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	unlock, err = tryLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}
