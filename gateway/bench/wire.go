package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"strconv"
	"strings"
)

// target is how a client reaches the upstream.
type target struct {
	Dial      string // host:port of the proxy, or of the upstream itself
	Connect   bool   // Dial is a forward proxy, which is sent a CONNECT
	Authority string // host:port of the upstream, for the CONNECT and the Host header
	CAFile    string // what to trust
	Token     string // sent by the client, where the peer puts on none
}

// conn is a client's connection. It speaks just enough HTTP/1.1 to keep the client cheap beside the proxy: requests are bytes
// made in advance, and of the answer only status and length are looked at.
type conn struct {
	*tls.Conn
	br *bufio.Reader
}

// dial opens TCP, sends the CONNECT if there must be one, and completes the TLS handshake.
func (t *target) dial(ctx context.Context, conf *tls.Config) (*conn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", t.Dial)
	if err != nil {
		return nil, err
	}
	if t.Connect {
		if err := connectThrough(raw, t.Authority); err != nil {
			_ = raw.Close()
			return nil, err
		}
	}
	c := tls.Client(raw, conf)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return &conn{Conn: c, br: bufio.NewReaderSize(c, 64<<10)}, nil
}

// connectThrough sends a CONNECT as Orthanc does. The proxy says nothing beyond its answer before it hears a ClientHello.
func connectThrough(c net.Conn, authority string) error {
	_, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\nProxy-Connection: Keep-Alive\r\n\r\n", authority)
	if err != nil {
		return err
	}
	var answer []byte
	buf := make([]byte, 512)
	for !bytes.HasSuffix(answer, []byte("\r\n\r\n")) {
		n, err := c.Read(buf)
		answer = append(answer, buf[:n]...)
		if err != nil {
			return fmt.Errorf("read answer to CONNECT: %w", err)
		}
	}
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 200")) {
		return fmt.Errorf("CONNECT was answered %q", firstLine(answer))
	}
	return nil
}

func firstLine(b []byte) []byte {
	line, _, _ := bytes.Cut(b, []byte("\r\n"))
	return line
}

// request makes the head of a request. A further header is given with its line end.
func (t *target) request(method, path, more string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nAccept: */*\r\n", method, path, t.Authority)
	if t.Token != "" {
		fmt.Fprintf(&b, "Authorization: Bearer %s\r\n", t.Token)
	}
	b.WriteString(more + "\r\n")
	return []byte(b.String())
}

// answerHead is what counts of the head of an answer.
type answerHead struct {
	status int
	length int64 // of the body; -1 means chunked
}

// readHead reads the head of an answer.
func (c *conn) readHead() (answerHead, error) {
	h := answerHead{length: -2}
	for first := true; ; first = false {
		line, err := c.br.ReadSlice('\n')
		if err != nil {
			return h, fmt.Errorf("read answer: %w", err)
		}
		line = bytes.TrimRight(line, "\r\n")
		if first {
			if len(line) < 12 {
				return h, fmt.Errorf("answer begins with %q", line)
			}
			if h.status, err = strconv.Atoi(string(line[9:12])); err != nil {
				return h, fmt.Errorf("answer begins with %q", line)
			}
			continue
		}
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if h.length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64); err != nil {
				return h, fmt.Errorf("answer has length %q", value)
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			h.length = -1
		}
	}
	if h.status/100 == 1 {
		return c.readHead()
	}
	if h.length == -2 {
		return h, errors.New("answer has neither a length nor chunks")
	}
	return h, nil
}

// discard reads the body of an answer and returns its length.
func (c *conn) discard(h answerHead, buf []byte) (int64, error) {
	if h.length >= 0 {
		if buffered := int64(c.br.Buffered()); buffered >= h.length { // the small answers
			n, err := c.br.Discard(int(h.length))
			return int64(n), err
		}
		return io.CopyBuffer(sink{}, io.LimitReader(c.br, h.length), buf)
	}
	n, err := io.CopyBuffer(sink{}, httputil.NewChunkedReader(c.br), buf)
	if err != nil {
		return n, err
	}
	_, err = c.br.Discard(len("\r\n")) // no trailers
	return n, err
}

// sink is io.Discard without its ReadFrom, which would read in pieces of 8 KiB.
type sink struct{}

// Write implements io.Writer.
func (sink) Write(p []byte) (int, error) { return len(p), nil }

// ask sends a request without a body and reads the answer, which must be 200 with a body of want bytes.
func (c *conn) ask(request []byte, want int64, buf []byte) error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	return c.accept(want, buf)
}

// accept reads an answer, which must be 200 with a body of want bytes.
func (c *conn) accept(want int64, buf []byte) error {
	h, err := c.readHead()
	if err != nil {
		return err
	}
	n, err := c.discard(h, buf)
	if err != nil {
		return fmt.Errorf("read body after %d bytes: %w", n, err)
	}
	if h.status != 200 || n != want {
		return fmt.Errorf("got status %d and %d bytes, want 200 and %d", h.status, n, want)
	}
	return nil
}
