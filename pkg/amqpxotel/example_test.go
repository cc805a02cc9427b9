package amqpxotel_test

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxotel"
)

// A program that has set OpenTelemetry's globals needs no options. Here a handler replaces the
// broker and the server, and spans are kept for inspection.
func Example() {
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	options := []amqpxotel.Option{
		amqpxotel.WithTracerProvider(provider),
		amqpxotel.WithPropagator(propagation.TraceContext{}),
	}
	greet := func(context.Context, *amqpx.Request) ([]byte, error) {
		return nil, amqpx.Errorf(amqpx.CodeInvalidArgument, "whom?")
	}
	handler := amqpx.Chain(greet, amqpxotel.Server(options...)) // amqpx.WithMiddleware does the same
	call := amqpx.Chain(handler, amqpxotel.Client(options...))

	_, err := call(context.Background(), &amqpx.Request{Method: "greet"})
	fmt.Println(err)
	server, client := spans.GetSpans()[0], spans.GetSpans()[1]
	fmt.Println(server.SpanKind, server.Name, server.Status.Code)
	fmt.Println(client.SpanKind, client.Name, client.Status.Code)
	fmt.Println("child:", server.Parent.SpanID() == client.SpanContext.SpanID())
	_ = provider.Shutdown(context.Background())
	// Output:
	// invalid_argument: whom?
	// server greet Unset
	// client greet Error
	// child: true
}
