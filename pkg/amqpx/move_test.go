package amqpx

import (
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

// lost puts a request into the queue as one that a server has lost.
func (b *fakeBroker) lost(msg amqp.Publishing) {
	b.with(func(b *fakeBroker) {
		q := b.queues[DefaultQueue]
		q.messages = append(q.messages, &fakeMessage{msg: msg, redelivered: true})
		b.dispatch(q)
	})
}

func TestLostRequestIsMovedOnceAndRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		msg := with(keyed("m", "key", "id"), func(p *amqp.Publishing) {
			p.Headers = amqp.Table{"mine": "kept", "CC": []any{"elsewhere"}, "x-delivery-count": int64(3)}
			p.Expiration, p.ContentType, p.Type, p.Priority = "5000", "text/plain", "type", 3
		})
		b.lost(msg)
		settle()
		wantSame(t, "answers", len(b.take()), 1)
		copies := b.messagesTo(DefaultQueue)
		wantSame(t, "copies", len(copies), 1)
		got := copies[0]
		wantSame(t, "mandatory", got.mandatory, true)
		wantSame(t, "headers", len(got.msg.Headers), 3)
		wantSame(t, "mine", got.msg.Headers["mine"], any("kept"))
		wantSame(t, "deliveries", got.msg.Headers[headerDeliveries], any(int64(1)))
		wantSame(t, "expiration", got.msg.Expiration, "5000")
		wantSame(t, "content type", got.msg.ContentType, "text/plain")
		wantSame(t, "type", got.msg.Type, "type")
		wantSame(t, "stats", s.Stats(), ServerStats{Requests: 2, OK: 1, Moved: 1, Workers: DefaultWorkers})
		wantSame(t, "left", b.ready(DefaultQueue)+b.unacked(DefaultQueue), 0)
	})
}

func TestWhatIsLostTwiceRunsAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var running, most atomic.Int64
		b, s := serve(t, handlers{"m": mostAtOnce(&running, &most)})
		for range 4 {
			b.lost(with(request("m"), func(p *amqp.Publishing) { p.Headers = amqp.Table{headerDeliveries: int32(1)} }))
		}
		pass(time.Minute)
		wantSame(t, "answers", len(b.take()), 4)
		wantSame(t, "most at once", most.Load(), 1)
		wantSame(t, "to the retry queue", len(b.messagesTo(DefaultQueue+".retry")), 4)
		wantSame(t, "moved", s.Stats().Moved, 4)
	})
}

func TestMoveThatFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		fault      fault
		reconnects uint64
		warns      int
	}{
		{"refused", faultNack, 0, 1},
		{"link lost, copy did not arrive", faultLostUnconfirmed, 1, 0},
		{"link lost, copy arrived", faultCutUnconfirmed, 1, 0},
		{"link lost after the confirm", faultCutConfirmed, 1, 0},
		{"not written", faultUnsent, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				log, logs := observed(zap.WarnLevel)
				b, s := serve(t, handlers{"m": counted(&runs, echo)}, WithLogger(log))
				b.fail(DefaultQueue, c.fault)
				b.lost(keyed("m", "key", "id"))
				pass(time.Minute)
				if answers := len(b.take()); answers < 1 || answers > 3 { // one for each copy, at most
					t.Errorf("%d answers", answers)
				}
				wantSame(t, "executions", runs.Load(), 1)
				wantSame(t, "reconnects", s.Stats().Reconnects, c.reconnects)
				wantSame(t, "refusals logged", logs.FilterMessage("the broker refused to move a request").Len(), c.warns)
				wantSame(t, "in flight", s.Stats().InFlight, 0)
				wantSame(t, "left", b.ready(DefaultQueue)+b.unacked(DefaultQueue)+b.ready(DefaultQueue+".retry"), 0)
			})
		})
	}
}

// RabbitMQ 3.10 and 3.11 nack everything that is published to a quorum queue on a channel
// opened while the queue elected its leader, until the node of the leader before is back: a
// lost request does not wait for that node.
func TestMoveThatAChannelWillNeverTake(t *testing.T) {
	t.Parallel()
	for name, elects := range map[string]time.Duration{"after the election": 0, "in the election": 1500 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, s := serve(t, handlers{"m": echo})
				elected := time.Now().Add(elects)
				b.with(func(b *fakeBroker) {
					b.nacks = func(link, key string) bool {
						return key == DefaultQueue && (strings.HasSuffix(link, "publish") || time.Now().Before(elected))
					}
				})
				for range 20 {
					b.lost(request("m"))
				}
				pass(elects + 2500*time.Millisecond)
				wantSame(t, "answers", len(b.take()), 20)
				wantSame(t, "reconnects", s.Stats().Reconnects, 0)
				wantSame(t, "unacknowledged", b.unacked(DefaultQueue), 0)
			})
		})
	}
}

// The queue to move to was deleted: nothing is lost, and it is made again.
func TestMoveToAMissingQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		b.with(func(b *fakeBroker) { delete(b.queues, DefaultQueue+".dead") })
		b.lost(with(request("m"), func(p *amqp.Publishing) { p.Headers = amqp.Table{headerDeliveries: int64(DefaultDeliveryLimit)} }))
		pass(time.Minute)
		answers := b.take()
		wantSame(t, "answers", len(answers), 1)
		wantSame(t, "code", answers[0].Headers[headerCode], any("internal"))
		wantSame(t, "dead letters", b.ready(DefaultQueue+".dead"), 1)
		wantSame(t, "reconnects", s.Stats().Reconnects, 0)
		wantSame(t, "dead", s.Stats().Dead, 1)
	})
}

func TestLostRequestThatCannotBeCopiedIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		b.lost(with(request("m"), func(p *amqp.Publishing) { p.Headers = amqp.Table{"x": math.NaN()} }))
		settle()
		answer := b.take()[0]
		wantSame(t, "code", answer.Headers[headerCode], any("invalid_argument"))
		wantSame(t, "ran", answer.Headers[headerRan], nil)
		wantSame(t, "moved", s.Stats().Moved, 0)
		wantSame(t, "unacknowledged", b.unacked(DefaultQueue), 0)
	})
}

func TestCopyHasTheTimeThatIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		msg := with(request("m"), func(p *amqp.Publishing) { p.Headers, p.Expiration = amqp.Table{headerTimeout: "9000"}, "8000" })
		j := &job{arrived: time.Now(), delivery: &amqp.Delivery{
			AppId: msg.AppId, ReplyTo: msg.ReplyTo, CorrelationId: msg.CorrelationId, Headers: msg.Headers, Expiration: msg.Expiration,
		}}
		j.in, _ = decodeRequest(j.delivery, "")
		for _, step := range []struct {
			after      time.Duration
			budget     int64
			expiration string
		}{{0, 9000, "8000"}, {3 * time.Second, 6000, "5000"}, {10 * time.Second, 1, "1"}} {
			pass(step.after)
			got, err := copyOf(j)
			if err != nil {
				t.Fatal(err)
			}
			wantSame(t, "budget", got.Headers[headerTimeout], any(step.budget))
			wantSame(t, "expiration", got.Expiration, step.expiration)
		}
		wantSame(t, "original", j.delivery.Headers[headerTimeout], any("9000"))
	})
}
