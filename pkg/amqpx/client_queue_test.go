package amqpx

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// deserted returns a rig with a client and a request queue without consumers.
func deserted(t *testing.T, opts ...ClientOption) *rig {
	t.Helper()
	b := brokertest.New()
	b.With(func(b *brokertest.Broker) { _ = b.Declare(DefaultQueue, true, nil) })
	r := &rig{t: t, broker: b, client: startClient(t, b, opts...)}
	ready(t, r.client.WaitReady)
	return r
}

// While the queue is missing, one call probes for all waiting calls.
func TestOneProbeForAllCallsThatWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const calls = 100
		b := brokertest.New()
		c := startClient(t, b)
		ready(t, c.WaitReady)
		var waiting []<-chan result
		for i := range calls {
			waiting = append(waiting, goCall(c, within(t, time.Minute), "m", fmt.Append(nil, i), WaitForServer()))
		}
		pass(20 * time.Second)
		sent := len(b.MessagesTo(DefaultQueue))
		if sent < 20 || sent > calls+200 { // the queue gate may close before all calls have left
			t.Errorf("%d requests in 20 s for %d calls", sent, calls)
		}
		more := goCall(c, within(t, time.Minute), "m", []byte("x"), WaitForServer())
		given := goCall(c, within(t, 5*time.Second), "m", nil, WaitForServer())
		got := <-given
		wantIs(t, got.err, ErrUnroutable, context.DeadlineExceeded)
		wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
		startServer(t, b, handlers{"m": echo})
		begun := time.Now()
		for i, done := range waiting {
			wantResponse(t, <-done, fmt.Sprint(i))
		}
		wantResponse(t, <-more, "x")
		if took := time.Since(begun); took > probeMax {
			t.Errorf("answered %v after the server came", took)
		}
	})
}

// When the probing call ends, another call becomes the probe.
func TestTurnToProbePassesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		c := startClient(t, b)
		ready(t, c.WaitReady)
		for i := range 50 { // some calls end while they are the probe
			goCall(c, within(t, time.Duration(i)*37*time.Millisecond+time.Millisecond), "m", nil, WaitForServer())
		}
		last := goCall(c, within(t, time.Minute), "m", []byte("x"), WaitForServer())
		pass(10 * time.Second)
		startServer(t, b, handlers{"m": echo})
		got := <-last
		wantResponse(t, got, "x")
		if got.took > 10*time.Second+probeMax {
			t.Errorf("took %v", got.took)
		}
	})
}

func TestWithoutAnyServerCallersHearSoon(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]CallOption{"": nil, "idempotent": {Idempotent()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := deserted(t, WithControl(true))
				waits := goCall(r.client, within(t, time.Minute), "m", []byte("x"), append(opts, WaitForServer())...)
				got := <-goCall(r.client, within(t, time.Minute), "m", nil, opts...)
				wantIs(t, got.err, ErrNoServer)
				wantSame(t, "code", CodeOf(got.err), CodeUnavailable)
				wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun)
				if got.took < checkEvery/2 || got.took > 2*time.Second {
					t.Errorf("took %v", got.took)
				}
				pass(10 * time.Second)
				startServer(t, r.broker, handlers{"m": echo})
				wantResponse(t, <-waits, "x")
			})
		})
	}
}

func TestCallThatWaitsInVainSaysThatThereAreNoConsumers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := deserted(t)
		got := <-goCall(r.client, within(t, 5*time.Second), "m", nil, WaitForServer())
		wantIs(t, got.err, context.DeadlineExceeded)
		if text := got.err.Error(); !strings.Contains(text, "the queue has no consumers") {
			t.Errorf("text %q", text)
		}
	})
}

// One check without a consumer is no proof of an outage: the only server may be restarting.
func TestMomentWithoutServerIsNoOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": slow})
		pass(time.Minute)
		r.server.stop()
		_ = r.server.wait(t)
		done := goCall(r.client, within(t, time.Minute), "m", []byte("x"))
		pass(checkEvery - 2*checkSoonest)
		startServer(t, r.broker, handlers{"m": slow})
		wantResponse(t, <-done, "x")
	})
}

// A draining server has no consumer but finishes its handlers, so its calls do not fail with
// ErrNoServer.
func TestServerThatDrainsIsNotTakenForNone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startControlled(t, handlers{"m": func(ctx context.Context, req *Request) ([]byte, error) {
			xsync.Sleep(ctx, 15*time.Second)
			return req.Body, nil
		}})
		done := goCall(r.client, within(t, time.Minute), "m", []byte("x"))
		pass(time.Second)
		r.server.stop()
		got := <-done
		wantResponse(t, got, "x")
		wantSame(t, "took", got.took, 15*time.Second)
		pass(time.Second)
		wantIs(t, (<-goCall(r.client, within(t, time.Minute), "m", nil)).err, ErrNoServer)
	})
}

