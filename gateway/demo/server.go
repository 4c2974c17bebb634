package demo

import (
	"context"
	"fmt"
	"net/http"
	"slices"
)

// servicePath is where the DICOMweb services are.
const servicePath = "/dicom-web/"

// ServerOptions configures a [Server].
type ServerOptions struct {
	// Verify says whether a bearer token is good, as [IdentityProvider.Verify] does: ErrInsufficientScope becomes 403,
	// any other error 401. Nil lets every request in, with or without a token.
	Verify func(token string) error

	// MaxBytes bounds the instances kept in memory; 0 means 512 MiB. What does not fit is answered 507.
	MaxBytes int64

	// Port is where to listen; 0 means a free one.
	Port int

	// Discard keeps nothing: a STOW-RS body of any size is read, hashed and forgotten (see Request.BodySHA256), and
	// WADO-RS of any study streams StreamBody(n), n from the query parameter "bytes" (default 1 MiB), with a
	// Content-Length where the parameter "length" is set, else chunked.
	Discard bool
}

// Server is a DICOMweb server on loopback: QIDO-RS, WADO-RS, STOW-RS and DELETE of a study, over TLS and HTTP/1.1, in
// memory, for callers with a bearer token. It remembers each request.
type Server struct {
	options  ServerOptions
	loopback *loopback
	store    store
	requests journal[Request]
}

// NewServer starts a DICOMweb server. Like httptest.NewServer it panics when loopback cannot be had. Close it.
func NewServer(o ServerOptions) *Server {
	s, err := startServer(o)
	if err != nil {
		panic(fmt.Sprintf("demo: start DICOMweb server: %v", err))
	}
	return s
}

func startServer(o ServerOptions) (*Server, error) {
	if o.MaxBytes <= 0 {
		o.MaxBytes = defaultMaxBytes
	}
	l, err := newLoopback(o.Port)
	if err != nil {
		return nil, err
	}
	s := &Server{options: o, loopback: l, store: store{maxBytes: o.MaxBytes}}
	l.serve(s.record(s.authorize(s.routes())))
	return s, nil
}

// URL is the base of the DICOMweb services, as it stands in Orthanc's DicomWeb.Servers, with a slash at its end.
func (s *Server) URL() string { return s.loopback.origin() + servicePath }

// CAPEM is the certificate of the CA to trust for it.
func (s *Server) CAPEM() []byte { return slices.Clone(s.loopback.caPEM) }

// Requests is what came in, oldest first; of very many requests, the latest. A request is in it before its answer
// leaves.
func (s *Server) Requests() []Request { return s.requests.all() }

// WaitRequests blocks until n requests have been answered, or ctx ends.
func (s *Server) WaitRequests(ctx context.Context, n int) error { return s.requests.wait(ctx, n) }

// Instances is what the server keeps, in the order of arrival.
func (s *Server) Instances() []*Instance { return s.store.find("", "", "") }

// Close cuts all connections and waits for the server's end. A second call does no harm.
func (s *Server) Close() { s.loopback.close() }

// serviceURL is the base of the services as the client named it.
func serviceURL(r *http.Request) string { return "https://" + r.Host + servicePath }

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(method, path string, h http.HandlerFunc) { mux.HandleFunc(method+" "+servicePath+path, h) }
	if s.options.Discard {
		handle("POST", "studies", s.discard)
		handle("POST", "studies/{study}", s.discard)
		handle("GET", "studies/{study}", s.stream)
		return mux
	}
	handle("POST", "studies", s.stow)
	handle("POST", "studies/{study}", s.stow)
	handle("DELETE", "studies/{study}", s.deleteStudy)

	handle("GET", "studies", s.search(levelStudy))
	handle("GET", "series", s.search(levelSeries))
	handle("GET", "instances", s.search(levelInstance))
	handle("GET", "studies/{study}/series", s.search(levelSeries))
	handle("GET", "studies/{study}/instances", s.search(levelInstance))
	handle("GET", "studies/{study}/series/{series}/instances", s.search(levelInstance))

	for _, path := range []string{
		"studies/{study}", "studies/{study}/series/{series}", "studies/{study}/series/{series}/instances/{instance}",
	} {
		handle("GET", path, s.retrieve)
		handle("GET", path+"/metadata", s.metadata)
	}
	return mux
}
