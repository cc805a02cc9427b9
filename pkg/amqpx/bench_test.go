package amqpx

import (
	"context"
	"strconv"
	"sync"
	"testing"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

func BenchmarkPending(b *testing.B) {
	p := newPending(DefaultMaxInFlight, DefaultMaxInFlightBytes)
	for i := range 1000 { // calls in progress
		mustAdd(b, p, pendingCall("waiting "+strconv.Itoa(i)))
	}
	k := pendingCall("id")
	d := responseDelivery("id", false)
	b.ReportAllocs()
	for b.Loop() {
		k.req.id, k.req.isText = newUUID(), false
		d.CorrelationId = k.req.text()
		mustAdd(b, p, k)
		p.matchOne(d)
		<-k.wake
		p.remove(k)
		k.answered = false
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	b.Run("one caller", func(b *testing.B) { benchRoundTrip(b, BatchOff, 1) })
	b.Run("many callers", func(b *testing.B) { benchRoundTrip(b, BatchOff, 64) })
	b.Run("one caller, batch", func(b *testing.B) { benchRoundTrip(b, BatchAuto, 1) })
	b.Run("many callers, batch", func(b *testing.B) { benchRoundTrip(b, BatchAuto, 64) })
	b.Run("very many callers, batch", func(b *testing.B) { benchRoundTrip(b, BatchAuto, 1024) })
}

// A one-way request that the broker confirms. Its server runs beside.
func BenchmarkSend(b *testing.B) {
	c := benchClient(b, BatchOff)
	body := []byte("request")
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Send(b.Context(), "m", body); err != nil {
			b.Error(err)
		}
	}
}

// benchRoundTrip makes calls over the broker in memory: sequentially if callers is 1, else
// callers times GOMAXPROCS at once.
func benchRoundTrip(b *testing.B, mode BatchMode, callers int) {
	b.Helper()
	c := benchClient(b, mode)
	body := []byte("request")
	call := func() error {
		_, err := c.Call(b.Context(), "m", body)
		return err
	}
	if callers > 1 {
		benchParallel(b, callers, call)
		return
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := call(); err != nil {
			b.Error(err)
		}
	}
}

// benchParallel measures calls by callers times GOMAXPROCS goroutines.
func benchParallel(b *testing.B, callers int, call func() error) {
	b.Helper()
	b.ReportAllocs()
	b.SetParallelism(callers)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := call(); err != nil {
				b.Error(err)
			}
		}
	})
}

// benchClient returns a client that knows its server, over a broker in memory. The server has the
// method m, and those of the functions.
func benchClient(b *testing.B, mode BatchMode, register ...func(*Server) error) *Client {
	b.Helper()
	broker := brokertest.New()
	s, err := NewServer(testURL, onBroker(broker), WithBatch(mode))
	if err != nil {
		b.Fatal(err)
	}
	for _, r := range append(register, func(s *Server) error { return s.Handle("m", echo) }) {
		if err := r(s); err != nil {
			b.Fatal(err)
		}
	}
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(b.Context()) }) // the context ends before the cleanup
	b.Cleanup(served.Wait)
	if err := s.WaitReady(b.Context()); err != nil {
		b.Fatal(err)
	}
	c, err := NewClient(testURL, onBroker(broker), WithBatch(mode))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close(context.Background()) })
	for range 100 { // until the client knows its servers
		if _, err := c.Call(b.Context(), "m", nil); err != nil {
			b.Error(err)
		}
	}
	return c
}
