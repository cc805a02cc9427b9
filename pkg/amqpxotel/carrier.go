package amqpxotel

import (
	"context"
	"maps"
	"slices"

	"go.opentelemetry.io/otel/trace"

	"rabbitmq-rpc/pkg/amqpx"
)

// Names of the W3C headers; the first two belong together.
const (
	traceparent   = "traceparent"
	tracestate    = "tracestate"
	baggageHeader = "baggage"
)

// carrier lets a propagator read and write a request's headers. It implements
// [go.opentelemetry.io/otel/propagation.TextMapCarrier].
type carrier struct {
	header map[string]any // the request's own headers: never written
	copied map[string]any // the copy with the added headers; nil until the first change
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
	copied := c.copyHeader()
	switch {
	case key == tracestate:
		c.stated = true
	case key == traceparent && !c.stated:
		// The caller's tracestate belongs to another traceparent; Inject sets ours first.
		delete(copied, tracestate)
	}
	copied[key] = value
}

// copyHeader returns the copy, which it makes on the first call.
func (c *carrier) copyHeader() map[string]any {
	if c.copied == nil {
		const ours = 3 // traceparent, tracestate, baggage
		c.copied = make(map[string]any, len(c.header)+ours)
		maps.Copy(c.copied, c.header)
	}
	return c.copied
}

// Keys lists the headers.
func (c *carrier) Keys() []string { return slices.Collect(maps.Keys(c.header)) }

// carried describes the headers of a propagator.
type carried struct {
	// traces are the headers with the decision about a call. If there are none, each process
	// decides for itself, and a decision is neither sent nor followed.
	traces []string
	// onlyW3C is true if the propagator has trace context, and no headers but those of W3C.
	onlyW3C bool
}

// carries describes the headers of the propagator. The program may set the global propagator late,
// so a result without trace context is not kept.
func (t *tracing) carries() *carried {
	if kept := t.headers.Load(); kept != nil {
		return kept
	}
	c := &carried{onlyW3C: true}
	for _, name := range t.propagator.Fields() {
		switch name {
		case baggageHeader:
			continue
		case traceparent, tracestate:
		default:
			c.onlyW3C = false
		}
		c.traces = append(c.traces, name)
	}
	if len(c.traces) == 0 {
		c.onlyW3C = false
		return c
	}
	t.headers.Store(c)
	return c
}

// unsampledRequest is the copy of a request that is sent unsampled, in one allocation with its
// carrier.
type unsampledRequest struct {
	carrier

	req amqpx.Request
}

// injectUnsampled returns a copy of the request of a call that is not sampled and has no trace
// context: with the decision, with ctx's other context, such as baggage, and without trace context
// that the caller has set in the headers. span is the span in ctx.
func (t *tracing) injectUnsampled(ctx context.Context, span trace.Span, req *amqpx.Request) *amqpx.Request {
	if _, ours := span.(*unsampledSpan); ours {
		ctx = trace.ContextWithSpan(ctx, t.nothing) // otherwise ids would be made and sent
	}
	sent := &unsampledRequest{carrier: carrier{header: req.Header}, req: *req}
	t.propagator.Inject(ctx, &sent.carrier)
	fields := t.carries().traces
	for _, name := range fields {
		if _, set := req.Header[name]; set {
			delete(sent.copyHeader(), name)
		}
	}
	if sent.copied != nil {
		sent.req.Header = sent.copied
	}
	sent.req.Unsampled = len(fields) > 0 || req.Unsampled && !t.early // the client has set it early
	return &sent.req
}

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
