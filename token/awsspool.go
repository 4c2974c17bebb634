package token

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"syscall"
)

// maxSpool bounds a body that is hashed: no AWS service takes more in one signed
// request (S3's PUT; HealthImaging's STOW-RS takes 1 GB), and what comes in must
// not fill the disk.
const maxSpool = 5 << 30

// spool moves the body of the request to a temporary file and returns its
// SHA-256. The request then has the file for its body, as often as GetBody is
// called, and its length. The file lives as long as the request's context, which
// also ends the reading.
func spool(r *http.Request, limit int64) (hash string, err error) {
	body := r.Body
	defer body.Close()
	if r.ContentLength > limit {
		return "", tooLarge(limit)
	}
	ctx := r.Context()
	f, remove, err := unnamedFile()
	if err != nil {
		return "", spoolFailed(err)
	}
	defer func() {
		if err != nil {
			remove()
		}
	}()
	stop := context.AfterFunc(ctx, func() { body.Close() }) // whoever waits for the client's bytes
	defer stop()

	source := &source{ctx: ctx, body: body}
	digest := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, digest), io.LimitReader(source, limit+1))
	switch {
	case context.Cause(ctx) != nil:
		return "", context.Cause(ctx)
	case source.err != nil:
		return "", fmt.Errorf("read request body: %w", source.err)
	case err != nil:
		return "", spoolFailed(err)
	case n > limit:
		return "", tooLarge(limit)
	case r.ContentLength > 0 && n != r.ContentLength:
		return "", fmt.Errorf("read request body: %w", io.ErrUnexpectedEOF)
	}
	context.AfterFunc(ctx, remove)
	r.TransferEncoding = nil // a client's "chunked" would win over the length
	r.ContentLength = n
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(f, 0, n)), nil }
	if n == 0 {
		r.GetBody = func() (io.ReadCloser, error) { return http.NoBody, nil }
	}
	r.Body, err = r.GetBody()
	return hex.EncodeToString(digest.Sum(nil)), err
}

// unnamedFile returns an empty file that only this process can read, and how to
// get rid of it. Where the system allows it, it has no name any more, so that
// nothing stays behind whatever happens.
func unnamedFile() (f *os.File, remove func(), err error) {
	f, err = os.CreateTemp("", "dicomweb-oauth-*") // 0600
	if err != nil {
		return nil, nil, err
	}
	if os.Remove(f.Name()) == nil {
		return f, func() { f.Close() }, nil
	}
	return f, func() { f.Close(); _ = os.Remove(f.Name()) }, nil // there is nobody to tell
}

// source reads a request's body until its context ends, and tells the body's
// errors from those of the file.
type source struct {
	ctx  context.Context
	body io.Reader
	err  error
}

// Read implements [io.Reader].
func (s *source) Read(p []byte) (int, error) {
	if err := context.Cause(s.ctx); err != nil {
		return 0, err
	}
	n, err := s.body.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func tooLarge(limit int64) *Unavailable {
	return &Unavailable{Cause: &Error{
		Class: Permanent, Code: "body_too_large", Key: "payload",
		Hint: `payload = "hash" takes bodies of up to ` + strconv.FormatInt(limit>>30, 10) + " GiB; send less at once, or set payload to unsigned or streaming",
	}}
}

func spoolFailed(err error) *Unavailable {
	why := "the file cannot be written"
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		why = "no space is left there"
	} else if errno, ok := errors.AsType[syscall.Errno](err); ok {
		why = errno.Error()
	}
	return &Unavailable{Cause: &Error{
		Class: Transient, Code: "spool_failed", Key: "payload",
		Hint: `payload = "hash" needs a folder for temporary files (TMPDIR): ` + why + "; make room, or set payload to unsigned or streaming",
	}}
}
