package amqpx

import (
	"fmt"
	"testing"
	"testing/synctest"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Responses without a queue are counted, and harm no other request.
func TestUnroutableResponsesAreCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		const n = 10
		for i := range n {
			putRequest(b, with(request("m"), func(p *amqp.Publishing) { p.ReplyTo, p.CorrelationId = "nobody", fmt.Sprint(i) }))
			putRequest(b, with(request("unknown"), func(p *amqp.Publishing) { p.ReplyTo, p.CorrelationId = "amq.direct/key", fmt.Sprint(i) }))
			putRequest(b, with(request("m"), func(p *amqp.Publishing) { p.CorrelationId = fmt.Sprint("good", i) }))
		}
		settle()
		wantSame(t, "responses", len(takeResponses(b)), n)
		st := s.Stats()
		wantSame(t, "unroutable", st.Unroutable, 2*n)
		wantSame(t, "reconnects", st.Reconnects, 0)
		wantSame(t, "in flight", st.InFlight, 0)
		wantSame(t, "left", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue), 0)
	})
}

// A response to a direct reply-to address, or to a queue of the server itself, is not mandatory.
// The broker returns every message to a direct reply-to address, and a returned message to a
// queue of the server would be taken for a copy of a request.
func TestWhichResponsesAreMandatory(t *testing.T) {
	t.Parallel()
	s := &Server{cfg: &serverConfig{config: config{queue: Queue{Name: "q"}}}}
	for replyTo, want := range map[string]bool{
		"q.reply.1": true, "nobody": true, "amq.gen-1": true, "q.control": true, "q.dead.x": true, "x": true,
		"q": false, "q.batch": false, "q.retry": false, "q.dead": false, wire.DirectReplyTo + ".x": false,
	} {
		wantSame(t, replyTo, s.returnsCount(replyTo), want)
	}
}

// A response to a deleted companion queue is not taken for a copy of a request.
func TestResponseToAMissingCompanion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, s := serve(t, handlers{"m": echo})
		dead := DefaultQueue + deadSuffix
		b.With(func(b *brokertest.Broker) { delete(b.Queues, dead) })
		putRequest(b, with(request("m"), func(p *amqp.Publishing) { p.ReplyTo = dead }))
		settle()
		wantSame(t, "unroutable", s.Stats().Unroutable, 0)
		wantSame(t, "reconnects", s.Stats().Reconnects, 0)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
	})
}
