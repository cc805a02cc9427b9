package amqpx

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
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

// watchedHandler is a handler that reports the start of each run and the error of its context at
// the end.
type watchedHandler struct {
	begun chan string
	ended chan error
}

func newWatchedHandler() *watchedHandler {
	return &watchedHandler{begun: make(chan string, 100), ended: make(chan error, 100)}
}

func (w *watchedHandler) run(ctx context.Context, req *Request) ([]byte, error) {
	w.begun <- string(req.Body)
	<-ctx.Done()
	w.ended <- ctx.Err()
	return nil, ctx.Err()
}

func TestCancelledCallEndsItsHandlersContext(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]CallOption{
		"plain": nil, "idempotent": {Idempotent()}, "its own key": {WithIdempotencyKey("key")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWatchedHandler()
				r := startControlled(t, handlers{"m": w.run})
				other := startServer(t, r.broker, handlers{"m": w.run}, WithControl(true))
				ready(t, other.WaitReady)
				ctx, cancel := context.WithCancel(within(t, time.Minute))
				first, second := goCall(r.client, ctx, "m", []byte("first"), opts...), goCall(r.client, within(t, time.Minute), "m", []byte("second"))
				<-w.begun
				<-w.begun
				begun := time.Now()
				cancel()
				wantIs(t, (<-first).err, context.Canceled)
				settle()
				wantSame(t, "handlers ended", len(w.ended), 1)
				wantIs(t, <-w.ended, context.Canceled)
				wantSame(t, "took", time.Since(begun), 0)
				wantSame(t, "cancelled", r.server.Stats().Canceled+other.Stats().Canceled, 1)
				wantSame(t, "responses nobody waits for", r.client.Stats().Late, 0)
				wantSame(t, "in flight", r.server.Stats().InFlight+other.Stats().InFlight, 1)
				wantIs(t, (<-second).err, context.DeadlineExceeded)
			})
		})
	}
}

func TestCancelledFutureEndsItsHandlersContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatchedHandler()
		r := startControlled(t, handlers{"m": w.run})
		ctx, cancel := context.WithCancel(t.Context())
		f := r.client.Go(ctx, "m", nil)
		<-w.begun
		cancel()
		_, err := f.Wait()
		wantIs(t, err, context.Canceled)
		wantIs(t, <-w.ended, context.Canceled)
	})
}

func TestCancelledCallsOfABatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatchedHandler()
		b := brokertest.New()
		startServer(t, b, handlers{"m": w.run, "start batching": echo}, WithBatch(BatchAuto), WithControl(true))
		r := &rig{t: t, broker: b, client: startClient(t, b, WithBatch(BatchAuto), WithControl(true))}
		ready(t, r.client.WaitReady)
		r.awaitBatching()
		ctx, cancel := context.WithCancel(within(t, time.Minute))
		calls := r.together(func() (waiting []<-chan result) {
			for range 3 {
				waiting = append(waiting, goCall(r.client, ctx, "m", nil))
				settle()
			}
			return append(waiting, goCall(r.client, within(t, time.Minute), "m", []byte("stays")))
		})
		settle()
		wantSame(t, "running", len(w.begun), 4)
		cancel()
		settle()
		wantSame(t, "ended", len(w.ended), 3)
		for _, call := range calls[:3] {
			wantIs(t, (<-call).err, context.Canceled)
		}
		told := 0
		r.broker.With(func(b *brokertest.Broker) {
			for _, m := range b.Sent {
				if m.Key == controlExchangeName {
					told++
				}
			}
		})
		if told < 1 || told > 3 {
			t.Errorf("%d messages for three calls", told)
		}
		wantIs(t, (<-calls[3]).err, context.DeadlineExceeded)
	})
}

func TestCancelledBeforeItRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatchedHandler()
		b := brokertest.New()
		s := startServer(t, b, handlers{"m": w.run}, WithControl(true), WithWorkers(1), WithPrefetch(1))
		c := startClient(t, b, WithControl(true))
		ready(t, c.WaitReady)
		first := goCall(c, within(t, time.Minute), "m", []byte("first"))
		settle()
		ctx, cancel := context.WithCancel(within(t, time.Hour))
		second := goCall(c, ctx, "m", []byte("second")) // stays in the queue
		settle()
		cancel()
		wantIs(t, (<-second).err, context.Canceled)
		wantIs(t, (<-first).err, context.DeadlineExceeded)
		settle()
		wantSame(t, "began", len(w.begun), 1)
		wantSame(t, "cancelled", s.Stats().Canceled, 1)
		wantSame(t, "left", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue), 0)
		e := s.dedup
		wantSame(t, "kept in mind", e.canceled.Len(time.Now()), 0)
	})
}

