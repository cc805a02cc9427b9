package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/ledger"
)

// callHeader is the name of the header with the id of a call whose body names a key.
const callHeader = "call"

const (
	// keyEvery and heldEvery are how long the callers of all clients begin to use a key.
	keyEvery  = 250 * time.Millisecond
	heldEvery = 10 * time.Second
	// recentKeys are the keys that are drawn most often; oldKeys begin up to 20 s before: their
	// responses outlive a fault, and are kept for a minute.
	recentKeys = 4
	oldKeys    = 80
	// heldFor is how long the handlers of held keys take: longer than a lease (the flag -lease of the
	// suite).
	heldFor = 3 * time.Second
	// betweenHeld is the pause between two calls with a held key.
	betweenHeld = 250 * time.Millisecond
)

// shareKeys makes calls with idempotency keys, one after the other, until stop is closed or the client
// is. The keys follow from the time, so that the callers of all clients have the same keys, at the
// same time and again later. With held the handlers take longer than the lease of a claim.
func (c *caller) shareKeys(ctx context.Context, stop <-chan struct{}, random *rand.Rand, held bool) {
	one, pause := c.shareKey, betweenShapes
	if held {
		one, pause = c.shareHeldKey, betweenHeld
	}
	for goesOn(ctx, one(ctx, random)) && wait(stop, pause) {
		continue
	}
}

// shareKey makes a call with a recent or an old key.
func (c *caller) shareKey(ctx context.Context, random *rand.Rand) error {
	back := random.IntN(recentKeys)
	if random.IntN(4) == 0 {
		back = random.IntN(oldKeys)
	}
	number := time.Now().UnixNano()/int64(keyEvery) - int64(back)
	takes := time.Duration(rand.New(rand.NewPCG(0, uint64(number))).Int64N(int64(c.longest))) // equal for all calls with the key
	return c.withKey(ctx, random, ledger.Shared, number, takes)
}

// shareHeldKey makes a call with the present held key.
func (c *caller) shareHeldKey(ctx context.Context, random *rand.Rand) error {
	return c.withKey(ctx, random, ledger.Held, time.Now().UnixNano()/int64(heldEvery), heldFor)
}

// withKey makes a call with a key. All calls with the key have the same body.
func (c *caller) withKey(ctx context.Context, random *rand.Rand, method string, number int64, takes time.Duration) error {
	d := c.draw(method, true, random)
	d.key = fmt.Sprintf("%s-%d", method, number)
	d.body = fmt.Appendf(nil, "%s %v %s", d.key, takes, strings.Repeat("x", c.padding))
	d.opts = append(d.opts, amqpx.WithIdempotencyKey(d.key), amqpx.WithHeader(map[string]any{callHeader: d.id}))
	return c.make(ctx, d, ledger.KeyShape, func(ctx context.Context, e *ledger.Entry) ([]byte, error) {
		response, err := c.client.Call(ctx, d.method, d.body, d.opts...)
		e.Server = d.info.Server
		return response, err
	})
}
