package amqpx

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// Deleting the queue loses the requests in the queue. The server still answers requests already
// delivered.
func TestQueueDeletedUnderTheServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": slow}, WithWorkers(2), WithPrefetch(6))
		for range 8 {
			putRequest(b, request("m"))
		}
		settle()
		b.With(func(b *brokertest.Broker) { b.Remove(b.Queues[DefaultQueue]) })
		pass(time.Minute)
		wantSame(t, "responses", len(takeResponses(b)), 6)
		wantSame(t, "reconnects", s.Stats().Reconnects, 1)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
		putRequest(b, request("m"))
		pass(time.Minute)
		wantSame(t, "responses from the new queue", len(takeResponses(b)), 1)
	})
}

func TestQueueWithOtherPropertiesIsAdopted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, logs := observed(zap.WarnLevel)
		b := brokertest.New()
		b.With(func(b *brokertest.Broker) {
			_ = b.Declare(DefaultQueue, false, nil) // as the Python server does
			_ = b.Declare(rawQueue, true, nil)
		})
		s := startServer(t, b, handlers{"m": echo}, WithLogger(log))
		ready(t, s.WaitReady)
		putRequest(b, request("m"))
		settle()
		wantSame(t, "responses", len(takeResponses(b)), 1)
		b.Kick(nil)
		ready(t, s.WaitReady)
		warnings := logs.FilterMessage("queue exists with other properties and is used as it is")
		wantSame(t, "warnings", warnings.Len(), 1)
		fields := warnings.All()[0].ContextMap()
		wantSame(t, "queue", fields["queue"], any(DefaultQueue))
		wantSame(t, "wanted_durable", fields["wanted_durable"], any(true))
	})
}

func TestQueueIsDeclaredAsSet(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		queue Queue
		args  amqp.Table
	}{
		{"classic", Queue{Name: "q", Type: QueueClassic}, nil},
		{"no type", Queue{Name: "q"}, nil},
		{"transient", Queue{Name: "q", Transient: true}, nil},
		{"quorum", Queue{Name: "q", Type: QueueQuorum}, amqp.Table{"x-queue-type": "quorum"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, _ := serve(t, handlers{"m": echo}, WithQueue(c.queue))
				b.With(func(b *brokertest.Broker) {
					wantSame(t, "durable", b.Queues["q"].Durable, !c.queue.Transient)
					wantSame(t, "arguments", len(b.Queues["q"].Args), len(c.args))
					wantSame(t, "type", b.Queues["q"].Args["x-queue-type"], c.args["x-queue-type"])
				})
			})
		})
	}
}

func TestServerReturnsWhenItsQueueIsDeleted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		b.With(func(b *brokertest.Broker) { b.Remove(b.Queues[DefaultQueue]) })
		settle()
		ready(t, s.WaitReady)
		wantSame(t, "reconnects", s.Stats().Reconnects, 1)
		putRequest(b, request("m"))
		settle()
		wantSame(t, "responses", len(takeResponses(b)), 1)
	})
}

// stepped is a handler that reports the start of each run on begun, and ends a run with a
// response from leave.
type stepped struct {
	begun chan *Request
	leave chan []byte
}

func newStepped() *stepped {
	return &stepped{begun: make(chan *Request, 100), leave: make(chan []byte)}
}

func (s *stepped) handle(ctx context.Context, req *Request) ([]byte, error) {
	s.begun <- req
	select {
	case response := <-s.leave:
		return response, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func TestHandlersOfALostConnectionAnswerThroughTheNewOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newStepped()
		b, s := serve(t, handlers{"m": h.handle})
		putRequest(b, request("m"))
		wantSame(t, "redelivered", (<-h.begun).Redelivered, false)
		b.Kick(nil)
		ready(t, s.WaitReady)
		wantSame(t, "redelivered", (<-h.begun).Redelivered, true)

		h.leave <- []byte("one of two")
		settle()
		wantSame(t, "responses", len(takeResponses(b)), 1)
		// The finished run may or may not have acknowledged a delivery. The other run's delivery
		// has the same tag and must stay unacknowledged until its end.
		if n := b.Unacked(DefaultQueue); n > 1 {
			t.Errorf("%d unacknowledged", n)
		}
		h.leave <- []byte("the other")
		settle()
		wantSame(t, "responses", len(takeResponses(b)), 1)
		wantSame(t, "unacknowledged", b.Unacked(DefaultQueue)+b.Ready(DefaultQueue), 0)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
		wantSame(t, "reconnects", s.Stats().Reconnects, 1)
	})
}

func TestOldDeliveryIsNotAcknowledgedOnANewConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		old, young := newStepped(), newStepped()
		b, s := serve(t, handlers{"old": old.handle, "young": young.handle})
		putRequest(b, request("old")) // tag 1
		<-old.begun
		b.With(func(b *brokertest.Broker) {
			for _, l := range append([]*brokertest.Conn(nil), b.Links...) {
				l.End(nil)
			}
			b.Queues[DefaultQueue].Messages = nil // another server took the request
		})
		ready(t, s.WaitReady)
		putRequest(b, request("young")) // tag 1 again
		<-young.begun
		old.leave <- nil
		settle()
		wantSame(t, "responses", len(takeResponses(b)), 1)
		wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 1)
		young.leave <- nil
		settle()
		wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
		wantSame(t, "reconnects", s.Stats().Reconnects, 1)
	})
}

func TestRequestsOfALostConnectionThatWereNotStartedAreSkipped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newStepped()
		b, s := serve(t, handlers{"m": h.handle}, WithWorkers(1), WithPrefetch(3))
		for range 3 {
			putRequest(b, request("m"))
		}
		<-h.begun
		b.Kick(nil)
		ready(t, s.WaitReady)
		for range 4 { // the lost run and three redelivered requests
			h.leave <- nil
		}
		settle()
		wantSame(t, "runs", 1+len(h.begun), 4)
		wantSame(t, "left", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue), 0)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
	})
}

func TestResponseLostWithItsConnectionIsGivenByTheNextRun(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]brokertest.Fault{"in the write": brokertest.FaultCutBefore, "before the confirm": brokertest.FaultLostUnconfirmed, "unsent": brokertest.FaultUnsent} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := serve(t, handlers{"m": echo})
				b.Fail(rawQueue, f)
				putRequest(b, request("m"))
				pass(time.Second)
				wantSame(t, "responses", len(takeResponses(b)), 1)
				wantSame(t, "runs", s.Stats().OK, 2)
				wantSame(t, "left", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue), 0)
				wantSame(t, "in flight", s.Stats().InFlight, 0)
			})
		})
	}
}
