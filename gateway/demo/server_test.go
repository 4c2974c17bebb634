package demo_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/gateway/demo"
)

// stored starts a server without OAuth2 that holds these instances.
func stored(t *testing.T, instances ...*demo.Instance) (*demo.Server, *http.Client) {
	t.Helper()
	s := newServer(t, demo.ServerOptions{})
	c := httpClient(t, s.CAPEM())
	var files [][]byte
	for _, i := range instances {
		files = append(files, i.File)
	}
	body, header := multipartOf(t, files...)
	if r := send(t, c, "POST", s.URL()+"studies", body, header); r.status != 200 {
		t.Fatalf("got %d %s from STOW-RS, want 200", r.status, r.body)
	}
	return s, c
}

func TestServerWantsAGoodToken(t *testing.T) {
	p := newProvider(t, demo.ProviderOptions{Scopes: []string{"dicomweb", "other"}})
	s := newServer(t, demo.ServerOptions{Verify: p.Verify})
	c := httpClient(t, s.CAPEM())
	good := accessToken(t, p)
	for _, row := range []struct {
		name          string
		authorization []string
		status        int
		challenge     string
	}{
		{"good token", []string{"Bearer " + good}, 200, ""},
		{"no token", nil, 401, `Bearer realm="dicomweb-demo"`},
		{"bad token", []string{"Bearer x.y.z"}, 401, `Bearer realm="dicomweb-demo", error="invalid_token"`},
		{"another scheme", []string{"Basic " + good}, 401, `Bearer realm="dicomweb-demo"`},
		{"two tokens", []string{"Bearer " + good, "Bearer " + good}, 401, `Bearer realm="dicomweb-demo"`},
		{"token without the scope", []string{"Bearer " + accessToken(t, p, "other")}, 403, `Bearer realm="dicomweb-demo", error="insufficient_scope"`},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := send(t, c, "GET", s.URL()+"studies", nil, http.Header{"Authorization": row.authorization})
			if got := r.header.Get("WWW-Authenticate"); r.status != row.status || got != row.challenge {
				t.Errorf("got %d %q, want %d %q", r.status, got, row.status, row.challenge)
			}
		})
	}
}

func TestServerRecordsRequestsWithoutTheirTokens(t *testing.T) {
	p := newProvider(t, demo.ProviderOptions{})
	s := newServer(t, demo.ServerOptions{Verify: p.Verify})
	token := accessToken(t, p)
	send(t, httpClient(t, s.CAPEM()), "GET", s.URL()+"studies?limit=3", nil,
		http.Header{"Authorization": {"Bearer " + token}, "X-Test": {"yes"}})
	if err := s.WaitRequests(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	r := s.Requests()[0]
	if r.Method != "GET" || r.Path != "/dicom-web/studies" || r.Query != "limit=3" || r.Status != 200 || r.Header.Get("X-Test") != "yes" {
		t.Errorf("got %+v, want the request as it was sent", r)
	}
	if got, want := r.Header["Authorization"], []string{"Bearer " + demo.Fingerprint(token)}; !cmp.Equal(got, want) {
		t.Errorf("got Authorization %q, want %q", got, want)
	}
	if r.Token.Fingerprint != demo.Fingerprint(token) || r.Token.Length != len(token) || r.Token.Preview != "eyJhbG" || r.Token.ExpiresAt.IsZero() {
		t.Errorf("got token %+v, want the description of %d characters", r.Token, len(token))
	}
	everything, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(everything, []byte(token[20:60])) {
		t.Error("the record holds the token itself")
	}
}

func TestSTOWAnswersWhatOrthancChecks(t *testing.T) {
	a := demo.NewInstance(demo.InstanceOptions{})
	b := demo.NewInstance(demo.InstanceOptions{StudyInstanceUID: a.StudyInstanceUID()})
	other := demo.NewInstance(demo.InstanceOptions{})
	noise := []byte("not DICOM")
	for _, row := range []struct {
		name           string
		path           string
		files          [][]byte
		status         int
		stored, failed int
	}{
		{"two instances", "studies", [][]byte{a.File, b.File}, 200, 2, 0},
		{"into their study", "studies/" + a.StudyInstanceUID(), [][]byte{a.File, b.File}, 200, 2, 0},
		{"one of another study", "studies/" + a.StudyInstanceUID(), [][]byte{a.File, other.File}, 202, 1, 1},
		{"one that is not DICOM", "studies", [][]byte{noise, b.File}, 202, 1, 1},
		{"nothing that is DICOM", "studies", [][]byte{noise}, 409, 0, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newServer(t, demo.ServerOptions{})
			body, header := multipartOf(t, row.files...)
			r := send(t, httpClient(t, s.CAPEM()), "POST", s.URL()+row.path, body, header)
			count := func(tag string) int {
				sequence, _ := r.json(t)[tag].(map[string]any)
				items, _ := sequence["Value"].([]any)
				return len(items)
			}
			if r.status != row.status || count("00081199") != row.stored || count("00081198") != row.failed {
				t.Errorf("got %d %s, want %d, %d stored, %d failed", r.status, r.body, row.status, row.stored, row.failed)
			}
			if _, present := r.json(t)["00081198"]; present && row.failed == 0 {
				t.Error("got a failed sequence without a failure")
			}
			if got := r.header.Get("Content-Type"); got != "application/dicom+json" {
				t.Errorf("got Content-Type %q, want application/dicom+json", got)
			}
			if got := len(s.Instances()); got != row.stored {
				t.Errorf("the server keeps %d instances, want %d", got, row.stored)
			}
		})
	}
}

