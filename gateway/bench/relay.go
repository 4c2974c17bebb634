package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
)

// relayBuffer is the size of the relay's copy buffers, io.Copy's own.
const relayBuffer = 32 << 10

// relaySettings are those of the relay.
type relaySettings struct {
	PKI pki
	To  string // host:port of the upstream, whatever the CONNECT names
}

// playRelay is the least that a proxy of this structure can do, and so its yardstick: it takes a CONNECT, ends TLS with one
// certificate, opens verified TLS to the upstream, and copies bytes both ways. It knows no HTTP beyond the CONNECT, so it can
// neither put on a credential nor share a connection to the upstream.
func playRelay(settings []byte) error {
	var s relaySettings
	if err := json.Unmarshal(settings, &s); err != nil {
		return err
	}
	server, err := s.PKI.serverConfig()
	if err != nil {
		return err
	}
	upstream, err := clientConfig(s.PKI.CAFile, "localhost")
	if err != nil {
		return err
	}
	upstream.CurvePreferences = nil // that restriction is the client's
	ln, err := listenLoopback()
	if err != nil {
		return err
	}
	return serveRole(ln, func(ln net.Listener) error {
		for {
			c, err := ln.Accept()
			if err != nil {
				return err
			}
			go func() {
				defer func() { _ = c.Close() }()
				_ = relay(c, s.To, server, upstream) // the client sees it when it fails
			}()
		}
	})
}

func relay(c net.Conn, to string, server, upstream *tls.Config) error {
	br := bufio.NewReader(c)
	if _, err := http.ReadRequest(br); err != nil {
		return fmt.Errorf("read CONNECT: %w", err)
	}
	if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return err
	}
	client := tls.Server(c, server)            // the client waits for our answer, so br holds nothing more
	if err := client.Handshake(); err != nil { //nolint:noctx // the process ends with the benchmark
		return err
	}
	up, err := tls.Dial("tcp", to, upstream) //nolint:noctx // the process ends with the benchmark
	if err != nil {
		return err
	}
	defer func() { _ = up.Close() }()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.CopyBuffer(client, up, make([]byte, relayBuffer))
		_ = client.CloseWrite()
	})
	_, _ = io.CopyBuffer(up, client, make([]byte, relayBuffer))
	_ = up.CloseWrite()
	back.Wait()
	return nil
}
