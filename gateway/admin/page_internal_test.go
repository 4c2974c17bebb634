package admin

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// crowded is a page with all its lists full.
func crowded() *view {
	now := time.Now()
	config := &rules.Config{Path: "/etc/orthanc-dicomweb-oauth/gateway.toml", Revision: "0123456789ab"}
	v := &view{
		Version: "1.2.3", Now: now, CA: caRow{now.AddDate(1, 0, 0), "", "364 days", strings.Repeat("ab", 32)},
		Status: gateway.Status{Config: config, StartedAt: now}, BundlePath: "/var/lib/orthanc-dicomweb-oauth/ca/bundle.pem",
	}
	rec := audit.Record{
		Time: now, Method: "POST", Authority: "contoso-imaging.dicom.azurehealthcareapis.com:443", Route: "/v2/studies/{}/series/{}/instances",
		Transaction: "STOW-RS", Rule: "azure-dicom-radiology", Profile: "azure", Status: 503, UpstreamStatus: 429, Outcome: audit.Forwarded,
		RequestBytes: 123_456_789, ResponseBytes: 123_456, Duration: 12345,
	}
	for i := range 100 {
		rec.RequestID = fmt.Sprint(i)
		v.Recent.Requests = append(v.Recent.Requests, rec)
	}
	for range 50 {
		v.Recent.Failures = append(v.Recent.Failures, gateway.Failure{Record: rec, Since: now.AddDate(0, 0, -1), Times: 1234, Hint: strings.Repeat("what to change ", 10)})
	}
	for i := range 60 {
		v.Recent.Minutes = append(v.Recent.Minutes, gateway.Minute{Requests: uint64(1000 + i), Failures: uint64(i)})
	}
	v.Chart = newChart(v.Recent.Minutes)
	for i := range 10 {
		p := profileRow{Mark: bad, Life: "59 min 59 s"}
		p.Name, p.Type, p.State = fmt.Sprintf("azure-dicom-%d", i), "azure_managed_identity", token.Unusable
		p.LastFailure = &token.Failure{At: now, Err: &token.Error{Code: "provider_unreachable", Hint: strings.Repeat("what to change ", 10)}}
		v.Profiles = append(v.Profiles, p)
		v.Servers = append(v.Servers, serverRow{
			RuleStatus: gateway.RuleStatus{Rule: &rules.Rule{Name: p.Name, URL: "https://contoso-imaging.dicom.azurehealthcareapis.com/v2/"}, Requests: 12345, LastStatus: 503, LastUsed: now, LastFailed: true},
			Profile:    &v.Profiles[0], Mark: bad, Testable: true,
		})
	}
	v.judge()
	return v
}

