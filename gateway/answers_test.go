package gateway_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// wado is how Orthanc asks for WADO-RS.
const wado = `Accept: multipart/related; type="application/dicom"; transfer-syntax=*`

// empty fails the test unless the answer is one whose status Orthanc's WADO-RS
// client logs: no Content-Type, no body.
func (a answer) empty(t *testing.T, status int) {
	t.Helper()
	if _, typed := a.header["Content-Type"]; a.status != status || a.body != "" || typed || a.err != nil {
		t.Errorf("got %d %q %v, want %d without Content-Type and body", a.status, a.body, a.header, status)
	}
	if got := a.header.Get("Content-Length"); got != "0" {
		t.Errorf("got Content-Length %q, want 0", got)
	}
}

func TestErrorsToWADORSHaveNoTypeAndNoBody(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		status, _ := strconv.Atoi(r.URL.Query().Get("status"))
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"Message": "`+patient+`"}`)
	})})
	for _, status := range []int{400, 401, 403, 404, 406, 429, 500, 503} {
		shown := status
		if status == 429 {
			shown = 503
		}
		h.get(fmt.Sprintf("/studies/1?status=%d", status), wado).empty(t, shown)
	}
	own := h.get("/studies/../1", wado)
	own.empty(t, 400)
	if got := own.header.Get("X-Gateway-Error"); got != "bad_request" {
		t.Errorf("got X-Gateway-Error %q", got)
	}
	// Neither other errors nor answers that are none lose theirs.
	if a := h.get("/studies?status=404", "Accept: application/dicom+json").want(t, 404); a.header.Get("Content-Type") != "application/json" || a.body == "" {
		t.Errorf("got %q %v", a.body, a.header)
	}
	if a := h.get("/studies/1?status=200", wado).want(t, 200); a.body == "" || a.header.Get("Content-Encoding") != "gzip" {
		t.Errorf("got %q %v", a.body, a.header)
	}
}

func TestStatusesThatOrthancDoesNotKnow(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		status, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		w.Header().Set("Retry-After", "17")
		w.Header().Set("X-Gateway-Error", "forged")
		w.Header().Set("X-Gateway-Upstream-Status", "999")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "because")
	})})
	for _, row := range []struct{ status, shown int }{
		{200, 200},
		{201, 201},
		{202, 202},
		{206, 206},
		{299, 299},
		{400, 400},
		{401, 401},
		{403, 403},
		{404, 404},
		{409, 409},
		{413, 413},
		{415, 415},
		{417, 417},
		{418, 400},
		{421, 400},
		{422, 422},
		{425, 400},
		{426, 426},
		{428, 400},
		{429, 503},
		{431, 400},
		{451, 400},
		{498, 400},
		{499, 502},
		{500, 500},
		{501, 501},
		{502, 502},
		{503, 503},
		{504, 504},
		{505, 505},
		{507, 507},
		{508, 502},
		{511, 502},
		{520, 502},
		{599, 502},
	} {
		a := h.get("/"+strconv.Itoa(row.status)).want(t, row.shown)
		original := ""
		if row.status != row.shown {
			original = strconv.Itoa(row.status)
		}
		if got := a.header.Get("X-Gateway-Upstream-Status"); got != original {
			t.Errorf("%d: got X-Gateway-Upstream-Status %q, want %q", row.status, got, original)
		}
		if a.body != "because" || a.header.Get("Retry-After") != "17" || a.header.Get("X-Gateway-Error") != "" {
			t.Errorf("%d: got %q %v", row.status, a.body, a.header)
		}
	}
}

func TestTrailersAreDropped(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Announced")
		_, _ = io.WriteString(w, "body")
		_ = http.NewResponseController(w).Flush()
		w.Header().Set("X-Announced", "1")
		w.Header().Set(http.TrailerPrefix+"X-Late", "1")
	})})
	c := secure(t, h.addr, h.authority(), "", h.roots())
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nTE: trailers\r\n\r\n", h.authority())
	text, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "X-") || !strings.HasSuffix(string(text), "4\r\nbody\r\n0\r\n\r\n") {
		t.Errorf("got %q, want no trace of a trailer", text)
	}
	if got := h.up.last(t).header.Get("Te"); got != "" {
		t.Errorf("got TE %q at the server", got)
	}
}

func TestInformationalAnswersStayBehind(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: script(t, goodTLS(), says(
		"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))})
	c := secure(t, h.addr, h.authority(), "", h.roots())
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", h.authority())
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "HTTP/1.1 200 OK\r\n" {
		t.Errorf("got %q %v first, want 200", line, err)
	}
}

func TestEndlessInformationalAnswersEnd(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: script(t, goodTLS(), func(c net.Conn, _ *http1) {
		for {
			if _, err := io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nX-A: "+strings.Repeat("a", 1000)+"\r\n\r\n"); err != nil {
				return
			}
		}
	})})
	h.get("/").problem(t, 502, "upstream_protocol")
}

func TestNothingIsAddedAndNothingDecompressed(t *testing.T) {
	t.Parallel()
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, _ = io.WriteString(w, "zipped")
	_ = w.Close()
	h := newHarness(t, setup{rule: `headers = { "X-Key" = "static-4711", "x-second" = "2" }`, up: newDouble(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Type", "application/dicom+json")
		_, _ = w.Write(zipped.Bytes())
	})})
	a := h.raw("GET /studies?x=1 HTTP/1.1\r\nHost: {good}\r\nAccept: */*\r\nX-Key: theirs\r\n\r\n").want(t, 200)
	if a.body != zipped.String() || a.header.Get("Content-Encoding") != "gzip" || a.header.Get("Content-Length") != strconv.Itoa(zipped.Len()) {
		t.Errorf("got %d bytes, %v; want the %d zipped ones", len(a.body), a.header, zipped.Len())
	}
	for _, name := range []string{"Server", "Via", "X-Gateway-Error", "X-Forwarded-For", "Connection"} {
		if got := a.header.Get(name); got != "" {
			t.Errorf("the answer gained %s: %s", name, got)
		}
	}
	r := h.up.last(t)
	delete(r.header, "Authorization")
	want := http.Header{"Accept": {"*/*"}, "X-Key": {"static-4711"}, "X-Second": {"2"}}
	if diff := cmp.Diff(want, r.header); diff != "" {
		t.Errorf("headers at the server (-want +got):\n%s", diff)
	}
}

func TestForwardingHeadersAreDropped(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	names := []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "X-Forwarded-Port", "x-forwarded-anything", "X_Forwarded_For", "Via"}
	var lines []string
	for _, name := range names {
		lines = append(lines, name+": evil.test")
	}
	h.get("/", append(lines, "X-Kept: 1", "Cookie: a=b")...).want(t, 200)
	got := h.up.last(t).header
	for _, name := range names {
		if got.Get(name) != "" {
			t.Errorf("%s reached the server", name)
		}
	}
	if got.Get("X-Kept") == "" || got.Get("Cookie") == "" {
		t.Errorf("got %v, want the client's other headers", got)
	}
}

// Some servers let a header override the method or path that the rule was asked
// about; no such header goes with a credential.
func TestOverridesOfMethodAndPathAreDropped(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	names := []string{"X-HTTP-Method", "X-HTTP-Method-Override", "X-Method-Override", "X-Original-URL", "X-Rewrite-URL"}
	var lines []string
	for _, name := range names {
		lines = append(lines, name+": DELETE")
	}
	h.get("/", lines...).want(t, 200)
	for _, name := range names {
		if h.up.last(t).header.Get(name) != "" {
			t.Errorf("%s reached the server", name)
		}
	}
}

func TestNoContentTypeIsGuessed(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: script(t, goodTLS(), says("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"))})
	if a := h.get("/").want(t, 200); a.header["Content-Type"] != nil {
		t.Errorf("got Content-Type %q", a.header["Content-Type"])
	}
}

// Path and query go upstream as they came, byte for byte.
func TestTargetIsNotRewritten(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	for _, target := range []string{
		"/",
		"/studies",
		"/studies?",
		"/?a=1&b=2;c=3",
		"/studies?PatientName=%2A&includefield=00081030&limit=5",
		"/a%2Fb/c%2fd",
		"/a//b///c",
		"//a/b",
		"//a%2Fb?x=//",
		"/a|b^c`d{e}f\"g<h>",
		"/a;v=1/b;w",
		"/%41%7E~!$&'()*+,=:@-._",
		"/\xc3\xa4/\xff",
		"/?q=\xff\xc3|%zz%2",
		"/a?b?c#d",
		"/a?http://evil.test/",
		"/a\\b",
		"/...",
		"/.a/..b/c..",
		"/" + strings.Repeat("1.2.840.", 500),
	} {
		before := len(h.up.all())
		a := h.raw("GET " + target + " HTTP/1.1\r\nHost: {good}\r\n\r\n")
		if all := h.up.all(); a.status != 200 || len(all) != before+1 {
			t.Errorf("%q: got %d %s, %d requests at the server", target, a.status, a.body, len(all)-before)
		} else if got := all[before].target; got != target {
			t.Errorf("%q: arrived as %q", target, got)
		}
	}
	// What would have to be rewritten is refused: bytes that net/url encodes, in a
	// path that looks like an authority.
	h.raw("GET //a|b HTTP/1.1\r\nHost: {good}\r\n\r\n").problem(t, 400, "bad_request")
	// Absolute-form becomes origin-form.
	h.raw("GET https://{good}/a%2Fb?c=d|e HTTP/1.1\r\nHost: {good}\r\n\r\n").want(t, 200)
	if got := h.up.last(t).target; got != "/a%2Fb?c=d|e" {
		t.Errorf("absolute-form arrived as %q", got)
	}
	h.raw("GET https://{good}?c HTTP/1.1\r\nHost: {good}\r\n\r\n").want(t, 200)
	if got := h.up.last(t).target; got != "/?c" {
		t.Errorf("absolute-form without a path arrived as %q", got)
	}
}

