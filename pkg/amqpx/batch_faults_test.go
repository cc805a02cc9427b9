package amqpx

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

func TestCallsTravelAloneWithoutAServerThatUnpacks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		old := startServer(t, b, handlers{"m": echo}) // takes no batches
		r := &rig{t: t, broker: b, client: startClient(t, b, WithBatch(BatchAuto))}
		ready(t, old.WaitReady)
		ready(t, r.client.WaitReady)
		burstOf := func() {
			t.Helper()
			b.HoldConfirms()
			var waiting []<-chan result
			for range 10 {
				waiting = append(waiting, goCall(r.client, within(t, time.Minute), "m", []byte("x")))
			}
			settle()
			b.ReleaseConfirms()
			for _, done := range waiting {
				wantResponse(t, <-done, "x")
			}
		}
		burstOf()
		wantSame(t, "batches", len(b.MessagesTo(batchQueueName)), 0)

		fresh := startServer(t, b, handlers{"m": echo}, WithBatch(BatchAuto))
		ready(t, fresh.WaitReady)
		burstOf()
		pass(2 * checkMissingMax) // the client has checked the batch queue again
		burstOf()
		pass(time.Second)
		burstOf()
		if len(b.MessagesTo(batchQueueName)) == 0 {
			t.Error("no batch, though a server unpacks")
		}
	})
}

// If the batch queue was deleted, the broker returns a batch, and the client sends its calls
// alone.
func TestBatchThatComesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		old := startServer(t, r.broker, handlers{"m": echo})
		ready(t, old.WaitReady)
		r.server.stop()
		_ = r.server.wait(t)
		r.broker.With(func(b *brokertest.Broker) { b.Remove(b.Queues[batchQueueName]) })
		b := r.broker
		b.HoldConfirms()
		var waiting []<-chan result
		for i := range 10 {
			waiting = append(waiting, goCall(r.client, within(t, time.Minute), "m", fmt.Append(nil, i)))
			settle()
		}
		b.ReleaseConfirms()
		for i, done := range waiting {
			got := <-done
			wantResponse(t, got, fmt.Sprint(i))
			wantSame(t, "took", got.took, 0)
		}
		wantSame(t, "batches", len(b.MessagesTo(batchQueueName)), 1)
		wantSame(t, "re-sent", r.client.Stats().Resent, 0)
	})
}

// When no server consumes the batch queue any more, the client sends the idempotent calls in
// the queue again, alone. Other calls wait for a server.
func TestBatchQueueThatIsDeserted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		old := startServer(t, r.broker, handlers{"m": echo, "start batching": echo})
		ready(t, old.WaitReady)
		r.server.stop()
		_ = r.server.wait(t)
		safe := r.batchOf(3, "m", Idempotent())
		unsafe := r.batchOf(2, "m")
		wantSame(t, "batches that wait", r.broker.Ready(batchQueueName), 2)
		for i, done := range safe {
			wantResponse(t, <-done, fmt.Sprint(i))
		}
		for range unsafe {
			wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x")), "x")
		}
		back := startServer(t, r.broker, handlers{"m": echo}, WithBatch(BatchAuto))
		ready(t, back.WaitReady)
		for i, done := range unsafe {
			wantResponse(t, <-done, fmt.Sprint(i))
		}
	})
}

// The last consumer of the batch queue ends while the client makes no new calls: the calls in
// its batches are still sent again, alone.
func TestBatchQueueThatIsDesertedWhileNobodyCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		last := startServer(t, b, handlers{"m": untilDone, "start batching": echo}, WithBatch(BatchAuto))
		r := &rig{t: t, broker: b, client: startClient(t, b, WithBatch(BatchAuto))}
		ready(t, r.client.WaitReady)
		r.awaitBatching()
		calls := r.batchOf(3, "m", Idempotent())
		pass(20 * time.Second)
		ready(t, startServer(t, b, handlers{"m": echo}, WithBatch(BatchOff)).WaitReady)
		begun := time.Now()
		last.Close()
		for _, call := range calls {
			wantSame(t, "error", (<-call).err, nil)
		}
		if took := time.Since(begun); took > 2*checkEvery {
			t.Errorf("answered %v after the last server that unpacks had gone", took)
		}
		var checks atomic.Int64
		b.With(func(b *brokertest.Broker) {
			b.OnCall = func(op, _ string) error {
				if op == "declare passive" {
					checks.Add(1)
				}
				return nil
			}
		})
		pass(time.Hour)
		if n := checks.Load(); n > 2*2 { // each check declares two queues passively
			t.Errorf("%d checks while nobody waits", n)
		}
	})
}

