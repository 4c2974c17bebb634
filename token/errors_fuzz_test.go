package token_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"orthanc-dicomweb-oauth/token"
)

// Whatever a token server sends, down to the bytes, an error repeats no word of it, nor of the request.
func FuzzErrorsShowNothingOfTheAnswer(f *testing.F) {
	var answer atomic.Pointer[string]
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, *answer.Load())
	}))
	f.Cleanup(provider.Close)
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + goodAnswer,
		"HTTP/1.1 401 {x}\r\nContent-Type: application/json\r\n\r\n{\"error\":\"invalid_client\",\"error_description\":\"{x}\"}",
		"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n\r\n{\"error\":\"{x}\",\"error_uri\":\"https://{x}\",\"error_codes\":[7000215]}",
		"HTTP/1.1 400 Bad Request\r\n\r\n{\"error\":\"invalid_grant\",\"error_description\":\"AADSTS7000215: {x}\",\"trace_id\":\"{x}\"}",
		"HTTP/1.1 200 OK\r\n\r\n{\"access_token\":\"{x} {x}\",\"token_type\":\"{x}\",\"expires_in\":\"{x}\"}",
		"HTTP/1.1 200 OK\r\n\r\n{\"access_token\":\"a\",\"token_type\":\"{x}\"}",
		"HTTP/1.1 200 OK\r\nContent-Length: {x}\r\n\r\n",
		"HTTP/1.1 {x} OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\n{x}\r\n\r\n",
		"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{x}/\r\n\r\n",
		"HTTP/1.1 503 Down\r\nRetry-After: {x}\r\nDate: {x}\r\n\r\n<html>{x}",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: {x}\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n{x}",
		"{x}",
		"",
	} {
		f.Add(seed)
	}
	settings := &token.ClientCredentials{OAuthClient: token.OAuthClient{
		TokenEndpoint: provider.URL + "/token", ClientID: "client", ClientSecret: token.SecretValue(token.NewSecret(clientSecret)),
	}}
	settings.InsecureHTTP = true
	f.Fuzz(func(t *testing.T, text string) {
		text = strings.ReplaceAll(text, "{x}", planted)
		answer.Store(&text)
		_, err := build(t, settings).Acquire(t.Context())
		if err == nil {
			return
		}
		cause, ok := errors.AsType[*token.Error](err)
		if !ok {
			t.Fatalf("%q: got %T %v, want *token.Error", text, err, err)
		}
		var log strings.Builder
		slog.New(slog.NewJSONHandler(&log, nil)).Error("failed", "err", err, "cause", cause)
		for e := err; e != nil; e = errors.Unwrap(e) {
			wantHidden(t, e, clientSecret, accessToken, planted)
		}
		for _, shown := range []string{log.String(), fmt.Sprintf("%+v %#v", cause, *cause)} {
			wantHidden(t, shown, clientSecret, accessToken, planted)
		}
	})
}
