//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"time"
)

// loopbackClient waits as long as a job of Orthanc's may take, and obeys no proxy variable.
var loopbackClient = &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{}}

// statusError is an answer with a status other than 200.
type statusError struct {
	request string
	status  int
	body    []byte
}

func (e statusError) Error() string {
	return fmt.Sprintf("%s: status %d: %s", e.request, e.status, bytes.TrimSpace(e.body))
}

// do sends a request and returns the body of a 200. The error for another status is a statusError.
func do(client *http.Client, req *http.Request) ([]byte, error) {
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close() // it is read, or of no use
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", req.Method, req.URL, err)
	}
	if resp.StatusCode != http.StatusOK {
		return body, statusError{request: req.Method + " " + req.URL.String(), status: resp.StatusCode, body: body}
	}
	return body, nil
}

// get is do for a URL.
func get(client *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return do(client, req)
}
