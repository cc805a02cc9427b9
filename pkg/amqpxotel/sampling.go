package amqpxotel

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/trace"
)

// decision is the decision about a call before a span is started.
type decision uint8

const (
	decidedSampled   decision = iota // the call gets a span
	decidedUnsampled                 // the call is not traced, and has no trace context
	decidedByParent                  // the call is not traced, and has the trace context of its parent
)

// drawn decides about a call without a parent.
func (t *tracing) drawn() bool { return t.draw() < t.ratio }

// decide decides about a call whose context has this span. marked means that the caller has decided
// not to trace the call. A parent with trace context takes precedence over the mark.
func (t *tracing) decide(parent trace.Span, marked bool) decision {
	if _, ours := parent.(*unsampledSpan); ours {
		return decidedUnsampled
	}
	switch sc := parent.SpanContext(); {
	case sc.IsSampled() && sc.IsValid():
		return decidedSampled
	case sc.IsValid():
		return decidedByParent
	case marked, !t.early && !t.drawn():
		return decidedUnsampled
	default:
		return decidedSampled
	}
}

// decideEarly decides about a client's call before the middleware. skip is true if there is nothing
// to send but the decision: no baggage, and nothing else that a propagator may add.
func (t *tracing) decideEarly(ctx context.Context) (unsampled, skip bool) {
	parent := trace.SpanFromContext(ctx)
	if _, ours := parent.(*unsampledSpan); !ours && (parent.SpanContext().IsValid() || t.drawn()) {
		return false, false
	}
	return true, t.carries().onlyW3C && baggage.FromContext(ctx).Len() == 0
}

// unsampledSpan is the span in the context of a handler whose request is not sampled and has no
// trace context. Spans that the handler starts become children of the unsampledSpan, so a sampler
// that follows the parent does not sample these spans. Safe for concurrent use.
type unsampledSpan struct {
	trace.Span // does nothing

	of     *tracing
	remote bool // it stands for the span of the caller
	// made is nil until the first call of SpanContext: making ids costs more than the rest of a
	// call that is not sampled.
	made atomic.Pointer[trace.SpanContext]
}

// unsampledContext is a context with an unsampledSpan, in one allocation.
type unsampledContext struct {
	context.Context //nolint:containedctx // this is a context.

	span unsampledSpan
}

// Value implements context.Context.
func (c *unsampledContext) Value(key any) any {
	if key == c.span.of.spanKey {
		return &c.span
	}
	return c.Context.Value(key)
}

// keyRecorder is a context that records the keys that are looked up.
type keyRecorder struct {
	context.Context //nolint:containedctx // this is a context.

	keys []any
}

// Value implements context.Context.
func (r *keyRecorder) Value(key any) any {
	r.keys = append(r.keys, key)
	return nil
}

// findSpanKey asks OpenTelemetry for the span of a context, and returns the key that it looks up; nil
// if it looks up no single key.
func findSpanKey() any {
	r := keyRecorder{Context: context.Background()} //nolint:forbidigo // nothing runs with this context.
	trace.SpanFromContext(&r)
	if len(r.keys) != 1 {
		return nil
	}
	return r.keys[0]
}

// unsampled returns ctx with an unsampledSpan.
func (t *tracing) unsampled(ctx context.Context, remote bool) context.Context {
	c := &unsampledContext{Context: ctx, span: unsampledSpan{Span: t.nothing, of: t, remote: remote}}
	if t.spanKey == nil {
		return trace.ContextWithSpan(ctx, &c.span)
	}
	return c
}

// SpanContext returns a valid span context that is not sampled, always the same.
func (s *unsampledSpan) SpanContext() trace.SpanContext {
	if made := s.made.Load(); made != nil {
		return *made
	}
	var c trace.SpanContextConfig
	putRandom(c.TraceID[:8])
	putRandom(c.TraceID[8:])
	putRandom(c.SpanID[:])
	c.Remote = s.remote
	made := trace.NewSpanContext(c)
	s.made.CompareAndSwap(nil, &made)
	return *s.made.Load()
}

// putRandom sets eight bytes of an id at random; an id of zeros would not be valid.
func putRandom(id []byte) {
	binary.NativeEndian.PutUint64(id, rand.Uint64()|1) //nolint:gosec // as with the ids of the SDK, an id guards nothing.
}

// TracerProvider returns the provider of the tracing, as other spans of its tracer do.
func (s *unsampledSpan) TracerProvider() trace.TracerProvider { return s.of.provider }

// Unsampled reports whether ctx belongs to a call that [WithSampleRatio] has not drawn, in this
// process or at the caller. The ids of the span context then name no trace, and reading the ids
// costs time, so a log leaves the ids out. The result is false for a call whose caller sent trace
// context, because the trace id may be in logs and traces of other processes, and for a context with
// another span.
func Unsampled(ctx context.Context) bool {
	_, ours := trace.SpanFromContext(ctx).(*unsampledSpan)
	return ours
}
