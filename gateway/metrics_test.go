package gateway

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway/audit"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/token"
)

// scrape returns all series of a gateway, as name{label="value"}.
func scrape(t *testing.T, g *Gateway) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(g.Collector())
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			name := strings.TrimPrefix(f.GetName(), metricPrefix)
			if len(labels) > 0 {
				name += "{" + strings.Join(labels, ",") + "}"
			}
			switch {
			case m.GetHistogram() != nil:
				series[name] = float64(m.GetHistogram().GetSampleCount())
			default:
				series[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return series
}

// measured is a gateway of rules that nobody sends requests to.
func measured(t *testing.T, names ...string) *Gateway {
	t.Helper()
	ca, err := certs.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{stats: newStats(), busy: newInflight(), started: time.Now()}
	g.ca.Store(ca)
	g.reloaded.Store(&reloadStatus{loadedAt: g.started})
	g.current.Store(configured(names...))
	return g
}

func configured(names ...string) *snapshot {
	c := &rules.Config{}
	for _, name := range names {
		c.Rules = append(c.Rules, &rules.Rule{Name: name})
	}
	return &snapshot{config: c, sources: map[string]*token.Source{}}
}

func TestMetricsCountRequests(t *testing.T) {
	g := measured(t, "archive", "idle")
	for range 3 {
		rec := ended("", http.StatusOK)
		rec.RequestBytes, rec.ResponseBytes = 10, 1000
		g.stats.observe(rec)
	}
	throttled := ended("", http.StatusServiceUnavailable)
	throttled.Method, throttled.UpstreamStatus = "POST", http.StatusTooManyRequests
	g.stats.observe(throttled)
	g.stats.observe(&audit.Record{Method: "CONNECT", Authority: "other.example.org:443", Status: 403, Outcome: audit.Refused, Reason: string(noRule)})
	g.stats.refused(string(noRule))
	g.stats.untrusted.Add(1)
	g.stats.connections.Add(2)
	got := scrape(t, g)
	for series, want := range map[string]float64{
		`requests_total{code="200",method="GET",rule="archive"}`:  3,
		`requests_total{code="503",method="POST",rule="archive"}`: 1,
		`requests_total{code="403",method="CONNECT",rule=""}`:     1,
		`upstream_responses_total{code="200",rule="archive"}`:     3,
		`upstream_responses_total{code="429",rule="archive"}`:     1,
		`request_duration_seconds{rule="archive"}`:                4,
		`request_duration_seconds{rule="idle"}`:                   0,
		`request_bytes_total{rule="archive"}`:                     30,
		`response_bytes_total{rule="archive"}`:                    3000,
		`response_bytes_total{rule="idle"}`:                       0,
		`upstream_responses_total{code="401",rule="idle"}`:        0,
		`refused_total{reason="no_rule"}`:                         1,
		`refused_total{reason="overloaded"}`:                      0,
		`client_ca_refusals_total`:                                1,
		`audit_records_lost_total`:                                0,
		`connections`:                                             2,
		`requests_in_flight`:                                      0,
		`ca_expiry_timestamp_seconds`:                             unix(g.CA().Certificate().NotAfter),
		`config_last_reload_success`:                              1,
		`config_last_reload_timestamp_seconds`:                    unix(g.started),
	} {
		if n, there := got[series]; !there || n != want {
			t.Errorf("%s: got %v (there: %v), want %v", series, n, there, want)
		}
	}
	for series := range got {
		if strings.Contains(series, "example.org") {
			t.Errorf("%s: a label carries what a client has named", series)
		}
	}
}

func TestSeriesOfRemovedRulesVanish(t *testing.T) {
	g := measured(t, "archive", "other")
	g.stats.observe(ended("", http.StatusOK))
	g.current.Store(configured("other"))
	for series := range scrape(t, g) {
		if strings.Contains(series, "archive") {
			t.Errorf("%s is still there", series)
		}
	}
	g.current.Store(configured("archive"))
	if n := scrape(t, g)[`requests_total{code="200",method="GET",rule="archive"}`]; n != 1 {
		t.Errorf("a rule that comes back: got %v requests, want the 1 from before: a counter never falls", n)
	}
}

func TestNamesOfMetricsAreAsPromised(t *testing.T) {
	g := measured(t, "archive")
	g.stats.observe(ended("", http.StatusOK))
	g.stats.refused(string(noRule))
	var got []string
	for series := range scrape(t, g) {
		name, _, _ := strings.Cut(series, "{")
		got = append(got, name)
	}
	slices.Sort(got)
	got = slices.Compact(got)
	want := []string{
		"audit_records_lost_total", "ca_expiry_timestamp_seconds", "client_ca_refusals_total", "config_last_reload_success",
		"config_last_reload_timestamp_seconds", "connections", "refused_total", "request_bytes_total", "request_duration_seconds",
		"requests_in_flight", "requests_total", "response_bytes_total", "upstream_responses_total",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
