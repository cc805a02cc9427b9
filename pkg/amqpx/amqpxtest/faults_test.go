package amqpxtest

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// faultTime is the deadline of the calls of a faultCase.
const faultTime = 10 * time.Second

// faultCase is one call while the broker has faults, and what its caller sees.
type faultCase struct {
	requests, responses []Fault
	quorum, idempotent  bool

	code    amqpx.Code // "" for a response
	outcome amqpx.Outcome
	is      error
	runs    int64 // of the handler, a minute after the call
	took    time.Duration
	stats   func(amqpx.ClientStats) bool
}

func faultCases() map[string]faultCase {
	unknown := faultCase{code: amqpx.CodeUnavailable, outcome: amqpx.MayHaveRun, is: amqpx.ErrOutcomeUnknown}
	late := faultCase{code: amqpx.CodeDeadlineExceeded, outcome: amqpx.MayHaveRun, is: context.DeadlineExceeded, took: faultTime}
	ok := faultCase{runs: 1}
	request := func(c faultCase, runs int64, faults ...Fault) faultCase {
		c.requests, c.runs = faults, runs
		return c
	}
	response := func(c faultCase, faults ...Fault) faultCase {
		c.responses, c.runs = faults, 1
		return c
	}
	idempotent := func(c faultCase) faultCase {
		c.idempotent = true
		return c
	}
	counts := func(c faultCase, stats func(amqpx.ClientStats) bool) faultCase {
		c.stats = stats
		return c
	}
	takes := func(c faultCase, d time.Duration) faultCase {
		c.took = d
		return c
	}
	nacked := faultCase{code: amqpx.CodeUnavailable, outcome: amqpx.MayHaveRun, is: amqpx.ErrQueueUnavailable}
	quorum := faultCase{quorum: true}
	return map[string]faultCase{
		"pass":                                  request(ok, 1, Pass()),
		"request, nack":                         request(nacked, 0, Nack()),
		"request, nack, idempotent":             idempotent(request(ok, 1, Nack())),
		"request, nack by a quorum queue":       request(quorum, 1, Nack()),
		"request, lose":                         request(late, 0, Lose()),
		"request, lose, idempotent":             idempotent(request(ok, 1, Lose())),
		"request, duplicate":                    request(ok, 1, Duplicate()),
		"request, delay":                        takes(request(ok, 1, Delay(time.Second)), time.Second),
		"request, delay beyond the deadline":    request(late, 0, Delay(2*faultTime)),
		"request, disconnect before":            request(unknown, 0, DisconnectBefore()),
		"request, disconnect before, retried":   idempotent(request(ok, 1, DisconnectBefore())),
		"request, disconnect after":             request(unknown, 1, DisconnectAfter()),
		"request, disconnect after, retried":    idempotent(request(ok, 1, DisconnectAfter())),
		"request, three faults, idempotent":     idempotent(request(ok, 1, Nack(), DisconnectBefore(), DisconnectAfter())),
		"response, nack":                        response(ok, Nack()),
		"response, lose":                        response(late, Lose()),
		"response, lose, idempotent":            idempotent(response(ok, Lose())),
		"response, duplicate":                   counts(response(ok, Duplicate()), func(s amqpx.ClientStats) bool { return s.Duplicates == 1 }),
		"response, delay":                       takes(response(ok, Delay(time.Second)), time.Second),
		"response, delay beyond the deadline":   counts(response(late, Delay(2*faultTime)), func(s amqpx.ClientStats) bool { return s.Late == 1 }),
		"response, disconnect before":           response(ok, DisconnectBefore()),
		"response, disconnect after":            response(ok, DisconnectAfter()),
		"response, disconnect after and before": response(ok, DisconnectAfter(), DisconnectBefore()),
	}
}

