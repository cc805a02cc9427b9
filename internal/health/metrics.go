package health

import (
	"errors"
	"fmt"
	"net/http"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"rabbitmq-rpc/internal/version"
)

// mostScrapes is the maximum number of concurrent scrapes; further scrapes get status 503.
const mostScrapes = 8

// NewRegistry returns a registry with the metrics of every service, which are the build, the
// Go runtime and the process, and with more.
func NewRegistry(more ...prometheus.Collector) (*prometheus.Registry, error) {
	registry := prometheus.NewRegistry()
	var faults []error
	for _, c := range append([]prometheus.Collector{
		buildInfo(),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	}, more...) {
		faults = append(faults, registry.Register(c))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return registry, nil
}

// buildInfo returns a metric with the value 1 whose labels identify the build.
func buildInfo() prometheus.Collector {
	build := version.Of()
	built := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "rabbitmq_rpc_build_info",
		Help: "Which program this is; always 1. Unknown is what the build did not know.",
		ConstLabels: prometheus.Labels{
			"version": build.Version, "revision": build.Revision, "go_version": runtime.Version(),
		},
	})
	built.Set(1)
	return built
}

// metrics responds to GET /metrics. A metric that cannot be collected fails the whole scrape,
// so that the scraper reports the error.
func metrics(from prometheus.Gatherer, logger *zap.Logger) http.Handler {
	return promhttp.HandlerFor(from, promhttp.HandlerOpts{
		EnableOpenMetrics:   true,
		MaxRequestsInFlight: mostScrapes,
		ErrorLog:            scrapeLog{logger},
	})
}

// scrapeLog logs failed scrapes.
type scrapeLog struct{ logger *zap.Logger }

// Println implements [promhttp.Logger].
func (l scrapeLog) Println(v ...any) {
	l.logger.Warn("metrics could not be shown", zap.String("error", fmt.Sprint(v...)))
}
