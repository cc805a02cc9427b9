package amqpx

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// startScripted starts a client and a server with a script.
func startScripted(t *testing.T, s script, opts ...ClientOption) *rig {
	t.Helper()
	r := &rig{t: t, broker: brokertest.New()}
	startScript(t, r.broker, s)
	r.client = startClient(t, r.broker, opts...)
	ready(t, r.client.WaitReady)
	return r
}

// requests returns the requests in the order of their arrival at the broker.
func (r *rig) requests() []amqp.Publishing {
	var all []amqp.Publishing
	for _, m := range r.broker.MessagesTo(DefaultQueue) {
		all = append(all, m.Msg)
	}
	return all
}

func TestRetryIsTheSameCallAndSaysWhichRefusalItFollows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startScripted(t, each(refuses(3*time.Second), refuses(time.Second), runs))
		var info CallInfo
		got := <-goCall(r.client, within(t, time.Minute), "m", []byte("x"), WithIdempotencyKey("key"), WithCallInfo(&info))
		wantResponse(t, got, "x")
		if got.took < 4*time.Second || got.took > 4*time.Second+3*resendMin {
			t.Errorf("took %v, want the two hints and a little", got.took)
		}
		sent := r.requests()
		wantSame(t, "requests", len(sent), 3)
		for i, msg := range sent {
			retry, _ := wire.WholeNumber(msg.Headers[wire.HeaderRetry])
			wantSame(t, "retry", retry, int64(i))
			wantSame(t, "resent", msg.Headers[wire.HeaderResent], nil)
			wantSame(t, "correlation id", msg.CorrelationId, sent[0].CorrelationId)
			wantSame(t, "idempotency key", msg.MessageId, "key")
		}
		wantSame(t, "attempts", info.Attempts, 3)
		wantSame(t, "stats", r.client.Stats(), ClientStats{OK: 1, Resent: 2, Retried: 2})
	})
}

func TestEarlierRefusalsCopyDoesNotAnswerTheRetry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var first amqp.Publishing
		r := startScripted(t, each(
			func(_ int, d amqp.Delivery, send func(amqp.Publishing)) {
				first = refusalTo(d, 0)
				send(first)
			},
			func(n int, d amqp.Delivery, send func(amqp.Publishing)) {
				send(first) // as after a lost connection and a redelivery to the server
				after(5*time.Second, runs)(n, d, send)
			}))
		got := <-goCall(r.client, within(t, time.Minute), "m", []byte("x"))
		wantResponse(t, got, "x")
		wantSame(t, "requests", len(r.requests()), 2)
		wantSame(t, "stats", r.client.Stats(), ClientStats{OK: 1, Resent: 1, Retried: 1, Duplicates: 1})
	})
}

func TestRefusalThatComesAgainAfterAReconnectDoesNotAnswerTheRetry(t *testing.T) {
	t.Parallel()
	for name, echo := range map[string]bool{"server of ours": true, "server that echoes nothing": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				refuse := refuses(0)
				if !echo {
					refuse = withoutEcho(refuse)
				}
				r := startScripted(t, each(refuse, after(5*time.Second, runs)))
				done := goCall(r.client, within(t, time.Minute), "m", []byte("x"))
				pass(2 * resendMin) // less than responsesAckPause: the refusal is not acknowledged
				wantSame(t, "requests", len(r.requests()), 2)
				r.cutClient()
				wantResponse(t, <-done, "x")
				wantSame(t, "requests", len(r.requests()), 2)
				wantSame(t, "stats", r.client.Stats(), ClientStats{OK: 1, Resent: 1, Retried: 1, Reconnects: 1})
			})
		})
	}
}

// withoutEcho removes the retry header from responses, like a server without support for
// retries.
func withoutEcho(s script) script {
	return func(n int, d amqp.Delivery, send func(amqp.Publishing)) {
		s(n, d, func(response amqp.Publishing) {
			delete(response.Headers, wire.HeaderRetry)
			send(response)
		})
	}
}

func TestRefusalOfUnknownOriginProvesNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		opts     []CallOption
		requests int
	}{
		{name: "not idempotent", requests: 2},
		{name: "idempotent", opts: []CallOption{Idempotent()}, requests: 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startScripted(t, withoutEcho(refuses(0)), WithRetryBudget(0, 3))
				got := <-goCall(r.client, within(t, time.Minute), "m", nil, c.opts...)
				wantSame(t, "code", CodeOf(got.err), CodeResourceExhausted)
				wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun)
				wantSame(t, "requests", len(r.requests()), c.requests)
			})
		})
	}
}