func TestMethodsAndEmptyAnswers(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Body", string(body))
		w.Header().Set("X-Framing", fmt.Sprint(r.ContentLength, slices.Contains(r.TransferEncoding, "chunked")))
		switch r.Method {
		case "DELETE":
			w.WriteHeader(http.StatusNoContent)
		case "HEAD":
			w.Header().Set("Content-Length", "4711")
		}
	})})
	for _, row := range []struct {
		method, body  string
		status        int
		framing, size string
	}{
		{"GET", "", 200, "0 false", "0"},
		{"HEAD", "", 200, "0 false", "4711"},
		{"DELETE", "", 204, "0 false", ""},
		{"POST", "hello", 200, "5 false", "0"},
		{"PUT", "hello", 200, "5 false", "0"},
	} {
		a := h.request(row.method, "/", strings.NewReader(row.body)).want(t, row.status)
		got := []string{a.header.Get("X-Body"), a.header.Get("X-Framing"), a.header.Get("Content-Length")}
		if diff := cmp.Diff([]string{row.body, row.framing, row.size}, got); diff != "" {
			t.Errorf("%s: body, framing, Content-Length (-want +got):\n%s", row.method, diff)
		}
	}
	a := h.raw(chunked+"\r\n5\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n").want(t, 200)
	if a.header.Get("X-Body") != "hello" || a.header.Get("X-Framing") != "-1 true" {
		t.Errorf("chunked: got %v", a.header)
	}
}