func TestSTOWRefusesBodiesItCannotTake(t *testing.T) {
	s := newServer(t, demo.ServerOptions{MaxBytes: 10_000})
	c := httpClient(t, s.CAPEM())
	small := demo.NewInstance(demo.InstanceOptions{})
	body, header := multipartOf(t, small.File, demo.NewInstance(demo.InstanceOptions{Rows: 200, Columns: 200}).File)
	if r := send(t, c, "POST", s.URL()+"studies", body, header); r.status != 507 || len(s.Instances()) != 1 {
		t.Errorf("too big: got %d and %d instances kept, want 507 and the one that fitted", r.status, len(s.Instances()))
	}
	body, header = multipartOf(t, small.File)
	body.Truncate(body.Len() - 200)
	if r := send(t, c, "POST", s.URL()+"studies", body, header); r.status != 400 {
		t.Errorf("cut within a part: got %d, want 400", r.status)
	}
	body, header = multipartOf(t, small.File)
	body.Truncate(body.Len() - 8)
	if r := send(t, c, "POST", s.URL()+"studies", body, header); r.status != 400 {
		t.Errorf("no closing boundary: got %d, want 400", r.status)
	}
	for _, contentType := range []string{"", "application/dicom", "multipart/related", `multipart/related; type="application/dicom+json"; boundary=x`} {
		if r := send(t, c, "POST", s.URL()+"studies", nil, http.Header{"Content-Type": {contentType}}); r.status != 415 {
			t.Errorf("Content-Type %q: got %d, want 415", contentType, r.status)
		}
	}
	for range 3 { // the room of what was replaced or refused is free again
		body, header = multipartOf(t, small.File)
		if r := send(t, c, "POST", s.URL()+"studies", body, header); r.status != 200 {
			t.Errorf("same instance again: got %d, want 200", r.status)
		}
	}
}

