package token_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

const (
	awsID      = "AKIDEXAMPLE"
	awsSecret  = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	awsSession = "session-token-content//=="
)

// wire is a request as a server got it.
type wire struct {
	Method, Target, Host string
	Header               http.Header
	Body                 string
	Length               int64    // -1: unknown
	Transfer             []string // transfer codings
}

func (w wire) clone() wire {
	w.Header = w.Header.Clone()
	return w
}

// verify checks a signature as AWS documents the other side of it
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html),
// from nothing but what was on the wire. It shares no code with any signer.
func (w wire) verify(region, service string, secrets map[string]string) error {
	rest, ok := strings.CutPrefix(w.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok || len(w.Header["Authorization"]) != 1 {
		return fmt.Errorf("Authorization is %q", w.Header["Authorization"])
	}
	said := map[string]string{}
	for field := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		said[name] = value
	}
	id, scope, _ := strings.Cut(said["Credential"], "/")
	at := w.Header.Get("X-Amz-Date")
	if len(at) != len("20060102T150405Z") {
		return fmt.Errorf("X-Amz-Date is %q", at)
	}
	if want := at[:8] + "/" + region + "/" + service + "/aws4_request"; scope != want {
		return fmt.Errorf("scope is %s, want %s", scope, want)
	}
	signed := strings.Split(said["SignedHeaders"], ";")
	if !slices.IsSorted(signed) || !slices.Contains(signed, "host") {
		return fmt.Errorf("signed headers are %q", signed)
	}
	for name := range w.Header {
		if lower := strings.ToLower(name); (lower == "content-type" || strings.HasPrefix(lower, "x-amz-")) && !slices.Contains(signed, lower) {
			return fmt.Errorf("%s is not signed", name)
		}
	}
	var headers strings.Builder
	for _, name := range signed {
		var values []string
		for _, v := range w.Header[http.CanonicalHeaderKey(name)] {
			values = append(values, strings.Join(strings.FieldsFunc(v, func(r rune) bool { return r == ' ' }), " "))
		}
		switch name {
		case "host":
			values = []string{w.Host}
		case "content-length":
			values = []string{fmt.Sprint(w.Length)}
		}
		headers.WriteString(name + ":" + strings.Join(values, ",") + "\n")
	}

	path, query, _ := strings.Cut(w.Target, "?")
	var segments []string
	for segment := range strings.SplitSeq(path, "/") {
		if segment != "" { // redundant
			segments = append(segments, uriEncode(segment))
		}
	}
	canonicalPath := "/" + strings.Join(segments, "/")
	if len(segments) > 0 && strings.HasSuffix(path, "/") {
		canonicalPath += "/"
	}
	var pairs []string
	for pair := range strings.SplitSeq(query, "&") {
		if pair != "" {
			name, value, _ := strings.Cut(pair, "=")
			pairs = append(pairs, uriEncode(percentDecode(name))+"="+uriEncode(percentDecode(value)))
		}
	}
	slices.SortFunc(pairs, func(a, b string) int { // by name, then by value
		nameA, valueA, _ := strings.Cut(a, "=")
		nameB, valueB, _ := strings.Cut(b, "=")
		if c := strings.Compare(nameA, nameB); c != 0 {
			return c
		}
		return strings.Compare(valueA, valueB)
	})

	hash := w.Header.Get("X-Amz-Content-Sha256")
	if bodyHash := hexSHA256(w.Body); hash == "" {
		hash = bodyHash
	} else if !strings.Contains(hash, "-PAYLOAD") && hash != bodyHash {
		return errors.New("the body has another hash")
	}
	canonical := strings.Join([]string{w.Method, canonicalPath, strings.Join(pairs, "&"), headers.String(), strings.Join(signed, ";"), hash}, "\n")
	toSign := strings.Join([]string{"AWS4-HMAC-SHA256", at, scope, hexSHA256(canonical)}, "\n")
	key := []byte("AWS4" + secrets[id])
	for part := range strings.SplitSeq(scope, "/") {
		key = hmacSHA256(key, part)
	}
	if got := hex.EncodeToString(hmacSHA256(key, toSign)); got != said["Signature"] {
		return fmt.Errorf("signature is %s, want %s for\n%s", said["Signature"], got, canonical)
	}
	return nil
}

