package amqpxotel

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// scope is the name of the instrumentation scope.
const scope = "rabbitmq-rpc/pkg/amqpxotel"

// tracing starts the spans of a client or a server.
type tracing struct {
	provider   trace.TracerProvider
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
	kind       trace.SpanKind
	common     []attribute.KeyValue

	ratio float64
	draws bool           // the ratio decides about calls without a parent, before the sampler
	early bool           // decideEarly has drawn before the middleware
	draw  func() float64 // returns a random number from 0 to 1, exclusive

	nothing trace.Span // a span without ids that does nothing
	spanKey any        // the key of the span in a context; nil if it is not known

	// headers caches the result of carries, unless it has no trace context.
	headers atomic.Pointer[carried]

	// starts caches the start options by method, because creating the options costs more than
	// the rest of a call that is not sampled.
	starts sync.Map // method to *start
	kept   atomic.Int64
}

// mostStarts limits the size of the cache. Clients may call methods of any name.
const mostStarts = 1024

// start holds the name and the start options of a method's spans.
type start struct {
	name    string
	options []trace.SpanStartOption
}

func newTracing(kind trace.SpanKind, opts []Option, operation ...attribute.KeyValue) *tracing {
	c := newConfig(opts)
	common := slices.Concat(c.common, operation,
		[]attribute.KeyValue{semconv.RPCSystemNameKey.String("amqpx"), semconv.MessagingSystemRabbitMQ})
	return &tracing{
		provider:   c.provider,
		tracer:     c.provider.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)),
		propagator: c.propagator,
		kind:       kind,
		common:     common,
		ratio:      c.ratio,
		draws:      c.draws,
		nothing:    noop.Span{},
		spanKey:    findSpanKey(),
		draw:       rand.Float64,
	}
}

// start starts a span of a method.
func (t *tracing) start(ctx context.Context, method string) (context.Context, trace.Span) {
	s := t.startOf(method)
	return t.tracer.Start(ctx, s.name, s.options...)
}

func (t *tracing) startOf(method string) *start {
	if kept, ok := t.starts.Load(method); ok {
		return kept.(*start) //nolint:errcheck,forcetypeassert // nothing else is stored.
	}
	name := text(method)
	s := &start{name: name, options: []trace.SpanStartOption{
		trace.WithSpanKind(t.kind),
		trace.WithAttributes(append(slices.Clone(t.common), semconv.RPCMethod(name))...),
	}}
	if t.kept.Load() < mostStarts {
		if _, known := t.starts.LoadOrStore(strings.Clone(method), s); !known {
			t.kept.Add(1)
		}
	}
	return s
}

// mostText is the maximum length in bytes of a text in a span.
const mostText = 256

// text makes s valid for a span. An exporter drops a whole export if a single text is not
// valid UTF-8, and callers may send any bytes as ids.
func text(s string) string {
	if len(s) > mostText {
		cut := mostText
		for cut > 0 && !utf8.RuneStart(s[cut]) { // not in the middle of a character
			cut--
		}
		s = s[:cut] + "…"
	}
	return strings.ToValidUTF8(s, string(utf8.RuneError))
}
