package demo

import (
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"
)

// retrieve answers WADO-RS: the instances of a study or series, or one, as they were received.
func (s *Server) retrieve(w http.ResponseWriter, r *http.Request) {
	if !accepts(r, "multipart/related") {
		http.Error(w, "only multipart/related", http.StatusNotAcceptable)
		return
	}
	found := s.addressed(r)
	if len(found) == 0 {
		http.Error(w, "no such instances", http.StatusNotFound)
		return
	}
	parts := multipart.NewWriter(w)
	w.Header().Set("Content-Type", relatedType(parts.Boundary()))
	for _, i := range found {
		part, err := parts.CreatePart(textproto.MIMEHeader{"Content-Type": {"application/dicom"}})
		if err != nil {
			return // the client is gone
		}
		if _, err := part.Write(i.File); err != nil {
			return
		}
	}
	_ = parts.Close()
}

// metadata answers WADO-RS metadata, as far as the server knows the attributes.
func (s *Server) metadata(w http.ResponseWriter, r *http.Request) {
	if !accepts(r, dicomJSON) && !accepts(r, "application/json") {
		http.Error(w, "only "+dicomJSON, http.StatusNotAcceptable)
		return
	}
	found := s.addressed(r)
	if len(found) == 0 {
		http.Error(w, "no such instances", http.StatusNotFound)
		return
	}
	datasets := make([]dataset, 0, len(found))
	for _, i := range found {
		d := make(dataset)
		d.describeInstance(i, levelInstance)
		datasets = append(datasets, d)
	}
	writeJSON(w, dicomJSON, http.StatusOK, datasets)
}

func (s *Server) deleteStudy(w http.ResponseWriter, r *http.Request) {
	if !s.store.remove(r.PathValue("study")) {
		http.Error(w, "no such study", http.StatusNotFound)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// addressed returns the instances that the path names.
func (s *Server) addressed(r *http.Request) []*Instance {
	return s.store.find(r.PathValue("study"), r.PathValue("series"), r.PathValue("instance"))
}

// accepts says whether the client takes this media type. Parameters, also a q of zero, are not looked at.
func accepts(r *http.Request, mediaType string) bool {
	accept := strings.Join(r.Header["Accept"], ",")
	return accept == "" || strings.Contains(accept, "*/*") || strings.Contains(accept, mediaType)
}

// relatedType is the Content-Type of a multipart body of DICOM files.
func relatedType(boundary string) string {
	return `multipart/related; type="application/dicom"; boundary=` + boundary
}