func hexSHA256(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func hmacSHA256(key []byte, s string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(s))
	return m.Sum(nil)
}

func uriEncode(s string) string {
	const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	var out strings.Builder
	for _, c := range []byte(s) {
		if bytes.IndexByte([]byte(unreserved), c) >= 0 {
			out.WriteByte(c)
		} else {
			fmt.Fprintf(&out, "%%%X%X", c>>4, c&15)
		}
	}
	return out.String()
}

// percentDecode decodes what is already strictly encoded.
func percentDecode(s string) string {
	decoded, err := url.PathUnescape(s)
	if err != nil || strings.Contains(s, "+") {
		return "ambiguous: " + s
	}
	return decoded
}

// The expected signatures are from AWS's documentation and its SigV4 test suite
// (aws-sig-v4-test-suite: get-vanilla, get-vanilla-query-order-key-case,
// get-utf8, post-x-www-form-urlencoded).
func TestAWSVerifierAgreesWithAWSOwnExamples(t *testing.T) {
	for _, row := range []struct {
		name, service, signed, signature string
		request                          wire
	}{
		{
			name: "IAM ListUsers", service: "iam", signed: "content-type;host;x-amz-date",
			signature: "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
			request: wire{
				Method: "GET", Target: "/?Action=ListUsers&Version=2010-05-08", Host: "iam.amazonaws.com",
				Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded; charset=utf-8"}},
			},
		},
		{
			name: "get-vanilla", service: "service", signed: "host;x-amz-date",
			signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
			request:   wire{Method: "GET", Target: "/", Host: "example.amazonaws.com", Header: http.Header{}},
		},
		{
			name: "get-vanilla-query-order-key-case", service: "service", signed: "host;x-amz-date",
			signature: "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
			request:   wire{Method: "GET", Target: "/?Param2=value2&Param1=value1", Host: "example.amazonaws.com", Header: http.Header{}},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := row.request
			r.Header.Set("X-Amz-Date", "20150830T123600Z")
			r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/"+row.service+
				"/aws4_request, SignedHeaders="+row.signed+", Signature="+row.signature)
			if err := r.verify("us-east-1", row.service, map[string]string{awsID: awsSecret}); err != nil {
				t.Error(err)
			}
		})
	}
}

// awsUpstream is a TLS server that keeps what it got.
type awsUpstream struct {
	*httptest.Server
	got chan wire
}

func serveAWS(t *testing.T) *awsUpstream {
	t.Helper()
	up := &awsUpstream{got: make(chan wire, 10)}
	up.Server = httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read body: %v", err)
		}
		up.got <- wire{
			Method: r.Method, Target: r.RequestURI, Host: r.Host, Header: r.Header.Clone(),
			Body: string(body), Length: r.ContentLength, Transfer: r.TransferEncoding,
		}
	}))
	t.Cleanup(up.Close)
	return up
}

// request builds a request as the gateway does: the path raw in Opaque.
func (up *awsUpstream) request(ctx context.Context, method, target string, body io.Reader, length int64) *http.Request {
	u, err := url.Parse(up.URL)
	if err != nil {
		panic(err)
	}
	path, query, _ := strings.Cut(target, "?")
	r := &http.Request{Method: method, URL: &url.URL{Scheme: u.Scheme, Host: u.Host, Opaque: path, RawQuery: query}, Host: u.Host, Header: http.Header{}, ContentLength: length}
	if strings.HasPrefix(path, "//") { // Opaque would read it as an authority
		r.URL.Opaque, r.URL.Path = "", path
	}
	if body != nil {
		r.Body = io.NopCloser(body)
	}
	return r.WithContext(ctx)
}

// send applies the credential last, and returns what the server got.
func (up *awsUpstream) send(t *testing.T, tok token.Token, r *http.Request) wire {
	t.Helper()
	if err := tok.Apply(r); err != nil {
		t.Fatalf("Apply: %v", err)
	}
	resp, err := up.Client().Transport.RoundTrip(r)
	if err != nil {
		t.Fatalf("send: %v", err)
	}
	defer resp.Body.Close()
	return <-up.got
}

func awsSettings(payload string) *token.AWSSigV4 {
	return &token.AWSSigV4{
		Region: "eu-central-1", Payload: payload,
		AccessKeyID: secretValue(awsID), SecretAccessKey: secretValue(awsSecret),
	}
}

