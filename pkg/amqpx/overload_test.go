package amqpx

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func TestEstimateOfTheWaitForAWorker(t *testing.T) {
	t.Parallel()
	l := newLoad(2)
	now := l.start.Add(time.Hour)
	run := func(ages ...time.Duration) { // has handlers run for so long
		l.busy.Store(int64(len(ages)))
		for i, age := range ages {
			l.take(&invocation{place: i}, now.Add(-age))
		}
	}
	waits := func(name string, want ...time.Duration) {
		t.Helper()
		for waiting, want := range want {
			if got := l.wait(waiting, now); got < want*95/100 || got > want*101/100 {
				t.Errorf("%s, behind %d: %v, want about %v", name, waiting, got, want)
			}
		}
	}
	wantSame(t, "idle", l.wait(5, now), 0)
	run(time.Minute, time.Minute)
	waits("stuck from the start", time.Minute, 90*time.Second, 2*time.Minute)
	run()
	for range 100 {
		l.started()
		l.ended(time.Second)
	}
	wantSame(t, "idle again", l.wait(5, now), 0)
	run(0)
	wantSame(t, "one of two is free", l.wait(0, now), 0)
	run(0, 0)
	waits("both have begun", 500*time.Millisecond, time.Second, 1500*time.Millisecond)
	run(0, time.Hour)
	waits("one is stuck", time.Second, 2*time.Second)
	run(time.Hour, 11*time.Second)
	waits("both take long", 11*time.Second, 22*time.Second)
}

// A call that would expire before a worker is free learns it at once, not at its
// deadline, and when to come again.
func TestRequestThatWouldExpireInTheServerIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b, s := serve(t, handlers{"m": counted(&runs, slow)}, WithWorkers(1), WithPrefetch(10))
		budget := func(ms int64) func(*amqp.Publishing) {
			return func(p *amqp.Publishing) { p.Headers = amqp.Table{headerTimeout: ms} }
		}
		for range 30 { // the server learns how long its handlers take
			b.put(request("m"))
			pass(3 * time.Second)
		}
		b.take()
		b.put(request("m"))
		settle()
		begun := time.Now()
		b.put(with(request("m"), budget(500)))
		settle()
		wantSame(t, "time to the refusal", time.Since(begun), 0)
		answers := b.take()
		wantSame(t, "answers", len(answers), 1)
		h := answers[0].Headers
		wantSame(t, "code", h[headerCode], any("resource_exhausted"))
		wantSame(t, "ran", h[headerRan], any(false))
		if after, _ := h[headerRetryAfter].(int64); after < 1500 || after > 2000 {
			t.Errorf("retry after %v ms", h[headerRetryAfter])
		}
		wantSame(t, "shed", s.Stats().Shed, 1)
		wantSame(t, "refused", s.Stats().Refused, 1)
		b.put(keyed("m", "key", "first"))
		pass(3 * time.Second)
		b.put(with(keyed("m", "key", "again"), budget(500))) // may need no handler
		b.take()
		b.put(with(request("m"), budget(60_000))) // has the time to wait
		b.put(request("m"))                       // sets no limit
		pass(time.Minute)
		wantSame(t, "executions", runs.Load(), 34)
		wantSame(t, "expired", s.Stats().Expired, 1)
		wantSame(t, "shed in the end", s.Stats().Shed, 1)
		wantSame(t, "unacknowledged", b.unacked(DefaultQueue), 0)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
	})
}

func TestQueueBound(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		queue Queue
		args  amqp.Table
	}{
		{"none", Queue{}, nil},
		{"messages", Queue{MaxLength: 5}, amqp.Table{"x-max-length": int64(5), "x-overflow": "reject-publish"}},
		{"bytes, quorum", Queue{MaxBytes: 7, Type: QueueQuorum, Durable: true}, amqp.Table{
			"x-max-length-bytes": int64(7), "x-overflow": "reject-publish", "x-queue-type": "quorum",
		}},
		{"of the dead letters", Queue{}.deadQueue(), amqp.Table{"x-max-length": int64(maxDead)}},
	} {
		got := c.queue.arguments()
		if len(got) != len(c.args) || (got == nil) != (c.args == nil) {
			t.Errorf("%s: %v, want %v", c.name, got, c.args)
		}
		for name, want := range c.args {
			wantSame(t, c.name+": "+name, got[name], want)
		}
	}
}