func TestQIDOFindsWhatIsAskedFor(t *testing.T) {
	a1 := demo.NewInstance(demo.InstanceOptions{PatientName: "ALPHA^ANN", PatientID: "A"})
	a2 := demo.NewInstance(demo.InstanceOptions{
		PatientName: "ALPHA^ANN", PatientID: "A", StudyInstanceUID: a1.StudyInstanceUID(), SeriesInstanceUID: a1.SeriesInstanceUID(),
	})
	a3 := demo.NewInstance(demo.InstanceOptions{PatientName: "ALPHA^ANN", PatientID: "A", StudyInstanceUID: a1.StudyInstanceUID()})
	b := demo.NewInstance(demo.InstanceOptions{PatientName: "BETA^BOB", PatientID: "B"})
	s, c := stored(t, a1, a2, a3, b)
	date := a1.Value(demo.TagStudyDate)

	for _, row := range []struct {
		path string
		want int
	}{
		{"studies", 2},
		{"studies?limit=1", 1},
		{"studies?offset=1&limit=5", 1},
		{"studies?offset=9", 0},
		{"studies?PatientName=alpha*", 1},
		{"studies?PatientName=*%5EBOB", 1},
		{"studies?PatientName=BETA%5E%3FOB", 1},
		{"studies?PatientName=BETA", 0},
		{"studies?00100020=A", 1},
		{"studies?PatientID=A&PatientName=BETA*", 0},
		{"studies?PatientName=*&includefield=00081030", 2},
		{"studies?StudyInstanceUID=" + a1.StudyInstanceUID() + "," + b.StudyInstanceUID(), 2},
		{"studies?StudyInstanceUID=1.2.3", 0},
		{"studies?StudyDate=" + date, 2},
		{"studies?StudyDate=19000101-" + date, 2},
		{"studies?StudyDate=19000101-19991231", 0},
		{"studies?ModalitiesInStudy=OT", 2},
		{"series", 3},
		{"instances", 4},
		{"instances?SOPInstanceUID=" + a2.SOPInstanceUID(), 1},
		{"studies/" + a1.StudyInstanceUID() + "/series", 2},
		{"studies/" + a1.StudyInstanceUID() + "/instances", 3},
		{"studies/" + a1.StudyInstanceUID() + "/series/" + a1.SeriesInstanceUID() + "/instances", 2},
	} {
		r := send(t, c, "GET", s.URL()+row.path, nil, nil)
		var found []map[string]any
		if err := json.Unmarshal(r.body, &found); err != nil || found == nil {
			t.Errorf("%s: got %d %s, want a list", row.path, r.status, r.body)
			continue
		}
		if len(found) != row.want {
			t.Errorf("%s: got %d results, want %d", row.path, len(found), row.want)
		}
	}
	for _, bad := range []string{"limit=x", "limit=-5", "offset=-1", "%zz=1"} {
		if r := send(t, c, "GET", s.URL()+"studies?"+bad, nil, nil); r.status != 400 {
			t.Errorf("%s: got %d, want 400", bad, r.status)
		}
	}
}

func TestQIDODescribesAStudyInDICOMJSON(t *testing.T) {
	i := demo.NewInstance(demo.InstanceOptions{})
	s, c := stored(t, i)
	var found []map[string]struct {
		VR    string `json:"vr"`
		Value []any
	}
	if err := json.Unmarshal(send(t, c, "GET", s.URL()+"studies", nil, nil).body, &found); err != nil {
		t.Fatal(err)
	}
	for tag, want := range map[string]any{
		"0020000D": i.StudyInstanceUID(),
		"00100010": map[string]any{"Alphabetic": "DEMO^PATIENT"},
		"00080061": "OT",
		"00201206": 1.0,
		"00201208": 1.0,
		"00081190": s.URL() + "studies/" + i.StudyInstanceUID(),
	} {
		if got := found[0][tag].Value; !cmp.Equal(got, []any{want}) {
			t.Errorf("%s: got %v, want %v", tag, got, want)
		}
	}
	if _, present := found[0]["00080018"]; present {
		t.Error("a study has a SOPInstanceUID")
	}
}

