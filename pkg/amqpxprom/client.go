package amqpxprom

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"rabbitmq-rpc/pkg/amqpx"
)

var (
	_ amqpx.ClientObserver = (*ClientMetrics)(nil)
	_ amqpx.StreamObserver = (*ClientMetrics)(nil)
	_ prometheus.Collector = (*ClientMetrics)(nil)
	_ ClientSource         = (*amqpx.Client)(nil)
)

// ClientSource provides the statistics for [ClientMetrics.Watch]. An [amqpx.Client] is a
// ClientSource.
type ClientSource interface {
	Stats() amqpx.ClientStats
	Status() amqpx.Status
}

// ClientMetrics is the observer and the Prometheus collector of one client. All metric names
// begin with amqpx_client_. Create a ClientMetrics with [NewClientMetrics]. Safe for
// concurrent use.
type ClientMetrics struct {
	took    *prometheus.HistogramVec
	streams *prometheus.HistogramVec
	batches prometheus.Histogram
	methods *methods[*byCode[prometheus.Observer]]
	opened  *methods[*byCode[prometheus.Observer]] // of streams
	figures figures[amqpx.ClientStats]
	state   *prometheus.Desc
	ends    *prometheus.Desc
	source  atomic.Pointer[ClientSource]
}

// NewClientMetrics returns the metrics of a client of the servers of queue. Pass the metrics
// to the client with [amqpx.WithClientObserver], and then the client to [ClientMetrics.Watch].
func NewClientMetrics(queue string, opts ...ClientOption) *ClientMetrics {
	cfg := config{maxMethods: DefaultMaxMethods}
	for _, o := range opts {
		o.ofClient(&cfg)
	}
	took := prometheus.NewHistogramVec(cfg.histogram("amqpx_client_call_duration_seconds",
		"How long callers waited for the end of a call, over every re-send, by method and code.",
		queue, durations()), []string{"method", "code"})
	streams := prometheus.NewHistogramVec(cfg.histogram("amqpx_client_stream_duration_seconds",
		"How long streams were open, by method and code.", queue, streamDurations()), []string{"method", "code"})
	return &ClientMetrics{
		took:    took,
		streams: streams,
		batches: prometheus.NewHistogram(cfg.histogram("amqpx_client_batch_size",
			"How many calls were in a batch that was sent.", queue, batchSizes())),
		methods: newMethods(cfg.maxMethods, func(method string) *byCode[prometheus.Observer] {
			return newByCode(func(code string) prometheus.Observer { return took.WithLabelValues(method, code) })
		}),
		opened: newMethods(cfg.maxMethods, func(method string) *byCode[prometheus.Observer] {
			return newByCode(func(code string) prometheus.Observer { return streams.WithLabelValues(method, code) })
		}),
		figures: clientFigures(queue),
		state:   linkState("amqpx_client_connection_state", queue),
		ends:    certificateEnds("amqpx_client_certificate_not_after_seconds", queue),
	}
}

// Watch sets the source of the counters, the connection state and the ends of certificates. Before the first call of
// Watch, only the metrics from the observer are shown. A further call replaces the client; the
// counters then show the values of the new client.
func (m *ClientMetrics) Watch(client ClientSource) { m.source.Store(&client) }

// CallSettled implements [amqpx.ClientObserver].
func (m *ClientMetrics) CallSettled(method string, code amqpx.Code, took time.Duration) {
	m.methods.of(method).of(code).Observe(took.Seconds())
}

// StreamEnded implements [amqpx.StreamObserver].
func (m *ClientMetrics) StreamEnded(method string, code amqpx.Code, took time.Duration, _ amqpx.Progress) {
	m.opened.of(method).of(code).Observe(took.Seconds())
}

// BatchSent implements [amqpx.ClientObserver].
func (m *ClientMetrics) BatchSent(calls int) { m.batches.Observe(float64(calls)) }

// Describe implements [prometheus.Collector].
func (m *ClientMetrics) Describe(ch chan<- *prometheus.Desc) {
	m.took.Describe(ch)
	m.streams.Describe(ch)
	m.batches.Describe(ch)
	m.figures.describe(ch)
	ch <- m.state
	ch <- m.ends
}

// Collect implements [prometheus.Collector]. Collect queries the client and never the broker,
// and so returns at once in every state of the connection.
func (m *ClientMetrics) Collect(ch chan<- prometheus.Metric) {
	m.took.Collect(ch)
	m.streams.Collect(ch)
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