// A malformed record in a cancellation message does not keep the other calls in the message
// running.
func TestCancelledBesideOneThatCannotBeRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatchedHandler()
		r := startControlled(t, handlers{"m": w.run})
		call := goCall(r.client, within(t, time.Minute), "m", nil)
		<-w.begun
		msg, _ := encodeCancel([]cancellation{{Cancellation: wire.Cancellation{ID: r.broker.Sent[0].Msg.CorrelationId, Method: "m"}}})
		msg.ReplyTo, msg.UserId = r.broker.Sent[0].Msg.ReplyTo, r.broker.Sent[0].Msg.UserId
		bad := wire.Cancellation{Method: strings.Repeat("x", wire.MaxShortString+1)}
		msg.Body = append(bad.AppendTo(nil), msg.Body...)
		r.toControl(msg)
		wantSame(t, "ended", len(w.ended), 1)
		wantSame(t, "cancelled", r.server.Stats().Canceled, 1)
		wantSame(t, "code", CodeOf((<-call).err), CodeCanceled)
	})
}

// A second call that waits for the same execution keeps the execution running when the first is
// canceled.
func TestCancelledCallOfTwoThatShareAnExecution(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slow := func(ctx context.Context, _ *Request) ([]byte, error) {
			xsync.Sleep(ctx, time.Second)
			return []byte("done"), ctx.Err()
		}
		r := startControlled(t, handlers{"m": slow})
		ctx, cancel := context.WithCancel(within(t, time.Minute))
		first := goCall(r.client, ctx, "m", nil, WithIdempotencyKey("key"))
		settle()
		second := goCall(r.client, within(t, time.Minute), "m", nil, WithIdempotencyKey("key"))
		settle()
		cancel()
		wantIs(t, (<-first).err, context.Canceled)
		wantResponse(t, <-second, "done")
		wantSame(t, "cancelled", r.server.Stats().Canceled, 0)
	})
}

func TestCallWhoseTimeIsOverIsNotToldOf(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatchedHandler()
		r := startControlled(t, handlers{"m": w.run})
		wantIs(t, (<-goCall(r.client, within(t, time.Second), "m", nil)).err, context.DeadlineExceeded)
		settle()
		r.broker.With(func(b *brokertest.Broker) {
			wantSame(t, "told", slices.ContainsFunc(b.Sent, func(m brokertest.Sent) bool { return m.Key == controlExchangeName }), false)
		})
	})
}

// Without a control exchange, the client looks for the exchange seldom, and calls are not
// affected.
func TestCancelledWithoutAControlPlane(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatchedHandler()
		b := brokertest.New()
		checks := 0
		b.OnCall = func(op, _ string) error {
			if op == "look for exchange" {
				checks++
			}
			return nil
		}
		startServer(t, b, handlers{"m": w.run})
		c := startClient(t, b, WithControl(true))
		ready(t, c.WaitReady)
		for range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			call := goCall(c, ctx, "m", nil)
			<-w.begun
			cancel()
			wantIs(t, (<-call).err, context.Canceled)
			pass(100 * time.Millisecond)
		}
		if checks < 1 || checks > 3 {
			t.Errorf("%d checks in 2 s", checks)
		}
		wantSame(t, "reconnects", c.Stats().Reconnects, 0)
	})
}

func TestCancelGoesOnAfterTheExchangeWasDeleted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatchedHandler()
		r := startControlled(t, handlers{"m": w.run})
		cancelOne := func() {
			ctx, cancel := context.WithCancel(t.Context())
			call := goCall(r.client, ctx, "m", nil)
			<-w.begun
			cancel()
			<-call
			settle()
		}
		cancelOne()
		wantSame(t, "ended", len(w.ended), 1)
		var bound []string
		r.broker.With(func(b *brokertest.Broker) {
			bound = b.Fanouts[controlExchangeName]
			delete(b.Fanouts, controlExchangeName)
		})
		cancelOne()
		cancelOne()
		wantSame(t, "ended", len(w.ended), 1)
		r.broker.With(func(b *brokertest.Broker) { b.Fanouts[controlExchangeName] = bound })
		pass(2 * checkEvery)
		cancelOne()
		wantSame(t, "ended", len(w.ended), 2)
		wantSame(t, "reconnects", r.client.Stats().Reconnects, 0)
	})
}