// A confirmed request is lost when its queue is deleted, even if the client's connection stays
// open. The client sends an idempotent call again.
func TestConfirmedCallOfAQueueThatEndedIsSentAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := deserted(t)
		safe := goCall(r.client, within(t, time.Minute), "m", []byte("x"), Idempotent(), WaitForServer())
		unsafe := goCall(r.client, within(t, time.Minute), "m", nil, WaitForServer())
		pass(500 * time.Millisecond)
		r.broker.With(func(b *brokertest.Broker) { b.Remove(b.Queues[DefaultQueue]) })
		pass(10 * time.Second)
		startServer(t, r.broker, handlers{"m": echo})
		got := <-safe
		wantResponse(t, got, "x")
		if got.took > 12*time.Second {
			t.Errorf("took %v", got.took)
		}
		var last brokertest.Sent
		for _, m := range r.broker.MessagesTo(DefaultQueue) {
			if m.Msg.CorrelationId == last.Msg.CorrelationId || m.Msg.Headers[wire.HeaderResent] == true {
				last = m
			}
		}
		wantSame(t, "marked as sent again", last.Msg.Headers[wire.HeaderResent] == true, true)
		gotUnsafe := <-unsafe
		wantSame(t, "outcome of the other", OutcomeOf(gotUnsafe.err), MayHaveRun)
		wantSame(t, "generation", r.client.Status().Generation, 1)
	})
}

// Servers that come after the client has found none are no sign of a lost request: an idempotent
// call that the client sends afterwards is sent once.
func TestCallAfterTheServersCameIsSentOnce(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]ClientOption{"one queue": nil, "shards": {WithShards(2)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				queues := []string{shardName(0), shardName(1)}
				b.With(func(b *brokertest.Broker) {
					for _, queue := range queues {
						_ = b.Declare(queue, true, nil)
					}
					b.OnCall = func(op, name string) error {
						if op == "declare passive" && slices.Contains(queues, name) {
							xsync.Sleep(t.Context(), 10*time.Millisecond) // the confirm comes before the result of the check
						}
						return nil
					}
				})
				client := startClient(t, b, opts...)
				ready(t, client.WaitReady)
				ready(t, startServer(t, b, handlers{"m": slow}, WithShards(2)).WaitReady)
				pass(time.Minute)
				var calls []<-chan result
				for range 2 { // one for each shard
					calls = append(calls, goCall(client, within(t, time.Minute), "m", []byte("x"), Idempotent()))
				}
				for _, call := range calls {
					wantResponse(t, <-call, "x")
				}
				sent := sentTo(b, 2)
				wantSame(t, "requests", sent[0]+sent[1], len(calls))
			})
		})
	}
}

// A check that finds the queue without a consumer concerns the requests that were sent before: the
// queue may be deleted and declared again until the next check. Requests that follow the check are
// sent once.
func TestCallsAroundTheReturnOfTheServers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := deserted(t)
		before := goCall(r.client, within(t, time.Minute), "m", []byte("before"), Idempotent(), WaitForServer())
		pass(checkEvery + checkEvery/2)
		r.broker.With(func(b *brokertest.Broker) { b.Remove(b.Queues[DefaultQueue]) })
		ready(t, startServer(t, r.broker, handlers{"m": func(ctx context.Context, req *Request) ([]byte, error) {
			xsync.Sleep(ctx, 3*time.Second)
			return req.Body, nil
		}}).WaitReady)
		after := goCall(r.client, within(t, time.Minute), "m", []byte("after"), Idempotent())
		wantResponse(t, <-after, "after")
		got := <-before
		wantResponse(t, got, "before")
		if got.took > 2*checkEvery+3*time.Second+checkSoonest {
			t.Errorf("the request that was lost took %v", got.took)
		}
		sent := make(map[string]int)
		for _, m := range r.broker.MessagesTo(DefaultQueue) {
			sent[string(m.Msg.Body)]++
		}
		wantSame(t, "requests of the call before the servers came", sent["before"], 2)
		wantSame(t, "requests of the call after", sent["after"], 1)
	})
}

