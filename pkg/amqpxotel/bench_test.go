package amqpxotel

import (
	"context"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"rabbitmq-rpc/pkg/amqpx"
)

// dropped is an exporter that discards spans.
type dropped struct{}

func (dropped) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return nil }
func (dropped) Shutdown(context.Context) error                             { return nil }

// BenchmarkCall measures the cost of tracing a call, by side and by sampling.
func BenchmarkCall(b *testing.B) {
	sampled := func(s sdktrace.Sampler) []Option {
		p := sdktrace.NewTracerProvider(sdktrace.WithSampler(s), sdktrace.WithSyncer(dropped{}))
		b.Cleanup(func() { _ = p.Shutdown(context.Background()) })
		return []Option{WithTracerProvider(p), WithPropagator(w3c())}
	}
	drawn := func(ratio float64) []Option {
		return append(sampled(sdktrace.ParentBased(sdktrace.AlwaysSample())), WithSampleRatio(ratio))
	}
	for name, options := range map[string][]Option{
		"not drawn": drawn(0),
		"drawn":     drawn(1),
		"off":       nil, // the global provider and propagator, both unset
		"unsampled": sampled(sdktrace.NeverSample()),
		"sampled":   sampled(sdktrace.AlwaysSample()),
	} {
		for side, h := range map[string]amqpx.Handler{
			"client": Client(options...)(answering(nil, nil)),
			"server": Server(options...)(answering(nil, nil)),
		} {
			b.Run(name+"/"+side, func(b *testing.B) {
				req := &amqpx.Request{Method: "greet", Body: []byte("world"), CorrelationID: "3b241101-e2bb-4255-8caf-4136c566a962"}
				switch {
				case side == "client":
				case name == "not drawn":
					req.Unsampled = true
				case name != "off":
					req.Header = map[string]any{traceparent: aParent}
				}
				b.ReportAllocs()
				for b.Loop() {
					_, _ = h(b.Context(), req)
				}
			})
		}
	}
}
