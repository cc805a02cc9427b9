package main

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/ledger"
)

const (
	// betweenShapes is the pause between two one-way, retried or hedged calls of a caller, and
	// betweenAll that between two calls to all servers, each of which has a queue and a channel.
	betweenShapes = 20 * time.Millisecond
	betweenAll    = 250 * time.Millisecond
	// allTimeout is the time of a call to all servers.
	allTimeout = 2 * time.Second
	// hedgeDelay makes most slow calls hedged ones.
	hedgeDelay = 10 * time.Millisecond
)

// shapes makes calls to all servers, if all, or else one-way, retried and hedged calls, one after the
// other, until stop is closed or the client is.
func (c *caller) shapes(ctx context.Context, stop <-chan struct{}, random *rand.Rand, all bool) {
	calls, pause := []func(context.Context, *rand.Rand) error{c.send, c.retry, c.hedge}, betweenShapes
	if all {
		calls, pause = []func(context.Context, *rand.Rand) error{c.callAll}, betweenAll
	}
	for goesOn(ctx, calls[random.IntN(len(calls))](ctx, random)) && wait(stop, pause) {
		continue
	}
}

// send makes a one-way request.
func (c *caller) send(ctx context.Context, random *rand.Rand) error {
	d := c.draw(either(random, ledger.Echo, ledger.Slow, ledger.Once), random.IntN(2) == 0, random)
	return c.make(ctx, d, ledger.SendShape, func(ctx context.Context, _ *ledger.Entry) ([]byte, error) {
		return d.body, c.client.Send(ctx, d.method, d.body, d.opts...)
	})
}

// retry makes a call with a retry policy.
func (c *caller) retry(ctx context.Context, random *rand.Rand) error {
	d := c.draw(either(random, ledger.Echo, ledger.Flaky, ledger.Once), random.IntN(2) == 0, random)
	d.opts = append(d.opts, amqpx.WithRetry(amqpx.RetryPolicy{MaxRetries: 20, MinBackoff: 10 * time.Millisecond, MaxBackoff: 200 * time.Millisecond}))
	return c.make(ctx, d, ledger.RetryShape, func(ctx context.Context, _ *ledger.Entry) ([]byte, error) {
		return c.client.Call(ctx, d.method, d.body, d.opts...)
	})
}

// hedge makes an idempotent call that may be made twice at the same time.
func (c *caller) hedge(ctx context.Context, random *rand.Rand) error {
	d := c.draw(either(random, ledger.Echo, ledger.Slow, ledger.Once), true, random)
	d.opts = append(d.opts, amqpx.WithHedge(hedgeDelay))
	if random.IntN(2) == 0 {
		d.opts = append(d.opts, amqpx.WithIdempotencyKey("key-of-"+d.id))
	}
	return c.make(ctx, d, ledger.HedgeShape, func(ctx context.Context, _ *ledger.Entry) ([]byte, error) {
		return c.client.Call(ctx, d.method, d.body, d.opts...)
	})
}

// callAll makes a call to all servers, of which it takes all responses or the first ones.
func (c *caller) callAll(ctx context.Context, random *rand.Rand) error {
	d, enough := c.draw(ledger.Everywhere, false, random), random.IntN(3)
	d.deadline = time.Now().Add(allTimeout)
	return c.make(ctx, d, ledger.AllShape, func(ctx context.Context, e *ledger.Entry) (body []byte, err error) {
		body = d.body
		for r, failed := range c.client.CallAll(ctx, d.method, d.body) {
			switch {
			case r == nil:
				err = failed
			case failed == nil:
				text := string(r.Body)
				end := strings.LastIndexByte(text, ' ')
				pid, _ := strconv.Atoi(text[end+1:])
				if e.Servers = append(e.Servers, pid); end < 0 || text[:end] != string(d.body) {
					body = r.Body
				}
			}
			if len(e.Servers) == enough && enough > 0 {
				break
			}
		}
		return body, err
	})
}

func either(random *rand.Rand, methods ...string) string { return methods[random.IntN(len(methods))] }
