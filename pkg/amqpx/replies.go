package amqpx

import (
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	// answersAckEvery and answersAckPause bound how many answers, and for how long, are
	// handled but not acknowledged. After a reconnect they come again and are dropped.
	answersAckEvery = 128
	answersAckPause = 200 * time.Millisecond
)

// replies reads a client's reply queue for one session. It is for one goroutine.
type replies struct {
	client *Client
	batch  []batchedAnswer // of the last one, for reuse
}

// read hands every answer to its call. Answers are acknowledged late and
// many at once: an answer that the broker pushed into a dying connection must come
// again, and one acknowledgement for each would double the traffic.
func (r *replies) read(s *session, deliveries <-chan amqp.Delivery, direct bool) {
	tick := time.NewTicker(answersAckPause)
	defer tick.Stop()
	var last uint64 // the newest tag
	var open int    // handled and not acknowledged
	for {
		select {
		case d, ok := <-deliveries:
			if !ok {
				select {
				case <-r.client.closing: // we cancelled it
				default:
					s.consumerEnded(replyConsumer)
				}
				return
			}
			if !s.answered.Load() {
				s.answered.Store(true)
			}
			r.take(&d)
			last, open = d.DeliveryTag, open+1
			if open < answersAckEvery {
				continue
			}
		case <-tick.C:
		case <-s.done:
			return
		}
		if open > 0 && !direct {
			if err := s.subCh.Ack(last, true); err != nil {
				s.fail(err)
				return
			}
			open = 0
		}
	}
}

// take hands the answers in a message to their calls.
func (r *replies) take(d *amqp.Delivery) {
	c := r.client
	if d.ContentType != contentTypeAnswers {
		c.counts.dropped(c.pending.answer(d))
		return
	}
	var err error
	if r.batch, err = decodeAnswers(d.Body, d.Redelivered, r.batch[:0]); err != nil {
		c.counts.dropped(verdictUnknown)
		return
	}
	c.pending.answerAll(r.batch)
	for i := range r.batch {
		c.counts.dropped(r.batch[i].verdict)
	}
	clear(r.batch)
}
