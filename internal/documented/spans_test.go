package documented

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxotel"
)

// attributes returns the names of all attributes of client and server spans.
func attributes(t *testing.T) map[string]bool {
	t.Helper()
	spans := tracetest.NewInMemoryExporter()
	options := []amqpxotel.Option{
		amqpxotel.WithTracerProvider(trace.NewTracerProvider(trace.WithSyncer(spans))),
		amqpxotel.WithQueue("q"), amqpxotel.WithBrokerURL("amqp://broker.test:5672/"),
	}
	req := &amqpx.Request{
		Method: "m", CorrelationID: "id", IdempotencyKey: "key", Body: []byte("body"),
		Idempotent: true, Redelivered: true, OneWay: true, Queued: time.Second,
	}
	for _, err := range []error{nil, amqpx.Errorf(amqpx.CodeInternal, "no")} {
		h := func(context.Context, *amqpx.Request) ([]byte, error) { return []byte("answer"), err }
		for _, traced := range []amqpx.Middleware{amqpxotel.Client(options...), amqpxotel.Server(options...)} {
			_, _ = amqpx.Chain(h, traced)(t.Context(), req)
		}
	}
	found := make(map[string]bool)
	for _, span := range spans.GetSpans() {
		for _, a := range span.Attributes {
			found[string(a.Key)] = true
		}
	}
	return found
}

func TestEverySpanAttributeIsInTheManual(t *testing.T) {
	t.Parallel()
	inCode, inManual := attributes(t), firstCells(t, "## Traces")
	if len(inCode) < 15 {
		t.Fatalf("found only %d attributes", len(inCode))
	}
	for _, name := range slices.Sorted(maps.Keys(inCode)) {
		if !inManual[name] {
			t.Errorf("docs/operations.md does not list the attribute %s", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(inManual)) {
		if !inCode[name] {
			t.Errorf("docs/operations.md lists the attribute %s, which no span has", name)
		}
	}
}
