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
	// common is what all spans have.
	common []attribute.KeyValue
}

func newConfig(opts []Option) *config {
	c := &config{}
	for _, o := range opts {
		o(c)
	}
	// These two follow what the program sets later.
	if c.provider == nil {
		c.provider = otel.GetTracerProvider()
	}
	if c.propagator == nil {
		c.propagator = otel.GetTextMapPropagator()
	}
	return c
}

// WithTracerProvider sets where spans go. The default, and nil, is OpenTelemetry's global
// provider, which drops them until the program sets another.
func WithTracerProvider(p trace.TracerProvider) Option {
	return func(c *config) { c.provider = p }
}

// WithPropagator sets how trace context travels. The default, and nil, is OpenTelemetry's
// global propagator, which hands nothing on until the program sets another; ordinarily
// that is [propagation.TraceContext] together with [propagation.Baggage]. A propagator
// that writes header names beginning with "rpc-" makes calls fail: they are reserved.
func WithPropagator(p propagation.TextMapPropagator) Option {
	return func(c *config) { c.propagator = p }
}

// WithQueue names the request queue in the attribute messaging.destination.name; the
// default is not to. The queue that a batch, or a request that is tried again, takes has
// another name, but it is the same destination to the caller.
func WithQueue(name string) Option {
	return func(c *config) {
		if name != "" {
			c.common = append(c.common, semconv.MessagingDestinationName(text(name)))
		}
	}
}

// WithBrokerURL names the broker in the attributes server.address and server.port; the
// default is not to. The URL is the one that the client or server is made with. Nothing
// else of it is kept. If it lists several brokers, or is none, spans name no broker.
func WithBrokerURL(broker string) Option {
	return func(c *config) {
		if list, err := amqpx.ParseURLs(broker); err == nil && len(list) == 1 {
			c.common = append(c.common, semconv.ServerAddress(text(list[0].Host())), semconv.ServerPort(list[0].Port()))
		}
	}
}
