package amqpx

import (
	"context"
	"errors"
	"time"
)

// Send sends a one-way request, and returns nil when the broker has confirmed that the request is
// in the queue. The client learns no result: a server runs the request later, also after the
// client has ended, and logs an error of the handler. A request that a server refuses, for
// example because the method is missing, is dropped, logged and counted by the server.
//
// The deadline of ctx, [CallTimeout] and [WithTimeout] bound the time until the confirm. The
// request has no deadline, in the queue and in the server, unless [WithExpiration] sets a
// deadline. The request is persistent (delivery mode 2), whatever [WithPersistent] says, because
// its loss in a restart of the broker would go unnoticed.
//
// An error is an [*Error], as of [Client.Call]. The Outcome states whether a server may run the
// request: [DidNotRun] if no queue took the request, [MayHaveRun] after a lost connection, after
// a nack of a classic queue, and if the time ended before the confirm. After such a loss or nack
// only an idempotent request is sent again ([Idempotent], [WithIdempotencyKey]); a server that
// received both copies runs one if the user of the client is known ([WithDedup]). All other
// options, middleware, batches, shards and limits are those of calls; [WithCallInfo] gets no
// response.
func (c *Client) Send(ctx context.Context, method string, body []byte, opts ...CallOption) error {
	_, err := c.call(ctx, method, body, opts, true)
	return err
}

// WithExpiration bounds the life of a one-way request ([Client.Send]), more than 0 and counted
// from Send: a queue or a server drops the request that has not started by then, and the context
// of its handler ends then. Send waits no longer for the confirm either. The default is no bound.
// Calls expire with their deadlines, and are not affected.
func WithExpiration(d time.Duration) CallOption {
	return func(c *callConfig) {
		if c.expiration = d; d <= 0 {
			c.expiration = -1
		}
	}
}

var errExpiration = errors.New("WithExpiration: want more than 0")

// makeOneWay makes the request of a call one-way. It returns the time for the confirm, given that
// of CallTimeout.
func (c *Client) makeOneWay(ctx context.Context, req *Request, now time.Time, timeout time.Duration) time.Duration {
	req.OneWay, req.sent.oneWay = true, true
	life := req.sent.expiration
	if life == 0 {
		return timeout
	}
	req.sent.expires = now.Add(life)
	if _, bounded := ctx.Deadline(); timeout == 0 && !bounded {
		timeout = c.cfg.timeout
	}
	if timeout == 0 || life < timeout {
		timeout = life
	}
	return timeout
}
