package amqpx

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// goSend sends a one-way request in a goroutine and returns a channel for the result.
func goSend(c *Client, ctx context.Context, method string, body []byte, opts ...CallOption) <-chan result { //nolint:revive // the client is the subject.
	done := make(chan result, 1)
	begun := time.Now()
	go func() { done <- result{nil, c.Send(ctx, method, body, opts...), time.Since(begun)} }()
	return done
}

// wantSend checks the code and the outcome of a one-way request.
func wantSend(t *testing.T, got result, code Code, outcome Outcome) {
	t.Helper()
	if CodeOf(got.err) != code || OutcomeOf(got.err) != outcome {
		t.Errorf("error %v (%v), want %q and %v", got.err, OutcomeOf(got.err), code, outcome)
	}
}

func TestSendOnTheWire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var seen *Request
		middle := func(next Handler) Handler {
			return func(ctx context.Context, req *Request) ([]byte, error) {
				seen = req
				return next(ctx, req)
			}
		}
		for name, opts := range map[string][]ClientOption{"plain": nil, "middleware": {WithMiddleware(middle)}, "direct": {WithReplyMode(ReplyDirect)}} {
			r := startScripted(t, silent, opts...)
			var info CallInfo
			got := <-goSend(r.client, within(t, time.Minute), "m", []byte("x"), WithCallInfo(&info), WithHeader(map[string]any{"h": "v"}))
			wantSend(t, got, "", Ran)
			msg := r.requests()[0]
			wantSame(t, name+": reply_to", msg.ReplyTo, "")
			wantSame(t, "method", msg.AppId, "m")
			wantSame(t, "type", msg.Type, "rpc.v1")
			wantSame(t, "expiration", msg.Expiration, "")
			wantSame(t, "delivery mode", msg.DeliveryMode, amqp.Persistent)
			wantSame(t, "headers", len(msg.Headers), 1)
			wantSame(t, "body", string(msg.Body), "x")
			wantSame(t, "correlation id", msg.CorrelationId, info.CorrelationID)
			wantSame(t, "attempts", info.Attempts, 1)
			wantSame(t, "response", info.Response, nil)
			wantSame(t, "stats", r.client.Stats(), ClientStats{OK: 1})
			wantSame(t, "pending", r.client.pending.len(), 0)
		}
		wantSame(t, "seen by middleware", seen.OneWay, true)
	})
}

func TestSendReturnsAtTheConfirmAndTheServerRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var handed Request
		deadline := time.Duration(0)
		r := startRig(t, handlers{"m": func(ctx context.Context, req *Request) ([]byte, error) {
			handed = *req
			end, _ := ctx.Deadline()
			deadline = time.Until(end)
			<-time.After(time.Hour / 60)
			return []byte("nobody reads it"), nil
		}})
		got := <-goSend(r.client, within(t, time.Second), "m", []byte("x"))
		wantSend(t, got, "", Ran)
		wantSame(t, "took", got.took, 0)
		pass(2 * time.Minute)
		wantSame(t, "one way", handed.OneWay, true)
		wantSame(t, "deadline", deadline, DefaultMaxHandlerTime)
		wantSame(t, "ok", r.server.Stats().OK, 1)
		wantSame(t, "in flight", r.server.Stats().InFlight, 0)
		wantSame(t, "left", r.broker.Ready(DefaultQueue)+r.broker.Unacked(DefaultQueue), 0)
		wantSame(t, "unroutable", r.server.Stats().Unroutable, 0)
	})
}

