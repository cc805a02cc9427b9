package amqpxotel

import (
	"context"
	"maps"
	"slices"

	"rabbitmq-rpc/pkg/amqpx"
)

// Names of the W3C headers that belong together.
const (
	traceparent = "traceparent"
	tracestate  = "tracestate"
)

// carrier lets a propagator read and write a request's headers. It implements
// [go.opentelemetry.io/otel/propagation.TextMapCarrier].
type carrier struct {
	header map[string]any // the request's own headers: never written
	copied map[string]any // the copy with the added headers; nil until the first Set
	stated bool           // tracestate was set
}

// Get returns a header. A header that is not text counts as missing, because programs in other
// languages may send any type.
func (c *carrier) Get(key string) string {
	header := c.header
	if c.copied != nil {
		header = c.copied
	}
	switch v := header[key].(type) {
	case string:
		return v
	case []byte: // some AMQP clients send text as bytes
		return string(v)
	default:
		return ""
	}
}

// Set sets a header in the copy.
func (c *carrier) Set(key, value string) {
	if c.copied == nil {
		const ours = 3 // traceparent, tracestate, baggage
		c.copied = make(map[string]any, len(c.header)+ours)
		maps.Copy(c.copied, c.header)
	}
	switch {
	case key == tracestate:
		c.stated = true
	case key == traceparent && !c.stated:
		// The caller's tracestate belongs to another traceparent; Inject sets ours first.
		delete(c.copied, tracestate)
	}
	c.copied[key] = value
}

// Keys lists the headers.
func (c *carrier) Keys() []string { return slices.Collect(maps.Keys(c.header)) }

// inject returns the request with ctx's trace context in the headers. The result is a copy,
// because a request must not be changed, or req itself if there is no context to propagate.
func (t *tracing) inject(ctx context.Context, req *amqpx.Request) *amqpx.Request {
	c := &carrier{header: req.Header}
	t.propagator.Inject(ctx, c)
	if c.copied == nil {
		return req
	}
	sent := *req
	sent.Header = c.copied
	return &sent
}

// extract returns ctx with the trace context of the request's headers.
func (t *tracing) extract(ctx context.Context, req *amqpx.Request) context.Context {
	if len(req.Header) == 0 {
		return ctx
	}
	return t.propagator.Extract(ctx, &carrier{header: req.Header})
}