// TestFaults: each fault has the effect that its documentation describes.
func TestFaults(t *testing.T) {
	t.Parallel()
	for name, c := range faultCases() {
		for reply, mode := range map[string]amqpx.ReplyMode{"reply queue": amqpx.ReplyQueue, "direct reply-to": amqpx.ReplyDirect} {
			t.Run(name+", "+reply, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) { c.check(t, mode) })
			})
		}
	}
}

// check makes the call, and then one without faults.
func (c *faultCase) check(t *testing.T, mode amqpx.ReplyMode) {
	t.Helper()
	queue := amqpx.Queue{Name: "orders"}
	if c.quorum {
		queue.Type = amqpx.QueueQuorum
	}
	p, runs := startCounted(t, amqpx.WithQueue(queue), amqpx.WithReplyMode(mode), amqpx.WithAttemptTimeout(faultTime/4))
	p.broker.FailRequests("orders", c.requests...)
	if mode == amqpx.ReplyDirect {
		p.broker.FailResponses("", c.responses...)
	} else {
		p.broker.FailResponses("orders", c.responses...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), faultTime)
	defer cancel()
	var opts []amqpx.CallOption
	if c.idempotent {
		opts = append(opts, amqpx.Idempotent())
	}
	begun := time.Now()
	_, err := p.client.Call(ctx, "count", nil, opts...)
	if took := time.Since(begun); c.took > 0 && took != c.took {
		t.Errorf("the call took %v, want %v", took, c.took)
	}
	if code := amqpx.CodeOf(err); code != c.code || err != nil && amqpx.OutcomeOf(err) != c.outcome || !errors.Is(err, c.is) {
		t.Errorf("error %v; %v, want %v; %v: %v", err, amqpx.OutcomeOf(err), c.code, c.outcome, c.is)
	}
	<-time.After(time.Minute)
	if n := runs.Load(); n != c.runs {
		t.Errorf("the handler ran %d times, want %d", n, c.runs)
	}
	if stats := p.client.Stats(); c.stats != nil && !c.stats(stats) {
		t.Errorf("stats %+v", stats)
	}
	if _, err := p.client.Call(t.Context(), "count", nil); err != nil {
		t.Errorf("a call without faults: %v", err)
	}
}

// startCounted starts a server with the method "count", and a client with options, and returns the
// counter of runs too. Call startCounted inside a synctest bubble.
func startCounted(t *testing.T, opts ...amqpx.ClientOption) (*pair, *atomic.Int64) {
	t.Helper()
	runs := new(atomic.Int64)
	p := startWith(t, "count", func(context.Context, *amqpx.Request) ([]byte, error) {
		runs.Add(1)
		return nil, nil
	}, opts...)
	return p, runs
}

// TestFaultsInBatches: a fault meets all requests of a message.
func TestFaultsInBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, runs := startCounted(t)
		p.broker.FailRequests(amqpx.DefaultQueue, DisconnectBefore(), Pass(), Duplicate(), Nack(), Delay(time.Second), Lose())
		p.broker.FailResponses(amqpx.DefaultQueue, Duplicate(), DisconnectAfter(), Nack(), DisconnectBefore())
		const calls = 1000
		futures := make([]*amqpx.Future, calls)
		for i := range futures {
			futures[i] = p.client.Go(t.Context(), "count", nil)
		}
		failed := 0
		for _, f := range futures {
			if _, err := f.Wait(); err != nil {
				failed++
				if amqpx.OutcomeOf(err) != amqpx.MayHaveRun {
					t.Error(err)
				}
			}
		}
		if n := runs.Load(); failed == 0 || failed == calls || n > calls || n < calls-int64(failed) {
			t.Errorf("%d of %d calls failed, the handler ran %d times", failed, calls, n)
		}
	})
}

