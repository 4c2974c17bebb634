package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/gateway/admin"
	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/gateway/demo"
	"orthanc-dicomweb-oauth/gateway/supervisor"
	"orthanc-dicomweb-oauth/rules"
)

// service is a gateway with its admin listener, both serving.
type service struct {
	gateway *gateway.Gateway
	ca      *certs.CA
	audit   *audit.Log
	admin   *http.Server
	log     *slog.Logger
	config  string // its path
	proxyAt net.Addr
	adminAt net.Addr // nil: turned off
	failed  chan error
}

// start loads and builds everything, and only then listens.
func start(ctx context.Context, path string, stderr io.Writer) (*service, *rules.Config, error) {
	c, err := rules.Load(path, os.LookupEnv)
	if err != nil {
		return nil, nil, err
	}
	level := &slog.LevelVar{}
	s := &service{log: newLogger(c.Log, level, stderr), config: path, failed: make(chan error, 2)}
	if s.ca, err = gateway.OpenCA(c); err != nil {
		return nil, nil, err
	}
	if s.audit, err = audit.Open(c.AuditTarget()); err != nil {
		return nil, nil, &hintedError{fmt.Errorf("log.audit: %w", err), "make its folder and let the gateway's user write there, or change audit under [log]"}
	}
	if s.gateway, err = gateway.New(gateway.Options{Config: c, CA: s.ca, Log: s.log, Level: level, Audit: s.audit}); err != nil {
		return nil, nil, errors.Join(err, s.audit.Close())
	}
	if err := s.listen(ctx, c); err != nil {
		return nil, nil, errors.Join(err, s.stop(ctx))
	}
	return s, c, nil
}

// listen opens both listeners before either serves.
func (s *service) listen(ctx context.Context, c *rules.Config) error {
	var config net.ListenConfig
	proxy, err := config.Listen(ctx, "tcp", c.Proxy.Listen)
	if err != nil {
		return listenError("proxy.listen", err)
	}
	if c.Admin.Listen != "" {
		ln, err := config.Listen(ctx, "tcp", c.Admin.Listen)
		if err != nil {
			proxy.Close()
			return listenError("admin.listen", err)
		}
		s.adminAt = ln.Addr()
		s.gateway.Protect(s.adminAt)
		s.admin = admin.New(admin.Options{Gateway: s.gateway, Admin: c.Admin, Version: buildVersion(), Log: s.log, Reload: s.reload})
		go func() { s.failed <- s.admin.Serve(ln) }()
	}
	s.proxyAt = proxy.Addr()
	go func() { s.failed <- s.gateway.Serve(proxy) }()
	return nil
}

// listenError says what to change about an address that is not to be had.
func listenError(key string, err error) error {
	_, unknown := errors.AsType[*net.DNSError](err)
	hint := ""
	switch {
	case unknown, errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.Errno(10049)): // the latter on Windows
		hint = "this machine has no such address; change listen to one of its own, or to 127.0.0.1"
	case errors.Is(err, fs.ErrPermission):
		hint = "this user may not listen there; take a port above 1023"
	}
	return &hintedError{fmt.Errorf("%s: %w", key, err), hint}
}

// reload takes up the config file as it is now.
func (s *service) reload() (gateway.Reloaded, error) {
	return s.gateway.Reload(func() (*rules.Config, error) { return rules.Load(s.config, os.LookupEnv) })
}

// drain stops the service; running transfers have drain_timeout to end.
func (s *service) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.gateway.Status().Config.Proxy.DrainTimeout)
	defer cancel()
	return s.stop(ctx)
}

// stop drains the gateway and closes everything, readiness last.
func (s *service) stop(ctx context.Context) error {
	err := s.gateway.Shutdown(ctx)
	if s.admin != nil {
		_ = s.admin.Close()
	}
	return errors.Join(err, s.audit.Close())
}

// serve is the run command.
func serve(ctx context.Context, path string, stderr io.Writer) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // Windows has none; the file and the API do the same there
	defer signal.Stop(hangup)
	signal.Ignore(syscall.SIGPIPE) // a log or audit pipe whose reader has gone must not end us; its writes fail
	s, c, err := start(ctx, path, stderr)
	if err != nil {
		return err
	}
	s.log.Info("started", "version", buildVersion(), "proxy", s.proxyAt.String(), "admin", address(s.adminAt),
		"config", c.Path, "revision", c.Revision, "ca_bundle", s.ca.BundlePath(), "ca_fingerprint_sha256", s.ca.Fingerprint())
	supervisor.Notify(s.log, "READY=1\nSTATUS=proxy "+s.proxyAt.String()+", admin "+address(s.adminAt))
	following, unfollow := context.WithCancel(ctx)
	var followed sync.WaitGroup
	defer followed.Wait()
	defer unfollow()
	followed.Go(func() { s.gateway.Follow(following, func() { _, _ = s.reload() }) }) // the gateway tells of errors
	for {
		select {
		case <-hangup:
			if err := s.audit.Reopen(); err != nil {
				s.log.Error("audit file not reopened, the old one is kept", "err", err)
			}
			_, _ = s.reload() // the gateway tells of errors
		case err := <-s.failed:
			return errors.Join(err, s.drain(ctx))
		case <-ctx.Done():
			supervisor.Notify(s.log, "STOPPING=1")
			s.log.Info("stopping, running transfers may end", "cause", context.Cause(ctx).Error(),
				"drain_timeout", s.gateway.Status().Config.Proxy.DrainTimeout.String())
			if err := s.drain(ctx); errors.Is(err, context.DeadlineExceeded) {
				s.log.Warn("stopped, transfers that took longer than drain_timeout were cut")
			} else if err != nil {
				return fmt.Errorf("stop: %w", err)
			}
			s.log.Info("stopped")
			return nil
		}
	}
}

// startForDemo serves the demo's config until the demo stops it.
func startForDemo(ctx context.Context, path string, stderr io.Writer) (*demo.Running, error) {
	s, _, err := start(ctx, path, stderr)
	if err != nil {
		return nil, err
	}
	return &demo.Running{
		ProxyAddr: s.proxyAt.String(), AdminAddr: address(s.adminAt), CAFile: s.ca.BundlePath(),
		Stop: func() error { return s.drain(ctx) },
	}, nil
}

func address(a net.Addr) string {
	if a == nil {
		return "off"
	}
	return a.String()
}

func newLogger(l rules.Log, level slog.Leveler, w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if l.Format == "text" || l.Format == "auto" && isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}