func TestGivenUpCallsAreForgotten(t *testing.T) {
	t.Parallel()
	e, m, now := newDedupCache(0, 0, false), &serverMethod{}, time.Unix(0, 0)
	for i := range maxCanceledIDs + 10 {
		in := incoming{Request: wire.Request{ID: strconv.Itoa(i), ReplyTo: "replies"}}
		e.cancel(m, &in, now)
	}
	wantSame(t, "kept", e.canceled.Len(now.Add(givenUpAge-1)), maxCanceledIDs)
	wantSame(t, "kept too long", e.canceled.Len(now.Add(givenUpAge)), 0)
}

func TestCancelMessageHoldsAsManyCallsAsABatch(t *testing.T) {
	t.Parallel()
	calls := make([]cancellation, publish.MaxBatchMessages+3)
	for i := range calls {
		calls[i].Cancellation = wire.Cancellation{ID: newID(), Method: "m"}
	}
	calls[len(calls)-1].replyTo = "another"
	for _, want := range []struct {
		records int
		replyTo string
	}{{publish.MaxBatchMessages, ""}, {2, ""}, {1, "another"}} {
		var msg amqp.Publishing
		msg, calls = encodeCancel(calls)
		wantSame(t, "reply_to", msg.ReplyTo, want.replyTo)
		records, err := wire.AppendRecords(nil, msg.Body)
		if err != nil || len(records) != want.records {
			t.Errorf("%d records, %v; want %d", len(records), err, want.records)
		}
	}
	wantSame(t, "left", len(calls), 0)
}

// A call with the same key, made while the canceled handler is still returning, runs the handler
// again.
func TestCallThatJoinsACancelledExecution(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		unwinds := func(ctx context.Context, _ *Request) ([]byte, error) {
			if runs.Add(1) > 1 {
				return []byte("done"), nil
			}
			<-ctx.Done()
			pass(100 * time.Millisecond)
			return nil, ctx.Err()
		}
		r := startControlled(t, handlers{"m": unwinds})
		ctx, cancel := context.WithCancel(within(t, time.Minute))
		first := goCall(r.client, ctx, "m", nil, WithIdempotencyKey("key"))
		settle()
		cancel()
		wantIs(t, (<-first).err, context.Canceled)
		settle()
		wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", nil, WithIdempotencyKey("key")), "done")
		settle()
		wantSame(t, "runs", runs.Load(), 2)
		wantSame(t, "in flight", r.server.Stats().InFlight, 0)
	})
}

// A duplicate of the canceled request, with the same ids, does not run.
func TestCancelledCallThatComesAgainDoesNotRunAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		r := startControlled(t, handlers{"m": counted(&runs, func(ctx context.Context, _ *Request) ([]byte, error) {
			<-ctx.Done()
			pass(100 * time.Millisecond)
			return nil, ctx.Err()
		})})
		ctx, cancel := context.WithCancel(within(t, time.Minute))
		call := goCall(r.client, ctx, "m", nil, Idempotent())
		settle()
		copied := r.broker.MessagesTo(DefaultQueue)[0].Msg
		cancel()
		wantIs(t, (<-call).err, context.Canceled)
		settle()
		putRequest(r.broker, copied)
		pass(time.Second)
		wantSame(t, "runs", runs.Load(), 1)
		wantSame(t, "in flight", r.server.Stats().InFlight, 0)
		wantSame(t, "left", r.broker.Ready(DefaultQueue)+r.broker.Unacked(DefaultQueue), 0)
	})
}

