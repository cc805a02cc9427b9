package amqpx

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Batches of a dead server are redelivered. The next server republishes their calls, and receives
// the first copies while it still unpacks the batches. No worker may wait for a republish when
// the republish needs a worker.
func TestBatchesThatComeAgainRun(t *testing.T) {
	t.Parallel()
	const batches, calls = 8, 300
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New()
			b.With(func(b *brokertest.Broker) {
				_, _ = b.Declare(DefaultQueue, true, nil), b.Declare(batchQueueName, true, nil)
				for i := range batches {
					var body []byte
					for n := range calls {
						req := &wire.Request{Method: "m", ID: fmt.Sprintf("%d-%d", i, n), Body: []byte("x")}
						body = req.AppendTo(body, 10*time.Minute)
					}
					b.Queues[batchQueueName].Messages = append(b.Queues[batchQueueName].Messages, &brokertest.Message{
						Redelivered: true, Msg: amqp.Publishing{ContentType: wire.ContentTypeRequests, ReplyTo: "answers", Body: body},
					})
				}
			})
			var runs atomic.Int64
			s := startServer(t, b, handlers{"m": counted(&runs, echo)}, WithBatch(BatchAuto), WithWorkers(2))
			ready(t, s.WaitReady)
			pass(time.Hour)
			wantSame(t, "runs", runs.Load(), batches*calls)
			wantSame(t, "in flight", s.Stats().InFlight, 0)
		})
	}
}

// A batch that goes back to its queue is delivered again with the requests that were refused, so
// no refusal of it is sent.
func TestRefusalsOfARequeuedBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"slow": slow, "m": echo}, WithBatch(BatchAuto), WithWorkers(1))
		var body []byte
		for i, method := range []string{"nobody knows", "slow", "m"} {
			body = (&wire.Request{Method: method, ID: fmt.Sprint(i)}).AppendTo(body, time.Hour)
		}
		b.PutIn(batchQueueName, amqp.Publishing{ContentType: wire.ContentTypeRequests, ReplyTo: rawQueue, Body: body})
		settle()
		b.Fail(DefaultQueue, brokertest.FaultNack) // the copy of the request that no worker has started
		s.stop()
		drained(t, s, nil, 2*time.Second)
		wantSame(t, "left in the batch queue", b.Ready(batchQueueName), 1)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
		for _, response := range takeResponses(b) {
			if ran, said := response.Headers[wire.HeaderRan]; said {
				t.Errorf("a response says %s: %v", wire.HeaderRan, ran)
			}
		}
	})
}
