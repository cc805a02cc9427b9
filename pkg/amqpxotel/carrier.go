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

// carrier lets a propagator read and write a request's headers. It is a
// [go.opentelemetry.io/otel/propagation.TextMapCarrier].
type carrier struct {
	header map[string]any // the request's own: never written
	copied map[string]any // with what was set; nil as long as nothing was
	stated bool           // tracestate was set
}

// Get returns a header. One that is no text counts as missing: programs in other
// languages may put anything there.
func (c *carrier) Get(key string) string {
	header := c.header
	if c.copied != nil {
		header = c.copied
	}
	switch v := header[key].(type) {
	case string:
		return v
	case []byte: // text as well, to some AMQP clients
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
		// One that the caller put there belongs to another traceparent; ours comes first.
		delete(c.copied, tracestate)
	}
	c.copied[key] = value
}

// Keys lists the headers.
func (c *carrier) Keys() []string { return slices.Collect(maps.Keys(c.header)) }

// inject returns the request with ctx's trace context in its headers. A request must not
// be changed, so that is a copy, unless there is nothing to hand on.
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
