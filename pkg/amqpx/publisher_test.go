package amqpx

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// maxSize makes a broker refuse messages larger than limit.
func maxSize(limit int) func(string, amqp.Publishing) *amqp.Error {
	return func(_ string, msg amqp.Publishing) *amqp.Error {
		if len(msg.Body) <= limit {
			return nil
		}
		return &amqp.Error{Code: amqp.PreconditionFailed, Server: true, Reason: fmt.Sprintf(
			"PRECONDITION_FAILED - message size %d is larger than configured max size %d", len(msg.Body), limit)}
	}
}

// takesNoPoison makes a broker end the channel for each message with body "poison" to
// DefaultQueue.
func takesNoPoison(count *atomic.Int64) func(string, amqp.Publishing) *amqp.Error {
	return func(key string, msg amqp.Publishing) *amqp.Error {
		if key != DefaultQueue || !bytes.Equal(msg.Body, []byte("poison")) {
			return nil
		}
		count.Add(1)
		return &amqp.Error{Code: amqp.PreconditionFailed, Server: true, Reason: "PRECONDITION_FAILED - poison"}
	}
}

func TestSizeLimitOfTheBrokerIsLearned(t *testing.T) {
	t.Parallel()
	for _, mode := range []ReplyMode{ReplyQueue, ReplyDirect} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				b.OnPublish = maxSize(1000)
				ready(t, startServer(t, b, handlers{"echo": echo}).WaitReady)
				c := startClient(t, b, WithReplyMode(mode))
				ready(t, c.WaitReady)
				for _, opts := range [][]CallOption{nil, {Idempotent()}, nil} {
					got := <-goCall(c, within(t, time.Minute), "echo", make([]byte, 1001), opts...)
					wantIs(t, got.err, ErrTooLarge)
					wantSame(t, "code", CodeOf(got.err), CodeInvalidArgument)
					wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
					if mode == ReplyDirect {
						ready(t, c.WaitReady)
					}
				}
				wantResponse(t, <-goCall(c, within(t, time.Minute), "echo", []byte("x")), "x")
				want := map[ReplyMode]uint64{ReplyQueue: 0, ReplyDirect: 1}[mode]
				wantSame(t, "reconnects", c.Stats().Reconnects, want)
			})
		})
	}
}

func TestResponseAboveTheSizeLimitOfTheBroker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		r := startRig(t, handlers{"echo": echo, "large": counted(&runs, func(context.Context, *Request) ([]byte, error) {
			return make([]byte, 2000), nil
		})})
		r.broker.With(func(b *brokertest.Broker) { b.OnPublish = maxSize(1000) })
		for range 2 {
			got := <-goCall(r.client, within(t, time.Minute), "large", nil, Idempotent())
			wantSame(t, "code", CodeOf(got.err), CodeResourceExhausted)
			wantSame(t, "outcome", OutcomeOf(got.err), Ran)
			wantTexts(t, got.err, "2000 bytes", "1000")
			wantResponse(t, <-goCall(r.client, within(t, time.Minute), "echo", []byte("x")), "x")
		}
		wantSame(t, "runs", runs.Load(), 2)
		wantSame(t, "reconnects of the server", r.server.Stats().Reconnects, 0)
	})
}

func TestBatchesStayBelowTheSizeLimitOfTheBroker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		startServer(t, b, handlers{"echo": echo, "start batching": echo}, WithBatch(BatchAuto))
		r := &rig{t: t, broker: b, client: startClient(t, b, WithBatch(BatchAuto))}
		ready(t, r.client.WaitReady)
		r.awaitBatching()
		b.With(func(b *brokertest.Broker) { b.OnPublish = maxSize(4000) })
		calls := r.together(func() (waiting []<-chan result) {
			for range 40 {
				waiting = append(waiting, goCall(r.client, within(t, time.Minute), "echo", make([]byte, 1000)))
			}
			settle()
			return waiting
		})
		for _, call := range calls {
			wantResponse(t, <-call, string(make([]byte, 1000)))
		}
		wantSame(t, "reconnects", r.client.Stats().Reconnects, 0)
	})
}

// A message refused by the broker fails alone, among many unconfirmed messages.
func TestCulpritOfAChannelException(t *testing.T) {
	t.Parallel()
	for _, mode := range []ReplyMode{ReplyQueue, ReplyDirect} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				ready(t, startServer(t, b, handlers{"echo": echo}).WaitReady)
				c := startClient(t, b, WithReplyMode(mode))
				ready(t, c.WaitReady)
				var kills atomic.Int64
				b.With(func(b *brokertest.Broker) { b.OnPublish = takesNoPoison(&kills) })
				b.HoldConfirms()
				var innocent []<-chan result
				var culprit <-chan result
				for i := range 100 {
					if i == 50 {
						culprit = goCall(c, within(t, time.Minute), "echo", []byte("poison"), Idempotent())
					}
					innocent = append(innocent, goCall(c, within(t, time.Minute), "echo", []byte("x"), Idempotent()))
				}
				settle()
				b.ReleaseConfirms()
				got := <-culprit
				wantSame(t, "code", CodeOf(got.err), CodeInvalidArgument)
				wantIs(t, got.err, ErrRefused)
				wantTexts(t, got.err, "PRECONDITION_FAILED - poison")
				for _, call := range innocent {
					wantResponse(t, <-call, "x")
				}
				if n := kills.Load(); n < 1 || n > 4 {
					t.Errorf("the culprit ended %d channels", n)
				}
				if mode == ReplyQueue {
					wantSame(t, "reconnects", c.Stats().Reconnects, 0)
				}
				wantResponse(t, <-goCall(c, within(t, time.Minute), "echo", []byte("x")), "x")
			})
		})
	}
}
