package amqpx

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// redelivered puts a request at the head of the request queue with the redelivered mark, like a
// consumer's requeue.
func redelivered(b *brokertest.Broker, msg amqp.Publishing) {
	b.With(func(b *brokertest.Broker) {
		b.Requeue(b.Queues[DefaultQueue], &brokertest.Message{Msg: msg})
		b.Dispatch(b.Queues[DefaultQueue])
	})
}

func TestMoveThatTheBrokerNacksIsTriedAgainWithPauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, logs := observed(zap.WarnLevel)
		var runs atomic.Int64
		b, s := serve(t, handlers{"m": counted(&runs, echo)}, WithLogger(log), WithWorkers(4))
		client := startClient(t, b)
		ready(t, client.WaitReady)
		dead := DefaultQueue + deadSuffix
		b.With(func(b *brokertest.Broker) {
			b.Queues[dead].MaxLength = 1
			b.Queues[dead].Messages = []*brokertest.Message{{}}
		})
		msg := with(request("m"), copied(int64(DefaultDeliveryLimit-1)))
		for range 3 {
			redelivered(b, msg)
		}
		pass(time.Minute)
		settle()
		tries := len(b.MessagesTo(dead))
		if tries < 3*5 || tries > 3*30 {
			t.Errorf("%d tries in a minute for 3 requests", tries)
		}
		if got := logs.FilterMessage("the broker refused to move a request").Len(); got > 3 {
			t.Errorf("%d lines in a minute", got)
		}
		wantSame(t, "runs", runs.Load(), 0)
		wantSame(t, "held", b.Unacked(DefaultQueue), 3)
		// A lost request still runs: waiting republishes do not delay others.
		lost := with(request("m"), func(m *amqp.Publishing) { m.CorrelationId = "lost" })
		redelivered(b, lost)
		pass(time.Second)
		settle()
		wantSame(t, "runs", runs.Load(), 1)
		b.With(func(b *brokertest.Broker) { b.Queues[dead].MaxLength = 0 })
		pass(time.Minute)
		settle()
		wantSame(t, "dead letters", b.Ready(dead), 4)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
	})
}

func TestDrainGivesBackWhatItCannotMove(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		dead := DefaultQueue + deadSuffix
		b.With(func(b *brokertest.Broker) {
			b.Queues[dead].MaxLength = 1
			b.Queues[dead].Messages = []*brokertest.Message{{}}
		})
		redelivered(b, with(request("m"), copied(int64(DefaultDeliveryLimit-1))))
		pass(time.Minute) // the pauses between attempts are long
		begun := time.Now()
		s.stop()
		if err := s.wait(t); err != nil {
			t.Error(err)
		}
		wantSame(t, "the drain waits for no pause", time.Since(begun) < time.Second, true)
		wantSame(t, "left in the queue", b.Ready(DefaultQueue), 1)
	})
}

func TestCopyThatFitsNoFrameIsRefused(t *testing.T) {
	t.Parallel()
	for name, deliveries := range map[string]int64{"to be moved": 0, "to be buried": DefaultDeliveryLimit - 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b, s := serve(t, handlers{"m": counted(&runs, echo)})
				b.With(func(b *brokertest.Broker) { b.FrameSize = 8192 })
				msg := with(request("m"), func(m *amqp.Publishing) {
					m.Headers = amqp.Table{"x": strings.Repeat("h", 8140)}
					if deliveries > 0 {
						copied(deliveries)(m)
					}
				})
				redelivered(b, msg)
				settle()
				responses := takeResponses(b)
				if len(responses) != 1 || responses[0].Headers[wire.HeaderCode] != string(CodeInvalidArgument) {
					t.Fatalf("answers %v", responses)
				}
				wantSame(t, "runs", runs.Load(), 0)
				wantSame(t, "reconnects", s.Stats().Reconnects, 0)
				wantSame(t, "left", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue), 0)
			})
		})
	}
}

func TestRequestThatExpiredInAnotherQueueDoesNotRun(t *testing.T) {
	t.Parallel()
	death := func(reason, expiration string) []any {
		d := amqp.Table{"reason": reason, "queue": "another", "count": int64(1)}
		if expiration != "" {
			d["original-expiration"] = expiration
		}
		return []any{d}
	}
	for name, c := range map[string]struct {
		kind   string
		deaths []any
		code   Code
	}{
		"expired":                          {wire.TypeRequest, death("expired", "2000"), CodeDeadlineExceeded},
		"expired, then rejected":           {wire.TypeIdempotentRequest, append(death("rejected", ""), death("expired", "2000")...), CodeDeadlineExceeded},
		"rejected":                         {wire.TypeRequest, death("rejected", "2000"), ""},
		"rejected, its time is over":       {wire.TypeRequest, death("rejected", "0"), CodeDeadlineExceeded},
		"expired by the queue's own limit": {wire.TypeRequest, death("expired", ""), ""},
		"a delay of another program":       {"", death("expired", "2000"), ""},
		"malformed":                        {wire.TypeRequest, []any{"death", amqp.Table{"original-expiration": 7}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b, s := serve(t, handlers{"m": counted(&runs, echo)})
				putRequest(b, with(request("m"), func(m *amqp.Publishing) {
					m.Type, m.Headers = c.kind, amqp.Table{"x-death": c.deaths}
				}))
				settle()
				responses := takeResponses(b)
				wantSame(t, "responses", len(responses), 1)
				code, _ := responses[0].Headers[wire.HeaderCode].(string)
				wantSame(t, "code", Code(code), c.code)
				wantSame(t, "runs", runs.Load() == 1, c.code == "")
				wantSame(t, "expired", s.Stats().Expired == 1, c.code != "")
			})
		})
	}
}

func TestServerWithoutALimitResetsTheBrokersCount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b, s := serve(t, handlers{"m": counted(&runs, echo)}, WithDeliveryLimit(0))
		redelivered(b, with(request("m"), func(m *amqp.Publishing) {
			m.Headers = amqp.Table{"x-delivery-count": int64(brokerCountMax)}
		}))
		settle()
		wantSame(t, "moved", s.Stats().Republished, 1)
		wantSame(t, "runs", runs.Load(), 1)
		_, has := b.MessagesTo(DefaultQueue)[0].Msg.Headers["x-delivery-count"]
		wantSame(t, "the copy has the count", has, false)
		wantSame(t, "responses", len(takeResponses(b)), 1)
	})
}
