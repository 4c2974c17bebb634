package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/gateway/audit"
)

func TestRouteShowsWordsOfDICOMwebOnly(t *testing.T) {
	for _, row := range []struct{ prefix, path, want string }{
		{"/dicom-web/", "/dicom-web/studies", "/dicom-web/studies"},
		{"/dicom-web/", "/dicom-web/studies/", "/dicom-web/studies/"},
		{"/dicom-web/", "/dicom-web/", "/dicom-web/"},
		{"/dicom-web/", "/dicom-web", "/dicom-web/"},
		{"/dicom-web/", "/dicom-web/studies/1.2.840.10008/series/1.3/instances/1.4/frames/1,2", "/dicom-web/studies/{}/series/{}/instances/{}/frames/{}"},
		{"/dicom-web/", "/dicom-web/studies/1.2/rendered", "/dicom-web/studies/{}/rendered"},
		{"/dicom-web/", "/dicom-web/studies/1.2/metadata", "/dicom-web/studies/{}/metadata"},
		{"/dicom-web/", "/dicom-web/studies/1.2/series/1.3/instances/1.4/bulkdata/00420011", "/dicom-web/studies/{}/series/{}/instances/{}/bulkdata/{}"},
		{"/dicom-web/", "/dicom-web/patients/DOE^JOHN", "/dicom-web/{}/{}"},
		{"/dicom-web/", "/dicom-web/studies/studies", "/dicom-web/studies/studies"},
		{"/dicom-web/", "/dicom-web/Studies", "/dicom-web/{}"},
		{"/dicom-web/", "/dicom-web/%73tudies", "/dicom-web/{}"},
		{"/dicom-web/", "/dicom-web/studies;name=doe", "/dicom-web/{}"},
		{"/dicom-web/", "/dicom-web//studies", "/dicom-web//studies"},
		{"/", "/1.2.3", "/{}"},
		{"/v2/", "/v3/1.2.3", "/v2/"},
		{"/", "/" + strings.Repeat("1/", 15) + "1", "/" + strings.Repeat("{}/", 15) + "{}"},
		{"/", "/" + strings.Repeat("1/", 16) + "1", "/" + strings.Repeat("{}/", 15) + "{}/…"},
	} {
		if got := audit.Route(row.prefix, row.path); got != row.want {
			t.Errorf("%s, %s: got %s, want %s", row.prefix, row.path, got, row.want)
		}
	}
}

func TestTransactionIsNamedAsInPS318(t *testing.T) {
	for _, row := range []struct{ method, route, want string }{
		{"GET", "studies", "QIDO-RS"},
		{"HEAD", "studies/", "QIDO-RS"},
		{"GET", "studies/{}/series", "QIDO-RS"},
		{"GET", "studies/{}/series/{}/instances", "QIDO-RS"},
		{"GET", "series", "QIDO-RS"},
		{"GET", "instances", "QIDO-RS"},
		{"GET", "studies/{}", "WADO-RS"},
		{"GET", "studies/{}/metadata", "WADO-RS"},
		{"GET", "studies/{}/series/{}/instances/{}/frames/{}", "WADO-RS"},
		{"GET", "studies/{}/rendered", "WADO-RS"},
		{"POST", "studies", "STOW-RS"},
		{"POST", "studies/{}", "STOW-RS"},
		{"DELETE", "studies/{}", "DELETE"},
		{"PUT", "studies/{}", ""},
		{"OPTIONS", "studies", ""},
		{"GET", "", ""},
		{"GET", "workitems", ""},
		{"POST", "workitems", ""},
		{"GET", "{}/{}", ""},
	} {
		if got := audit.Transaction(row.method, row.route); got != row.want {
			t.Errorf("%s %s: got %q, want %q", row.method, row.route, got, row.want)
		}
	}
}

// Behind the prefix there is nothing but words of DICOMweb and holes: no UID, no name, no number.
var safeRoute = regexp.MustCompile(`^(studies|series|instances|frames|rendered|thumbnail|metadata|bulkdata|pixeldata|workitems|subscribers|capabilities|bulk|delete|\{\}|…|/)*$`)

