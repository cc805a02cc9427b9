package amqpxotel

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
)

// streams starts a server with a stream "count", which sends three items, takes all and fails if the
// first of them is "fail", and returns a client.
func streams(t *testing.T, ofClient amqpx.ClientOption, ofServer amqpx.ServerOption) *amqpx.Client {
	t.Helper()
	broker := amqpxtest.NewBroker()
	server, err := amqpx.NewServer(amqpxtest.URL, broker.Option(), ofServer)
	if err != nil {
		t.Fatal(err)
	}
	client, err := amqpx.NewClient(amqpxtest.URL, broker.Option(), ofClient)
	if err != nil {
		t.Fatal(err)
	}
	err = server.HandleStream("count", func(_ context.Context, s *amqpx.ServerStream) error {
		first, err := s.Recv()
		for i := 0; err == nil && i < 3; i++ {
			err = s.Send([]byte{byte(i)})
		}
		if string(first) == "fail" {
			return amqpx.Errorf(amqpx.CodeInternal, "no")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, drain := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }()
	t.Cleanup(func() {
		err := client.Close(context.Background())
		drain()
		if err := errors.Join(err, <-served); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(server.WaitReady(t.Context()), client.WaitReady(t.Context())); err != nil {
		t.Fatal(err)
	}
	return client
}

// A stream is a span at each side; the server's is the child of the client's.
func TestStreamIsASpanAtBothSides(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		first  string
		status codes.Code
		code   any
	}{"whole": {"go", codes.Unset, nil}, "failed": {"fail", codes.Error, "internal"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := record(t)
				client := streams(t, TraceClient(r.options...), amqpx.WithMiddleware(Server(r.options...)))
				n := 0
				var failed error
				for _, err := range client.Stream(t.Context(), "count", []byte(c.first)) {
					n, failed = n+1, err
				}
				if (failed != nil) != (c.code != nil) {
					t.Errorf("error %v", failed)
				}
				synctest.Wait()
				spans := r.exporter.GetSpans()
				if n < 3 || len(spans) != 2 {
					t.Fatalf("%d elements, %d spans, want two: %+v", n, len(spans), spans)
				}
				inner, outer := spans[0], spans[1] // in the order of their ends
				if inner.SpanKind != trace.SpanKindServer {
					inner, outer = outer, inner
				}
				if inner.Parent.SpanID() != outer.SpanContext.SpanID() || !inner.Parent.IsRemote() {
					t.Errorf("the span of the server has the parent %v, want %v", inner.Parent, outer.SpanContext)
				}
				checkStream(t, outer, c.code, 1, 3)
				checkStream(t, inner, c.code, 3, 1)
				if inner.Status.Code != c.status || outer.Status.Code != c.status || inner.Name != "count" || outer.Name != "count" {
					t.Errorf("spans %+v and %+v", inner, outer)
				}
			})
		})
	}
}

// checkStream checks the attributes of the span of a stream.
func checkStream(t *testing.T, span tracetest.SpanStub, code any, sent, received int64) {
	t.Helper()
	all := attributes(span)
	for key, want := range map[attribute.Key]any{
		"amqpx.stream": true, "amqpx.stream.items_sent": sent, "amqpx.stream.items_received": received,
		"rpc.response.status_code": code, "amqpx.answer_bytes": nil, "amqpx.queue_wait_ms": nil,
	} {
		if got := all[key]; got != want {
			t.Errorf("%v: %s is %v, want %v", span.SpanKind, key, got, want)
		}
	}
}

// A stream that the client does not trace has no span at the server either.
func TestStreamThatIsNotDrawn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := record(t)
		client := streams(t, TraceClient(append(r.options, WithSampleRatio(0))...), amqpx.WithMiddleware(Server(append(r.options, WithSampleRatio(1))...)))
		for _, err := range client.Stream(t.Context(), "count", []byte("go")) {
			if err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if spans := r.exporter.GetSpans(); len(spans) != 0 {
			t.Errorf("%d spans, want none", len(spans))
		}
	})
}
