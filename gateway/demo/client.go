package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"time"
)

// maxAnswer bounds what the story's client reads of an answer.
const maxAnswer = 16 << 20

// client speaks DICOMweb as Orthanc does: HTTP/1.1, the same headers, no credential, a new connection for each request.
type client struct {
	http *http.Client
}

// newClient makes a client that trusts the certificates in caPEM, and goes through proxy (host:port) unless that is
// empty.
func newClient(proxy string, caPEM []byte) (*client, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(caPEM) {
		return nil, errors.New("read CA: no certificate in it")
	}
	c := newPlainClient()
	transport := c.http.Transport.(*http.Transport)
	transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if proxy != "" {
		transport.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: proxy})
	}
	return c, nil
}

// newPlainClient makes a client without proxy and with the system's roots.
func newPlainClient() *client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	transport := &http.Transport{Protocols: protocols, DisableCompression: true, DisableKeepAlives: true}
	return &client{&http.Client{Transport: transport, Timeout: time.Minute}} // a minute is Orthanc's HttpTimeout
}

func (c *client) close() { c.http.CloseIdleConnections() }

// answer is one that was read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// do sends a request and reads the answer. A header is given as name and value.
func (c *client) do(ctx context.Context, method, url string, body []byte, headers ...string) (*answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	r.Header["User-Agent"] = nil // Orthanc sends none
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }() // it was read to its end
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	return &answer{response.StatusCode, response.Header, text}, nil
}

// want returns an error that says what to look at, unless the answer has the status.
func (a *answer) want(status int) error {
	if a.status == status {
		return nil
	}
	problem := struct{ Detail, Hint string }{}
	_ = json.Unmarshal(a.body, &problem) // what is no problem document has no detail
	err := fmt.Errorf("got %s, want %s", statusText(a.status), statusText(status))
	if code := a.header.Get("X-Gateway-Error"); code != "" {
		err = fmt.Errorf("%w (the gateway's own answer: %s)", err, code)
	}
	if problem.Detail != "" {
		err = fmt.Errorf("%w: %s", err, problem.Detail)
	}
	if problem.Hint != "" {
		err = fmt.Errorf("%w; %s", err, problem.Hint)
	}
	return err
}

// firstPart returns the first part of a multipart answer.
func (a *answer) firstPart() ([]byte, error) {
	_, parameters, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil {
		return nil, fmt.Errorf("parse Content-Type: %w", err)
	}
	part, err := multipart.NewReader(bytes.NewReader(a.body), parameters["boundary"]).NextRawPart()
	if err != nil {
		return nil, fmt.Errorf("find first part: %w", err)
	}
	return io.ReadAll(part)
}

// related puts files into a multipart body, the way STOW-RS wants it.
func related(files ...[]byte) (body []byte, contentType string, err error) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, file := range files {
		part, err := w.CreatePart(textproto.MIMEHeader{"Content-Type": {"application/dicom"}})
		if err != nil {
			return nil, "", fmt.Errorf("write part: %w", err)
		}
		if _, err := part.Write(file); err != nil {
			return nil, "", fmt.Errorf("write part: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, "", fmt.Errorf("end multipart body: %w", err)
	}
	return b.Bytes(), relatedType(w.Boundary()), nil
}
