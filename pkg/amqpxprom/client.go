package amqpxprom

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"rabbitmq-rpc/pkg/amqpx"
)

var (
	_ amqpx.ClientObserver = (*ClientMetrics)(nil)
	_ prometheus.Collector = (*ClientMetrics)(nil)
	_ ClientSource         = (*amqpx.Client)(nil)
)

// DefaultMaxMethods is how many methods a client's metrics tell apart.
const DefaultMaxMethods = 100

// ClientSource is what [ClientMetrics.Watch] reads; an [amqpx.Client] is one.
type ClientSource interface {
	Stats() amqpx.ClientStats
	Status() amqpx.Status
}

// ClientMetrics is the observer and the collector of one client's metrics, all named
// amqpx_client_…; make one with [NewClientMetrics]. Safe for concurrent use.
type ClientMetrics struct {
	took    *prometheus.HistogramVec
	batches prometheus.Histogram
	methods *methods[*byCode[prometheus.Observer]]
	figures figures[amqpx.ClientStats]
	state   *prometheus.Desc
	source  atomic.Pointer[ClientSource]
}

// ClientOption changes a [ClientMetrics].
type ClientOption func(*clientConfig)

type clientConfig struct{ maxMethods int }

// WithMaxMethods sets how many methods are told apart; calls of all others are counted
// together, as those of method "other". The default is [DefaultMaxMethods], which less
// than 1 also means. Each method that is told apart makes up to 17 histograms, one for
// each code.
func WithMaxMethods(n int) ClientOption {
	return func(c *clientConfig) {
		if n < 1 {
			n = DefaultMaxMethods
		}
		c.maxMethods = n
	}
}

// NewClientMetrics returns the metrics of a client that calls the servers of queue. Give
// them to the client with [amqpx.WithClientObserver] and then the client to them with
// [ClientMetrics.Watch].
func NewClientMetrics(queue string, opts ...ClientOption) *ClientMetrics {
	cfg := clientConfig{maxMethods: DefaultMaxMethods}
	for _, o := range opts {
		o(&cfg)
	}
	took := prometheus.NewHistogramVec(histogram("amqpx_client_call_duration_seconds",
		"How long callers waited for the end of a call, over every re-send, by method and code.",
		queue, durations()), []string{"method", "code"})
	return &ClientMetrics{
		took: took,
		batches: prometheus.NewHistogram(histogram("amqpx_client_batch_size",
			"How many calls were in a batch that was sent.", queue, batchSizes())),
		methods: newMethods(cfg.maxMethods, func(method string) *byCode[prometheus.Observer] {
			return newByCode(func(code string) prometheus.Observer { return took.WithLabelValues(method, code) })
		}),
		figures: clientFigures(queue),
		state:   linkState("amqpx_client_link_state", queue),
	}
}

// Watch sets the client whose counters and link the metrics show; until then they show
// only what they were told as its observer. A second call replaces the client, and the
// counters begin where those of the new one stand.
func (m *ClientMetrics) Watch(client ClientSource) { m.source.Store(&client) }

// CallSettled implements [amqpx.ClientObserver].
func (m *ClientMetrics) CallSettled(method string, code amqpx.Code, took time.Duration) {
	m.methods.of(method).of(code).Observe(took.Seconds())
}

// BatchSent implements [amqpx.ClientObserver].
func (m *ClientMetrics) BatchSent(calls int) { m.batches.Observe(float64(calls)) }

// Describe implements [prometheus.Collector].
func (m *ClientMetrics) Describe(ch chan<- *prometheus.Desc) {
	m.took.Describe(ch)
	m.batches.Describe(ch)
	m.figures.describe(ch)
	ch <- m.state
}

// Collect implements [prometheus.Collector]. It asks the client, never the broker, so it
// returns at once whatever state the link is in.
func (m *ClientMetrics) Collect(ch chan<- prometheus.Metric) {
	m.took.Collect(ch)
	m.batches.Collect(ch)
	source := m.source.Load()
	if source == nil {
		return
	}
	stats := (*source).Stats()
	m.figures.collect(ch, &stats)
	collectState(ch, m.state, (*source).Status().State)
}
