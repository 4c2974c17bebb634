package token

import (
	"errors"
	"io/fs"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestAWSSpoolIsBounded(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	for _, length := range []int64{-1, 11} {
		r := httptest.NewRequest("POST", "https://dicom.test/studies", strings.NewReader("0123456789A"))
		r.ContentLength = length
		_, err := spool(r, 10)
		if u, ok := errors.AsType[*Unavailable](err); !ok || u.Cause.Code != "body_too_large" || u.Cause.Key != "payload" || u.Cause.Class != Permanent {
			t.Errorf("length %d: %v, want body_too_large", length, err)
		}
	}
	r := httptest.NewRequest("POST", "https://dicom.test/studies", strings.NewReader("0123456789"))
	if _, err := spool(r, 10); err != nil {
		t.Errorf("as large as the bound: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%d files left", len(left))
	}
}

func TestAWSSpoolSaysThatTheDiskIsFull(t *testing.T) {
	err := spoolFailed(&fs.PathError{Op: "write", Path: "/secret/place", Err: syscall.ENOSPC})
	if got := err.Error(); !strings.Contains(got, "no space is left") || strings.Contains(got, "/secret/place") || err.Cause.Class != Transient {
		t.Error(got)
	}
}
