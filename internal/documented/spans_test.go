package documented

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
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
	oneStream(t, options)
	found := make(map[string]bool)
	for _, span := range spans.GetSpans() {
		for _, a := range span.Attributes {
			found[string(a.Key)] = true
		}
	}
	return found
}

// oneStream opens a stream with the tracing of both sides.
func oneStream(t *testing.T, options []amqpxotel.Option) {
	t.Helper()
	broker := amqpxtest.NewBroker()
	server, err := amqpx.NewServer(amqpxtest.URL, broker.Option(), amqpx.WithMiddleware(amqpxotel.Server(options...)))
	if err != nil {
		t.Fatal(err)
	}
	if err := server.HandleStream("m", func(context.Context, *amqpx.ServerStream) error { return nil }); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }()
	client, err := amqpx.NewClient(amqpxtest.URL, broker.Option(), amqpxotel.TraceClient(options...))
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range client.Stream(ctx, "m", nil, amqpx.WaitForServer()) {
		t.Errorf("a stream without items: %v", err)
	}
	err = client.Close(ctx)
	stop()
	if err := errors.Join(err, <-served); err != nil {
		t.Error(err)
	}
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
