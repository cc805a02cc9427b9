package amqpx

import (
	"runtime"
	"testing"
	"testing/synctest"

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
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		startScript(t, b, silent)
		c := startClient(t, b, WithMaxInFlight(calls))
		ready(t, c.WaitReady)
		futures := make([]*Future, calls)
		body := []byte("request")
		before := liveHeap()
		for i := range futures {
			futures[i] = c.Go(t.Context(), "m", body)
		}
		settle()                                            // every request is confirmed
		b.With(func(b *brokertest.Broker) { b.Sent = nil }) // what the broker keeps for tests
		each := (liveHeap() - before) / calls
		if each > most {
			t.Errorf("a sleeping future takes %d bytes, want at most %d", each, most)
		}
		t.Logf("%d bytes for each future", each)
		wantSame(t, "in flight", c.Stats().InFlight, calls)
		runtime.KeepAlive(futures)
	})
}
