package amqpxotel_test

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
	"rabbitmq-rpc/pkg/amqpxotel"
)

// A program that has set OpenTelemetry's globals needs no options. Here spans are kept for
// inspection, and a broker in memory replaces RabbitMQ.
func Example() {
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	options := []amqpxotel.Option{
		amqpxotel.WithTracerProvider(provider),
		amqpxotel.WithPropagator(propagation.TraceContext{}),
	}
	broker := amqpxtest.NewBroker()
	server, err := amqpx.NewServer(amqpxtest.URL, broker.Option(), amqpx.WithMiddleware(amqpxotel.Server(options...)))
	if err != nil {
		fmt.Println(err)
		return
	}
	err = server.Handle("greet", func(context.Context, *amqpx.Request) ([]byte, error) {
		return nil, amqpx.Errorf(amqpx.CodeInvalidArgument, "whom?")
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	client, err := amqpx.NewClient(amqpxtest.URL, broker.Option(), amqpx.WithMiddleware(amqpxotel.Client(options...)))
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, drain := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }()

	_, err = client.Call(ctx, "greet", nil, amqpx.WaitForServer())
	fmt.Println(err)
	closed := client.Close(ctx)
	drain()
	fmt.Println("closed:", closed, "drained:", <-served)

	process, send := spans.GetSpans()[0], spans.GetSpans()[1]
	fmt.Println(process.SpanKind, process.Name, process.Status.Code)
	fmt.Println(send.SpanKind, send.Name, send.Status.Code)
	fmt.Println("child:", process.Parent.SpanID() == send.SpanContext.SpanID())
	_ = provider.Shutdown(context.Background())
	// Output:
	// invalid_argument: whom?
	// closed: <nil> drained: <nil>
	// server greet Unset
	// client greet Error
	// child: true
}
