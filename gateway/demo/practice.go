package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// The ports of [Serve], which docs/quickstart.md names.
const (
	practiceServerPort   = 9443
	practiceProviderPort = 9444
)

// practiceLifetime is short enough that a second look finds another token.
const practiceLifetime = 2 * time.Minute

// Files for the gateway that somebody sets up against [Serve], beside those of the demo's own.
const (
	secretFile = "client_secret"
	sampleFile = "sample.dcm"
)

// Serve runs the identity provider and the DICOMweb server alone, on fixed ports, for a gateway of the reader's own. What
// that needs goes into the folder, which is made where it is missing and stays: the CAs of both, the client secret, and an
// instance to send. It prints each request that reaches the DICOMweb server until ctx ends, which is not an error. Of o,
// only Out, Color and TokenLifetime count.
func Serve(ctx context.Context, folder string, o Options) (err error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return fmt.Errorf("make the folder for --servers: %w; name one that is there, or that can be made", err)
	}
	s := &stage{options: o, page: &printer{out: o.Out, color: o.Color}}
	defer func() { err = errors.Join(err, s.tearDown()) }()
	s.provider, err = startIdentityProvider(ProviderOptions{TokenLifetime: cmp.Or(o.TokenLifetime, practiceLifetime), Port: practiceProviderPort})
	if err != nil {
		return fmt.Errorf("start identity provider: %w", err)
	}
	s.server, err = startServer(ServerOptions{Verify: s.provider.Verify, Port: practiceServerPort})
	if err != nil {
		return fmt.Errorf("start DICOMweb server: %w", err)
	}
	for name, content := range map[string][]byte{
		serverCAFile:   s.server.CAPEM(),
		providerCAFile: s.provider.CAPEM(),
		secretFile:     []byte(s.provider.ClientSecret()),
		sampleFile:     NewInstance(InstanceOptions{}).File,
	} {
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
			return fmt.Errorf("write what a gateway needs: %w", err)
		}
	}
	p := s.page
	p.heading("A DICOMweb server that wants OAuth2, and its identity provider (Ctrl-C ends both)")
	p.line("identity provider", "%s, its CA in %s", s.provider.Issuer(), filepath.Join(folder, providerCAFile))
	p.line("its one client", "%s, its secret in %s, scope %s", s.provider.ClientID(), filepath.Join(folder, secretFile), s.provider.options.Scopes[0])
	p.line("DICOMweb server", "%s, its CA in %s", s.server.URL(), filepath.Join(folder, serverCAFile))
	p.line("an instance to send", "%s", filepath.Join(folder, sampleFile))
	s.showRequests(ctx, 0)
	return nil
}
