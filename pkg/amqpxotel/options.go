package amqpxotel

import (
	"net/url"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
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
		if host, port, ok := endpoint(strings.Trim(broker, ", ")); ok {
			c.common = append(c.common, semconv.ServerAddress(text(host)), semconv.ServerPort(port))
		}
	}
}

// endpoint returns a broker's host and port.
func endpoint(broker string) (host string, port int, ok bool) {
	const plain, secure = 5672, 5671
	u, err := url.Parse(broker)
	if err != nil || u.Hostname() == "" || strings.Contains(broker, ",") {
		return "", 0, false
	}
	port = plain
	if u.Scheme == "amqps" {
		port = secure
	}
	if p := u.Port(); p != "" {
		port, err = strconv.Atoi(p)
	}
	return u.Hostname(), port, err == nil
}
