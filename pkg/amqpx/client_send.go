package amqpx

import (
	"context"
	"errors"
	"time"
)

// Send sends a request that wants no response, and returns nil when the broker has confirmed that
// the request is in the queue. Nobody reports what becomes of it: a server runs it when it can,
// also after the client has ended, and an error of the handler is in the log of the server. A
// request that a server refuses, for example because it does not have the method, is dropped
// there; the server logs and counts it.
//
// The deadline of ctx, [CallTimeout] and [WithTimeout] bound the time until the confirm. The
// request itself has no deadline, in the queue and in the server, unless [WithExpiration] sets
// one. It is persistent (delivery mode 2), whatever [WithPersistent] says, because nobody would
// notice its loss in a restart of the broker.
//
// An error is an [*Error], as of [Client.Call], and its Outcome states whether a server may run
// the request: [DidNotRun] if no queue took it, [MayHaveRun] after a lost connection, after a
// nack of a classic queue, and if the time ended before the confirm. Only an idempotent request
// is sent again after such a moment ([Idempotent], [WithIdempotencyKey]); a server that received
// both runs it once if it knows the user of the client ([WithDedup]). All other options,
// middleware, batches, shards and limits are those of calls; [WithCallInfo] gets no response.
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
