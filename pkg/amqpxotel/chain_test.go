package amqpxotel

import (
	"context"
	"maps"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"rabbitmq-rpc/pkg/amqpx"
)

// recorder collects the spans of a test.
type recorder struct {
	t        *testing.T
	exporter *tracetest.InMemoryExporter
	options  []Option
}

func record(t *testing.T, opts ...sdktrace.TracerProviderOption) *recorder {
	t.Helper()
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(append(opts, sdktrace.WithSyncer(exporter))...)
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	return &recorder{t: t, exporter: exporter, options: []Option{WithTracerProvider(provider), WithPropagator(w3c())}}
}

func w3c() propagation.TextMapPropagator {
	return propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
}

// only returns the single span that ended.
func (r *recorder) only() tracetest.SpanStub {
	r.t.Helper()
	spans := r.exporter.GetSpans()
	if len(spans) != 1 {
		r.t.Fatalf("%d spans, want 1: %+v", len(spans), spans)
	}
	return spans[0]
}

// attributes returns a span's attributes by name.
func attributes(s tracetest.SpanStub) map[attribute.Key]any {
	found := make(map[attribute.Key]any)
	for _, kv := range s.Attributes {
		found[kv.Key] = kv.Value.AsInterface()
	}
	return found
}

// expect compares all of a span's attributes.
func expect(t *testing.T, s tracetest.SpanStub, want map[attribute.Key]any) {
	t.Helper()
	if got := attributes(s); !maps.Equal(got, want) {
		for k, v := range got {
			if want[k] != v {
				t.Errorf("%s is %v (%T), want %v", k, v, v, want[k])
			}
		}
		for k, v := range want {
			if _, ok := got[k]; !ok {
				t.Errorf("%s is missing, want %v", k, v)
			}
		}
	}
}

// answering returns a handler that returns response and err.
func answering(response []byte, err error) amqpx.Handler {
	return func(context.Context, *amqpx.Request) ([]byte, error) { return response, err }
}
