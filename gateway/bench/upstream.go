package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"orthanc-dicomweb-oauth/gateway/demo"
)

// Paths of the upstream.
const (
	servicePath = "/dicom-web/"
	qidoPath    = servicePath + "studies?PatientID=BENCH&includefield=00081030&limit=5"
	bulkPath    = servicePath + "bulk/" // GET with a number of bytes behind it, or POST
)

// qidoLength is the size of the answer to QIDO-RS.
const qidoLength = 2048

// upstreamSettings are those of the DICOMweb server.
type upstreamSettings struct {
	PKI       pki
	Secret    string // what every token ends with
	Instances string // folder of the DICOM files that can be retrieved, each named for its SOP Instance UID
}

// alwaysValid is the number of a token that is never revoked, for peers that have a fixed one.
const alwaysValid = 1_000_000_000

// bearer is the token with a number, 1.2 KB long as those of the clouds are.
func bearer(n int64, secret string) string { return fmt.Sprintf("%d.%s", n, secret) }

// upstream is the DICOMweb server that all peers lead to. It lets in who has a token.
type upstream struct {
	settings upstreamSettings
	files    map[string][]byte // by SOP Instance UID
	qido     []byte
	noise    []byte

	oldest atomic.Int64 // tokens with lower numbers are revoked

	mu   sync.Mutex
	last observation
}

// observation is what the upstream tells of the last body that it received, and of its last answer.
type observation struct {
	Bytes    int64     // received and accepted
	CRC      uint32    // of these
	Refused  int64     // bytes received by requests that were answered 401
	Requests int64     // with a valid token
	Done     time.Time // when the last answer was written
}

// playUpstream serves DICOMweb over TLS and HTTP/1.1.
func playUpstream(settings []byte) error {
	u := &upstream{files: make(map[string][]byte), noise: make([]byte, 128<<10), qido: qidoAnswer()}
	if err := json.Unmarshal(settings, &u.settings); err != nil {
		return err
	}
	_, _ = rand.NewChaCha8([32]byte{}).Read(u.noise)                        // never fails
	paths, _ := filepath.Glob(filepath.Join(u.settings.Instances, "*.dcm")) // the pattern is well formed
	for _, path := range paths {
		file, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		u.files[strings.TrimSuffix(filepath.Base(path), ".dcm")] = file
	}
	mux := http.NewServeMux()
	handle := func(pattern string, h http.HandlerFunc) { mux.Handle(pattern, u.authorize(h)) }
	handle("GET "+servicePath+"studies", u.search)
	handle("GET "+bulkPath+"{bytes}", u.download)
	handle("POST "+bulkPath, u.upload)
	handle("POST "+servicePath+"studies", u.stow)
	handle("GET "+servicePath+"studies/{study}/series/{series}/instances/{instance}", u.retrieve)
	mux.HandleFunc("GET /bench/observation", u.tell)
	mux.HandleFunc("POST /bench/revoke", u.revoke)
	return serveHTTPS(u.settings.PKI, mux)
}

// serveHTTPS serves a role's HTTP over TLS.
func serveHTTPS(p pki, h http.Handler) error {
	conf, err := p.serverConfig()
	if err != nil {
		return err
	}
	ln, err := listenLoopback()
	if err != nil {
		return err
	}
	http1 := new(http.Protocols)
	http1.SetHTTP1(true)
	server := &http.Server{Handler: h, Protocols: http1, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute}
	return serveRole(ln, func(ln net.Listener) error { return server.Serve(tls.NewListener(ln, conf)) })
}

// qidoAnswer makes DICOM JSON of qidoLength bytes.
func qidoAnswer() []byte {
	const frame = `[{"0020000D":{"vr":"UI","Value":["1.2.3"]},"00081030":{"vr":"LO","Value":["%s"]}}]`
	return fmt.Appendf(nil, frame, strings.Repeat("x", qidoLength-len(frame)+len("%s")))
}

// authorize lets requests with a valid token in.
func (u *upstream) authorize(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u.admits(r.Header["Authorization"]) {
			next(w, r)
			u.mu.Lock()
			u.last.Requests++
			u.last.Done = time.Now()
			u.mu.Unlock()
			return
		}
		if r.Method == http.MethodPost {
			u.refuseUpload(w)
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
	})
}

func (u *upstream) admits(authorization []string) bool {
	if len(authorization) != 1 {
		return false
	}
	token, ok := strings.CutPrefix(authorization[0], "Bearer ")
	number, secret, _ := strings.Cut(token, ".")
	n, err := strconv.ParseInt(number, 10, 64)
	return ok && err == nil && secret == u.settings.Secret && n >= u.oldest.Load()
}

// refuseUpload answers 401 before the body has been read, keeps the connection, and reads on: as nginx and Envoy do, but not
// net/http's server, which would close.
func (u *upstream) refuseUpload(w http.ResponseWriter) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nContent-Length: 0\r\n\r\n"); err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := rw.Read(buf)
		u.mu.Lock()
		u.last.Refused += int64(n)
		u.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// search answers QIDO-RS.
func (u *upstream) search(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/dicom+json")
	w.Header().Set("Content-Length", strconv.Itoa(len(u.qido)))
	_, _ = w.Write(u.qido)
}