// A cancellation applies only to calls with its sender's user and reply_to, whether the message
// arrives before the request or while the handler runs. The canceled request is answered.
func TestWhoseCallsACancellationEnds(t *testing.T) {
	t.Parallel()
	long := newID()
	direct := wire.DirectReplyTo + ".g1h3AWEAAAABAAAAAgAAAAM=.key" // in RabbitMQ's form
	for _, c := range []struct {
		name      string
		id        string
		request   []change
		cancel    []change
		wantEnded bool
	}{
		{"its own", "1", nil, []change{from(rawQueue)}, true},
		{"its own, of a user", "1", []change{ofUser("a")}, []change{from(rawQueue), ofUser("a")}, true},
		{"another program", "1", nil, []change{from(otherReplies)}, false},
		{"nobody says whose, a number", "1", nil, nil, false},
		{"nobody says whose", long, nil, nil, false},
		{"another user", "1", []change{ofUser("a")}, []change{from(rawQueue), ofUser("b")}, false},
		{"nobody known", "1", []change{ofUser("a")}, []change{from(rawQueue)}, false},
		{"a user, of nobody's", "1", nil, []change{from(rawQueue), ofUser("a")}, false},
		{"direct reply-to", long, []change{from(direct)}, nil, true},
		{"direct reply-to of another user", long, []change{from(direct), ofUser("a")}, []change{ofUser("b")}, false},
		{"direct reply-to, a number", "1", []change{from(direct)}, nil, false},
		{"one way", long, []change{from("")}, nil, false},
	} {
		for _, before := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, before it comes %v", c.name, before), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					ended := make(chan error, 1)
					b, s := serve(t, handlers{"m": func(ctx context.Context, _ *Request) ([]byte, error) {
						xsync.Sleep(ctx, time.Minute)
						ended <- ctx.Err()
						return []byte("done"), ctx.Err()
					}}, WithControl(true), WithUserID(true))
					msg := sent(c.id, "", c.request...)
					cancel, _ := encodeCancel([]cancellation{{Cancellation: wire.Cancellation{ID: c.id, Method: "m"}}})
					for _, change := range c.cancel {
						change(&cancel)
					}
					if before {
						s.take(t, cancel)
						putRequest(b, msg)
						settle()
					} else {
						putRequest(b, msg)
						settle()
						s.take(t, cancel)
						settle()
					}
					wantSame(t, "canceled", s.Stats().Canceled == 1, c.wantEnded)
					if c.wantEnded && msg.ReplyTo == rawQueue {
						wantSame(t, "answer", onlyResponse(t, b), "canceled")
					}
					if !c.wantEnded {
						pass(2 * time.Minute)
						if len(ended) != 1 {
							t.Fatal("the handler did not run to its end")
						}
						wantSame(t, "ended by", <-ended, nil)
					}
					wantSame(t, "in flight", s.Stats().InFlight, 0)
				})
			})
		}
	}
}

// take passes a cancellation to the server.
func (r *running) take(t *testing.T, msg amqp.Publishing) {
	t.Helper()
	if err := r.cancelCalls(&amqp.Delivery{ReplyTo: msg.ReplyTo, UserId: msg.UserId, Body: msg.Body}); err != nil {
		t.Fatal(err)
	}
}

// A sender of endless responses, in the name of servers that do not exist, cannot keep Servers from
// returning.
func TestFleetEndsThoughResponsesGoOn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		id   func(i int) string
		took time.Duration
		more int // servers than the only real server
	}{
		"of one":        {func(int) string { return "made up" }, fleetQuiet, 1},
		"of ever other": {func(i int) string { return fmt.Sprint(i) }, DefaultTimeout, 300},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startControlled(t, handlers{"m": echo})
				over := make(chan struct{})
				defer close(over)
				go r.matchAll(over, c.id)
				begun := time.Now()
				servers, err := r.client.Servers(t.Context())
				if took := time.Since(begun); took < c.took || took > c.took+time.Second/2 {
					t.Errorf("took %v, want about %v", took, c.took)
				}
				if n := len(servers) - 1; n < c.more*9/10 || n > c.more*11/10 {
					t.Errorf("%d made up servers, want about %d", n, c.more)
				}
				wantSame(t, "error", err, nil)
			})
		})
	}
}

// matchAll sends a response to every client that queries the servers, ten times a second.
func (r *rig) matchAll(over <-chan struct{}, id func(i int) string) {
	tick := time.NewTicker(time.Second / 10)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-over:
			return
		case <-tick.C:
		}
		r.broker.With(func(b *brokertest.Broker) {
			for name, q := range b.Queues {
				if isOfQuery(r, name) {
					msg := amqp.Publishing{CorrelationId: wire.ControlStats, Body: fmt.Appendf(nil, `{"id":%q}`, id(i))}
					q.Messages = append(q.Messages, &brokertest.Message{Msg: msg})
					b.Dispatch(q)
				}
			}
		})
	}
}

// isOfQuery reports whether a queue is that of a query of the rig's client.
func isOfQuery(r *rig, name string) bool {
	return strings.HasPrefix(name, DefaultQueue+replyInfix) && name != r.client.route.replyTo
}