// A call that kills servers takes the other calls in its batch down only once, because the next
// server splits the redelivered batch.
func TestRedeliveredBatchIsSplit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var kills, runs atomic.Int64
		b := brokertest.New()
		supervised(t, b, func(kill func()) handlers {
			return handlers{
				"kill":           killing(&kills, kill),
				"m":              counted(&runs, echo),
				"start batching": echo,
			}
		}, WithBatch(BatchAuto))
		r := &rig{t: t, broker: b, client: startClient(t, b, WithBatch(BatchAuto))}
		ready(t, r.client.WaitReady)
		r.awaitBatching()
		waiting := r.together(func() (waiting []<-chan result) {
			for i, method := range []string{"kill", "m", "m", "m"} {
				waiting = append(waiting, goCall(r.client, within(t, time.Hour), method, fmt.Append(nil, i)))
				settle()
			}
			return waiting
		})
		for i, done := range waiting[1:] {
			wantResponse(t, <-done, fmt.Sprint(i+1))
		}
		got := <-waiting[0]
		wantSame(t, "code", CodeOf(got.err), CodeInternal)
		wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun)
		wantSame(t, "kills", kills.Load(), DefaultDeliveryLimit)
		wantSame(t, "batches", len(b.MessagesTo(batchQueueName)), 1)
		dead := b.MessagesTo(DefaultQueue + ".dead")
		wantSame(t, "dead letters", len(dead), 1)
		wantSame(t, "method of the dead letter", dead[0].Msg.AppId, "kill")
		settle()
		wantSame(t, "left in the batch queue", b.Ready(batchQueueName)+b.Unacked(batchQueueName), 0)
	})
}

func TestBatchOverALostConnection(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		fault      brokertest.Fault
		idempotent bool
		code       Code
		outcome    Outcome
	}{
		{"unsent", brokertest.FaultUnsent, false, "", Ran},
		{"lost before the confirm", brokertest.FaultLostUnconfirmed, false, CodeUnavailable, MayHaveRun},
		{"lost before the confirm, idempotent", brokertest.FaultLostUnconfirmed, true, "", Ran},
		{"lost after the confirm", brokertest.FaultCutConfirmed, false, "", Ran},
		{"nacked once", brokertest.FaultNack, false, CodeUnavailable, MayHaveRun},
		{"nacked once, idempotent", brokertest.FaultNack, true, "", Ran},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startBatching(t, handlers{"m": echo})
				r.broker.Fail(batchQueueName, c.fault)
				var opts []CallOption
				if c.idempotent {
					opts = append(opts, Idempotent())
				}
				for i, done := range r.batchOf(4, "m", opts...) {
					got := <-done
					if c.code == "" {
						wantResponse(t, got, fmt.Sprint(i))
						continue
					}
					wantSame(t, "code", CodeOf(got.err), c.code)
					wantSame(t, "outcome", OutcomeOf(got.err), c.outcome)
				}
			})
		})
	}
}

func TestDrainGivesTheRestOfABatchBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"slow": slow})
		r.server.stop()
		_ = r.server.wait(t)
		one := startServer(t, r.broker, handlers{"slow": slow, "start batching": echo}, WithBatch(BatchAuto), WithWorkers(2))
		ready(t, one.WaitReady)
		r.awaitBatching()
		waiting := r.batchOf(6, "slow")
		one.stop()
		settle()
		other := startServer(t, r.broker, handlers{"slow": slow}, WithBatch(BatchAuto))
		ready(t, other.WaitReady)
		for i, done := range waiting {
			wantResponse(t, <-done, fmt.Sprint(i))
		}
		if err := one.wait(t); err != nil {
			t.Errorf("drain: %v", err)
		}
		wantSame(t, "returned", one.Stats().Requeued, 4)
		wantSame(t, "run by the other", other.Stats().OK, 4)
	})
}

func TestBatchThatCannotBeReadIsDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		for _, body := range [][]byte{nil, []byte("no batch"), {0xff, 0xff}} {
			r.broker.PutIn(batchQueueName, amqp.Publishing{ContentType: wire.ContentTypeRequests, ReplyTo: "nowhere", Body: body})
			settle()
		}
		wantSame(t, "unacknowledged", r.broker.Unacked(batchQueueName), 0)
		wantSame(t, "in flight", r.server.Stats().InFlight, 0)
		for i, done := range r.batchOf(3, "m") {
			wantResponse(t, <-done, fmt.Sprint(i))
		}
	})
}

func TestRequestAloneInTheBatchQueueIsServed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		r.broker.With(func(b *brokertest.Broker) { _ = b.Declare(rawQueue, true, nil) })
		r.broker.PutIn(batchQueueName, request("m"))
		settle()
		wantSame(t, "responses", len(takeResponses(r.broker)), 1)
	})
}

func TestCallThatGivesUpBeforeItsBatchLeavesDidNotRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		r := startBatching(t, handlers{"m": counted(&runs, echo)})
		ctx, cancel := context.WithCancel(t.Context())
		waiting := r.together(func() []<-chan result {
			gone := goCall(r.client, ctx, "m", nil)
			settle()
			stays := []<-chan result{gone, goCall(r.client, within(t, time.Minute), "m", nil), goCall(r.client, within(t, time.Minute), "m", nil)}
			settle()
			cancel()
			settle()
			return stays
		})
		got := <-waiting[0]
		wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
		if !errors.Is(got.err, context.Canceled) {
			t.Errorf("error %v", got.err)
		}
		wantResponse(t, <-waiting[1], "")
		wantResponse(t, <-waiting[2], "")
		wantSame(t, "runs", runs.Load(), 2)
	})
}