func TestRefusalAfterALostRequestProvesNothing(t *testing.T) {
	t.Parallel()
	for _, refuse := range []Code{CodeResourceExhausted, CodeUnimplemented, CodeDeadlineExceeded} {
		t.Run(refuse.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startScripted(t, each(silent, func(_ int, d amqp.Delivery, send func(amqp.Publishing)) {
					send(errorTo(d, refusal(refuse, "no")))
				}), WithRetryBudget(0, 1))
				r.broker.Fail(DefaultQueue, brokertest.FaultCutUnconfirmed)
				got := <-goCall(r.client, within(t, time.Minute), "m", nil, Idempotent())
				wantSame(t, "code", CodeOf(got.err), refuse)
				wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun) // the lost request may have run
				for i, msg := range r.requests() {
					wantSame(t, "resent", msg.Headers[wire.HeaderResent] == true, i > 0)
				}
			})
		})
	}
}

// A server refuses a re-sent request with the outcome "may have run". An idempotent call is
// retried after this refusal too.
func TestRefusalOfAResentRequestIsRetried(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		opts []CallOption
		code Code
		want int // requests
	}{
		{"idempotent", []CallOption{Idempotent()}, "", 2},
		{"not idempotent", nil, CodeResourceExhausted, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startScripted(t, each(func(_ int, d amqp.Delivery, send func(amqp.Publishing)) {
					e := Errorf(CodeResourceExhausted, "busy")
					e.outcome = MayHaveRun
					send(errorTo(d, e))
				}, runs))
				got := <-goCall(r.client, within(t, time.Minute), "m", nil, c.opts...)
				wantSame(t, "code", CodeOf(got.err), c.code)
				wantSame(t, "requests", len(r.requests()), c.want)
			})
		})
	}
}

// A handler may return the error of its own call. The inner call did not run, but the handler
// ran.
func TestErrorOfAHandlersOwnCallSaysThatTheHandlerRan(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var ran atomic.Int64
		r := startRig(t, handlers{"m": counted(&ran, func(context.Context, *Request) ([]byte, error) {
			return nil, fmt.Errorf("behind: %w", localError(CodeResourceExhausted, DidNotRun, ErrTooManyCalls, ""))
		})})
		got := <-goCall(r.client, within(t, time.Minute), "m", nil)
		wantSame(t, "code", CodeOf(got.err), CodeResourceExhausted)
		wantSame(t, "outcome", OutcomeOf(got.err), Ran)
		wantSame(t, "runs", ran.Load(), 1)
	})
}

func TestOnlyWhatMayHaveArrivedIsMarkedAsResent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startScripted(t, each(refuses(0), runs))
		r.broker.Fail(DefaultQueue, brokertest.FaultUnsent, brokertest.FaultNack, brokertest.FaultNone, brokertest.FaultUnsent, brokertest.FaultLostUnconfirmed, brokertest.FaultNack)
		wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x"), Idempotent()), "x")
		var marks []bool
		for _, msg := range r.requests() { // nacked, refused, nacked, run
			marks = append(marks, msg.Headers[wire.HeaderResent] == true)
		}
		if want := []bool{false, true, true, true}; !slices.Equal(marks, want) {
			t.Errorf("marked %v, want %v", marks, want)
		}
	})
}

func TestRoundThatIsOverIsNotSent(t *testing.T) {
	t.Parallel()
	k := queuedCall(true)
	old := &k.first
	k.nextRound()
	if old.BeginSend(1) {
		t.Error("a re-send left after the refusal that ended its round")
	}
	k.send()
	old.OnResult(publish.Lost) // late result of the previous round
	if _, ok := k.next(); ok || !k.current.Load().BeginSend(1) {
		t.Error("the next round was settled by the one before")
	}
}

// The result of a refused attempt may arrive while the call waits for its retry.
func TestResultBetweenTwoRoundsIsDropped(t *testing.T) {
	t.Parallel()
	for _, late := range []publish.Result{publish.Lost, publish.Nacked, publish.Returned, publish.Unsent} {
		k := writtenCall(false)
		k.nextRound()
		k.first.OnResult(late)
		if ev, ok := k.next(); ok || k.responseArrived() {
			t.Errorf("result %v became event %v", late, ev.kind)
		}
		wantSame(t, "outcome", k.outcome(), DidNotRun)
	}
}

func TestCancelledWhileItWaitsToRetry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startScripted(t, refuses(time.Hour))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
		done := goCall(r.client, ctx, "m", nil)
		pass(time.Minute)
		cancel()
		got := <-done
		wantIs(t, got.err, context.Canceled)
		wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
		wantSame(t, "took", got.took, time.Minute)
	})
}

