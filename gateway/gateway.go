// Package gateway is the proxy itself: it takes Orthanc's CONNECT, ends TLS for
// the hosts of the rules, puts the credential on each request and forwards it
// over verified TLS. Which rule applies is decided by package rules, what the
// credential is by package token. A [Gateway] serves any number of connections
// at once.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/elazarl/goproxy"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/rules"
)

// maxHeader bounds a request's line and headers, and those of a corporate
// proxy's answer to CONNECT.
const maxHeader = 64 << 10

// Options are what a gateway is made of. Config and Log are needed.
type Options struct {
	Config *rules.Config
	CA     *certs.CA // nil only where [Gateway.Probe] is all that is called
	Log    *slog.Logger
	Level  *slog.LevelVar // of Log, set to the config's log.level; nil: it has a level of its own
	Audit  *audit.Log     // nil: no audit
}

// Gateway is the proxy. Make it with [New], run it with [Gateway.Serve], give it
// another configuration with [Gateway.Reload], end it with [Gateway.Shutdown].
type Gateway struct {
	log     *slog.Logger
	level   *slog.LevelVar
	audit   *audit.Log
	started time.Time

	ca      atomic.Pointer[certs.CA]
	current atomic.Pointer[snapshot]
	stats   *stats
	own     *ownAddresses
	busy    *inflight
	hops    redirects

	reloading sync.Mutex // held by the one reload under way
	reloaded  atomic.Pointer[reloadStatus]
	snapshots snapshots

	connect *goproxy.ProxyHttpServer // dispatches CONNECT
	front   *http.Server             // what Orthanc connects to
	inner   *http.Server             // speaks inside terminated TLS
	handoff *handoff                 // connections from front to inner
}

// New builds a gateway. Its profiles begin to acquire their tokens at once;
// nothing listens yet.
func New(o Options) (*Gateway, error) {
	g := &Gateway{
		log: o.Log, level: o.Level, audit: o.Audit, started: time.Now(),
		own: &ownAddresses{}, stats: newStats(), handoff: newHandoff(), busy: newInflight(),
	}
	g.ca.Store(o.CA)
	snap, err := g.newSnapshot(o.Config, nil)
	if err != nil {
		return nil, err
	}
	g.install(snap)
	g.setLevel(o.Config)
	g.reloaded.Store(&reloadStatus{loadedAt: g.started})
	g.connect = goproxy.NewProxyHttpServer()
	g.connect.Logger = quiet{}
	g.connect.OnRequest().HandleConnectFunc(g.dispatch)
	g.front = g.newServer(o.Config.Proxy, http.HandlerFunc(g.serveFront))
	g.inner = g.newServer(o.Config.Proxy, http.HandlerFunc(g.serveInner))
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
	ctx, cancel := context.WithCancel(context.Background())
	var warming sync.WaitGroup
	warming.Go(func() { g.keepWarm(ctx) })
	err := g.front.Serve(g.countingListener(ln))
	cancel()
	warming.Wait()
	g.handoff.Close()
	if innerErr := <-inner; errors.Is(err, http.ErrServerClosed) {
		err = innerErr
	}
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("serve proxy: %w", err)
}

// keepWarm looks after the connections to the upstreams, so that the first
// request after a pause pays no handshake.
func (g *Gateway) keepWarm(ctx context.Context) {
	ticker := time.NewTicker(warmEvery)
	defer ticker.Stop()
	for {
		snap := g.hold()
		snap.warm(ctx)
		snap.release()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
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
	g.snapshots.closeAll()
	return cut
}

// Draining reports whether [Gateway.Shutdown] has begun.
func (g *Gateway) Draining() bool { return g.busy.draining() }

// quiet swallows goproxy's log, which prints hosts and URLs.
type quiet struct{}

// Printf implements goproxy's Logger.
func (quiet) Printf(string, ...any) {}