func rendered(t *testing.T, v *view) string {
	t.Helper()
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, "page", v); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// With full lists on the wire, and with the lists of a bad day as text.
func TestStatusPageWeighsUnder60kB(t *testing.T) {
	a := &api{Options{Log: slog.New(slog.DiscardHandler)}}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Accept-Encoding", "gzip, deflate, br, zstd")
	w := httptest.NewRecorder()
	v := crowded()
	a.render(w, r, http.StatusOK, "page", v)
	unzipped, err := gzip.NewReader(bytes.NewReader(w.Body.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(unzipped); err != nil || string(text) != rendered(t, v) {
		t.Errorf("%v: the compressed page is another one", err)
	}
	if w.Body.Len() >= 60_000 {
		t.Errorf("full lists weigh %d bytes, compressed", w.Body.Len())
	}
	v.Servers, v.Profiles, v.Findings, v.Recent.Failures = v.Servers[:4], v.Profiles[:4], v.Findings[:6], v.Recent.Failures[:25]
	if page := rendered(t, v); len(page) >= 60_000 {
		t.Errorf("the lists of a bad day weigh %d bytes", len(page))
	}
}

// A client chooses the host that it asks for, and so what stands on the page.
func TestStatusPageEscapesWhatClientsSay(t *testing.T) {
	v := crowded()
	v.Recent.Failures[0].Authority = `"><script>alert(1)</script>`
	v.Recent.Failures[0].Rule = ""
	v.judge()
	if page := rendered(t, v); strings.Contains(page, "<script>alert") || !strings.Contains(page, "&lt;script&gt;alert") {
		t.Error("the page does not escape an authority")
	}
}

func TestFindingsSayWhatIsWrong(t *testing.T) {
	healthy := func() *view {
		now := time.Now()
		v := &view{Now: now, CA: caRow{NotAfter: now.AddDate(1, 0, 0)}, BundlePath: "ca/bundle.pem"}
		v.Profiles = []profileRow{{Mark: good, Life: "5 min"}}
		v.Profiles[0].Name, v.Profiles[0].State = "azure", token.Fresh
		v.Servers = []serverRow{{RuleStatus: gateway.RuleStatus{Rule: &rules.Rule{Name: "archive"}}}}
		return v
	}
	state := func(s token.State) func(*view) {
		return func(v *view) {
			p := &v.Profiles[0]
			p.State, p.Mark = s, markOf(s)
			p.LastFailure = &token.Failure{Err: &token.Error{Code: "invalid_client", Hint: "check the secret", Key: "client_secret"}}
		}
	}
	failure := func(rec audit.Record, hint string) func(*view) {
		return func(v *view) {
			rec.Time = v.Now
			v.Recent.Failures = []gateway.Failure{{Record: rec, Hint: hint}}
			v.Servers[0].LastStatus, v.Servers[0].LastFailed = rec.Status, true
		}
	}
	upstream := func(status int) audit.Record {
		return audit.Record{Rule: "archive", Status: status, UpstreamStatus: status, Outcome: audit.Forwarded}
	}
	absent := upstream(404)
	absent.Route = "/studies/{}"
	for name, row := range map[string]struct {
		change  func(*view)
		mark    mark
		verdict string
		want    string // in a finding or its hint; "": there is none
	}{
		"nothing":              {func(*view) {}, good, "Healthy", ""},
		"no credential":        {state(token.Unusable), bad, "Not working", "profile.azure.client_secret"},
		"rejected":             {state(token.RejectedAll), bad, "Not working", "audience"},
		"stale":                {state(token.Stale), worry, "Degraded", "cannot be renewed"},
		"cold":                 {state(token.Cold), worry, "Starting", "first credential"},
		"CA ends soon":         {func(v *view) { v.CA.Warning = "the CA ends on Friday; run ca rotate" }, worry, "Working", "ca rotate"},
		"CA has ended":         {func(v *view) { v.CA.NotAfter, v.CA.Warning = v.Now.Add(-1), "the CA has ended; run ca rotate" }, worry, "Working", "ended"},
		"reload failed":        {func(v *view) { v.Status.ReloadError = "line 3: no such key" }, worry, "Working", "line 3"},
		"CA not trusted":       {func(v *view) { v.Status.UntrustedAt = v.Now.Add(-time.Minute) }, worry, "Working", "ca/bundle.pem"},
		"CA trusted since":     {func(v *view) { v.Status.UntrustedAt = v.Now.Add(-time.Hour) }, good, "Healthy", ""},
		"audit lost":           {func(v *view) { v.Status.AuditLost = 2 }, worry, "Working", "2 audit records were lost"},
		"draining":             {func(v *view) { v.Status.Draining = true }, worry, "Stopping", ""},
		"403":                  {failure(upstream(403), "give the role"), worry, "Working", "give the role"},
		"500":                  {failure(upstream(500), "see its log"), worry, "Working", "see its log"},
		"404, as for a UID":    {failure(absent, "check the path"), good, "Healthy", ""},
		"404 of a search":      {failure(upstream(404), "check the path"), worry, "Working", "check the path"},
		"wrong proxy password": {failure(audit.Record{Method: "CONNECT", Client: "192.0.2.7", Status: 407, Outcome: audit.Refused, Reason: "proxy_auth_required"}, "HttpProxy"), worry, "Working", "CONNECT from 192.0.2.7: proxy_auth_required"},
		"upstream_tls":         {failure(audit.Record{Rule: "archive", Status: 502, Outcome: audit.Refused, Reason: "upstream_tls", Detail: "expired"}, "ca_file"), worry, "Working", "upstream_tls, expired"},
		"no rule for a host":   {failure(audit.Record{Authority: "x.example.org:443", Status: 403, Outcome: audit.Refused, Reason: "no_rule"}, "add a rule"), worry, "Working", "x.example.org:443"},
		"the answer broke off": {failure(audit.Record{Rule: "archive", Status: 200, UpstreamStatus: 200, Outcome: audit.Cut}, "see its log"), worry, "Working", "broke off"},
		"403, then 200": {func(v *view) {
			failure(upstream(403), "give the role")(v)
			v.Servers[0].LastFailed = false
		}, good, "Healthy", ""},
	} {
		v := healthy()
		row.change(v)
		for _, p := range v.Profiles {
			v.Status.Profiles = append(v.Status.Profiles, p.ProfileStatus)
		}
		v.judge()
		if v.Mark != row.mark || !strings.HasPrefix(v.Verdict, row.verdict) {
			t.Errorf("%s: got %s %q, want %s %q", name, v.Mark, v.Verdict, row.mark, row.verdict)
		}
		if row.want == "" && len(v.Findings) > 0 || row.want != "" && !strings.Contains(fmt.Sprint(v.Findings), row.want) {
			t.Errorf("%s: got %v, want %q", name, v.Findings, row.want)
		}
	}
}

func TestLifeAndSizesReadWell(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 59 * time.Second: "59 s", 271 * time.Second: "4 min 31 s", time.Hour + 61*time.Second: "1 h 01 min", 72 * time.Hour: "3 days",
	} {
		if got := life(d); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1 kB", 12_345_678: "12.3 MB", 5_000_000_000_000: "5 TB"} {
		if got := byteCount(n); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
}
