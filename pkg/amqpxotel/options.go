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