func TestSendWithAnExpiration(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var left time.Duration
		r := startRig(t, handlers{"m": func(ctx context.Context, _ *Request) ([]byte, error) {
			end, _ := ctx.Deadline()
			left = time.Until(end)
			return nil, nil
		}})
		wantSend(t, <-goSend(r.client, within(t, time.Minute), "m", nil, WithExpiration(5*time.Second)), "", Ran)
		pass(time.Second)
		wantSame(t, "deadline of the handler", left, 5*time.Second)
		r.server.stop()
		_ = r.server.wait(t)
		wantSend(t, <-goSend(r.client, within(t, time.Minute), "m", nil, WithExpiration(5*time.Second)), "", Ran)
		wantSame(t, "in the queue", r.broker.Ready(DefaultQueue), 1)
		pass(6 * time.Second)
		wantSame(t, "in the queue later", r.broker.Ready(DefaultQueue), 0)
		r.broker.HoldConfirms()
		got := <-goSend(r.client, within(t, time.Hour), "m", nil, WithExpiration(5*time.Second))
		wantSend(t, got, CodeDeadlineExceeded, MayHaveRun)
		wantSame(t, "took", got.took, 5*time.Second)
		got = <-goSend(r.client, t.Context(), "m", nil, WithExpiration(time.Hour))
		wantSame(t, "took the default", got.took, DefaultTimeout)
		got = <-goSend(r.client, t.Context(), "m", nil, WithExpiration(time.Hour), CallTimeout(time.Second))
		wantSame(t, "took the timeout", got.took, time.Second)
		wantSend(t, <-goSend(r.client, t.Context(), "m", nil, WithExpiration(0)), CodeInvalidArgument, DidNotRun)
		wantSend(t, <-goSend(r.client, t.Context(), "m", nil, CallTimeout(0)), CodeInvalidArgument, DidNotRun)
		_, err := NewClient(testURL, WithMethod("m", WithExpiration(-1)))
		wantIs(t, err, errExpiration)
	})
}

func TestSendThatFailsSaysWhetherItMayRun(t *testing.T) {
	t.Parallel()
	full := func(b *brokertest.Broker) { b.Fail(DefaultQueue, brokertest.FaultNack) }
	lost := func(b *brokertest.Broker) { b.Fail(DefaultQueue, brokertest.FaultCutUnconfirmed) }
	for _, c := range []struct {
		name     string
		queue    QueueType
		fault    func(*brokertest.Broker)
		opts     []CallOption
		code     Code
		outcome  Outcome
		sentinel error
		requests int
	}{
		{"nack", QueueClassic, full, nil, CodeUnavailable, MayHaveRun, ErrQueueUnavailable, 1},
		{"nack, idempotent", QueueClassic, full, []CallOption{Idempotent()}, "", Ran, nil, 2},
		{"nack of a quorum queue", QueueQuorum, full, nil, "", Ran, nil, 2},
		{"lost", QueueClassic, lost, nil, CodeUnavailable, MayHaveRun, ErrOutcomeUnknown, 1},
		{"lost, idempotent", QueueClassic, lost, []CallOption{Idempotent()}, "", Ran, nil, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startScripted(t, silent, WithQueue(Queue{Name: DefaultQueue, Type: c.queue}))
				c.fault(r.broker)
				got := <-goSend(r.client, within(t, time.Minute), "m", nil, c.opts...)
				wantSend(t, got, c.code, c.outcome)
				if !errors.Is(got.err, c.sentinel) {
					t.Errorf("error %v, want %v", got.err, c.sentinel)
				}
				wantSame(t, "requests", len(r.requests()), c.requests)
			})
		})
	}
}

func TestSendWithoutAQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		c := startClient(t, b)
		ready(t, c.WaitReady)
		got := <-goSend(c, within(t, time.Minute), "m", nil)
		wantSend(t, got, CodeUnavailable, DidNotRun)
		wantIs(t, got.err, ErrUnroutable)
		waiting := goSend(c, within(t, time.Minute), "m", nil, WaitForServer())
		pass(time.Second)
		var runs atomic.Int64
		startServer(t, b, handlers{"m": counted(&runs, echo)})
		wantSend(t, <-waiting, "", Ran)
		pass(time.Second)
		wantSame(t, "runs", runs.Load(), 1)
	})
}

