package demo

import (
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
)

// StreamContentType is the Content-Type of a [StreamBody], in either direction.
const StreamContentType = `multipart/related; type="application/dicom"; boundary=` + streamBoundary

const (
	streamBoundary = "dicomweb-demo-stream"
	streamHead     = "--" + streamBoundary + "\r\nContent-Type: application/dicom\r\n\r\n"
	streamTail     = "\r\n--" + streamBoundary + "--\r\n"
)

// StreamBody is a multipart body whose single part has n bytes, the same ones for the same n, and its length in all. Only
// a server with Discard accepts it, since its part is noise and no DICOM file. Nothing of it is held in memory.
func StreamBody(n int64) (body io.Reader, length int64) {
	noise := rand.NewChaCha8([32]byte([]byte("orthanc-dicomweb-oauth demo seed")))
	body = io.MultiReader(strings.NewReader(streamHead), io.LimitReader(noise, n), strings.NewReader(streamTail))
	return body, n + int64(len(streamHead)+len(streamTail))
}

// discard answers STOW-RS for a body of any size, of which only the record (see Request.BodySHA256) remains.
func (s *Server) discard(w http.ResponseWriter, r *http.Request) {
	report := newStowReport(r)
	whole := eachPart(w, r, func(part io.Reader) error {
		report.succeed(&Instance{}) // unnamed, but counted
		_, err := io.Copy(io.Discard, part)
		return err
	})
	if whole {
		report.write(w)
	}
}

// stream answers WADO-RS with a StreamBody.
func (s *Server) stream(w http.ResponseWriter, r *http.Request) {
	n := int64(1 << 20)
	if text := r.FormValue("bytes"); text != "" {
		var err error
		if n, err = strconv.ParseInt(text, 10, 64); err != nil || n < 0 {
			http.Error(w, "bytes is not a count", http.StatusBadRequest)
			return
		}
	}
	body, length := StreamBody(n)
	w.Header().Set("Content-Type", StreamContentType)
	if r.FormValue("length") != "" {
		w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	}
	w.WriteHeader(http.StatusOK)
	_, _ = io.Copy(w, body) // fails only when the client is gone
}
