package amqpx

import (
	"testing"
	"testing/synctest"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

func TestLogLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, logs := observed(zap.WarnLevel)
		var limit logLimit
		for range 10 {
			limit.of(log).Warn("fault")
		}
		wantSame(t, "lines", logs.Len(), 1)
		pass(logInterval)
		limit.of(log).Warn("fault")
		wantSame(t, "lines", logs.Len(), 2)
		wantSame(t, "not logged", logs.All()[1].ContextMap()["not_logged"], any(int64(9)))
	})
}

func TestBadBatchesFillNoLogAndGetNoAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, logs := observed(zap.WarnLevel)
		b, s := serve(t, handlers{"m": echo}, WithBatch(BatchAuto), WithLogger(log))
		put := func(body []byte) {
			b.putIn(batchQueueName, amqp.Publishing{ContentType: contentTypeCalls, ReplyTo: rawQueue, Body: body})
		}
		for range 100 {
			put([]byte("no batch"))
			put([]byte{0x0a, 0, 0x0a, 0, 0x0a, 0}) // three empty records
		}
		// A call with an id, between two without, is answered.
		put(append(append([]byte{0x0a, 0}, 0x0a, 6, 0x0a, 1, 'i', 0x12, 1, 'm'), 0x0a, 0))
		settle()
		wantSame(t, "lines", logs.FilterMessageSnippet("dropped a batch").Len(), 1)
		wantSame(t, "answers", len(b.take()), 1)
		wantSame(t, "refused", s.Stats().Refused, 302)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
		wantSame(t, "left", b.ready(batchQueueName)+b.unacked(batchQueueName), 0)
	})
}
