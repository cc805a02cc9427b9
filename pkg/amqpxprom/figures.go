package amqpxprom

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"rabbitmq-rpc/pkg/amqpx"
)

// figure is a metric read from a snapshot S of counters at each scrape.
type figure[S any] struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(*S) float64
}

// figures holds the figures of one queue.
type figures[S any] struct {
	queue string
	all   []figure[S]
}

func (f *figures[S]) counter(name, help string, of func(*S) float64) {
	f.add(name, help, prometheus.CounterValue, of)
}

func (f *figures[S]) gauge(name, help string, of func(*S) float64) {
	f.add(name, help, prometheus.GaugeValue, of)
}

func (f *figures[S]) add(name, help string, kind prometheus.ValueType, of func(*S) float64) {
	f.all = append(f.all, figure[S]{prometheus.NewDesc(name, help, nil, queueLabel(f.queue)), kind, of})
}

// streams adds the figures of streams, whose names begin with prefix.
func (f *figures[S]) streams(prefix string, of func(*S) *amqpx.StreamStats) {
	f.gauge(prefix+"streams_open", "Streams that are open.",
		func(s *S) float64 { return float64(of(s).Open) })
	f.counter(prefix+"streams_opened_total", "Streams that were opened.",
		func(s *S) float64 { return float64(of(s).Opened) })
	f.counter(prefix+"stream_items_sent_total", "Items that were sent in streams.",
		func(s *S) float64 { return float64(of(s).ItemsSent) })
	f.counter(prefix+"stream_items_received_total", "Items of streams that the application took.",
		func(s *S) float64 { return float64(of(s).ItemsReceived) })
	f.counter(prefix+"stream_sent_bytes_total", "Bytes of the items that were sent.",
		func(s *S) float64 { return float64(of(s).BytesSent) })
	f.counter(prefix+"stream_received_bytes_total", "Bytes of the items that the application took.",
		func(s *S) float64 { return float64(of(s).BytesReceived) })
	f.counter(prefix+"stream_messages_sent_total", "Messages with frames of streams that were sent.",
		func(s *S) float64 { return float64(of(s).MessagesSent) })
	f.counter(prefix+"stream_late_frames_total", "Frames and messages that belong to no stream; they were dropped.",
		func(s *S) float64 { return float64(of(s).Late) })
	f.counter(prefix+"stream_send_wait_seconds_total", "How long sending waited for credit, all streams together.",
		func(s *S) float64 { return of(s).SendWait.Seconds() })
}

func (f *figures[S]) describe(ch chan<- *prometheus.Desc) {
	for _, one := range f.all {
		ch <- one.desc
	}
}

func (f *figures[S]) collect(ch chan<- prometheus.Metric, stats *S) {
	for _, one := range f.all {
		ch <- prometheus.MustNewConstMetric(one.desc, one.kind, one.of(stats))
	}
}

// linkState returns the description of the metric for the state of a connection.
func linkState(name, queue string) *prometheus.Desc {
	return prometheus.NewDesc(name, "State of the connection to the broker: 1 for the current state, 0 for the others.",
		[]string{"state"}, queueLabel(queue))
}

// certificateEnds returns the description of the metric for the ends of the certificates of a
// connection.
func certificateEnds(name, queue string) *prometheus.Desc {
	return prometheus.NewDesc(name, "When the certificates of the last connection with TLS end, in seconds since the epoch: "+
		"the earliest of those that the broker sent, and the own one. Absent without one.", []string{"side"}, queueLabel(queue))
}

func collectCertificates(ch chan<- prometheus.Metric, desc *prometheus.Desc, now amqpx.Status) {
	for side, end := range map[string]time.Time{"broker": now.BrokerCertificateEnd, "own": now.OwnCertificateEnd} {
		if !end.IsZero() {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(end.Unix()), side)
		}
	}
}

func collectState(ch chan<- prometheus.Metric, desc *prometheus.Desc, now amqpx.State) {
	for state := amqpx.StateConnecting; state <= amqpx.StateClosed; state++ {
		value := 0.0
		if state == now {
			value = 1
		}
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, state.String())
	}
}