// download answers with noise, as long as the path says; with a Content-Length if the query asks for one, else chunked.
func (u *upstream) download(w http.ResponseWriter, r *http.Request) {
	left, err := strconv.ParseInt(r.PathValue("bytes"), 10, 64)
	if err != nil {
		http.Error(w, "not a number", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", `multipart/related; type="application/dicom"; boundary=x`)
	if r.URL.RawQuery == "length" {
		w.Header().Set("Content-Length", strconv.FormatInt(left, 10))
	}
	w.WriteHeader(http.StatusOK)
	for left > 0 {
		n, err := w.Write(u.noise[:min(left, int64(len(u.noise)))])
		if err != nil {
			return
		}
		left -= int64(n)
	}
}

// upload swallows a body and tells how long it was.
func (u *upstream) upload(w http.ResponseWriter, r *http.Request) {
	buf := make([]byte, 128<<10)
	var n int64
	check := r.URL.RawQuery == "crc"
	crc := crc32.NewIEEE()
	for {
		k, err := r.Body.Read(buf)
		n += int64(k)
		if check {
			_, _ = crc.Write(buf[:k])
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return
		}
	}
	u.mu.Lock()
	u.last.Bytes, u.last.CRC = n, crc.Sum32()
	u.mu.Unlock()
	_, _ = fmt.Fprintf(w, "%d", n)
}

// stow answers STOW-RS. Orthanc wants each instance listed.
func (u *upstream) stow(w http.ResponseWriter, r *http.Request) {
	_, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		http.Error(w, "no multipart body", http.StatusBadRequest)
		return
	}
	type element struct {
		VR    string `json:"vr"`
		Value []any  `json:"Value"`
	}
	var stored []any
	var size int64
	for parts := multipart.NewReader(r.Body, parameters["boundary"]); ; {
		part, err := parts.NextRawPart()
		if err == io.EOF { //nolint:errorlint // a body without its closing boundary gives an error that wraps io.EOF
			break
		}
		if err != nil {
			http.Error(w, "malformed body", http.StatusBadRequest)
			return
		}
		var head bytes.Buffer // all that ParseInstance wants is before the pixels
		k, err := io.CopyN(&head, part, 4<<10)
		if err != nil && !errors.Is(err, io.EOF) {
			http.Error(w, "malformed body", http.StatusBadRequest)
			return
		}
		instance, err := demo.ParseInstance(head.Bytes())
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		n, err := io.Copy(io.Discard, part)
		if err != nil {
			http.Error(w, "malformed body", http.StatusBadRequest)
			return
		}
		size += k + n
		stored = append(stored, map[string]element{
			"00081150": {"UI", []any{instance.Value(demo.TagSOPClassUID)}},
			"00081155": {"UI", []any{instance.SOPInstanceUID()}},
			"00081190": {"UR", []any{"https://" + r.Host + servicePath + "studies/" + instance.StudyInstanceUID()}},
		})
	}
	u.mu.Lock()
	u.last.Bytes = size
	u.mu.Unlock()
	w.Header().Set("Content-Type", "application/dicom+json")
	_ = json.NewEncoder(w).Encode(map[string]element{
		"00081190": {"UR", []any{"https://" + r.Host + servicePath + "studies"}},
		"00081199": {"SQ", stored},
	})
}

// retrieve answers WADO-RS of one instance.
func (u *upstream) retrieve(w http.ResponseWriter, r *http.Request) {
	file, ok := u.files[r.PathValue("instance")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	var body bytes.Buffer
	parts := multipart.NewWriter(&body)
	part, err := parts.CreatePart(textproto.MIMEHeader{"Content-Type": {"application/dicom"}})
	if err == nil {
		_, err = part.Write(file)
	}
	if err = errors.Join(err, parts.Close()); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", `multipart/related; type="application/dicom"; boundary=`+parts.Boundary())
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	_, _ = w.Write(body.Bytes())
}

// tell answers the benchmark's own question.
func (u *upstream) tell(w http.ResponseWriter, _ *http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = json.NewEncoder(w).Encode(u.last)
}

// revoke refuses all tokens with lower numbers from now on.
func (u *upstream) revoke(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.URL.RawQuery, 10, 64)
	if err != nil {
		http.Error(w, "not a number", http.StatusBadRequest)
		return
	}
	u.oldest.Store(n)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last = observation{}
	w.WriteHeader(http.StatusNoContent)
}

// providerSettings are those of the identity provider.
type providerSettings struct {
	PKI      pki
	Secret   string
	Lifetime time.Duration // of a token
}

// playProvider is a token endpoint that grants everyone a token, numbered from 1.
func playProvider(settings []byte) error {
	var s providerSettings
	if err := json.Unmarshal(settings, &s); err != nil {
		return err
	}
	var issued atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"access_token": bearer(issued.Add(1), s.Secret), "token_type": "Bearer", "expires_in": int(s.Lifetime.Seconds()),
		})
	})
	mux.HandleFunc("GET /bench/issued", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(issued.Load())
	})
	return serveHTTPS(s.PKI, mux)
}

// control asks the upstream or the provider a question of the benchmark's own.
func (b *bench) control(ctx context.Context, method, address, path string, result any) error {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+address+path, nil)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	response, err := b.http.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode >= 300 {
		return fmt.Errorf("%s %s: status %d", method, path, response.StatusCode)
	}
	if result == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(result)
}