func secretValue(s string) token.SecretSource { return token.SecretValue(token.NewSecret(s)) }

func verifyAWS(w wire) error {
	return w.verify("eu-central-1", "medical-imaging", map[string]string{awsID: awsSecret})
}

func TestAWSSignatureHoldsForWhatIsOnTheWire(t *testing.T) {
	const (
		studies = "/datastore/0123456789abcdef/studies"
		empty   = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	)
	part := "--b\r\nContent-Type: application/dicom\r\n\r\n" + strings.Repeat("DICM", 100_000) + "\r\n--b--\r\n"
	for _, row := range []struct {
		name, payload, method, target, body string
		length                              int64
		header                              http.Header
		transfer                            []string
		wantTarget                          string // if not as it was
		wantHash                            string
		wantLength                          int64
	}{
		{name: "GET", method: "GET", target: studies, wantHash: empty},
		{name: "root", method: "GET", target: "/", wantHash: empty},
		{name: "HEAD", method: "HEAD", target: studies + "/1.2.3", wantHash: empty},
		{name: "DELETE", method: "DELETE", target: studies + "/1.2.3", wantHash: empty},
		{name: "trailing slash", method: "GET", target: studies + "/", wantHash: empty},
		{name: "empty query", method: "GET", target: studies + "?", wantTarget: studies, wantHash: empty},
		{name: "escapes in the path", method: "GET", target: studies + "/a%20b%2Fc%252F/%C3%A9%7e", wantHash: empty},
		{name: "odd characters in the path", method: "GET", target: studies + "/a:b@c!$&'()*+,;=~^|[]{}", wantHash: empty},
		{name: "raw bytes in the path", method: "GET", target: studies + "/\xc3\xa9\xff", wantHash: empty},
		{name: "double slashes", method: "GET", target: studies + "//1.2.3//series", wantHash: empty},
		{name: "double slash at the start", method: "GET", target: "//datastore//x", wantHash: empty},
		{
			name: "QIDO-RS", method: "GET", wantHash: empty,
			target:     studies + "?limit=1&PatientName=%2A&PatientID=^*&includefield=00080005&includefield=00080001",
			wantTarget: studies + "?PatientID=%5E%2A&PatientName=%2A&includefield=00080001&includefield=00080005&limit=1",
		},
		{
			name: "a plus, a space and lower-case escapes", method: "GET", wantHash: empty,
			target: studies + "?PatientName=M%c3%bcller+Anna%20B%2bC", wantTarget: studies + "?PatientName=M%C3%BCller%20Anna%20B%2BC",
		},
		{
			name: "no parameter is lost", method: "GET", wantHash: empty,
			target:     studies + "?PatientID=a;b&PatientName=100%&StudyDate=%zz&&flag&=x&a=b=c",
			wantTarget: studies + "?=x&PatientID=a%3Bb&PatientName=100%25&StudyDate=%25zz&a=b%3Dc&flag=",
		},
		{
			name: "sorted after escaping", method: "GET", wantHash: empty,
			target: studies + "?k=a-b&k=a/b&k%2Fa=1&k-a=2", wantTarget: studies + "?k=a%2Fb&k=a-b&k%2Fa=1&k-a=2",
		},
		{
			name: "STOW-RS, unsigned", method: "POST", target: studies, body: part, length: int64(len(part)),
			wantHash: "UNSIGNED-PAYLOAD", wantLength: int64(len(part)),
		},
		{name: "STOW-RS, unsigned, chunked", method: "POST", target: studies, body: part, length: -1, wantHash: "UNSIGNED-PAYLOAD", wantLength: -1},
		{
			name: "unsigned, chunked in spite of a length", method: "POST", target: studies, body: part, length: int64(len(part)),
			transfer: []string{"chunked"}, wantHash: "UNSIGNED-PAYLOAD", wantLength: -1,
		},
		{name: "unsigned, of no known length and empty", method: "POST", target: studies, body: "", length: 0, wantHash: "UNSIGNED-PAYLOAD", wantLength: -1},
		{
			name: "STOW-RS, hash", payload: "hash", method: "POST", target: studies, body: part, length: int64(len(part)),
			wantHash: hexSHA256(part), wantLength: int64(len(part)),
		},
		{
			name: "STOW-RS, hash, chunked", payload: "hash", method: "POST", target: studies, body: part, length: -1,
			transfer: []string{"chunked"}, wantHash: hexSHA256(part), wantLength: int64(len(part)),
		},
		{name: "hash of an empty chunked body", payload: "hash", method: "POST", target: studies, body: "", length: -1, transfer: []string{"chunked"}, wantHash: empty},
		{name: "hash, GET", payload: "hash", method: "GET", target: studies, wantHash: empty},
		{
			name: "STOW-RS, streaming", payload: "streaming", method: "POST", target: studies, body: part, length: int64(len(part)),
			wantHash: "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", wantLength: int64(len(part)),
		},
		{name: "STOW-RS, streaming, chunked", payload: "streaming", method: "POST", target: studies, body: part, length: -1, wantHash: "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", wantLength: -1},
		{
			name: "headers with odd spaces", method: "GET", target: studies, wantHash: empty,
			header: http.Header{"Content-Type": {"  multipart/related;   boundary=b "}, "X-Amz-Meta": {" a  b", "c "}},
		},
		{
			name: "what a client signed itself", method: "GET", target: studies, wantHash: empty,
			header: http.Header{
				"Authorization": {"AWS4-HMAC-SHA256 Credential=other"}, "X-Amz-Date": {"19990101T000000Z"},
				"X-Amz-Security-Token": {"other"}, "X-Amz-Content-Sha256": {"other"}, "X-Amz-Decoded-Content-Length": {"7"},
			},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			up := serveAWS(t)
			tok := acquire(t, awsSettings(row.payload))
			var body io.Reader
			if row.method == "POST" {
				body = strings.NewReader(row.body)
			}
			r := up.request(t.Context(), row.method, row.target, body, row.length)
			r.TransferEncoding = row.transfer
			if row.header != nil {
				r.Header = row.header
			}
			for _, attempt := range []string{"first", "second"} { // as after a 401
				if body != nil {
					r.Body = io.NopCloser(strings.NewReader(row.body))
				}
				got := up.send(t, tok, r)
				if err := verifyAWS(got); err != nil {
					t.Errorf("%s: %v", attempt, err)
				}
				wantTarget := row.wantTarget
				if wantTarget == "" {
					wantTarget = row.target
				}
				if got.Target != wantTarget {
					t.Errorf("target is %q, want %q", got.Target, wantTarget)
				}
				if hash := got.Header.Get("X-Amz-Content-Sha256"); hash != row.wantHash {
					t.Errorf("X-Amz-Content-Sha256 is %q, want %q", hash, row.wantHash)
				}
				if got.Body != row.body || got.Length != row.wantLength {
					t.Errorf("%d bytes of body, length %d, want %d and %d", len(got.Body), got.Length, len(row.body), row.wantLength)
				}
				if decoded := got.Header.Get("X-Amz-Decoded-Content-Length"); (row.payload == "streaming" && row.length > 0) != (decoded == fmt.Sprint(row.length)) {
					t.Errorf("X-Amz-Decoded-Content-Length is %q", decoded)
				}
				if got.Header["X-Amz-Security-Token"] != nil {
					t.Error("a session token, of which there is none")
				}
				for name, values := range got.Header {
					if strings.HasPrefix(name, "X-Amz-") && name != "X-Amz-Meta" && len(values) != 1 {
						t.Errorf("%s came %d times", name, len(values))
					}
				}
			}
		})
	}
}

