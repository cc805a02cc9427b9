package contender

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/propagation"
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

// SampledShare is a sampling rate that suits a busy service.
const SampledShare = 0.01

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
		opts = append(opts, amqpx.WithMiddleware(amqpxotel.Server(o.tracing()...)))
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
		opts = append(opts, amqpxotel.TraceClient(o.tracing()...))
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

// tracing returns the options of the middleware, which are those of the services.
func (o telemetry) tracing() []amqpxotel.Option {
	provider := trace.NewTracerProvider(trace.WithBatcher(tracetest.NewNoopExporter()),
		trace.WithSampler(trace.ParentBased(trace.AlwaysSample())))
	return []amqpxotel.Option{
		amqpxotel.WithTracerProvider(provider),
		amqpxotel.WithPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})),
		amqpxotel.WithSampleRatio(o.sampled),
	}
}
