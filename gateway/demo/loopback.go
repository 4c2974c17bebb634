package demo

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// loopback is an HTTPS server on 127.0.0.1, HTTP/1.1 only, under a throw-away CA of its own.
type loopback struct {
	listener net.Listener
	server   *http.Server
	caPEM    []byte
	cancel   context.CancelFunc // ends the context of every request
	serving  sync.WaitGroup     // the accept loop

	mu     sync.Mutex
	closed bool
	active sync.WaitGroup // requests under way; Add only under mu and while not closed
}

// newLoopback listens on a port, 0 for a free one. Nothing is answered before serve.
func newLoopback(port int) (*loopback, error) {
	leaf, caPEM, err := newCertificate()
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(context.Background(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, fmt.Errorf("listen on loopback: %w", err)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	ctx, cancel := context.WithCancel(context.Background())
	return &loopback{
		listener: listener,
		caPEM:    caPEM,
		cancel:   cancel,
		server: &http.Server{
			Protocols:         protocols,
			TLSConfig:         &tls.Config{Certificates: []tls.Certificate{leaf}, MinVersion: tls.VersionTLS12},
			ReadHeaderTimeout: 10 * time.Second,
			BaseContext:       func(net.Listener) context.Context { return ctx },
			ErrorLog:          log.New(io.Discard, "", 0), // a client that breaks a handshake is part of many a test
		},
	}, nil
}

// serve answers with handler until close.
func (l *loopback) serve(handler http.Handler) {
	l.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !l.begin() {
			panic(http.ErrAbortHandler)
		}
		defer l.active.Done()
		handler.ServeHTTP(w, r)
	})
	l.serving.Go(func() {
		_ = l.server.ServeTLS(l.listener, "", "") // only ever returns because of close
	})
}

// begin counts a request in, unless the server is closed.
func (l *loopback) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.active.Add(1)
	return true
}

// origin is the scheme, name and port to reach it by.
func (l *loopback) origin() string {
	return fmt.Sprintf("https://localhost:%d", l.listener.Addr().(*net.TCPAddr).Port)
}

// close cuts every connection and waits until the last handler has returned. A second call does no harm.
func (l *loopback) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.cancel()
	_ = l.listener.Close() // also when serve was never called
	_ = l.server.Close()
	l.serving.Wait()
	l.active.Wait()
}
