package amqpxotel

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"go.opentelemetry.io/otel/trace"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
)

// relay is relayWith whose clients and server trace with the options of r.
func relay(t *testing.T, r *recorder, workers int) *amqpx.Client {
	t.Helper()
	client := amqpx.WithMiddleware(Client(r.options...))
	return relayWith(t, workers, client, client, amqpx.WithMiddleware(Server(r.options...)))
}

// relayWith starts a server with the given number of workers, whose method "outer" calls its method
// "inner" with a client of its own, and returns another client. Call relayWith inside a synctest
// bubble.
func relayWith(t *testing.T, workers int, first, second amqpx.ClientOption, third amqpx.ServerOption) *amqpx.Client {
	t.Helper()
	broker := amqpxtest.NewBroker()
	server, err := amqpx.NewServer(amqpxtest.URL, broker.Option(), amqpx.WithWorkers(workers), third)
	if err != nil {
		t.Fatal(err)
	}
	client, err := amqpx.NewClient(amqpxtest.URL, broker.Option(), first)
	if err != nil {
		t.Fatal(err)
	}
	own, err := amqpx.NewClient(amqpxtest.URL, broker.Option(), second)
	if err != nil {
		t.Fatal(err)
	}
	outer := func(ctx context.Context, _ *amqpx.Request) ([]byte, error) { return own.Call(ctx, "inner", nil) }
	if err := errors.Join(server.Handle("outer", outer), server.Handle("inner", answering([]byte("hi"), nil))); err != nil {
		t.Fatal(err)
	}
	ctx, drain := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }()
	t.Cleanup(func() {
		err := errors.Join(client.Close(context.Background()), own.Close(context.Background()))
		drain()
		if err := errors.Join(err, <-served); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(server.WaitReady(t.Context()), client.WaitReady(t.Context()), own.WaitReady(t.Context())); err != nil {
		t.Fatal(err)
	}
	return client
}

// TestTraceOverTwoHops: over the wire, alone and in batches, the four spans of a call that makes
// another call are one chain in one trace.
func TestTraceOverTwoHops(t *testing.T) {
	t.Parallel()
	for name, calls := range map[string]int{"alone": 1, "in batches": 100} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := record(t)
				client := relay(t, r, 2*calls) // each call needs two workers at once
				if _, err := client.Call(t.Context(), "inner", nil, amqpx.WaitForServer()); err != nil {
					t.Fatal(err)
				}
				synctest.Wait() // the server has ended the span of that call
				r.exporter.Reset()
				var all sync.WaitGroup
				for range calls {
					all.Go(func() {
						if response, err := client.Call(t.Context(), "outer", nil); string(response) != "hi" || err != nil {
							t.Errorf("got %q, %v", response, err)
						}
					})
				}
				all.Wait()
				synctest.Wait()
				if batched := client.Stats().Batched; (batched > 0) != (calls > 1) {
					t.Errorf("%d of the calls went in batches", batched)
				}
				checkChains(t, r, calls)
			})
		})
	}
}

// checkChains reports spans that are not part of a chain of four: the client's and the server's
// span of "outer", then those of "inner".
func checkChains(t *testing.T, r *recorder, calls int) {
	t.Helper()
	spans := r.exporter.GetSpans()
	if len(spans) != 4*calls {
		t.Fatalf("%d spans of %d calls, want 4 of each", len(spans), calls)
	}
	parents := make(map[trace.SpanID]int)
	for i, s := range spans {
		parents[s.SpanContext.SpanID()] = i
	}
	whole := 0
	for _, s := range spans {
		if s.Name != "inner" || s.SpanKind != trace.SpanKindServer {
			continue
		}
		chain := []string{}
		for at := s; ; {
			chain = append(chain, at.SpanKind.String()+" "+at.Name)
			if overWire := at.SpanKind == trace.SpanKindServer; at.Parent.IsValid() && at.Parent.IsRemote() != overWire {
				t.Errorf("the parent of the %v's span of %s is remote: %v", at.SpanKind, at.Name, at.Parent.IsRemote())
			}
			i, found := parents[at.Parent.SpanID()]
			if !found {
				break
			}
			if spans[i].SpanContext.TraceID() != at.SpanContext.TraceID() {
				t.Errorf("%s and its parent are in different traces", at.Name)
			}
			at = spans[i]
		}
		if len(chain) == 4 && chain[1] == "client inner" && chain[2] == "server outer" && chain[3] == "client outer" {
			whole++
		} else {
			t.Errorf("a chain is %q", chain)
		}
	}
	if whole != calls {
		t.Errorf("%d whole chains, want %d", whole, calls)
	}
}