func FuzzRouteShowsNoUID(f *testing.F) {
	for _, seed := range []string{
		"/dicom-web/studies/1.2.840.113619/series", "/dicom-web/DOE^JOHN", "/dicom-web", "/x/1.2.3", "/dicom-web/studies?PatientName=DOE", "/dicom-web/\n", "/dicom-web/{}/1", "",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		for _, prefix := range []string{"/", "/dicom-web/"} {
			route := audit.Route(prefix, path)
			rest, ok := strings.CutPrefix(route, prefix)
			if !ok || !safeRoute.MatchString(rest) || strings.ContainsAny(rest, "0123456789") {
				t.Errorf("%q below %s becomes %q", path, prefix, route)
			}
			if len(route) > len(prefix)+16*len("capabilities/")+len("/…") {
				t.Errorf("%q below %s becomes %d bytes", path, prefix, len(route))
			}
			audit.Transaction("GET", rest)
		}
	})
}

func TestRecordIsOneLineOfJSON(t *testing.T) {
	var out bytes.Buffer
	l := audit.New(&out)
	l.Write(audit.Record{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), RequestID: "id", Client: "127.0.0.1", ProxyUser: "orthanc", Method: "GET", Authority: "dicom.example.org:443",
		Route: "/dicom-web/studies/{}", Transaction: "WADO-RS", StudyHash: "h", Rule: "azure", Profile: "p", Status: 503, UpstreamStatus: 429, RequestBytes: 1, ResponseBytes: 2,
		Duration: 3.5, FirstByte: 4, TokenAge: 5, Attempts: 2, Outcome: audit.Refused, Reason: "token_unavailable",
	})
	l.Write(audit.Record{Method: "POST\n", Outcome: audit.Forwarded})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	want := `{"time":"2026-01-02T03:04:05Z","request_id":"id","client":"127.0.0.1","proxy_user":"orthanc","method":"GET","authority":"dicom.example.org:443",` +
		`"route":"/dicom-web/studies/{}","transaction":"WADO-RS","study_hash":"h","rule":"azure","profile":"p","status":503,"upstream_status":429,"request_bytes":1,"response_bytes":2,` +
		`"duration_ms":3.5,"first_byte_ms":4,"token_age_seconds":5,"attempts":2,"outcome":"refused","reason":"token_unavailable"}
{"time":"0001-01-01T00:00:00Z","request_id":"","client":"","method":"POST\n","authority":"","status":0,"request_bytes":0,"response_bytes":0,"duration_ms":0,"outcome":"forwarded"}
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

// hanging is a sink that takes nothing until it is released.
type hanging struct {
	entered chan struct{}
	release chan struct{}
	once    sync.Once
	written int
}

func (h *hanging) Write(p []byte) (int, error) {
	h.once.Do(func() { close(h.entered) })
	<-h.release
	h.written += bytes.Count(p, []byte{'\n'})
	return len(p), nil
}

func TestSlowSinkNeverBlocksARequest(t *testing.T) {
	sink := &hanging{entered: make(chan struct{}), release: make(chan struct{})}
	l := audit.New(sink)
	l.Write(audit.Record{})
	<-sink.entered // now one record is in the sink, and nothing moves
	const more = 5000
	for range more {
		l.Write(audit.Record{}) // a block here is the test's timeout
	}
	lost := int(l.Lost())
	if lost == 0 || lost >= more {
		t.Errorf("%d of %d records lost, want some", lost, more)
	}
	close(sink.release)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := sink.written + int(l.Lost()); got != more+1 {
		t.Errorf("%d written and %d lost, want %d in all", sink.written, l.Lost(), more+1)
	}
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for line := range strings.Lines(string(text)) {
		var r audit.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		ids = append(ids, r.RequestID)
	}
	return ids
}

func TestCloseWritesWhatIsQueued(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, err := audit.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for range 500 {
				l.Write(audit.Record{RequestID: "x"})
			}
		})
	}
	writers.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := len(lines(t, path)); got != 2000 || l.Lost() != 0 {
		t.Errorf("%d lines, %d lost, want 2000 and none", got, l.Lost())
	}
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode() != fs.FileMode(0o600) {
		t.Errorf("got mode %v, %v, want 0600", info.Mode(), err)
	}
}

func TestFileIsAppendedToAndReopened(t *testing.T) {
	dir := t.TempDir()
	path, old := filepath.Join(dir, "audit.log"), filepath.Join(dir, "audit.log.1")
	for _, id := range []string{"first", "second"} {
		l, err := audit.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		l.Write(audit.Record{RequestID: id})
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l, err := audit.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, old); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	l.Write(audit.Record{RequestID: "third"})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"first", "second"}, lines(t, old)); diff != "" {
		t.Errorf("the rotated file (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"third"}, lines(t, path)); diff != "" {
		t.Errorf("the new file (-want +got):\n%s", diff)
	}
}

func TestReopenThatFailsKeepsTheOldFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := audit.Open(filepath.Join(dir, "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, dir+".moved"); err != nil {
		t.Skip(err) // Windows keeps open files in place
	}
	if err := l.Reopen(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that the folder is gone", err)
	}
	l.Write(audit.Record{RequestID: "kept"})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"kept"}, lines(t, filepath.Join(dir+".moved", "audit.log"))); diff != "" {
		t.Errorf("the old file (-want +got):\n%s", diff)
	}
}

func TestFileThatCannotBeOpened(t *testing.T) {
	if l, err := audit.Open(t.TempDir()); err == nil || l != nil || !strings.Contains(err.Error(), "open audit file") {
		t.Errorf("got %v, %v, want an error", l, err)
	}
}

func TestFullDiskIsCounted(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip(err)
	}
	l, err := audit.Open("/dev/full")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		l.Write(audit.Record{})
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := l.Lost(); got != 3 {
		t.Errorf("%d lost, want 3", got)
	}
}

func TestNilLogDropsEverything(t *testing.T) {
	l, err := audit.Open("off")
	if l != nil || err != nil {
		t.Fatalf("off: got %v, %v, want nil", l, err)
	}
	l.Write(audit.Record{})
	if err := errors.Join(l.Reopen(), l.Close()); err != nil || l.Lost() != 0 || l.Counts() != (audit.Counts{}) {
		t.Errorf("got %v, %d lost, want nothing", err, l.Lost())
	}
}

func TestReopenWithoutAFileDoesNothing(t *testing.T) {
	l := audit.New(&bytes.Buffer{})
	if err := errors.Join(l.Reopen(), l.Close()); err != nil {
		t.Error(err)
	}
}

func TestStudyHash(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	// echo -n 1.2.3 | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
	const of123 = "34b2586f6a6f3f1af60b02967a95e66a"
	for _, row := range []struct{ prefix, path, want string }{
		{"/dicom-web/", "/dicom-web/studies/1.2.3", of123},
		{"/dicom-web/", "/dicom-web/studies/1.2.3/", of123},
		{"/dicom-web/", "/dicom-web/studies/1.2.3/series/4.5/instances/6", of123},
		{"/", "/studies/1.2.3", of123},
		{"/", "/some/place/studies/1.2.3/rendered", of123},
		{"/studies/", "/studies/studies/1.2.3", of123},
		{"/dicom-web/", "/dicom-web/studies", ""},
		{"/dicom-web/", "/dicom-web/studies/", ""},
		{"/dicom-web/", "/dicom-web/series/1.2.3", ""},
		{"/dicom-web/", "/dicom-web/mystudies/1.2.3", ""},
		{"/dicom-web/", "/other/studies/1.2.3", ""},
	} {
		if got := audit.StudyHash(key, row.prefix, row.path); got != row.want {
			t.Errorf("%s, %s: got %q, want %q", row.prefix, row.path, got, row.want)
		}
	}
	if got := audit.StudyHash([]byte("another key, of more than 32 bytes"), "/", "/studies/1.2.3"); got == of123 || got == "" {
		t.Errorf("another key: got %q", got)
	}
	if got := audit.StudyHash(nil, "/", "/studies/1.2.3"); got != "" {
		t.Errorf("no key: got %q", got)
	}
}

// full is a disk that has room for so many bytes.
type full struct {
	bytes.Buffer
	room int
}

func (f *full) Write(p []byte) (int, error) {
	n := min(len(p), f.room)
	f.room -= n
	f.Buffer.Write(p[:n])
	if n < len(p) {
		return n, errors.New("no space left on device")
	}
	return n, nil
}

func TestLineBehindATornOneIsWhole(t *testing.T) {
	var probe bytes.Buffer
	l := audit.New(&probe)
	l.Write(audit.Record{RequestID: "a"})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	line := probe.Len()
	// Wherever the disk is full: what is written once there is room again is whole.
	for _, room := range []int{0, 1, line / 2, line - 1, line, line + 1, line + 2, line + line/2, 2*line - 1, 2 * line, 2*line + 1} {
		disk := &full{room: room}
		turn := make(chan struct{})
		l := audit.New(writer(func(p []byte) (int, error) {
			defer func() { turn <- struct{}{} }()
			return disk.Write(p)
		}))
		put := func(id string) { l.Write(audit.Record{RequestID: id}); <-turn }
		put("a")
		put("b")
		disk.room = 10 * line
		put("c")
		put("d")
		lost := l.Lost()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		var whole []string
		for text := range strings.Lines(disk.String()) {
			var r audit.Record
			if json.Unmarshal([]byte(text), &r) == nil {
				whole = append(whole, r.RequestID)
			}
		}
		// A record that lacks its newline alone counts as lost, and is whole with that of the next.
		if got := strings.Join(whole, ""); !strings.HasSuffix(got, "cd") || len(got)+int(lost) < 4 {
			t.Errorf("room for %d bytes: %q is whole and %d are lost of a, b, c, d:\n%s", room, got, lost, disk)
		}
		if strings.Contains(disk.String(), "\n\n") {
			t.Errorf("room for %d bytes: an empty line", room)
		}
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// A crash may leave half a line in the file.
func TestFileThatEndsInHalfALine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	half := func() {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(`{"time":"2026-`); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	half()
	l, err := audit.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Write(audit.Record{RequestID: "first"})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = audit.Open(path); err != nil {
		t.Fatal(err)
	}
	half()
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	l.Write(audit.Record{RequestID: "second"})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) != 5 || !strings.Contains(lines[1], `"first"`) || !strings.Contains(lines[3], `"second"`) {
		t.Errorf("got\n%s\nwant each record on a line of its own", text)
	}
}