// TestFaultsOfQueues: a fault concerns its own queue and its shards, in any order.
func TestFaultsOfQueues(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]bool{
		"orders": true, "orders.batch": true, "orders.3": true, "orders.3.batch": true,
		"orders.dead": false, "orders.retry": false, "order": false, "orders.eu": false, "orders3": false, "inventory": false,
	} {
		if got := carries("orders", key); got != want {
			t.Errorf("carries(orders, %s) = %v", key, got)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		p, _ := startCounted(t)
		p.broker.FailRequests("another", Nack())
		p.broker.FailResponses("another", Lose())
		if _, err := p.client.Call(t.Context(), "count", nil); err != nil {
			t.Error(err)
		}
	})
}

// TestDuplicateForTwoServers: two servers both run a request that is delivered twice.
func TestDuplicateForTwoServers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, runs := startCounted(t)
		another, err := amqpx.NewServer(URL, p.broker.Option())
		if err != nil {
			t.Fatal(err)
		}
		if err := another.Handle("count", func(context.Context, *amqpx.Request) ([]byte, error) {
			runs.Add(1)
			return nil, nil
		}); err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- another.Serve(context.Background()) }() // ends with Shutdown
		if err := another.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.broker.FailRequests(amqpx.DefaultQueue, Duplicate())
		if _, err := p.client.Call(t.Context(), "count", nil); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if n := runs.Load(); n != 2 {
			t.Errorf("%d runs, want 2", n)
		}
		if err := errors.Join(another.Shutdown(t.Context()), <-served); err != nil {
			t.Error(err)
		}
	})
}

// TestDisconnectDuringAHandler: the request is delivered again, and the server does not run it twice.
func TestDisconnectDuringAHandler(t *testing.T) {
	t.Parallel()
	for mode, want := range map[amqpx.ReplyMode]amqpx.Code{amqpx.ReplyQueue: "", amqpx.ReplyDirect: amqpx.CodeUnavailable} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				p := startWith(t, "slow", func(context.Context, *amqpx.Request) ([]byte, error) {
					runs.Add(1)
					<-time.After(5 * time.Second)
					return nil, nil
				}, amqpx.WithReplyMode(mode))
				time.AfterFunc(time.Second, p.broker.Disconnect)
				_, err := p.client.Call(t.Context(), "slow", nil)
				if code := amqpx.CodeOf(err); code != want || err != nil && amqpx.OutcomeOf(err) != amqpx.MayHaveRun {
					t.Errorf("error %v, want %q", err, want)
				}
				if n := runs.Load(); n != 1 {
					t.Errorf("%d runs, want 1", n)
				}
			})
		})
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, runs := startCounted(t)
		p.broker.Stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := p.client.Call(ctx, "count", nil)
		if amqpx.CodeOf(err) != amqpx.CodeDeadlineExceeded || amqpx.OutcomeOf(err) != amqpx.DidNotRun || !errors.Is(err, amqpx.ErrNotConnected) {
			t.Error(err)
		}
		p.broker.Start()
		p.wait(t)
		if _, err := p.client.Call(t.Context(), "count", nil); err != nil || runs.Load() != 1 {
			t.Errorf("%v, %d runs", err, runs.Load())
		}
	})
}

// TestBlockedCalls: the outcome of calls while the broker is blocked.
func TestBlockedCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, runs := startCounted(t)
		p.broker.Block("")
		blocked := func(want amqpx.Outcome) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := p.client.Call(ctx, "count", nil)
			if amqpx.CodeOf(err) != amqpx.CodeDeadlineExceeded || amqpx.OutcomeOf(err) != want || !errors.Is(err, amqpx.ErrBlocked) {
				t.Errorf("%v; %v, want %v", err, amqpx.OutcomeOf(err), want)
			}
		}
		blocked(amqpx.MayHaveRun) // the first message of the client, which the broker takes later
		blocked(amqpx.DidNotRun)
		p.broker.Unblock()
		if _, err := p.client.Call(t.Context(), "count", nil); err != nil || runs.Load() != 2 {
			t.Errorf("%v, %d runs", err, runs.Load())
		}
	})
}