func TestAWSSignatureOfTemporaryCredentialsAndOtherServices(t *testing.T) {
	up := serveAWS(t)
	s := awsSettings("")
	s.SessionToken, s.Service, s.Region = secretValue(awsSession), "execute-api", "us-gov-west-1"
	got := up.send(t, acquire(t, s), up.request(t.Context(), "GET", "/stage?x=1", nil, 0))
	if err := got.verify("us-gov-west-1", "execute-api", map[string]string{awsID: awsSecret}); err != nil {
		t.Error(err)
	}
	if token := got.Header.Get("X-Amz-Security-Token"); token != awsSession {
		t.Errorf("session token is %q", token)
	}
}

func TestAWSSignsTheHostWithoutItsDefaultPort(t *testing.T) {
	tok := acquire(t, awsSettings(""))
	r := &http.Request{Method: "GET", URL: &url.URL{Scheme: "https", Host: "dicom.test:443", Opaque: "/x"}, Header: http.Header{}}
	if err := tok.Apply(r); err != nil {
		t.Fatal(err)
	}
	if r.Host != "dicom.test" {
		t.Errorf("Host is %q", r.Host)
	}
	if err := verifyAWS(wire{Method: "GET", Target: "/x", Host: r.Host, Header: r.Header}); err != nil {
		t.Error(err)
	}
}

