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
