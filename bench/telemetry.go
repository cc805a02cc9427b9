package main

import (
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxotel"
	"rabbitmq-rpc/pkg/amqpxprom"
)

// telemetry configures the telemetry of a contender: Prometheus metrics, and spans for a
// sampled share of calls. The spans are batched for an exporter that drops them. The zero
// value means no telemetry.
type telemetry struct {
	metrics bool
	sampled float64
}

// sampledShare is a sampling rate that suits a busy service.
const sampledShare = 0.01

func (o telemetry) settings() string {
	var text string
	if o.metrics {
		text = ", Prometheus metrics"
	}
	if o.sampled > 0 {
		text += fmt.Sprintf(", %g %% of the calls traced", 100*o.sampled)
	}
	return text
}

// ofServer returns the server's options with the telemetry added, and a function to call with
// the new server.
func (o telemetry) ofServer(opts []amqpx.ServerOption) (watch func(*amqpx.Server), all []amqpx.ServerOption) {
	if o.sampled > 0 {
		opts = append(opts, amqpx.WithMiddleware(amqpxotel.Server(amqpxotel.WithTracerProvider(o.tracer()))))
	}
	if !o.metrics {
		return func(*amqpx.Server) {}, opts
	}
	m := amqpxprom.NewServerMetrics("bench")
	return func(s *amqpx.Server) {
		m.Watch(s)
		prometheus.NewRegistry().MustRegister(m)
	}, append(opts, amqpx.WithServerObserver(m))
}

// ofClient returns the client's options with the telemetry added, and a function to call with
// the new client.
func (o telemetry) ofClient(opts []amqpx.ClientOption) (watch func(*amqpx.Client), all []amqpx.ClientOption) {
	if o.sampled > 0 {
		opts = append(opts, amqpx.WithMiddleware(amqpxotel.Client(amqpxotel.WithTracerProvider(o.tracer()))))
	}
	if !o.metrics {
		return func(*amqpx.Client) {}, opts
	}
	m := amqpxprom.NewClientMetrics("bench")
	return func(c *amqpx.Client) {
		m.Watch(c)
		prometheus.NewRegistry().MustRegister(m)
	}, append(opts, amqpx.WithClientObserver(m))
}

func (o telemetry) tracer() *trace.TracerProvider {
	return trace.NewTracerProvider(trace.WithBatcher(tracetest.NewNoopExporter()),
		trace.WithSampler(trace.ParentBased(trace.TraceIDRatioBased(o.sampled))))
}

// telemetryContenders returns the contenders of the telemetry experiment.
func telemetryContenders() []string {
	return []string{single, singleMetrics, singleSampled, singleTraced, batched, batchedMetrics, batchedSampled, batchedTraced}
}

// telemetryExperiment compares amqpx with and without telemetry.
func telemetryExperiment(o options) experiment {
	e := tableExperiment(o)
	e.title = "The cost of telemetry"
	e.note = fmt.Sprintf("Closed loop. Metrics are Prometheus's, on both sides. Of the calls %g %% are traced, or all, on both sides; spans are dropped instead of exported.", 100*sampledShare)
	e.loads = closedLoads(o, []int{64, heavyCallers})
	e.render = (*section).telemetryCosts
	return e
}

// telemetryCosts renders the throughput relative to the same contender without telemetry.
func (s *section) telemetryCosts() string {
	var b strings.Builder
	for _, l := range s.loads {
		fmt.Fprintf(&b, "\n### %s\n", l.label)
		var rows [][]string
		against := single
		for _, e := range s.lineup {
			if e.contender == batched {
				against = batched
			}
			cells := s.cells(e.label, l.label, nil)
			ratio := s.ratio(cell{e.label, l.label}, cell{against, l.label}, rate).format("%.2f")
			rows = append(rows, append([]string{cells[0], cells[1], ratio}, cells[2:]...))
		}
		table(&b, []string{"contender", "calls/s", "× without", "p50 ms", "p99 ms", s.headOfCPU(), "allocs/call client + server"}, rows)
	}
	return b.String()
}