func TestRetryBudgetEmptiesAndIsRefilledByCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startScripted(t, refuses(0), WithRetryBudget(0.5, 2))
		for i, retries := range []int{2, 0, 1, 0, 1} {
			var info CallInfo
			got := <-goCall(r.client, within(t, time.Minute), "m", nil, WithCallInfo(&info))
			wantSame(t, fmt.Sprint("attempts of call ", i), info.Attempts, 1+retries)
			wantSame(t, "code", CodeOf(got.err), CodeResourceExhausted)
			wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
			if retries == 0 && got.took > 0 {
				t.Errorf("call %d took %v without a retry", i, got.took)
			}
		}
	})
}

func TestRetriesDoNotMultiplyAnOutage(t *testing.T) {
	t.Parallel()
	const calls, most = 1000, 1000 + DefaultRetryBurst + 1000*DefaultRetryRatio
	probes := map[string]int{"queue is full": 1} // a second nack proves a full queue
	outcomes := map[string]Outcome{"server refuses": DidNotRun, "queue is full": MayHaveRun}
	for name, sick := range map[string]func(*rig){
		"server refuses": func(*rig) {},
		"queue is full": func(r *rig) {
			r.broker.With(func(b *brokertest.Broker) {
				q := b.Queues[DefaultQueue]
				q.MaxLength = 1
				q.Messages = append(q.Messages, &brokertest.Message{Msg: request("m")})
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startScripted(t, refuses(10*time.Millisecond))
				sick(r)
				var all sync.WaitGroup
				for range calls {
					all.Go(func() {
						_, err := r.client.Call(within(t, time.Minute), "m", nil, Idempotent())
						wantSame(t, "code", CodeOf(err), CodeResourceExhausted)
						wantSame(t, "outcome", OutcomeOf(err), outcomes[name])
					})
				}
				all.Wait()
				sent := len(r.requests())
				if sent > most || sent < calls+DefaultRetryBurst {
					t.Errorf("%d requests, want at most %v", sent, most)
				}
				wantSame(t, "retried", r.client.Stats().Retried, uint64(sent-calls-probes[name]))
			})
		})
	}
}

func TestRetryBudgetOfManySpenders(t *testing.T) {
	t.Parallel()
	b := newRetryBudget(0.25, 10)
	var spent [8]int
	var all sync.WaitGroup
	for i := range spent {
		all.Go(func() {
			for range 1000 {
				b.earn()
				if b.spend() {
					spent[i]++
				}
			}
		})
	}
	all.Wait()
	sum := 0
	for _, n := range spent {
		sum += n
	}
	if sum < 2000 || sum > 2010 {
		t.Errorf("%d spent, want 8000 quarters and at most 10 more", sum)
	}
}

// A queue nacks for a moment while the broker creates or recovers the queue. The nacks are no
// overload, and a quorum queue's nack proves that the request did not run, so calls wait
// for the queue with any retry budget.
func TestRefusalsOfAQueueThatIsComingUpCostNoBudget(t *testing.T) {
	t.Parallel()
	quorum := WithQueue(Queue{Name: DefaultQueue, Type: QueueQuorum})
	refusals := make([]brokertest.Fault, 10)
	for i := range refusals {
		refusals[i] = brokertest.FaultNack
	}
	t.Run("made", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New()
			c := startClient(t, b, quorum, WithRetryBudget(0, 0))
			ready(t, c.WaitReady)
			done := goCall(c, within(t, time.Minute), "m", []byte("x"), WaitForServer())
			pass(time.Second)
			b.Fail(DefaultQueue, refusals...)
			startServer(t, b, handlers{"m": echo}, quorum)
			wantResponse(t, <-done, "x")
		})
	})
	t.Run("made before the first call", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New()
			startServer(t, b, handlers{"m": echo}, quorum)
			c := startClient(t, b, quorum, WithRetryBudget(0, 0))
			ready(t, c.WaitReady)
			b.Fail(DefaultQueue, refusals...)
			wantResponse(t, <-goCall(c, within(t, time.Minute), "m", []byte("x"), WaitForServer()), "x")
			b.Fail(DefaultQueue, refusals...)
			wantResponse(t, <-goCall(c, within(t, time.Minute), "m", []byte("x")), "x") // without WaitForServer too
		})
	})
	t.Run("recovered", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := startRig(t, handlers{"m": echo}, quorum)
			r.client.budget.tokens.Store(0)
			r.cutClient()
			ready(t, r.client.WaitReady)
			r.broker.Fail(DefaultQueue, refusals...)
			wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("x")), "x")
		})
	})
}