func TestCountsTellHowItFares(t *testing.T) {
	disk := &full{}
	turn := make(chan struct{})
	l := audit.New(writer(func(p []byte) (int, error) {
		defer func() { turn <- struct{}{} }()
		return disk.Write(p)
	}))
	l.Write(audit.Record{})
	<-turn
	l.Write(audit.Record{})
	<-turn // the first is counted by now
	if got := l.Counts(); got.Written != 0 || got.Lost == 0 || got.Err == nil {
		t.Errorf("a full disk: got %+v", got)
	}
	disk.room = 1 << 20
	l.Write(audit.Record{})
	<-turn
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := l.Counts(); got.Written != 1 || got.Lost != 2 || got.Err != nil {
		t.Errorf("room again: got %+v, want 1 written and 2 lost", got)
	}
}

// A stop of the gateway must come to its end.
func TestCloseDoesNotWaitForEverForASinkThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &hanging{entered: make(chan struct{}), release: make(chan struct{})}
		l := audit.New(sink)
		l.Write(audit.Record{})
		<-sink.entered
		began := time.Now()
		if err := l.Close(); err == nil || !strings.Contains(err.Error(), "takes nothing") {
			t.Errorf("got %v, want that the sink takes nothing", err)
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("it took %v", took)
		}
		close(sink.release)
	})
}
