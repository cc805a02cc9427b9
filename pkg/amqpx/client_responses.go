package amqpx

import (
	"context"
	"errors"
	"math"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

const (
	// responsesAckEvery and responsesAckPause bound the number of responses that are handled and
	// not acknowledged, and the time until their acknowledgement. After a reconnect these
	// responses are delivered again and dropped.
	responsesAckEvery = 128
	responsesAckPause = 200 * time.Millisecond
)

// responseReader reads a client's reply queue for a session. It is used by a single goroutine.
type responseReader struct {
	client *Client
	// batch and matches are the slices of the last batch, for reuse.
	batch   []wire.Response
	matches []match
}

// read delivers every response to its call. Responses are acknowledged late and many at once:
// a response that the broker sent into a dying connection must be delivered again, and an
// acknowledgement for each response would double the traffic.
func (r *responseReader) read(s *transport.Session, deliveries <-chan amqp.Delivery, direct bool) {
	tick := time.NewTicker(responsesAckPause)
	defer tick.Stop()
	var last uint64 // the newest tag
	var open int    // handled and not acknowledged
	for {
		select {
		case d, ok := <-deliveries:
			if !ok {
				select {
				case <-r.client.closing: // canceled by deleteReplyQueue
				default:
					s.ConsumerEnded(replyConsumer)
				}
				return
			}
			s.NoteAnswered()
			r.handle(&d)
			last, open = d.DeliveryTag, open+1
			if open < responsesAckEvery {
				continue
			}
		case <-tick.C:
		case <-s.Done:
			return
		}
		if open > 0 && !direct {
			if err := s.SubCh.Ack(last, true); err != nil {
				s.Fail(err)
				return
			}
			open = 0
		}
	}
}

// handle delivers the responses in a message to their calls.
func (r *responseReader) handle(d *amqp.Delivery) {
	c := r.client
	if d.ContentType != wire.ContentTypeResponses {
		c.counts.dropped(c.pending.matchOne(d))
		return
	}
	var err error
	if r.batch, err = wire.DecodeResponses(d.Body, d.Redelivered, r.batch[:0]); err != nil {
		c.counts.dropped(verdictUnknown)
		return
	}
	r.matches = c.pending.matchAll(r.batch, r.matches[:0], c.route.outbox.Expect) // callers often call again
	for _, m := range r.matches {
		c.counts.dropped(m.result)
	}
	clear(r.batch)
	clear(r.matches)
}

// The reply queue of a client. A classic queue lives on one node of a cluster, and while this
// node is down no other node can declare the queue or consume from it: RabbitMQ 3 answers 404,
// RabbitMQ 4 does not answer. The client then declares a queue with a new name on the node of
// its connection, and counts the responses in the old queue as lost (docs/adr/0002).

const (
	// replyQueueGrace is how long the broker may take to answer the declaration of the reply
	// queue before the client declares a new queue in parallel. The first response decides, so
	// that a slow broker does not cost the responses in the old queue.
	replyQueueGrace = 500 * time.Millisecond
	// replyConsumeLimit is how long the broker may take to answer the subscription to the
	// reply queue before the queue counts as unavailable.
	replyConsumeLimit = 2 * time.Second
	// abandonedRetry and abandonedTries bound the attempts to delete an abandoned reply queue.
	// Afterwards the queue expires.
	abandonedRetry = 10 * time.Second
	abandonedTries = 6
	// maxAbandoned bounds the abandoned reply queues remembered for deletion.
	maxAbandoned = 16
)

// errReplyQueueSilent means that the broker did not answer the subscription to the reply queue.
var errReplyQueueSilent error = &transport.KindError{Kind: FaultQueueSilent}

// openReplyQueue makes sure that the reply queue exists, under a new name if the broker does
// not give access to the old queue. lost reports the loss of the responses in the old queue:
// in a later session, a missing queue also means lost responses.
func (c *Client) openReplyQueue(s *transport.Session) (lost bool, err error) {
	if c.replyQueueAway != nil { // the previous session could not consume from the queue
		return true, c.replaceReplyQueue(s, c.replyQueueAway)
	}
	old := c.route.replyTo
	found := s.InGoroutine(func() error { return transport.FindReplyQueue(s.Sub, old) })
	grace := time.NewTimer(replyQueueGrace)
	defer grace.Stop()
	select {
	case err := <-found:
		return c.replyQueueFound(s, err)
	case <-grace.C:
	case <-s.Done:
		return false, s.Cause
	}
	fresh := c.newReplyQueueName()
	declared := s.InGoroutine(func() error { return transport.DeclareReplyQueue(s.Sub, fresh, c.cfg.replyQueueType == QueueQuorum) })
	select {
	case err := <-found:
		c.abandon(fresh, declared)
		return c.replyQueueFound(s, err)
	case err := <-declared:
		if err != nil {
			c.abandonUnlessRefused(fresh, err)
			return false, err
		}
		c.useReplyQueue(fresh, errReplyQueueSilent)
		return true, nil
	case <-s.Done:
		c.abandon(fresh, declared)
		return false, s.Cause
	}
}

// replyQueueFound handles the broker's answer to the search for the reply queue.
func (c *Client) replyQueueFound(s *transport.Session, err error) (lost bool, _ error) {
	if err == nil || !transport.IsNotFound(err) {
		return false, err
	}
	err = transport.DeclareReplyQueue(s.Sub, c.route.replyTo, c.cfg.replyQueueType == QueueQuorum)
	if replyQueueAway(err) {
		err = c.replaceReplyQueue(s, err)
	}
	return err == nil, err
}

// replyQueueAway reports whether a fault concerns only the reply queue, so that a queue with
// another name on the same node may work.
func replyQueueAway(err error) bool {
	refused, ok := errors.AsType[*amqp.Error](err)
	return ok && (refused.Code == amqp.NotFound || refused.Code == amqp.ResourceLocked || refused.Code == amqp.PreconditionFailed)
}

// replaceReplyQueue declares a reply queue under a new name and uses it from now on.
func (c *Client) replaceReplyQueue(s *transport.Session, cause error) error {
	fresh := c.newReplyQueueName()
	if err := transport.DeclareReplyQueue(s.Sub, fresh, c.cfg.replyQueueType == QueueQuorum); err != nil {
		c.abandonUnlessRefused(fresh, err)
		return err
	}
	c.useReplyQueue(fresh, cause)
	return nil
}

// abandonedQueue is a reply queue that is not used.
type abandonedQueue struct {
	name     string
	declared <-chan error // the end of its declaration, which must come before the deletion; nil: it has ended
}

// abandon remembers a reply queue that is not used, for deletion. The queue need not exist: the
// result of its declaration may be unknown.
func (c *Client) abandon(name string, declared <-chan error) {
	if len(c.abandoned) < maxAbandoned {
		c.abandoned = append(c.abandoned, abandonedQueue{name, declared})
	}
}

// abandonUnlessRefused abandons a reply queue whose declaration failed, unless the broker
// refused the declaration with an exception of the channel, codes 403 to 406.
func (c *Client) abandonUnlessRefused(name string, err error) {
	refused, ok := errors.AsType[*amqp.Error](err)
	if !ok || !refused.Server || refused.Code < amqp.AccessRefused || refused.Code > amqp.PreconditionFailed {
		c.abandon(name, nil)
	}
}

// deleteQueue deletes a queue. A missing queue is no error.
func deleteQueue(s *transport.Session, name string) error {
	return transport.WithTempChannel(s.Sub, func(ch transport.Channel) error {
		_, err := ch.QueueDelete(name, false, false, false)
		return err
	})
}

// useReplyQueue replaces the reply queue by another existing queue.
func (c *Client) useReplyQueue(fresh string, cause error) {
	c.cfg.logger.Warn("reply queue replaced, the responses in it are lost",
		zap.String("queue", c.route.replyTo), zap.String("new", fresh), zap.Error(cause))
	c.abandon(c.route.replyTo, nil)
	c.route.replyTo, c.replyQueueAway = fresh, nil
}

// consumeResponses subscribes to the reply queue.
func (c *Client) consumeResponses(s *transport.Session, direct bool) (<-chan amqp.Delivery, error) {
	if direct {
		s.Consumed.Store(new(wire.DirectReplyTo))
		deliveries, err := s.SubCh.Consume(wire.DirectReplyTo, replyConsumer, true, false, false, false, nil)
		return deliveries, transport.AtStep(transport.StepConsume, wire.DirectReplyTo, err)
	}
	var deliveries <-chan amqp.Delivery
	priority := c.nextPriority()
	s.Consumed.Store(&s.ReplyTo)
	subscribed := s.InGoroutine(func() (err error) {
		deliveries, err = s.SubCh.Consume(s.ReplyTo, replyConsumer, false, false, false, false, priority)
		return err
	})
	limit := time.NewTimer(replyConsumeLimit)
	defer limit.Stop()
	select {
	case err := <-subscribed:
		if replyQueueAway(err) {
			c.replyQueueAway = err
		}
		return deliveries, transport.AtStep(transport.StepConsume, s.ReplyTo, err)
	case <-limit.C:
		c.replyQueueAway = errReplyQueueSilent
		return nil, transport.AtStep(transport.StepConsume, s.ReplyTo, errReplyQueueSilent)
	case <-s.Done:
		return nil, s.Cause
	}
}

// nextPriority returns the consumer arguments with a priority above the consumers of all
// earlier sessions (https://www.rabbitmq.com/docs/consumer-priority). When a connection goes
// silent, the broker notices later than the client: until then the dead consumer still exists,
// and would receive half of the responses.
func (c *Client) nextPriority() amqp.Table {
	c.linked = min(c.linked, math.MaxInt32-1) + 1
	return amqp.Table{"x-priority": c.linked}
}

// deleteAbandoned deletes the abandoned reply queues while a session lasts, as soon as the
// broker can reach the queues. It tries each queue a few times in a session; afterwards, and
// when the client is closed earlier, a queue expires.
func (c *Client) deleteAbandoned(s *transport.Session, queues []abandonedQueue) {
	again := time.NewTicker(abandonedRetry)
	defer again.Stop()
	for range abandonedTries {
		var left []abandonedQueue
		for _, q := range queues {
			if q.declared != nil {
				select {
				case <-q.declared: //nolint:errcheck // whatever the result, the broker has dealt with the declaration.
				case <-s.Done:
				}
			}
			if reachable(s, q.name) != nil || deleteQueue(s, q.name) != nil {
				left = append(left, abandonedQueue{name: q.name})
			}
		}
		if queues = left; len(queues) == 0 {
			return
		}
		select {
		case <-again.C:
		case <-s.Done:
			c.abandoned = queues // for the next session, which is set up when this goroutine has ended
			return
		}
	}
}

// reachable returns an error if the broker does not reach a queue, or the queue is missing. RabbitMQ 4
// ends the connection of a client that deletes a classic queue whose node is down (541).
func reachable(s *transport.Session, name string) error {
	return transport.WithTempChannel(s.Sub, func(ch transport.Channel) error {
		_, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
		return err
	})
}

// deleteReplyQueue deletes the reply queue at once. Without a connection the queue is left to
// expire.
func (c *Client) deleteReplyQueue(ctx context.Context) {
	s := c.sup.Current()
	if s == nil || c.cfg.replyMode != ReplyQueue {
		return
	}
	timer := time.AfterFunc(transport.CloseTimeout, s.Cut)
	defer timer.Stop()
	defer context.AfterFunc(ctx, s.Cut)()
	// The consumer is canceled first: the broker would cancel the consumer of a deleted queue,
	// which is a failure of the session.
	err := s.SubCh.Cancel(replyConsumer, false)
	if err == nil {
		err = deleteQueue(s, s.ReplyTo)
	}
	if err != nil {
		c.cfg.logger.Debug("reply queue left to expire", zap.String("queue", s.ReplyTo), zap.Error(err))
	}
}
