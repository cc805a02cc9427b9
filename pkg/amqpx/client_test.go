package amqpx

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

func TestCallOnTheWire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo}, WithPersistent(true))
		_, err := r.client.Call(within(t, 1500*time.Millisecond), "m", []byte("body"),
			WithHeader(map[string]any{"a": "1", "b": "1"}), WithHeader(map[string]any{"b": "2"}), WithIdempotencyKey("key"))
		if err != nil {
			t.Fatal(err)
		}
		sent := r.broker.MessagesTo(DefaultQueue)[0]
		wantSame(t, "mandatory", sent.Mandatory, true)
		want := amqp.Table{"a": "1", "b": "2"}
		if !maps.Equal(sent.Msg.Headers, want) {
			t.Errorf("headers %v, want %v", sent.Msg.Headers, want)
		}
		wantSame(t, "app_id", sent.Msg.AppId, "m")
		wantSame(t, "type", sent.Msg.Type, "rpc.v1.idempotent")
		wantSame(t, "message_id", sent.Msg.MessageId, "key")
		wantSame(t, "expiration", sent.Msg.Expiration, "1500")
		wantSame(t, "delivery mode", sent.Msg.DeliveryMode, amqp.Persistent)
		if id, err := uuid.Parse(sent.Msg.CorrelationId); err != nil || id.Version() != 4 {
			t.Errorf("correlation id %q: %v", sent.Msg.CorrelationId, err)
		}
		if !strings.HasPrefix(sent.Msg.ReplyTo, "rpc_queue.reply.") {
			t.Errorf("reply_to %q", sent.Msg.ReplyTo)
		}
		response := r.broker.MessagesTo(brokertest.RouteReplies)[0]
		wantSame(t, "response's correlation id", response.Msg.CorrelationId, sent.Msg.CorrelationId)
		wantSame(t, "answer is mandatory", response.Mandatory, true)
		wantSame(t, "response's headers", len(response.Msg.Headers), 0)
	})
}

// A call with an ended context sends no request.
func TestCallWithAnEndedContextIsNotSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo})
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for range 50 {
			for _, got := range []result{<-goCall(r.client, ended, "m", nil), resultOf(r.client.Go(ended, "m", nil))} {
				wantIs(t, got.err, context.Canceled)
				wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
			}
		}
		settle()
		wantSame(t, "requests sent", len(r.broker.MessagesTo(DefaultQueue)), 0)
	})
}

func TestReplyQueueOutlivesTheConnectionAndExpires(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo})
		r.broker.With(func(b *brokertest.Broker) {
			q := b.Queues[r.client.route.replyTo]
			wantSame(t, "durable", q.Durable, true)
			wantSame(t, "expires", q.Args["x-expires"], any(int64(300_000)))
		})
		r.broker.Restart()
		ready(t, r.client.WaitReady)
		wantSame(t, "queues", len(r.broker.QueueNames()), 4) // three are the server's
	})
}

func TestCallWithoutADeadlineGetsTheDefault(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		ready(t, startServer(t, b, handlers{"m": pastDeadline}).WaitReady)
		c := startClient(t, b, WithTimeout(7*time.Second))
		got := <-goCall(c, t.Context(), "m", nil)
		wantSame(t, "code", CodeOf(got.err), CodeDeadlineExceeded)
		wantSame(t, "took", got.took, 7*time.Second)
		got = <-goCall(c, within(t, 9*time.Second), "m", nil)
		wantSame(t, "took", got.took, 9*time.Second)
	})
}

func TestCallWaitsForTheFirstConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.OnDial = refusing(20, brokertest.ErrCut)
		c := startClient(t, b, WithBackoff(time.Second, time.Second))
		info := CallInfo{Attempts: 99}
		got := <-goCall(c, within(t, time.Second), "m", nil, WithCallInfo(&info))
		wantSame(t, "attempts", info.Attempts, 0)
		wantIs(t, got.err, ErrNotConnected, context.DeadlineExceeded)
		wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
		wantTexts(t, got.err, "broker.test:5672: no connection")
		done := goCall(c, within(t, time.Hour), "m", nil, WaitForServer())
		startServer(t, b, handlers{"m": echo})
		wantResponse(t, <-done, "")
	})
}

func TestConnectionFaultsInErrorsHaveNoPassword(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.OnDial = refusing(1<<30, amqp.ErrCredentials)
		c := startClient(t, b)
		_, err := c.Call(within(t, time.Second), "m", nil)
		for _, err := range []error{err, c.WaitReady(within(t, time.Second)), c.Status().Err} {
			wantTexts(t, err, `wrong user name or password for user "app"`)
			if strings.Contains(fmt.Sprintf("%v %+v", err, err), testPassword) {
				t.Errorf("the password is in %v", err)
			}
		}
		wantSame(t, "state", c.Status().State, StateReconnecting)
	})
}

func TestResentCallIsTheSameCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": slow})
		r.broker.Fail(DefaultQueue, brokertest.FaultCutUnconfirmed, brokertest.FaultLostUnconfirmed, brokertest.FaultCutUnconfirmed)
		var info CallInfo
		got := <-goCall(r.client, within(t, time.Minute), "m", []byte("body"), Idempotent(), WithCallInfo(&info))
		wantResponse(t, got, "body")
		wantSame(t, "attempts", info.Attempts, 4)
		wantSame(t, "resent", r.client.Stats().Resent, 3)
		sent := r.broker.MessagesTo(DefaultQueue)
		wantSame(t, "requests that arrived", len(sent), 3)
		for _, m := range sent {
			wantSame(t, "correlation_id", m.Msg.CorrelationId, sent[0].Msg.CorrelationId)
			wantSame(t, "message_id", m.Msg.MessageId, "")
			wantSame(t, "body", string(m.Msg.Body), "body")
		}
		pass(5 * time.Second)
		wantSame(t, "second responses", r.client.Stats().Duplicates, 0) // the server ran the call once
	})
}

func TestResentCallCarriesTheBudgetThatIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo})
		r.broker.Fail(DefaultQueue, brokertest.FaultLostUnconfirmed)
		r.broker.With(func(b *brokertest.Broker) {
			b.OnDial = func(context.Context, string, string) error {
				dials := 0
				b.With(func(b *brokertest.Broker) { dials = len(b.Dials) })
				if dials < 10 {
					return brokertest.ErrCut
				}
				return nil
			}
		})
		begun := time.Now()
		if _, err := r.client.Call(within(t, time.Minute), "m", nil, Idempotent()); err != nil {
			t.Fatal(err)
		}
		sent := r.broker.MessagesTo(DefaultQueue)[0]
		left, _ := wire.WholeNumber(sent.Msg.Expiration)
		if want := time.Minute - sent.At.Sub(begun); time.Duration(left)*time.Millisecond > want+time.Millisecond && left < 60_000 {
			t.Errorf("expiration of %d ms with %v left", left, want)
		}
	})
}

func TestResponsesWaitInTheReplyQueueWhileTheClientIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": slow})
		done := goCall(r.client, within(t, time.Minute), "m", []byte("body"))
		settle()
		var back atomic.Bool
		r.broker.With(func(b *brokertest.Broker) {
			b.OnDial = func(context.Context, string, string) error {
				if back.Load() {
					return nil
				}
				return brokertest.ErrCut
			}
		})
		r.cutClient()
		pass(10 * time.Second)
		wantSame(t, "responses that wait", r.broker.Ready(r.client.route.replyTo), 1)
		back.Store(true)
		wantResponse(t, <-done, "body")
		wantSame(t, "requests", len(r.broker.MessagesTo(DefaultQueue)), 1)
	})
}

func TestResponsesAreAcknowledgedLateAndTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo})
		call := func(n int) {
			for range n {
				wantResponse(t, <-goCall(r.client, t.Context(), "m", nil), "")
			}
			settle()
		}
		call(responsesAckEvery - 1)
		wantSame(t, "unacknowledged", r.broker.Unacked(r.client.route.replyTo), responsesAckEvery-1)
		call(1)
		wantSame(t, "unacknowledged after many", r.broker.Unacked(r.client.route.replyTo), 0)
		call(3)
		pass(2 * responsesAckPause)
		wantSame(t, "unacknowledged after a pause", r.broker.Unacked(r.client.route.replyTo), 0)
	})
}

func TestResponseThatComesAgainAfterAReconnectIsDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo})
		wantResponse(t, <-goCall(r.client, t.Context(), "m", nil), "")
		r.cutClient()
		pass(time.Second)
		wantSame(t, "stats", r.client.Stats(), ClientStats{OK: 1, Reconnects: 1})
		wantSame(t, "responses left", r.broker.Ready(r.client.route.replyTo)+r.broker.Unacked(r.client.route.replyTo), 0)
	})
}

func TestResponsesNobodyWaitsForAreCountedAndDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo, "slow": func(ctx context.Context, req *Request) ([]byte, error) {
			return slow(context.WithoutCancel(ctx), req)
		}})
		r.broker.Fail(brokertest.RouteReplies, brokertest.FaultTwice)
		wantResponse(t, <-goCall(r.client, t.Context(), "m", nil), "")
		wantIs(t, (<-goCall(r.client, within(t, time.Second), "slow", nil)).err, context.DeadlineExceeded)
		r.broker.With(func(b *brokertest.Broker) {
			q := b.Queues[r.client.route.replyTo]
			for _, id := range []string{"", "nobody", strings.Repeat("x", 255)} {
				q.Messages = append(q.Messages, &brokertest.Message{Msg: amqp.Publishing{CorrelationId: id}})
			}
			b.Dispatch(q)
		})
		pass(5 * time.Second)
		wantSame(t, "stats", r.client.Stats(), ClientStats{OK: 1, Failed: 1, Late: 1, Duplicates: 1, Unknown: 3})
		wantSame(t, "responses left", r.broker.Ready(r.client.route.replyTo)+r.broker.Unacked(r.client.route.replyTo), 0)
	})
}

func TestCallsInFlightAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		var running, most atomic.Int64
		ready(t, startServer(t, b, handlers{"m": func(ctx context.Context, req *Request) ([]byte, error) {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			return slow(ctx, req)
		}}).WaitReady)
		c := startClient(t, b, WithMaxInFlight(3), WithMaxMessageSize(10), WithMaxInFlightBytes(10))
		for _, body := range []string{"", "12345"} { // three calls, and 10 bytes
			bound := 3
			if body != "" {
				bound = 2
			}
			var calls []<-chan result
			for range bound {
				calls = append(calls, goCall(c, within(t, time.Minute), "m", []byte(body)))
			}
			settle()
			wantSame(t, "in flight", c.Stats().InFlight, uint64(bound))
			beyond := <-goCall(c, within(t, time.Minute), "m", []byte("x"))
			wantIs(t, beyond.err, ErrTooManyCalls)
			wantSame(t, "took", beyond.took, 0)
			for _, done := range calls {
				wantResponse(t, <-done, body)
			}
		}
		wantSame(t, "most at once", most.Load(), 3)
		st := c.Stats()
		wantSame(t, "stats", st, ClientStats{OK: 5, Failed: 2, Rejected: 2})
		wantSame(t, "bytes that are left", c.pending.bytes, 0)
	})
}

func TestBodyIsTheCallersAgainAfterCall(t *testing.T) {
	t.Parallel()
	b := brokertest.New()
	startServer(t, b, handlers{"m": echo})
	c := startClient(t, b)
	body := []byte("0123456789")
	for i := range 200 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Microsecond)
		_, _ = c.Call(ctx, "m", body)
		cancel()
		for j := range body {
			body[j]++ // the race detector watches
		}
	}
}

func TestBadRequestIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.OnDial = refusing(1<<30, brokertest.ErrCut)
		c := startClient(t, b, WithMaxMessageSize(10))
		for name, call := range map[string]func() ([]byte, error){
			"no method":       func() ([]byte, error) { return c.Call(t.Context(), "", nil) },
			"large body":      func() ([]byte, error) { return c.Call(t.Context(), "m", make([]byte, 11)) },
			"reserved header": func() ([]byte, error) { return c.Call(t.Context(), "m", nil, WithHeader(map[string]any{"rpc-x": 1})) },
		} {
			_, err := call()
			wantSame(t, name, CodeOf(err), CodeInvalidArgument)
			wantSame(t, name, OutcomeOf(err), DidNotRun)
			wantSame(t, "too large", errors.Is(err, ErrTooLarge), name == "large body")
		}
	})
}

func TestCallInfoAndCallOptionsOfTheClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		startServer(t, b, handlers{"m": slow})
		var info CallInfo
		c := startClient(t, b, WithCallOptions(WaitForServer()))
		wantResponse(t, <-goCall(c, t.Context(), "m", nil, WithCallInfo(&info)), "")
		wantSame(t, "handler took", info.HandlerTime, 2*time.Second)
		if info.Attempts < 1 || info.QueueTime != 0 {
			t.Errorf("info %+v", info)
		}
		_, _ = c.Call(t.Context(), "unknown", nil, WithCallInfo(&info))
		wantSame(t, "handler took", info.HandlerTime, 0)
	})
}

func TestDirectReplyTo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		ready(t, startServer(t, b, handlers{"m": slow}).WaitReady)
		c := startClient(t, b, WithReplyMode(ReplyDirect))
		ready(t, c.WaitReady)
		wantSame(t, "connections", b.OpenLinks(), 3) // two are the server's
		wantResponse(t, <-goCall(c, t.Context(), "m", []byte("x")), "x")
		wantSame(t, "queues", len(b.QueueNames()), 3) // all are the server's

		once := goCall(c, within(t, time.Minute), "m", []byte("x"))
		again := goCall(c, within(t, time.Minute), "m", []byte("y"), Idempotent())
		settle()
		(&rig{broker: b}).cutClient()
		lost := <-once
		wantIs(t, lost.err, ErrOutcomeUnknown)
		wantSame(t, "outcome", OutcomeOf(lost.err), MayHaveRun)
		wantResponse(t, <-again, "y")
	})
}
