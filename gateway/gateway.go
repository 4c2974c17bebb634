// Package gateway is the proxy itself: it takes Orthanc's CONNECT, ends TLS for
// the hosts of the rules, puts the credential on each request and forwards it
// over verified TLS. Which rule applies is decided by package rules, what the
// credential is by package token. A [Gateway] serves any number of connections
// at once.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync/atomic"
	"time"

	"github.com/elazarl/goproxy"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/rules"
)

// maxHeader bounds a request's line and headers.
const maxHeader = 64 << 10

// Options are what a gateway is made of. Config and Log are needed.
type Options struct {
	Config *rules.Config
	CA     *certs.CA // nil only where [Gateway.Probe] is all that is called
	Log    *slog.Logger
	Audit  *audit.Log // nil: no audit
}

// Gateway is the proxy. Make it with [New], run it with [Gateway.Serve], end it
// with [Gateway.Shutdown].
type Gateway struct {
	log     *slog.Logger
	audit   *audit.Log
	started time.Time

	ca      atomic.Pointer[certs.CA]
	current atomic.Pointer[snapshot]
	stats   *stats
	own     *ownAddresses
	auth    *proxyAuth
	busy    *inflight
	hops    redirects

	connect  *goproxy.ProxyHttpServer // dispatches CONNECT
	forward  *httputil.ReverseProxy   // sends requests on
	front    *http.Server             // what Orthanc connects to
	inner    *http.Server             // speaks inside terminated TLS
	handoff  *handoff                 // connections from front to inner
	frontTLS *tls.Config              // nil: the proxy speaks plain HTTP
}

// New builds a gateway. Its profiles begin to acquire their tokens at once;
// nothing listens yet.
func New(o Options) (*Gateway, error) {
	own := &ownAddresses{}
	snap, err := newSnapshot(o.Config, own, o.Log)
	if err != nil {
		return nil, err
	}
	p := o.Config.Proxy
	g := &Gateway{
		log: o.Log, audit: o.Audit, started: time.Now(),
		own: own, stats: newStats(), handoff: newHandoff(), busy: newInflight(),
	}
	g.ca.Store(o.CA)
	g.current.Store(snap)
	if g.auth, err = newProxyAuth(p, &g.stats.connections); err != nil {
		snap.close()
		return nil, err
	}
	if p.TLSCert != "" {
		pair, err := tls.LoadX509KeyPair(string(p.TLSCert), string(p.TLSKey))
		if err != nil {
			snap.close()
			return nil, fmt.Errorf("load proxy.tls_cert: %w", err)
		}
		g.frontTLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	}
	g.connect = goproxy.NewProxyHttpServer()
	g.connect.Logger = quiet{}
	g.connect.OnRequest().HandleConnectFunc(g.dispatch)
	g.forward = g.newForward()
	g.front = g.newServer(p, http.HandlerFunc(g.serveFront))
	g.inner = g.newServer(p, http.HandlerFunc(g.serveInner))
	return g, nil
}

// newServer returns a server for one side of the proxy. Header and idle times
// are limited; a body's time is not, since a study may take an hour.
func (g *Gateway) newServer(p rules.Proxy, h http.Handler) *http.Server {
	http1 := &http.Protocols{}
	http1.SetHTTP1(true)
	return &http.Server{
		Handler:                      h,
		Protocols:                    http1,
		ReadHeaderTimeout:            p.HeaderTimeout,
		IdleTimeout:                  p.IdleTimeout,
		MaxHeaderBytes:               maxHeader,
		DisableGeneralOptionsHandler: true,
		ConnContext:                  withConn,
		ConnState:                    g.connState,
		ErrorLog:                     slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // every case it tells of is told by us, with more
	}
}

// Serve takes connections from ln until [Gateway.Shutdown]; it returns nil then.
func (g *Gateway) Serve(ln net.Listener) error {
	g.Protect(ln.Addr())
	defer g.watch()()
	inner := make(chan error, 1)
	go func() { inner <- g.inner.Serve(g.handoff) }()
	err := g.front.Serve(g.countingListener(ln))
	g.handoff.Close()
	if innerErr := <-inner; errors.Is(err, http.ErrServerClosed) {
		err = innerErr
	}
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("serve proxy: %w", err)
}

// Protect names an address that this process listens on; it is never dialled.
func (g *Gateway) Protect(addr net.Addr) { g.own.add(addr) }

// Shutdown lets running requests and tunnels end, answers new ones with 503
// draining meanwhile, and closes everything when they are done or ctx ends. It
// returns ctx's error if something had to be cut.
func (g *Gateway) Shutdown(ctx context.Context) error {
	var cut error
	select {
	case <-g.busy.drain():
	case <-ctx.Done():
		cut = context.Cause(ctx)
	}
	// The last answers may still be on their way out of the servers' buffers.
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if cut == nil {
		_ = g.inner.Shutdown(flush)
	}
	_ = g.front.Shutdown(flush)
	_ = g.inner.Close()
	_ = g.front.Close()
	g.busy.cut()
	select {
	case <-g.busy.drain(): // what was cut writes its audit record
	case <-flush.Done():
	}
	g.current.Load().close()
	return cut
}

// Draining reports whether [Gateway.Shutdown] has begun.
func (g *Gateway) Draining() bool { return g.busy.draining() }

// quiet swallows goproxy's log, which prints hosts and URLs.
type quiet struct{}

// Printf implements goproxy's Logger.
func (quiet) Printf(string, ...any) {}
