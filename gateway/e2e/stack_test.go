//go:build e2e

package e2e

import (
	"testing"
	"time"
)

// stack is the whole chain: an Orthanc, the gateway, and what lies behind it.
type stack struct {
	*upstream

	gateway *gateway
	orthanc *orthanc
}

// startStack starts a chain that works, with tokens that live so long.
func startStack(t *testing.T, tokenLifetime time.Duration, login func(*provider) string) *stack {
	t.Helper()
	u := startArchive(t, tokenLifetime)
	g := startGateway(t, u, login, clientSecret)
	g.waitReady(t)
	return &stack{upstream: u, gateway: g, orthanc: startClient(t, u, g, g.bundle)}
}

// startClient starts the Orthanc that uses the gateway. It has the URL of the protected server, and no credential.
func startClient(t *testing.T, u *upstream, g *gateway, caFile string) *orthanc {
	t.Helper()
	o := startOrthanc(t, "Orthanc-client", map[string]any{
		"HttpProxy":           g.proxy,
		"HttpsCACertificates": caFile,
		"DicomWeb":            dicomWebServer(map[string]any{"Url": u.server.url}),
	})
	o.ready(t)
	return o
}
