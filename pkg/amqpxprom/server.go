package amqpxprom

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"rabbitmq-rpc/pkg/amqpx"
)

var (
	_ amqpx.ServerObserver = (*ServerMetrics)(nil)
	_ amqpx.StreamObserver = (*ServerMetrics)(nil)
	_ prometheus.Collector = (*ServerMetrics)(nil)
	_ ServerSource         = (*amqpx.Server)(nil)
)

// ServerSource provides the statistics for [ServerMetrics.Watch]. An [amqpx.Server] is a
// ServerSource.
type ServerSource interface {
	Stats() amqpx.ServerStats
	Status() amqpx.Status
}

// ServerMetrics is the observer and the Prometheus collector of one server. All metric names
// begin with amqpx_server_. Create a ServerMetrics with [NewServerMetrics]. Safe for
// concurrent use.
type ServerMetrics struct {
	took    *prometheus.HistogramVec
	queued  *prometheus.HistogramVec
	streams *prometheus.HistogramVec
	refused *prometheus.CounterVec
	batches prometheus.Histogram

	ran      *methods[handled]
	opened   *methods[*byCode[prometheus.Observer]] // of streams
	refusals *methods[*byCode[prometheus.Counter]]

	figures figures[amqpx.ServerStats]
	state   *prometheus.Desc
	ends    *prometheus.Desc
	source  atomic.Pointer[ServerSource]
}

// handled holds the series of a method whose handler ran.
type handled struct {
	queued prometheus.Observer
	took   *byCode[prometheus.Observer]
}

// NewServerMetrics returns the metrics of a server of queue. Pass the metrics to the server
// with [amqpx.WithServerObserver], and then the server to [ServerMetrics.Watch].
func NewServerMetrics(queue string, opts ...ServerOption) *ServerMetrics {
	var cfg config
	for _, o := range opts {
		o.ofServer(&cfg)
	}
	m := &ServerMetrics{
		took: prometheus.NewHistogramVec(cfg.histogram("amqpx_server_handler_duration_seconds",
			"How long handlers ran, by method and code.", queue, durations()), []string{"method", "code"}),
		queued: prometheus.NewHistogramVec(cfg.histogram("amqpx_server_queue_wait_seconds",
			"How long requests waited in the server for a worker, by method.", queue, durations()), []string{"method"}),
		streams: prometheus.NewHistogramVec(cfg.histogram("amqpx_server_stream_duration_seconds",
			"How long streams were open, by method and code.", queue, streamDurations()), []string{"method", "code"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name:        "amqpx_server_refused_requests_total",
			Help:        "Requests, and openings of streams, that were refused and not run, by method and code.",
			ConstLabels: queueLabel(queue),
		}, []string{"method", "code"}),
		batches: prometheus.NewHistogram(cfg.histogram("amqpx_server_batch_size",
			"How many calls were in a batch that came.", queue, batchSizes())),
		figures: serverFigures(queue),
		state:   linkState("amqpx_server_connection_state", queue),
		ends:    certificateEnds("amqpx_server_certificate_not_after_seconds", queue),
	}
	// No limit: only registered methods run.
	m.ran = newMethods(0, func(method string) handled {
		return handled{m.queued.WithLabelValues(method), newByCode(func(code string) prometheus.Observer {
			return m.took.WithLabelValues(method, code)
		})}
	})
	m.opened = newMethods(0, func(method string) *byCode[prometheus.Observer] {
		return newByCode(func(code string) prometheus.Observer { return m.streams.WithLabelValues(method, code) })
	})
	m.refusals = newMethods(0, func(method string) *byCode[prometheus.Counter] {
		if method == "" {
			method = labelUnknown
		}
		return newByCode(func(code string) prometheus.Counter { return m.refused.WithLabelValues(method, code) })
	})
	return m
}

// Watch sets the source of the counters, the connection state and the ends of certificates. Before the first call of
// Watch, only the metrics from the observer are shown. A further call replaces the server; the
// counters then show the values of the new server.
func (m *ServerMetrics) Watch(server ServerSource) { m.source.Store(&server) }

// HandlerEnded implements [amqpx.ServerObserver].
func (m *ServerMetrics) HandlerEnded(method string, code amqpx.Code, queued, took time.Duration) {
	series := m.ran.of(method)
	series.took.of(code).Observe(took.Seconds())
	series.queued.Observe(queued.Seconds())
}

// StreamEnded implements [amqpx.StreamObserver].
func (m *ServerMetrics) StreamEnded(method string, code amqpx.Code, took time.Duration, _ amqpx.Progress) {
	m.opened.of(method).of(code).Observe(took.Seconds())
}

// RequestRefused implements [amqpx.ServerObserver].
func (m *ServerMetrics) RequestRefused(method string, code amqpx.Code) {
	m.refusals.of(method).of(code).Inc()
}

// BatchReceived implements [amqpx.ServerObserver].
func (m *ServerMetrics) BatchReceived(calls int) { m.batches.Observe(float64(calls)) }

// Describe implements [prometheus.Collector].
func (m *ServerMetrics) Describe(ch chan<- *prometheus.Desc) {
	m.took.Describe(ch)
	m.queued.Describe(ch)
	m.streams.Describe(ch)
	m.refused.Describe(ch)
	m.batches.Describe(ch)
	m.figures.describe(ch)
	ch <- m.state
	ch <- m.ends
}

// Collect implements [prometheus.Collector]. Collect queries the server and never the broker,
// and so returns at once in every state of the connection.
func (m *ServerMetrics) Collect(ch chan<- prometheus.Metric) {
	m.took.Collect(ch)
	m.queued.Collect(ch)
	m.streams.Collect(ch)
	m.refused.Collect(ch)
	m.batches.Collect(ch)
	source := m.source.Load()
	if source == nil {
		return
	}
	stats := (*source).Stats()
	m.figures.collect(ch, &stats)
	status := (*source).Status()
	collectState(ch, m.state, status.State)
	collectCertificates(ch, m.ends, status)
}
