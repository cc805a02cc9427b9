package amqpxtest

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
)

// BenchmarkCalls measures calls over the broker, by one caller, and by 1,024 whose calls travel in
// batches.
func BenchmarkCalls(b *testing.B) {
	b.Run("callers=1", func(b *testing.B) { benchCalls(b, 1) })
	b.Run("callers=1024", func(b *testing.B) { benchCalls(b, 1024) })
}

func benchCalls(b *testing.B, callers int) {
	b.Helper()
	broker := NewBroker()
	server, err := amqpx.NewServer(URL, broker.Option())
	if err != nil {
		b.Fatal(err)
	}
	echo := func(_ context.Context, req *amqpx.Request) ([]byte, error) { return req.Body, nil }
	if err := server.Handle("echo", echo); err != nil {
		b.Fatal(err)
	}
	client, err := amqpx.NewClient(URL, broker.Option())
	if err != nil {
		b.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(b.Context()) }) // the context ends before the cleanup
	b.Cleanup(served.Wait)
	defer client.Close(b.Context()) //nolint:errcheck // only to free it.
	if err := errors.Join(server.WaitReady(b.Context()), client.WaitReady(b.Context())); err != nil {
		b.Fatal(err)
	}
	body := []byte("request")
	call := func() {
		if _, err := client.Call(b.Context(), "echo", body); err != nil {
			b.Error(err)
		}
	}
	for range 100 { // until the client knows its servers
		call()
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.SetParallelism(max(callers/runtime.GOMAXPROCS(0), 1))
	if callers == 1 {
		for range b.N {
			call()
		}
	} else {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				call()
			}
		})
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}
