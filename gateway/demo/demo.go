// Package demo is the `demo` command: an embedded identity provider, an embedded OAuth2-protected DICOMweb server, and
// the story that a client without any credential lives through when the gateway stands before them.
//
// [IdentityProvider] and [Server] are real HTTPS servers on loopback, each under a throw-away CA of its own, and serve
// the tests of the other packages as doubles too. The gateway itself is not imported: [Options.Start] hands it in. Nothing
// here is meant for patients: instances live in memory and are gone with the process.
//
// The methods of IdentityProvider and Server may be called from several goroutines at once.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// What [Options.Orthanc] may say beside the path of a binary.
const (
	OrthancAuto = "auto" // use Orthanc where it is installed, else say how to get it
	OrthancOff  = "off"  // leave it out
)

// defaultTokenLifetime is short enough to see a refresh (at half of the life) without getting bored.
const defaultTokenLifetime = 12 * time.Second

// Options says how [Run] tells its story.
type Options struct {
	Out           io.Writer     // where the story goes; nil discards it
	Color         bool          // ANSI colours
	Orthanc       string        // OrthancAuto (also when empty), OrthancOff, or the path of the binary
	TokenLifetime time.Duration // of the access tokens; 0 means 12 s
	Once          bool          // return after the story instead of serving until ctx ends

	// Start runs the real gateway with the configuration file at configPath, and returns once it listens.
	Start func(ctx context.Context, configPath string) (*Running, error)
}

// Running is a started gateway.
type Running struct {
	ProxyAddr string // host:port for HttpProxy
	AdminAddr string // host:port of the status page; empty when there is none
	CAFile    string // the PEM bundle that the client must trust (HttpsCACertificates)
	Stop      func() error
}

// Run starts the identity provider, the DICOMweb server and the gateway, tells the story step by step, and then serves
// until ctx ends. All it leaves behind is gone when it returns. The end of ctx is not an error.
func Run(ctx context.Context, o Options) (err error) {
	if o.Start == nil {
		return errors.New("run demo: Options.Start is nil")
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	if o.TokenLifetime <= 0 {
		o.TokenLifetime = defaultTokenLifetime
	}
	if o.Orthanc != OrthancOff && o.Orthanc != OrthancAuto && o.Orthanc != "" {
		if _, err := findOrthanc(o.Orthanc); err != nil { // not only when the story comes to it
			return cannotFindOrthanc(err)
		}
	}
	s, err := setUp(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.tearDown()) }()

	err = s.tell(ctx)
	if err == nil && !o.Once {
		s.serve(ctx)
	}
	if ctx.Err() != nil {
		return nil // the reader pressed Ctrl-C: whatever that broke is no news
	}
	return err
}

// stage is all that stands while the story is told.
type stage struct {
	options  Options
	folder   string
	provider *IdentityProvider
	server   *Server
	gateway  *Running
	orthanc  *orthanc // nil until step 5
	client   *client  // speaks through the gateway
	page     *printer
}

// setUp builds the stage; on an error nothing of it is left.
func setUp(ctx context.Context, o Options) (s *stage, err error) {
	s = &stage{options: o, page: &printer{out: o.Out, color: o.Color}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.tearDown())
		}
	}()
	if s.folder, err = os.MkdirTemp("", "dicomweb-oauth-demo-"); err != nil {
		return s, fmt.Errorf("make demo folder: %w", err)
	}
	if s.provider, err = startIdentityProvider(ProviderOptions{TokenLifetime: o.TokenLifetime}); err != nil {
		return s, fmt.Errorf("start identity provider: %w", err)
	}
	if s.server, err = startServer(ServerOptions{Verify: s.provider.Verify}); err != nil {
		return s, fmt.Errorf("start DICOMweb server: %w", err)
	}
	config, err := s.writeConfig()
	if err != nil {
		return s, err
	}
	if s.gateway, err = o.Start(ctx, config); err != nil {
		return s, fmt.Errorf("start gateway: %w", err)
	}
	bundle, err := os.ReadFile(s.gateway.CAFile)
	if err != nil {
		return s, fmt.Errorf("read the gateway's CA: %w", err)
	}
	s.client, err = newClient(s.gateway.ProxyAddr, bundle)
	return s, err
}

// tearDown stops everything in the reverse order of its start. Any part may be missing.
func (s *stage) tearDown() error {
	var errs []error
	if s.orthanc != nil {
		s.orthanc.stop()
	}
	if s.client != nil {
		s.client.close()
	}
	if s.gateway != nil && s.gateway.Stop != nil {
		if err := s.gateway.Stop(); err != nil {
			errs = append(errs, fmt.Errorf("stop gateway: %w", err))
		}
	}
	if s.server != nil {
		s.server.Close()
	}
	if s.provider != nil {
		s.provider.Close()
	}
	if s.folder != "" {
		if err := os.RemoveAll(s.folder); err != nil {
			errs = append(errs, fmt.Errorf("remove demo folder: %w", err))
		}
	}
	return errors.Join(errs...)
}

// file is a path in the demo's folder.
func (s *stage) file(name string) string { return filepath.Join(s.folder, name) }