func TestSendThatEndsBeforeTheConfirm(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		opts    []CallOption
		end     func(c *Client, cancel func())
		code    Code
		text    string
		outcome Outcome
	}{
		{"deadline", []CallOption{CallTimeout(time.Second)}, nil, CodeDeadlineExceeded, "has not confirmed", MayHaveRun},
		{"canceled", nil, func(_ *Client, cancel func()) { cancel() }, CodeCanceled, "has not confirmed", MayHaveRun},
		{"closed", nil, func(c *Client, _ func()) { _ = c.Close(context.Background()) }, CodeUnavailable, "closed", MayHaveRun},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startScripted(t, silent)
				r.broker.HoldConfirms()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := goSend(r.client, ctx, "m", nil, c.opts...)
				settle()
				if c.end != nil {
					c.end(r.client, cancel)
				}
				got := <-done
				wantSend(t, got, c.code, c.outcome)
				if !strings.Contains(got.err.Error(), c.text) {
					t.Errorf("error %v, want %q in it", got.err, c.text)
				}
				settle()
				wantSame(t, "cancellations", len(r.broker.MessagesTo(DefaultQueue+".control")), 0)
				wantSame(t, "pending", r.client.pending.len(), 0)
				r.broker.ReleaseConfirms()
				settle()
			})
		})
	}
}

func TestSendsTravelTogetherAndNotWithCalls(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]Option{"one queue": nil, "shards": {WithShards(2)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs, oneWay atomic.Int64
				r := startRig(t, handlers{"m": func(_ context.Context, req *Request) ([]byte, error) {
					runs.Add(1)
					if req.OneWay {
						oneWay.Add(1)
					}
					return req.Body, nil
				}}, append(opts, WithBatch(BatchAuto))...)
				wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", nil), "")
				settle()
				const n = 100
				r.broker.HoldConfirms()
				var all sync.WaitGroup
				for i := range n {
					life := []time.Duration{time.Minute, time.Hour}[i%2]
					all.Go(func() {
						var own []CallOption
						if i%4 < 2 {
							own = append(own, WithExpiration(life))
						}
						if err := r.client.Send(within(t, time.Minute), "m", []byte("s"), own...); err != nil {
							t.Error(err)
						}
					})
					all.Go(func() { wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("c")), "c") })
				}
				settle()
				r.broker.ReleaseConfirms()
				all.Wait()
				settle()
				wantSame(t, "runs", runs.Load(), 2*n+1)
				wantSame(t, "one-way runs", oneWay.Load(), n)
				var batches []amqp.Publishing
				for _, queue := range []string{DefaultQueue + ".batch", DefaultQueue + ".1.batch"} {
					for _, m := range r.broker.MessagesTo(queue) {
						batches = append(batches, m.Msg)
					}
				}
				if !slices.ContainsFunc(batches, func(m amqp.Publishing) bool { return m.ReplyTo == "" && m.Expiration == "" }) {
					t.Error("no batch of one-way requests without expiration")
				}
				for _, m := range batches {
					if m.ReplyTo == "" && m.DeliveryMode != amqp.Persistent || m.ReplyTo != "" && m.Expiration == "" {
						t.Errorf("a batch with reply_to %q, delivery mode %d, expiration %q", m.ReplyTo, m.DeliveryMode, m.Expiration)
					}
				}
				wantSame(t, "left", r.broker.Unacked(DefaultQueue+".batch")+r.broker.Unacked(DefaultQueue), 0)
			})
		})
	}
}

// A server knows a request that was sent again by its key, and runs it once.
func TestSendThatIsSentAgainRunsOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		r := startRig(t, handlers{"m": counted(&runs, echo)})
		r.broker.HoldConfirms()
		done := goSend(r.client, within(t, time.Minute), "m", []byte("x"), Idempotent())
		settle()
		r.broker.ReleaseConfirms()
		wantSend(t, <-done, "", Ran)
		r.broker.HoldConfirms()
		done = goSend(r.client, within(t, time.Minute), "m", []byte("y"), Idempotent())
		settle()
		r.cutClient()
		r.broker.ReleaseConfirms()
		wantSend(t, <-done, "", Ran)
		settle()
		sent := r.requests()
		wantSame(t, "requests", len(sent), 3)
		wantSame(t, "key", sent[2].MessageId, sent[1].MessageId)
		wantSame(t, "resent", sent[2].Headers["rpc-resent"], any(true))
		wantSame(t, "runs", runs.Load(), 2)
		wantSame(t, "replayed", r.server.Stats().Replayed, 1)
	})
}

