package amqpx

import (
	"context"
	"errors"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// cancels are the calls that their callers gave up and that a server may have in hand:
// the control plane tells the servers, which then end the handlers' contexts. Nothing of
// it is used, nor sent, before somebody gives up. Safe for concurrent use.
type cancels struct {
	wake chan struct{} // has a token while calls wait

	mu      sync.Mutex
	waiting []*Request
}

// mostCancels bounds the calls that wait to be told of. Those beyond it run to their end.
const mostCancels = 4096

func newCancels() *cancels { return &cancels{wake: make(chan struct{}, 1)} }

// add has the servers told of a call. It never waits.
func (c *cancels) add(req *Request) {
	c.mu.Lock()
	if len(c.waiting) < mostCancels {
		c.waiting = append(c.waiting, req)
	}
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// take returns the calls that wait.
func (c *cancels) take() []*Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.waiting
	c.waiting = nil
	return all
}

// giveUp tells the servers that nobody waits for a call any more, if its caller gave it up
// and one of them may have it. A call whose time is over needs no word: they know its time.
func (c *Client) giveUp(req *Request, cause error, outcome Outcome) {
	if c.cancels != nil && outcome == MayHaveRun && errors.Is(cause, context.Canceled) {
		c.cancels.add(req)
	}
}

// sendCancels tells the servers while a session lasts. It publishes on a channel of its
// own, because a missing exchange ends the channel; how often it looks for one is bounded.
func (c *Client) sendCancels(s *session) {
	var ch channel
	missing := newBackoff(lookEvery, lookMissingMax)
	var notBefore time.Time
	for {
		select {
		case <-c.cancels.wake:
		case <-s.done:
			return
		}
		waiting := c.cancels.take()
		if s.gate.opening() != nil || time.Now().Before(notBefore) {
			continue // the handlers run to their end
		}
		if ch == nil || ch.IsClosed() {
			var err error
			if ch, err = openControl(s.pub, c.cfg.queue.controlExchange()); err != nil {
				ch, notBefore = nil, time.Now().Add(max(missing.NextBackOff(), lookEvery))
				continue
			}
			missing.Reset()
		}
		for len(waiting) > 0 {
			var msg amqp.Publishing
			msg, waiting = encodeCancel(waiting)
			c.signCancel(&msg)
			if ch.publishToAll(c.cfg.queue.controlExchange(), msg) != nil {
				break // the next one opens another channel
			}
		}
	}
}

// signCancel marks a cancellation as that of this client: servers end only calls of the
// same user and reply_to. The address of direct reply-to is not known here, and belongs to
// another channel: there the ids alone, which nobody can guess, say whose the calls are.
func (c *Client) signCancel(msg *amqp.Publishing) {
	msg.UserId = c.route.user.get()
	if c.cfg.replyMode == ReplyQueue {
		msg.ReplyTo = c.route.replyTo
	}
}

// openControl opens a channel to publish to the control plane, which must be there.
func openControl(l link, exchange string) (channel, error) {
	ch, err := l.channel()
	if err != nil {
		return nil, err
	}
	return ch, ch.ExchangeDeclarePassive(exchange, amqp.ExchangeFanout, true, false, false, false, nil)
}

// encodeCancel makes a message of as many calls as fit a batch, and returns the others.
func encodeCancel(calls []*Request) (msg amqp.Publishing, rest []*Request) {
	var body []byte
	n := 0
	for ; n < len(calls) && n < batchCalls && len(body) < batchBytes; n++ {
		var start int
		req := calls[n]
		body, start = beginRecord(body)
		body = appendText(body, callID, req.CorrelationID)
		body = appendText(body, callMethod, req.Method)
		if req.IdempotencyKey != req.CorrelationID {
			body = appendText(body, callMessageID, req.IdempotencyKey)
		}
		body = endRecord(body, start)
	}
	return amqp.Publishing{AppId: controlCancel, ContentType: contentTypeCalls, Body: body}, calls[n:]
}
