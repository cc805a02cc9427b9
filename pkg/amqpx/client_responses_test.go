package amqpx

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// nodeDown maps each operation on a queue with a dead node to the broker's error, or errHang.
type nodeDown map[string]error

func homeNodeDown() error {
	return &amqp.Error{Code: amqp.NotFound, Server: true, Reason: "NOT_FOUND - home node 'cl1@localhost' of durable queue 'q' in vhost '/' is down or inaccessible"}
}

// deadReplyQueues returns the ways to lose a reply queue, each with the longest time until the
// client uses another queue.
func deadReplyQueues() map[string]struct {
	down nodeDown
	most time.Duration
} {
	type way = struct {
		down nodeDown
		most time.Duration
	}
	return map[string]way{
		"404, as RabbitMQ 3 answers": {
			nodeDown{"declare passive": homeNodeDown(), "declare": homeNodeDown(), "consume": homeNodeDown(), "delete": homeNodeDown()},
			DefaultBackoffMin,
		},
		"no response, as from RabbitMQ 4": {
			nodeDown{"declare passive": brokertest.ErrHang, "declare": brokertest.ErrHang, "consume": brokertest.ErrHang, "delete": brokertest.ErrHang},
			DefaultBackoffMin + replyQueueGrace,
		},
		"the subscription alone is refused": {nodeDown{"consume": homeNodeDown()}, 4 * DefaultBackoffMin},
		"the subscription alone is not answered": {
			nodeDown{"consume": brokertest.ErrHang}, 4*DefaultBackoffMin + replyConsumeLimit,
		},
		"the queue has other properties": {
			nodeDown{
				"declare passive": brokertest.Missing("q"),
				"declare":         &amqp.Error{Code: amqp.PreconditionFailed, Server: true, Reason: "PRECONDITION_FAILED - inequivalent arg"},
			}, DefaultBackoffMin,
		},
	}
}

func TestClientTakesAnotherReplyQueueWhenItsNodeIsDown(t *testing.T) {
	t.Parallel()
	for name, c := range deadReplyQueues() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				log, logs := observer.New(zap.WarnLevel)
				release := make(chan struct{})
				held := func(context.Context, *Request) ([]byte, error) {
					<-release
					return []byte("answer"), nil
				}
				r := startRig(t, handlers{"held": held, "echo": echo}, WithLogger(zap.New(log)))
				again := goCall(r.client, within(t, time.Minute), "held", nil, Idempotent())
				once := goCall(r.client, within(t, time.Minute), "held", nil)
				settle()
				old := r.client.route.replyTo
				var down atomic.Bool
				var deletions atomic.Int64
				down.Store(true)
				r.broker.With(func(b *brokertest.Broker) {
					b.OnCall = func(op, name string) error {
						if name != old || !down.Load() {
							return nil
						}
						if op == "delete" {
							deletions.Add(1)
						}
						return c.down[op]
					}
				})
				start := time.Now()
				r.broker.Kick(nil)
				settle()
				ready(t, r.client.WaitReady)
				if took := time.Since(start); took > c.most {
					t.Errorf("ready after %v, want at most %v", took, c.most)
				}
				got := <-once
				wantIs(t, got.err, ErrOutcomeUnknown)
				wantSame(t, "outcome", OutcomeOf(got.err), MayHaveRun)
				close(release)
				wantResponse(t, <-again, "answer")
				wantResponse(t, <-goCall(r.client, within(t, time.Second), "echo", []byte("x")), "x")
				wantSame(t, "log lines about it", len(logs.FilterMessage("reply queue replaced, the responses in it are lost").All()), 1)
				if r.client.route.replyTo == old {
					t.Error("the client still uses the old reply queue")
				}
				// RabbitMQ 4 answers such a deletion with 541, which ends the connection.
				if n := deletions.Load(); n > 0 && c.down["declare passive"] != nil {
					t.Errorf("%d deletions of a reply queue on a node that is down", n)
				}
				down.Store(false)
				r.broker.Kick(nil) // ends hanging operations
				settle()
				ready(t, r.client.WaitReady)
				pass(2 * abandonedRetry)
				if names := r.broker.QueueNames(); slices.Contains(names, old) {
					t.Errorf("the old reply queue is left: %v", names)
				}
			})
		})
	}
}

// If the broker is slow for all queues, the client keeps its reply queue and loses no response.
func TestSlowBrokerKeepsTheReplyQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		r := startRig(t, handlers{"held": func(context.Context, *Request) ([]byte, error) {
			<-release
			return []byte("answer"), nil
		}})
		once := goCall(r.client, within(t, time.Minute), "held", nil)
		settle()
		old := r.client.route.replyTo
		var failed atomic.Bool
		r.broker.With(func(b *brokertest.Broker) {
			b.OnCall = func(op, _ string) error {
				if op == "declare passive" || op == "declare" {
					<-time.After(2 * replyQueueGrace)
				}
				if op == "delete" && !failed.Swap(true) { // of the queue that is not needed after all
					return brokertest.ErrCut
				}
				return nil
			}
		})
		r.broker.Kick(nil)
		settle()
		ready(t, r.client.WaitReady)
		close(release)
		wantResponse(t, <-once, "answer")
		wantSame(t, "reply queue", r.client.route.replyTo, old)
		pass(3 * abandonedRetry)
		wantSame(t, "a deletion failed", failed.Load(), true)
		left := slices.DeleteFunc(r.broker.QueueNames(), func(name string) bool { return !strings.Contains(name, ".reply.") })
		wantSame(t, "reply queues", strings.Join(left, " "), old)
	})
}

// A fault with a cause other than the reply queue is reported unchanged.
func TestReplyQueueOfAClientWithoutPermission(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.OnCall = func(op, _ string) error {
			if op == "declare passive" {
				return &amqp.Error{Code: amqp.AccessRefused, Server: true, Reason: "ACCESS_REFUSED - access to queue refused"}
			}
			return nil
		}
		c := startClient(t, b)
		wantTexts(t, c.WaitReady(within(t, time.Second)), `has no configure permission`)
		wantSame(t, "queues", len(b.QueueNames()), 0)
	})
}

func TestReplyQueueType(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		c := startClient(t, b, WithReplyQueueType(QueueQuorum))
		ready(t, c.WaitReady)
		b.With(func(b *brokertest.Broker) {
			args := b.Queues[c.route.replyTo].Args
			wantSame[any](t, "type", args[amqp.QueueTypeArg], "quorum")
			wantSame[any](t, "expires", args[amqp.QueueTTLArg], (5 * time.Minute).Milliseconds())
		})
		_, err := NewClient(testURL, WithReplyQueueType("stream"))
		wantTexts(t, err, `reply queue type "stream"`)
	})
}