// The confirm is known although the session ends before the caller looks.
func TestConfirmOfASendIsNotLostWithTheSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startScripted(t, silent)
		for range 50 {
			done := goSend(r.client, within(t, time.Minute), "m", nil, Idempotent())
			settle()
			r.cutClient()
			wantSend(t, <-done, "", Ran)
		}
		wantSame(t, "requests", len(r.requests()), 50)
	})
}

func TestErrorsOfOneWayRequestsAreLogged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		r := startRig(t, handlers{
			"coded": func(context.Context, *Request) ([]byte, error) { return nil, Errorf(CodeNotFound, "no such order") },
			"slow":  untilDone,
		}, WithLogger(zap.New(core)))
		for _, c := range []struct{ method, code, text, outcome string }{
			{"coded", "not_found", "no such order", "ran"},
			{"slow", "deadline_exceeded", "time ran out", "ran"},
			{"nowhere", "unimplemented", "unknown to this server", "did not run"},
		} {
			wantSend(t, <-goSend(r.client, within(t, time.Hour), c.method, nil, WithExpiration(time.Minute)), "", Ran)
			pass(2 * time.Minute)
			lines := slices.DeleteFunc(logs.TakeAll(), func(e observer.LoggedEntry) bool { return e.Message != "a one-way request failed" })
			if len(lines) != 1 {
				t.Fatalf("%s: %d lines", c.method, len(lines))
			}
			got := lines[0].ContextMap()
			for field, want := range map[string]string{"method": c.method, "code": c.code, "outcome": c.outcome} {
				wantSame(t, field, got[field], any(want))
			}
			if text, _ := got["error"].(string); !strings.Contains(text, c.text) {
				t.Errorf("error %q, want %q in it", text, c.text)
			}
		}
		wantSame(t, "failed", r.server.Stats().Failed, 2)
		wantSame(t, "refused", r.server.Stats().Refused, 1)
		wantSame(t, "left", r.broker.Unacked(DefaultQueue), 0)
	})
}

func TestSendOfAMethod(t *testing.T) {
	t.Parallel()
	type order struct{ SKU string }
	create := NewMethod[order, struct{}]("create", JSON(), Compress(Gzip(), 64))
	synctest.Test(t, func(t *testing.T) {
		got := make(chan order, 2)
		b := brokertest.New()
		startServer(t, b, handlers{"create": create.Handler(func(_ context.Context, o order) (struct{}, error) {
			got <- o
			return struct{}{}, nil
		})})
		c := startClient(t, b)
		ready(t, c.WaitReady)
		for _, sku := range []string{"tv", strings.Repeat("tv", 100)} {
			if err := create.Send(within(t, time.Minute), c, order{sku}); err != nil {
				t.Fatal(err)
			}
			wantSame(t, "received", (<-got).SKU, sku)
		}
		sent := b.MessagesTo(DefaultQueue)
		wantSame(t, "content type", sent[0].Msg.ContentType, "application/json")
		wantSame(t, "encoding", sent[1].Msg.ContentEncoding, "gzip")
		wantSame(t, "headers", len(sent[1].Msg.Headers), 0)
		bad := NewMethod[chan int, struct{}]("bad", JSON())
		err := bad.Send(t.Context(), c, make(chan int))
		wantSend(t, result{err: err}, CodeInvalidArgument, DidNotRun)
		err = create.Send(t.Context(), nil, order{})
		wantSend(t, result{err: err}, CodeInvalidArgument, DidNotRun)
		err = NewMethod[order, struct{}]("bad", nil).Send(t.Context(), c, order{})
		wantSend(t, result{err: err}, CodeInvalidArgument, DidNotRun)
	})
}
