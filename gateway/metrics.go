package gateway

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"orthanc-dicomweb-oauth/token"
)

// metricPrefix begins the names of all metrics.
const metricPrefix = "dicomweb_oauth_"

// collector reads the gateway at each scrape, so that a profile or rule that a
// reload has removed is gone from the metrics too. Labels carry names from the
// config and words from fixed lists only.
type collector struct {
	g *Gateway

	acquired, acquireSeconds, expiry, state, failure *prometheus.Desc // of profiles

	requests, upstream, sent, received *prometheus.Desc // of rules

	refused, caRefusals, auditLost, connections, inFlight, caExpiry, reloadSuccess, reloadTime *prometheus.Desc
}

// Collector returns what measures the gateway, for a Prometheus registry.
func (g *Gateway) Collector() prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(metricPrefix+name, help, labels, nil)
	}
	return &collector{
		g:              g,
		acquired:       desc("token_acquire_total", "Calls to the identity provider; result is success or failure.", "profile", "result"),
		acquireSeconds: desc("token_acquire_duration_seconds", "How long calls to the identity provider took.", "profile"),
		expiry:         desc("token_expiry_timestamp_seconds", "When the usable token ends; absent while there is none.", "profile"),
		state:          desc("profile_state", "1 for the state that the profile is in, 0 for the others.", "profile", "state"),
		failure:        desc("profile_error", "1 while no new token can be had, with the code of the last error; else absent.", "profile", "code"),
		requests:       desc("requests_total", "Requests that have ended; rule is empty where none covers them.", "rule", "method", "code"),
		upstream:       desc("upstream_responses_total", "Last answers of DICOMweb servers to these requests, by the status they had there.", "rule", "code"),
		sent:           desc("request_bytes_total", "Bytes of request bodies.", "rule"),
		received:       desc("response_bytes_total", "Bytes of response bodies.", "rule"),
		refused:        desc("refused_total", "Requests that the gateway answered itself; reason is the problem code.", "reason"),
		caRefusals:     desc("client_ca_refusals_total", "Clients that refused the gateway's certificate."),
		auditLost:      desc("audit_records_lost_total", "Audit records that could not be written."),
		connections:    desc("connections", "Client connections."),
		inFlight:       desc("requests_in_flight", "Requests and tunnels under way."),
		caExpiry:       desc("ca_expiry_timestamp_seconds", "When the local CA's certificate ends."),
		reloadSuccess:  desc("config_last_reload_success", "0 if the last reload failed and the former config serves on, else 1."),
		reloadTime:     desc("config_last_reload_timestamp_seconds", "When the last reload was tried; before the first, when the gateway started."),
	}
}

// Describe implements [prometheus.Collector]. It names nothing, since the labels
// change with the config.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	st := c.g.Status()
	for _, p := range st.Profiles {
		count(c.acquired, p.Acquisitions-p.Failures, p.Name, "success")
		count(c.acquired, p.Failures, p.Name, "failure")
		ch <- prometheus.MustNewConstHistogram(c.acquireSeconds, p.Took.Count, p.Took.Sum.Seconds(), p.Took.Buckets(), p.Name)
		if !p.ExpiresAt.IsZero() {
			gauge(c.expiry, unix(p.ExpiresAt), p.Name)
		}
		for _, state := range []token.State{token.Cold, token.Fresh, token.Stale, token.Unusable, token.RejectedAll} {
			gauge(c.state, oneIf(p.State == state), p.Name, string(state))
		}
		if f := p.LastFailure; f != nil && (p.State == token.Stale || p.State == token.Unusable) {
			gauge(c.failure, 1, p.Name, f.Err.Code)
		}
	}
	names := []string{""} // of rules
	for _, r := range st.Config.Rules {
		names = append(names, r.Name)
	}
	for _, name := range names {
		r := c.g.stats.rules.get(name)
		for a, n := range r.answers.all() {
			count(c.requests, n.Load(), name, a.method, strconv.Itoa(a.status))
		}
		for status, n := range r.upstream.all() {
			count(c.upstream, n.Load(), name, strconv.Itoa(status))
		}
		count(c.sent, uint64(r.sent.Load()), name)
		count(c.received, uint64(r.received.Load()), name)
		ch <- r.seconds
	}
	for reason := range answers { // those at 0 too, lest an alert misses the first one
		count(c.refused, st.Refused[string(reason)], string(reason))
	}
	count(c.caRefusals, uint64(st.Untrusted))
	count(c.auditLost, st.AuditLost)
	gauge(c.connections, float64(st.Connections))
	gauge(c.inFlight, float64(st.InFlight))
	gauge(c.caExpiry, unix(c.g.CA().Certificate().NotAfter))
	gauge(c.reloadSuccess, oneIf(st.ReloadError == ""))
	tried := st.ReloadedAt
	if tried.IsZero() {
		tried = st.StartedAt
	}
	gauge(c.reloadTime, unix(tried))
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