func TestConnectionOnWhichEverythingIsNackedIsReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo})
		all := make([]brokertest.Fault, 1000)
		for i := range all {
			all[i] = brokertest.FaultNack
		}
		r.broker.Fail(DefaultQueue, all...)
		done := goCall(r.client, within(t, time.Minute), "m", []byte("x"), Idempotent())
		for st := range r.client.Watch(t.Context()) {
			if st.Generation == 2 {
				break
			}
		}
		r.broker.With(func(b *brokertest.Broker) { clear(b.Faults) })
		got := <-done
		wantResponse(t, got, "x")
		if got.took < nackedConnectionAfter || got.took > 3*nackedConnectionAfter {
			t.Errorf("took %v", got.took)
		}
	})
}

// The only call of a batch travels alone: its nacks count against the connection, and its
// confirm opens the queue gate.
func TestConnectionOnWhichLoneCallsAreNackedAmidBatchesIsReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		all := make([]brokertest.Fault, 1000)
		for i := range all {
			all[i] = brokertest.FaultNack
		}
		r.broker.Fail(DefaultQueue, all...)
		done := goCall(r.client, within(t, time.Minute), "m", []byte("x"), Idempotent())
		pass(nackedConnectionAfter + 2*time.Second)
		wantSame(t, "generation", r.client.Status().Generation, 2)
		r.broker.With(func(b *brokertest.Broker) { clear(b.Faults) })
		wantResponse(t, <-done, "x")
		settle() // the confirm may arrive after the response
		wantSame(t, "the gate is shut", r.client.route.queueGate.isShut.Load(), false)
	})
}

// countCalls counts the broker's synchronous calls of one operation, without the channels that the
// server opens.
func countCalls(b *brokertest.Broker, op string) *atomic.Int64 {
	var n atomic.Int64
	b.With(func(b *brokertest.Broker) {
		b.OnCall = func(o, name string) error {
			if o == op && (op != "channel" || isClients(name)) {
				n.Add(1)
			}
			return nil
		}
	})
	return &n
}

// isClients reports whether a connection of this name is a client's.
func isClients(connection string) bool { return strings.Contains(connection, "client") }

// Checks of the queues open no new channels, because a refused channel.open would end the
// connection.
func TestQueueChecksOpenNoChannels(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": untilDone})
		opened := countCalls(r.broker, "channel")
		waiting := r.batchOf(3, "m")
		pass(30 * time.Second)
		wantSame(t, "channels opened", opened.Load(), 0)
		checks := countCalls(r.broker, "declare passive")
		pass(10 * time.Second)
		if n := checks.Load(); n < 18 || n > 22 {
			t.Errorf("%d checks of two queues in 10 s", n)
		}
		for _, done := range waiting {
			<-done
		}
	})
}

// If the broker does not answer for the batch queue, the client sends no batches, and calls are
// not affected otherwise.
func TestBatchQueueThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		var channels atomic.Int64
		r.broker.With(func(b *brokertest.Broker) {
			b.OnCall = func(op, name string) error {
				if op == "channel" && isClients(name) {
					channels.Add(1)
				}
				if op == "declare passive" && name == batchQueueName {
					return brokertest.ErrHang
				}
				return nil
			}
		})
		for range 60 {
			wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x")), "x")
			pass(time.Second)
		}
		wantSame(t, "servers that take batches", r.client.route.batch.servers.Load(), 0)
		wantSame(t, "channels opened", channels.Load(), 1)
		wantSame(t, "generation", r.client.Status().Generation, 1)
		wantIs(t, (<-goCall(r.client, within(t, time.Minute), "m", nil)).err)
	})
}

// A nacked batch stops batching, and waiting calls leave alone.
func TestNackedBatchStopsBatching(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		r.broker.Fail(batchQueueName, brokertest.FaultNack)
		for i, done := range r.batchOf(4, "m", Idempotent()) {
			wantResponse(t, <-done, fmt.Sprint(i))
		}
		wantSame(t, "batches", len(r.broker.MessagesTo(batchQueueName)), 1)
		wantSame(t, "servers that take batches", r.client.route.batch.servers.Load(), 0)
		pass(time.Minute)
		r.awaitBatching()
	})
}

func TestServersThatDoNotUnpackGetTheirShare(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		ours := startServer(t, b, handlers{"m": func(ctx context.Context, req *Request) ([]byte, error) {
			xsync.Sleep(ctx, 50*time.Millisecond)
			return req.Body, nil
		}, "start batching": echo}, WithBatch(BatchAuto))
		ready(t, ours.WaitReady)
		for range 2 {
			startScript(t, b, after(50*time.Millisecond, runs))
		}
		r := &rig{t: t, broker: b, client: startClient(t, b, WithBatch(BatchAuto))}
		ready(t, r.client.WaitReady)
		r.awaitBatching()
		const callers, each = 64, 10
		before := ours.Stats().Requests
		var all sync.WaitGroup
		for range callers {
			all.Go(func() {
				for range each {
					wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x")), "x")
				}
			})
		}
		all.Wait()
		if got := ours.Stats().Requests - before; got < callers*each/4 || got > callers*each*6/10 {
			t.Errorf("the server that unpacks took %d of %d calls, want about half", got, callers*each)
		}
	})
}