func TestWADOReturnsTheVeryBytes(t *testing.T) {
	a := demo.NewInstance(demo.InstanceOptions{})
	b := demo.NewInstance(demo.InstanceOptions{StudyInstanceUID: a.StudyInstanceUID()})
	s, c := stored(t, a, b, demo.NewInstance(demo.InstanceOptions{}))
	study := s.URL() + "studies/" + a.StudyInstanceUID()
	series := study + "/series/" + b.SeriesInstanceUID()
	for url, want := range map[string][][]byte{
		study:  {a.File, b.File},
		series: {b.File},
		series + "/instances/" + b.SOPInstanceUID(): {b.File},
	} {
		r := send(t, c, "GET", url, nil, http.Header{"Accept": {`multipart/related; type="application/dicom"; transfer-syntax=*`}})
		mediaType, parameters, err := mime.ParseMediaType(r.header.Get("Content-Type"))
		if err != nil || mediaType != "multipart/related" || parameters["type"] != "application/dicom" {
			t.Fatalf("got Content-Type %q, want multipart/related of application/dicom", r.header.Get("Content-Type"))
		}
		var got [][]byte
		for parts := multipart.NewReader(bytes.NewReader(r.body), parameters["boundary"]); ; {
			part, err := parts.NextRawPart()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			file, err := io.ReadAll(part)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, file)
		}
		if !cmp.Equal(got, want) {
			t.Errorf("%s: got %d parts, want the %d files byte for byte", url, len(got), len(want))
		}
	}
	if r := send(t, c, "GET", study, nil, http.Header{"Accept": {"image/png"}}); r.status != 406 {
		t.Errorf("Accept image/png: got %d, want 406", r.status)
	}
	var metadata []map[string]any
	if err := json.Unmarshal(send(t, c, "GET", study+"/metadata", nil, nil).body, &metadata); err != nil || len(metadata) != 2 {
		t.Errorf("got %d datasets of metadata (%v), want 2", len(metadata), err)
	}
}

func TestDeleteForgetsAStudy(t *testing.T) {
	i := demo.NewInstance(demo.InstanceOptions{})
	s, c := stored(t, i)
	study := s.URL() + "studies/" + i.StudyInstanceUID()
	for _, want := range []int{204, 404} {
		if r := send(t, c, "DELETE", study, nil, nil); r.status != want {
			t.Errorf("DELETE: got %d, want %d", r.status, want)
		}
	}
	if r := send(t, c, "GET", study, nil, nil); r.status != 404 {
		t.Errorf("GET after DELETE: got %d, want 404", r.status)
	}
}

func TestDiscardHashesAndStreamsKnownBytes(t *testing.T) {
	const size = 5 << 20
	s := newServer(t, demo.ServerOptions{Discard: true})
	c := httpClient(t, s.CAPEM())
	hash := sha256.New()
	body, length := demo.StreamBody(size)
	if n, err := io.Copy(hash, body); err != nil || n != length {
		t.Fatalf("got %d bytes (%v), want %d", n, err, length)
	}
	want := hex.EncodeToString(hash.Sum(nil))

	body, _ = demo.StreamBody(size)
	up := send(t, c, "POST", s.URL()+"studies", body, http.Header{"Content-Type": {demo.StreamContentType}})
	record := s.Requests()[0]
	if up.status != 200 || record.BodySHA256 != want || record.BodyBytes != length {
		t.Errorf("STOW-RS: got %d, %d bytes with %s, want 200, %d with %s", up.status, record.BodyBytes, record.BodySHA256, length, want)
	}
	for _, withLength := range []string{"", "1"} {
		query := url.Values{"bytes": {strconv.Itoa(size)}, "length": {withLength}}.Encode()
		down := send(t, c, "GET", s.URL()+"studies/1.2.3?"+query, nil, nil)
		sum := sha256.Sum256(down.body)
		if got := hex.EncodeToString(sum[:]); got != want {
			t.Errorf("WADO-RS: got sha256 %s of %d bytes, want %s of %d", got, len(down.body), want, length)
		}
		if got := down.header.Get("Content-Length"); (got != "") != (withLength != "") {
			t.Errorf("WADO-RS: got Content-Length %q, want one: %t", got, withLength != "")
		}
	}
}

func TestServerSpeaksHTTP1Only(t *testing.T) {
	s := newServer(t, demo.ServerOptions{})
	c := httpClient(t, s.CAPEM())
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	r, err := c.Get(s.URL() + "studies")
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.Proto != "HTTP/1.1" || !strings.HasPrefix(s.URL(), "https://localhost:") {
		t.Errorf("got %s from %s, want HTTP/1.1 from https://localhost", r.Proto, s.URL())
	}
}
