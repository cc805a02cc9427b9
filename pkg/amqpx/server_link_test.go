package amqpx

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

// Deleting the queue loses the requests in the queue. The server still answers requests already
// delivered.
func TestQueueDeletedUnderTheServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": slow}, WithWorkers(2), WithPrefetch(6))
		for range 8 {
			b.put(request("m"))
		}
		settle()
		b.with(func(b *fakeBroker) { b.remove(b.queues[DefaultQueue]) })
		pass(time.Minute)
		wantSame(t, "answers", len(b.take()), 6)
		wantSame(t, "reconnects", s.Stats().Reconnects, 1)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
		b.put(request("m"))
		pass(time.Minute)
		wantSame(t, "answers from the new queue", len(b.take()), 1)
	})
}

func TestQueueWithOtherPropertiesIsAdopted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, logs := observed(zap.WarnLevel)
		b := newFakeBroker()
		b.with(func(b *fakeBroker) {
			_ = b.declare(DefaultQueue, false, nil) // as the Python server does
			_ = b.declare(rawQueue, true, nil)
		})
		s := startServer(t, b, handlers{"m": echo}, WithLogger(log))
		ready(t, s.WaitReady)
		b.put(request("m"))
		settle()
		wantSame(t, "answers", len(b.take()), 1)
		b.kick(nil)
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
				b.with(func(b *fakeBroker) {
					wantSame(t, "durable", b.queues["q"].durable, !c.queue.Transient)
					wantSame(t, "arguments", len(b.queues["q"].args), len(c.args))
					wantSame(t, "type", b.queues["q"].args["x-queue-type"], c.args["x-queue-type"])
				})
			})
		})
	}
}

func TestServerReturnsWhenItsQueueIsDeleted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		b.with(func(b *fakeBroker) { b.remove(b.queues[DefaultQueue]) })
		settle()
		ready(t, s.WaitReady)
		wantSame(t, "reconnects", s.Stats().Reconnects, 1)
		b.put(request("m"))
		settle()
		wantSame(t, "answers", len(b.take()), 1)
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
	case answer := <-s.leave:
		return answer, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func TestHandlersOfALostLinkAnswerThroughTheNewOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newStepped()
		b, s := serve(t, handlers{"m": h.handle})
		b.put(request("m"))
		wantSame(t, "redelivered", (<-h.begun).Redelivered, false)
		b.kick(nil)
		ready(t, s.WaitReady)
		wantSame(t, "redelivered", (<-h.begun).Redelivered, true)

		h.leave <- []byte("one of two")
		settle()
		wantSame(t, "answers", len(b.take()), 1)
		// The finished run may or may not have acknowledged a delivery. The other run's delivery
		// has the same tag and must stay unacknowledged until its end.
		if n := b.unacked(DefaultQueue); n > 1 {
			t.Errorf("%d unacknowledged", n)
		}
		h.leave <- []byte("the other")
		settle()
		wantSame(t, "answers", len(b.take()), 1)
		wantSame(t, "unacknowledged", b.unacked(DefaultQueue)+b.ready(DefaultQueue), 0)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
		wantSame(t, "reconnects", s.Stats().Reconnects, 1)
	})
}

func TestOldDeliveryIsNotAcknowledgedOnANewLink(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		old, young := newStepped(), newStepped()
		b, s := serve(t, handlers{"old": old.handle, "young": young.handle})
		b.put(request("old")) // tag 1
		<-old.begun
		b.with(func(b *fakeBroker) {
			for _, l := range append([]*fakeLink(nil), b.links...) {
				l.end(nil)
			}
			b.queues[DefaultQueue].messages = nil // another server took the request
		})
		ready(t, s.WaitReady)
		b.put(request("young")) // tag 1 again
		<-young.begun
		old.leave <- nil
		settle()
		wantSame(t, "answers", len(b.take()), 1)
		wantSame(t, "unacknowledged", b.unacked(DefaultQueue), 1)
		young.leave <- nil
		settle()
		wantSame(t, "unacknowledged", b.unacked(DefaultQueue), 0)
		wantSame(t, "reconnects", s.Stats().Reconnects, 1)
	})
}

func TestRequestsOfALostLinkThatWereNotStartedAreSkipped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newStepped()
		b, s := serve(t, handlers{"m": h.handle}, WithWorkers(1), WithPrefetch(3))
		for range 3 {
			b.put(request("m"))
		}
		<-h.begun
		b.kick(nil)
		ready(t, s.WaitReady)
		for range 4 { // the lost run and three redelivered requests
			h.leave <- nil
		}
		settle()
		wantSame(t, "runs", 1+len(h.begun), 4)
		wantSame(t, "left", b.ready(DefaultQueue)+b.unacked(DefaultQueue), 0)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
	})
}

func TestAnswerLostWithItsLinkIsGivenByTheNextRun(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]fault{"in the write": faultCutBefore, "before the confirm": faultLostUnconfirmed, "unsent": faultUnsent} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := serve(t, handlers{"m": echo})
				b.fail(rawQueue, f)
				b.put(request("m"))
				pass(time.Second)
				wantSame(t, "answers", len(b.take()), 1)
				wantSame(t, "runs", s.Stats().OK, 2)
				wantSame(t, "left", b.ready(DefaultQueue)+b.unacked(DefaultQueue), 0)
				wantSame(t, "in flight", s.Stats().InFlight, 0)
			})
		})
	}
}
