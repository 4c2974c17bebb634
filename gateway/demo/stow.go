package demo

import (
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
)

// Failure reasons of a STOW-RS answer (PS3.18 section 10.5.3, PS3.4 annex GG).
const (
	reasonOtherStudy     = 0xA900 // the dataset does not match what was asked for
	reasonUnreadable     = 0xC000
	reasonTransferSyntax = 0xC122
)

// stow answers STOW-RS. Each part is read, checked and kept before the next is looked at, so that a body may have
// any number of them.
func (s *Server) stow(w http.ResponseWriter, r *http.Request) {
	report := newStowReport(r)
	whole := eachPart(w, r, func(part io.Reader) error {
		file, err := s.store.receive(part)
		if err == nil {
			s.keep(file, report)
		}
		return err
	})
	if whole {
		report.write(w)
	}
}

// eachPart hands the parts of a multipart/related body of DICOM files to take, one after the other. It returns true
// after the last one, and false when it has answered the request with an error.
func eachPart(w http.ResponseWriter, r *http.Request, take func(part io.Reader) error) bool {
	mediaType, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "multipart/related" || parameters["boundary"] == "" ||
		parameters["type"] != "" && parameters["type"] != "application/dicom" {
		http.Error(w, `only multipart/related; type="application/dicom"`, http.StatusUnsupportedMediaType)
		return false
	}
	parts := multipart.NewReader(r.Body, parameters["boundary"])
	for {
		part, err := parts.NextRawPart()
		if err == io.EOF { //nolint:errorlint // a body without its closing boundary gives an error that wraps io.EOF
			_, _ = io.Copy(io.Discard, r.Body) // what follows the last boundary belongs to the record's hash
			return true
		}
		if err == nil {
			err = take(part)
		}
		switch {
		case errors.Is(err, errFull):
			http.Error(w, err.Error(), http.StatusInsufficientStorage)
			return false
		case err != nil:
			http.Error(w, "the multipart body is malformed", http.StatusBadRequest)
			return false
		}
	}
}

// keep stores a received file if it is a DICOM instance of the right study, and reports it either way.
func (s *Server) keep(file []byte, report *stowReport) {
	i, err := ParseInstance(file)
	switch {
	case errors.Is(err, errTransferSyntax):
		report.fail(nil, reasonTransferSyntax)
	case err != nil:
		report.fail(nil, reasonUnreadable)
	case report.study != "" && report.study != i.StudyInstanceUID():
		report.fail(i, reasonOtherStudy)
	default:
		s.store.put(i)
		report.succeed(i)
		return
	}
	s.store.release(len(file))
}

// stowReport gathers the answer to a STOW-RS request.
type stowReport struct {
	base   string // URL of the services
	study  string // of the path; empty when it names none
	stored []any
	failed []any
}

func newStowReport(r *http.Request) *stowReport {
	return &stowReport{base: serviceURL(r), study: r.PathValue("study")}
}

func (s *stowReport) succeed(i *Instance) {
	d := reference(i)
	d.set(tagRetrieveURL, "UR", s.base+"studies/"+i.StudyInstanceUID()+"/series/"+i.SeriesInstanceUID()+
		"/instances/"+i.SOPInstanceUID())
	s.stored = append(s.stored, d)
}

// fail reports an instance, or one that could not even be read when i is nil.
func (s *stowReport) fail(i *Instance, reason int) {
	d := make(dataset)
	if i != nil {
		d = reference(i)
	}
	d.set(tagFailureReason, "US", reason)
	s.failed = append(s.failed, d)
}

func reference(i *Instance) dataset {
	d := make(dataset)
	d.set(tagReferencedClass, "UI", i.Value(TagSOPClassUID))
	d.set(tagReferencedInstance, "UI", i.SOPInstanceUID())
	return d
}

// write sends the report. Orthanc wants the referenced sequence to count all instances, and no failed sequence at all
// when there was no failure.
func (s *stowReport) write(w http.ResponseWriter) {
	answer := make(dataset)
	url := s.base + "studies"
	if s.study != "" {
		url += "/" + s.study
	}
	answer.set(tagRetrieveURL, "UR", url)
	if len(s.stored) > 0 {
		answer.set(tagReferencedSequence, "SQ", s.stored...)
	}
	status := http.StatusOK
	if len(s.failed) > 0 {
		answer.set(tagFailedSequence, "SQ", s.failed...)
		status = http.StatusAccepted
	}
	if len(s.stored) == 0 {
		status = http.StatusConflict
	}
	writeJSON(w, dicomJSON, status, answer)
}