func TestShareOfCallsThatGoAlone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ unpack, others, want int32 }{{9, 1, 200}, {3, 1, 500}, {1, 1, 750}, {1, 5, 750}} {
		l := newBatchTarget("q", publish.MaxBatchBytes, nil, func() {})
		l.servers.Store(c.unpack)
		n := int32(0)
		for range 1000 {
			if l.goesAlone(c.others) {
				n++
			}
		}
		wantSame(t, fmt.Sprintf("alone of 1000 with %d and %d servers", c.unpack, c.others), n, c.want)
	}
}

func TestConsumersOfTheRequestQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		client := startClient(t, b)
		ready(t, client.WaitReady)
		count := func() int {
			t.Helper()
			n, err := client.Consumers(within(t, time.Minute))
			if err != nil {
				t.Error(err)
			}
			return n
		}
		wantSame(t, "consumers of no queue", count(), 0)
		startScript(t, b, func(int, amqp.Delivery, func(amqp.Publishing)) {})
		wantSame(t, "consumers beside a program that answers nothing", count(), 1)
		ours := startServer(t, b, handlers{"m": echo})
		ready(t, ours.WaitReady)
		wantSame(t, "consumers beside ours", count(), 2)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := client.Consumers(gone)
		wantSame(t, "code", CodeOf(err), CodeCanceled)
	})
}

// Already the first calls of a connection travel in batches.
func TestFirstCallsTravelTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		ready(t, startServer(t, b, handlers{"m": echo}, WithBatch(BatchAuto)).WaitReady)
		c := startClient(t, b, WithBatch(BatchAuto))
		ready(t, c.WaitReady)
		var calls []<-chan result
		for i := range 100 {
			calls = append(calls, goCall(c, within(t, time.Minute), "m", fmt.Append(nil, i)))
		}
		for i, call := range calls {
			wantResponse(t, <-call, fmt.Sprint(i))
		}
		if alone := len(b.MessagesTo(DefaultQueue)); alone > publish.BatchWindow+1 {
			t.Errorf("%d of 100 calls travelled alone", alone)
		}
	})
}

// The broker logs a line for each check that it refuses, so a user who may not see the batch queue
// asks for it once.
func TestForbiddenBatchQueueIsCheckedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		ready(t, startServer(t, b, handlers{"m": echo}, WithBatch(BatchAuto)).WaitReady)
		var checks atomic.Int64
		b.With(func(b *brokertest.Broker) {
			b.OnCall = func(op, name string) error {
				if op != "declare passive" || name != batchQueueName {
					return nil
				}
				checks.Add(1)
				return &amqp.Error{Code: amqp.AccessRefused, Server: true, Reason: "ACCESS_REFUSED - access to queue refused"}
			}
		})
		c := startClient(t, b, WithBatch(BatchAuto))
		ready(t, c.WaitReady)
		for range 3 {
			wantResponse(t, <-goCall(c, within(t, time.Minute), "m", []byte("x")), "x")
			pass(2 * checkEvery)
		}
		wantSame(t, "checks", checks.Load(), 1)
		wantSame(t, "generation", c.Status().Generation, 1)
	})
}

// A broker that does not answer for the batch queue delays the connection only for a moment, and
// calls travel alone.
func TestFirstQueueCheckWithoutAResponse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		ready(t, startServer(t, b, handlers{"m": echo}, WithBatch(BatchAuto)).WaitReady)
		responses := make(chan struct{})
		b.With(func(b *brokertest.Broker) {
			b.OnCall = func(op, name string) error {
				if op == "declare passive" && name == batchQueueName {
					<-responses
				}
				return nil
			}
		})
		begun := time.Now()
		c := startClient(t, b, WithBatch(BatchAuto))
		ready(t, c.WaitReady)
		wantSame(t, "time until ready", time.Since(begun), firstCheckTimeout)
		wantResponse(t, <-goCall(c, within(t, time.Minute), "m", []byte("x")), "x")
		wantSame(t, "alone", len(b.MessagesTo(DefaultQueue)), 1)
		close(responses)
		pass(2 * checkEvery)
		wantResponse(t, <-goCall(c, within(t, time.Minute), "m", []byte("y")), "y")
		settle()
		wantSame(t, "servers that unpack", c.route.batch.servers.Load(), 1)
	})
}
