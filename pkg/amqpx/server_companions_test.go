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

func TestCompanionThatIsAwayComesBack(t *testing.T) {
	t.Parallel()
	for _, suffix := range []string{".batch", retrySuffix, deadSuffix} {
		for name, fault := range map[string]error{
			"missing": &amqp.Error{Code: amqp.NotFound, Server: true, Reason: "NOT_FOUND - home node is down"},
			"silent":  brokertest.ErrHang, // until the connection ends
		} {
			t.Run(suffix+" "+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					b := brokertest.New()
					var away atomic.Bool
					away.Store(true)
					b.OnCall = func(op, queue string) error {
						if away.Load() && op == "declare" && queue == DefaultQueue+suffix {
							return fault
						}
						return nil
					}
					log, logs := observed(zap.WarnLevel)
					s := startServer(t, b, handlers{"m": echo}, WithBatch(BatchAuto), WithLogger(log))
					client := startClient(t, b)
					begun := time.Now()
					ready(t, s.WaitReady)
					ready(t, client.WaitReady)
					wantSame(t, "the server is ready in time", time.Since(begun) <= companionWait, true)
					wantResponse(t, <-goCall(client, within(t, time.Minute), "m", []byte("x")), "x")
					warned := logs.FilterMessage("a queue cannot be used, the server does without it").All()
					if len(warned) != 1 || warned[0].ContextMap()["queue"] != DefaultQueue+suffix {
						t.Errorf("warned %v", warned)
					}
					away.Store(false)
					if fault == brokertest.ErrHang { //nolint:errorlint // it is this very value.
						b.Kick(nil) // the server asks again only on a new connection
					}
					pass(companionRetry)
					settle()
					wantSame(t, "the queue is there", strings.Contains(strings.Join(b.QueueNames(), " "), DefaultQueue+suffix), true)
					wantSame(t, "ready", s.Status().Ready(), true)
				})
			})
		}
	}
}

// While the retry queue is missing, a request lost for the second time is republished to the
// request queue, with its delivery count, and runs.
func TestLostRequestWithoutARetryQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b, s := serve(t, handlers{"m": counted(&runs, echo)})
		b.With(func(b *brokertest.Broker) { delete(b.Queues, DefaultQueue+retrySuffix) })
		s.retryUp.Store(false)
		redelivered(b, with(request("m"), copied(int64(1))))
		pass(time.Minute)
		settle()
		wantSame(t, "runs", runs.Load(), 1)
		wantSame(t, "responses", len(takeResponses(b)), 1)
		moved := b.MessagesTo(DefaultQueue)
		wantSame(t, "moved to its own queue", len(moved), 1)
		wantSame(t, "count", moved[0].Msg.Headers[wire.HeaderDeliveries], any(int64(2)))
		wantSame(t, "reconnects", s.Stats().Reconnects, 0)
	})
}
