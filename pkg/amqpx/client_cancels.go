package amqpx

import (
	"context"
	"errors"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// cancels holds the canceled calls that a server may have received. The control plane tells
// the servers, which then end the handlers' contexts. Before the first cancellation nothing is
// opened or sent. Safe for concurrent use.
type cancels struct {
	wake chan struct{} // has a token while calls wait

	mu      sync.Mutex
	waiting []cancellation
}

// cancellation is the cancellation of a call or a stream. replyTo is the queue for the frames of a
// stream, or for the responses to a call to all servers; "" for other calls.
type cancellation struct {
	wire.Cancellation

	replyTo string
}

// maxCancels bounds the canceled calls waiting to be published. The handlers of further
// canceled calls run to their end.
const maxCancels = 4096

func newCancels() *cancels { return &cancels{wake: make(chan struct{}, 1)} }

// add queues the cancellation of a call. It never blocks.
func (c *cancels) add(canceled cancellation) {
	c.mu.Lock()
	if len(c.waiting) < maxCancels {
		c.waiting = append(c.waiting, canceled)
	}
	c.mu.Unlock()
	offerToken(c.wake)
}

// take returns and removes the waiting calls.
func (c *cancels) take() []cancellation {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.waiting
	c.waiting = nil
	return all
}

// sendCancel queues a cancellation if the caller canceled the call and a server may have the
// request. An expired call needs no cancellation: servers know its deadline. Cancellations do not
// concern one-way requests.
func (c *Client) sendCancel(req *callRequest, cause error, outcome Outcome) {
	if c.cancels != nil && !req.isOneWay() && outcome == MayHaveRun && errors.Is(cause, context.Canceled) {
		c.cancels.add(cancellation{Cancellation: wire.Cancellation{ID: req.text(), Method: req.method, Key: req.key()}})
	}
}

// publishCancels publishes cancellations while a session lasts. It uses its own channel,
// because a missing exchange ends the channel; the checks for the exchange have growing pauses.
func (c *Client) publishCancels(s *transport.Session) {
	var ch transport.Channel
	missing := xsync.NewBackoff(checkEvery, checkMissingMax)
	var notBefore time.Time
	for {
		select {
		case <-c.cancels.wake:
		case <-s.Done:
			return
		}
		waiting := c.cancels.take()
		if s.Flow.Unblocked() != nil || time.Now().Before(notBefore) {
			continue // the handlers run to their end
		}
		if ch == nil || ch.IsClosed() {
			var err error
			if ch, err = openControl(s.Pub, c.cfg.queue.controlExchange()); err != nil {
				ch, notBefore = nil, time.Now().Add(max(missing.NextBackOff(), checkEvery))
				continue
			}
			missing.Reset()
		}
		for len(waiting) > 0 {
			var msg amqp.Publishing
			msg, waiting = encodeCancel(waiting)
			c.signCancel(&msg)
			if ch.PublishFanout(c.cfg.queue.controlExchange(), msg) != nil {
				break // the next cancellation opens another channel
			}
		}
	}
}

// signCancel adds the identity of this client to a cancellation: servers end only calls of the
// same user and reply_to. The address of direct reply-to is not known here, and belongs to
// another channel: in this mode the ids alone, which cannot be guessed, prove the ownership.
func (c *Client) signCancel(msg *amqp.Publishing) {
	msg.UserId = c.route.user.get()
	if msg.ReplyTo == "" && c.cfg.replyMode == ReplyQueue {
		msg.ReplyTo = c.route.replyTo
	}
}

// encodeCancel returns a message with as many calls as fit into a batch and have the same
// reply_to, and the remaining calls.
func encodeCancel(calls []cancellation) (msg amqp.Publishing, rest []cancellation) {
	var body []byte
	n, replyTo := 0, calls[0].replyTo
	for ; n < len(calls) && calls[n].replyTo == replyTo && n < publish.MaxBatchMessages && len(body) < transport.MinBatchBody; n++ {
		body = calls[n].AppendTo(body)
	}
	return amqp.Publishing{AppId: wire.ControlCancel, ContentType: wire.ContentTypeRequests, ReplyTo: replyTo, Body: body}, calls[n:]
}
