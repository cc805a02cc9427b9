package amqpx

import (
	"runtime"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// liveHeap returns the bytes of the reachable objects.
func liveHeap() uint64 {
	runtime.GC()
	runtime.GC() // what finalizers and pools held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A future whose confirmed request has no response takes few bytes. The test is not parallel, so
// that no other test allocates meanwhile.
//
//nolint:paralleltest // see above.
func TestSleepingFutureTakesLittleMemory(t *testing.T) {
	const calls, most = 50_000, 450
	all := make(chan struct{})
	b := brokertest.New()
	startScript(t, b, func(n int, _ amqp.Delivery, _ func(amqp.Publishing)) {
		if n == calls {
			close(all)
		}
	})
	c := startClient(t, b, WithMaxInFlight(calls))
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	futures := make([]*Future, calls)
	body := []byte("request")
	before := liveHeap()
	for i := range futures {
		futures[i] = c.Go(t.Context(), "m", body)
	}
	<-all
	b.With(func(b *brokertest.Broker) { b.Sent = nil }) // what the broker keeps for tests
	each := (liveHeap() - before) / calls
	t.Logf("%d bytes for each future", each)
	if each > most {
		t.Errorf("a sleeping future takes %d bytes, want at most %d", each, most)
	}
	wantSame(t, "in flight", c.Stats().InFlight, calls)
	runtime.KeepAlive(futures)
}