func TestAWSSignatureDetectsTampering(t *testing.T) {
	up := serveAWS(t)
	r := up.request(t.Context(), "POST", "/datastore/x/studies?a=1", strings.NewReader("body"), 4)
	r.Header.Set("Content-Type", "application/dicom")
	s := awsSettings("hash")
	s.SessionToken = secretValue(awsSession)
	got := up.send(t, acquire(t, s), r)
	if err := verifyAWS(got); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*wire){
		"method":        func(w *wire) { w.Method = "PUT" },
		"path":          func(w *wire) { w.Target = strings.Replace(w.Target, "studies", "Studies", 1) },
		"query":         func(w *wire) { w.Target += "&b=2" },
		"host":          func(w *wire) { w.Host = "other.test" },
		"content type":  func(w *wire) { w.Header.Set("Content-Type", "text/plain") },
		"another x-amz": func(w *wire) { w.Header.Set("X-Amz-Acl", "public") },
		"date":          func(w *wire) { w.Header.Set("X-Amz-Date", w.Header.Get("X-Amz-Date")[:9]+"000000Z") },
		"token":         func(w *wire) { w.Header.Set("X-Amz-Security-Token", "other") },
		"body":          func(w *wire) { w.Body = "Body" },
		"hash":          func(w *wire) { w.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD") },
		"body and hash": func(w *wire) { w.Body = "Body"; w.Header.Set("X-Amz-Content-Sha256", hexSHA256("Body")) },
		"length":        func(w *wire) { w.Length = 5 },
	} {
		changed := got.clone()
		change(&changed)
		if verifyAWS(changed) == nil {
			t.Errorf("another %s is not detected", name)
		}
	}
}

func TestAWSSignatureIsOfNow(t *testing.T) {
	tok := acquire(t, awsSettings(""))
	r := httptest.NewRequest("GET", "https://dicom.test/x", nil)
	if err := tok.Apply(r); err != nil {
		t.Fatal(err)
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || time.Since(at).Abs() > time.Minute {
		t.Errorf("X-Amz-Date is %v, %v", at, err)
	}
	u, host := r.URL, r.Host
	if u.String() != "https://dicom.test/x" || host != "dicom.test" {
		t.Errorf("sent to %s, Host %s", u, host)
	}
}

func TestAWSHashSpoolsTheBodyWithoutATrace(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	tok := acquire(t, awsSettings("hash"))
	ctx, cancel := context.WithCancel(t.Context())
	closed := false
	body := strings.Repeat("PHI", 1<<20)
	r, err := http.NewRequestWithContext(ctx, "POST", "https://dicom.test/studies", &closer{Reader: strings.NewReader(body), close: func() { closed = true }})
	if err != nil {
		t.Fatal(err)
	}
	r.ContentLength = -1
	if err := tok.Apply(r); err != nil {
		t.Fatal(err)
	}
	if !closed {
		t.Error("the client's body is still open")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%d files have a name while in use", len(left))
	}
	again, err := r.GetBody()
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]io.ReadCloser{"Body": r.Body, "GetBody": again} {
		got, err := io.ReadAll(b)
		if err != nil || string(got) != body {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		b.Close()
	}
	if third, err := r.GetBody(); err != nil {
		t.Error(err)
	} else if n, err := io.Copy(io.Discard, third); n != int64(len(body)) || err != nil {
		t.Errorf("after Close: %d bytes, %v", n, err)
	}
	cancel()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		late, err := r.GetBody()
		if err == nil {
			_, err = io.ReadAll(late)
		}
		if err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the file outlives the request")
		}
	}
}

type closer struct {
	io.Reader
	close func()
}

func (c *closer) Close() error { c.close(); return nil }

