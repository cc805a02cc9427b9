package amqpxotel

import (
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"rabbitmq-rpc/pkg/amqpx"
)

// Option configures [Client] and [Server].
type Option func(*config)

type config struct {
	provider   trace.TracerProvider
	propagator propagation.TextMapPropagator
	ratio      float64
	draws      bool // ratio is set
	// common holds the attributes of all spans.
	common []attribute.KeyValue
}

func newConfig(opts []Option) *config {
	c := &config{}
	for _, o := range opts {
		o(c)
	}
	// Both globals delegate to the provider and the propagator that the program sets later.
	if c.provider == nil {
		c.provider = otel.GetTracerProvider()
	}
	if c.propagator == nil {
		c.propagator = otel.GetTextMapPropagator()
	}
	return c
}

// WithTracerProvider sets the provider of the tracer. The default, also for nil, is
// OpenTelemetry's global provider, which drops spans until the program sets another provider.
func WithTracerProvider(p trace.TracerProvider) Option {
	return func(c *config) { c.provider = p }
}

// WithPropagator sets the propagator of trace context. The default, also for nil, is
// OpenTelemetry's global propagator, which propagates nothing until the program sets another
// propagator; ordinarily [propagation.TraceContext] together with [propagation.Baggage]. A
// propagator that writes header names beginning with "rpc-" makes calls fail, because these
// names are reserved.
func WithPropagator(p propagation.TextMapPropagator) Option {
	return func(c *config) { c.propagator = p }
}

// WithSampleRatio makes the middleware decide, before it starts a span, which calls are traced: of
// the calls without a parent, the ratio, drawn at random. A call with a parent follows its parent,
// as with the SDK's ParentBased sampler. A ratio of 0 or less traces no call without a parent, and a
// ratio of 1 or more traces all. The sampler of the provider must then be
// ParentBased(AlwaysSample()): it sees only calls that are to be traced, and its own ratio would
// count a second time.
//
// A call that is not drawn costs hardly any time and has neither a span nor ids. The client sends
// only [amqpx.Request.Unsampled] with it, so that servers and the calls of their handlers follow
// the decision. The context of its handler has a span context that is not sampled, whose ids are
// made when they are first read; see [Unsampled].
//
// Without this option the sampler of the provider decides about every call.
func WithSampleRatio(ratio float64) Option {
	return func(c *config) { c.ratio, c.draws = ratio, true }
}

// WithQueue sets the attribute messaging.destination.name to the name of the request queue. By
// default the attribute is absent. Batches and redelivered requests use queues with other
// names, but for the caller the destination is the same.
func WithQueue(name string) Option {
	return func(c *config) {
		if name != "" {
			c.common = append(c.common, semconv.MessagingDestinationName(text(name)))
		}
	}
}

// WithBrokerURL sets the attributes server.address and server.port from the URL of the client
// or server. By default both are absent. No other part of the URL is kept. If the URL lists
// several brokers, or is invalid, both attributes are absent.
func WithBrokerURL(broker string) Option {
	return func(c *config) {
		if list, err := amqpx.ParseURLs(broker); err == nil && len(list) == 1 {
			c.common = append(c.common, semconv.ServerAddress(text(list[0].Host())), semconv.ServerPort(list[0].Port()))
		}
	}
}
