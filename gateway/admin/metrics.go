package admin

import (
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics serves a registry of our own: the gateway's numbers, and those of the
// Go runtime and the process.
func (a *api) metrics() http.HandlerFunc {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "dicomweb_oauth_build_info", Help: "Always 1; the version is a label.",
		ConstLabels: prometheus.Labels{"version": a.Version},
	})
	build.Set(1)
	registry := prometheus.NewRegistry()
	registry.MustRegister(a.Gateway.Collector(), build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(a.Log.Handler(), slog.LevelWarn), MaxRequestsInFlight: 4,
	}).ServeHTTP
}