func TestAWSHashHonoursTheRequestsContext(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	synctest.Test(t, func(t *testing.T) {
		tok := acquire(t, awsSettings("hash"))
		gone := errors.New("client gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		pr, pw := io.Pipe()
		r, err := http.NewRequestWithContext(ctx, "POST", "https://dicom.test/studies", pr)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = pw.Write([]byte("begins and never ends"))
			time.Sleep(time.Minute) // until Apply waits for more
			cancel(gone)
		}()
		if err := tok.Apply(r); !errors.Is(err, gone) {
			t.Errorf("Apply: %v, want %v", err, gone)
		}
		if r.Header["Authorization"] != nil {
			t.Error("a signature all the same")
		}
	})
}

func TestAWSHashTellsWhatIsWrongWithTheBody(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	broken := errors.New("cut")
	for _, row := range []struct {
		name   string
		body   io.Reader
		length int64
		want   error
		code   string
	}{
		{name: "a broken body", body: io.MultiReader(strings.NewReader("x"), brokenReader{broken}), length: -1, want: broken},
		{name: "a short body", body: strings.NewReader("x"), length: 2, want: io.ErrUnexpectedEOF},
		{name: "a long body", body: strings.NewReader("xyz"), length: 2, want: io.ErrUnexpectedEOF},
		{name: "a body that says it is too large", body: strings.NewReader("x"), length: 5<<30 + 1, code: "body_too_large"},
	} {
		t.Run(row.name, func(t *testing.T) {
			tok := acquire(t, awsSettings("hash"))
			r, err := http.NewRequestWithContext(t.Context(), "POST", "https://dicom.test/studies", row.body)
			if err != nil {
				t.Fatal(err)
			}
			r.ContentLength = row.length
			err = tok.Apply(r)
			if row.want != nil && !errors.Is(err, row.want) {
				t.Errorf("Apply: %v, want %v", err, row.want)
			}
			if u, ok := errors.AsType[*token.Unavailable](err); ok != (row.code != "") || ok && u.Cause.Code != row.code {
				t.Errorf("Apply: %v, want code %q", err, row.code)
			}
			if r.Header["Authorization"] != nil {
				t.Error("a signature all the same")
			}
		})
	}
}

type brokenReader struct{ err error }

func (b brokenReader) Read([]byte) (int, error) { return 0, b.err }

func TestAWSHashNeedsATemporaryFolder(t *testing.T) {
	dir := t.TempDir() + "/gone"
	t.Setenv("TMPDIR", dir)
	tok := acquire(t, awsSettings("hash"))
	err := tok.Apply(httptest.NewRequest("POST", "https://dicom.test/studies", strings.NewReader("x")))
	u, ok := errors.AsType[*token.Unavailable](err)
	if !ok || u.Cause.Code != "spool_failed" || !strings.Contains(u.Cause.Hint, "TMPDIR") || strings.Contains(err.Error(), dir) {
		t.Errorf("Apply: %v, want spool_failed that names TMPDIR", err)
	}
}

func TestAWSCheckNamesEachMistake(t *testing.T) {
	keep := func(*token.AWSSigV4) {}
	for _, row := range []struct {
		name   string
		change func(*token.AWSSigV4)
		want   []string
	}{
		{name: "none", change: keep},
		{name: "none with files", change: func(a *token.AWSSigV4) {
			a.AccessKeyID, a.SecretAccessKey = token.SecretFile("/later"), token.SecretFile("/later")
		}},
		{name: "none with the default chain", change: func(a *token.AWSSigV4) { *a = token.AWSSigV4{Region: "us-east-1"} }},
		{name: "none with a shared profile", change: func(a *token.AWSSigV4) { *a = token.AWSSigV4{Region: "us-east-1", SharedProfile: "pacs"} }},
		{name: "none with unsigned", change: func(a *token.AWSSigV4) { a.Payload = "unsigned" }},
		{name: "none with hash", change: func(a *token.AWSSigV4) { a.Payload = "hash" }},
		{name: "none with streaming", change: func(a *token.AWSSigV4) { a.Payload = "streaming" }},
		{name: "no region", change: func(a *token.AWSSigV4) { a.Region = "" }, want: []string{"region: is missing"}},
		{name: "a region that is none", change: func(a *token.AWSSigV4) { a.Region = "Europe (Frankfurt)" }, want: []string{`region: "Europe (Frankfurt)" is not the name of an AWS region`}},
		{name: "a service that is none", change: func(a *token.AWSSigV4) { a.Service = "medical imaging/" }, want: []string{`service: "medical imaging/" is not the name of an AWS service`}},
		{name: "an unknown payload", change: func(a *token.AWSSigV4) { a.Payload = "signed" }, want: []string{`payload: "signed" is not known`}},
		{name: "no secret", change: func(a *token.AWSSigV4) { a.SecretAccessKey = token.SecretSource{} }, want: []string{"secret_access_key: is missing"}},
		{name: "no id", change: func(a *token.AWSSigV4) { a.AccessKeyID = token.SecretSource{} }, want: []string{"access_key_id: is missing"}},
		{name: "only a session token", change: func(a *token.AWSSigV4) {
			*a = token.AWSSigV4{Region: "us-east-1", SessionToken: secretValue(awsSession)}
		}, want: []string{"access_key_id: is missing", "secret_access_key: is missing"}},
		{name: "keys and a shared profile", change: func(a *token.AWSSigV4) { a.SharedProfile = "pacs" }, want: []string{"shared_profile: there are also credentials in this profile"}},
		{name: "a line end in a key", change: func(a *token.AWSSigV4) { a.SecretAccessKey = secretValue(awsSecret + "\n") }, want: []string{"secret_access_key: has characters that no AWS key has, such as a space or a line end"}},
		{name: "none with the chain's keys", change: func(a *token.AWSSigV4) {
			*a = token.AWSSigV4{Region: "us-east-1", RefreshBuffer: time.Minute, RequestTimeout: time.Second}
		}},
		{name: "none with a buffer before files are read again", change: func(a *token.AWSSigV4) {
			a.SessionToken, a.RefreshBuffer = token.SecretFile("/later"), time.Minute
		}},
		{name: "a buffer for keys that do not end", change: func(a *token.AWSSigV4) { a.RefreshBuffer = time.Minute }, want: []string{"refresh_buffer: has no effect with access_key_id and secret_access_key, as nobody is asked for credentials"}},
		{name: "a timeout where nobody is asked", change: func(a *token.AWSSigV4) {
			a.AccessKeyID, a.RequestTimeout = token.SecretFile("/later"), time.Second
		}, want: []string{"request_timeout: has no effect with access_key_id and secret_access_key, as nobody is asked for credentials"}},
		{name: "a ca_file where nobody is asked", change: func(a *token.AWSSigV4) { a.CAFile = "/no/such/ca.pem" }, want: []string{"ca_file: has no effect with access_key_id and secret_access_key, as nobody is asked for credentials"}},
		{name: "a ca_file that is not there", change: func(a *token.AWSSigV4) {
			*a = token.AWSSigV4{Region: "us-east-1", CAFile: "/no/such/ca.pem"}
		}, want: []string{"ca_file: open /no/such/ca.pem: no such file or directory"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := awsSettings("")
			row.change(a)
			if diff := cmp.Diff(row.want, problems(t, a, awsID, awsSecret, awsSession)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// problems returns what Check reports, which must name a remedy and no secret.
func problems(t *testing.T, s token.Settings, secrets ...string) []string {
	t.Helper()
	var got []string
	s.Check(func(key, problem, remedy string) {
		got = append(got, key+": "+problem)
		if remedy == "" {
			t.Errorf("%s: no remedy", key)
		}
		for _, secret := range secrets {
			if strings.Contains(problem+remedy, secret) {
				t.Errorf("%s shows a secret: %s, %s", key, problem, remedy)
			}
		}
	})
	return got
}

func TestAWSKeysLieOverTheDefaults(t *testing.T) {
	a := awsSettings("")
	a.RefreshBuffer, a.RequestTimeout = time.Minute, 3*time.Second
	want := token.DefaultLifecycle()
	want.RefreshBuffer, want.RequestTimeout = time.Minute, 3*time.Second
	if diff := cmp.Diff(want, a.Lifecycle(token.DefaultLifecycle())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if a.AsksMetadata() || !(&token.AWSSigV4{}).AsksMetadata() || !(&token.AWSSigV4{SharedProfile: "pacs"}).AsksMetadata() {
		t.Error("the metadata service is for those whose keys are not in the profile")
	}
	a.CAFile = "/no/such/ca.pem"
	if _, err := a.Acquirer(token.Env{}); err == nil || !strings.Contains(err.Error(), "ca_file") {
		t.Errorf("Acquirer: %v, want an error that names ca_file", err)
	}
}
