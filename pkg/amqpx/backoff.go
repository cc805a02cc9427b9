package amqpx

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// newBackoff returns waits with full jitter: each is random between zero and a
// bound that doubles from first to most
// (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
// The library spreads a wait by a factor around its middle; the middle at half the
// bound and a factor of 1 reach from zero to the bound.
func newBackoff(first, most time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = max(first/2, 1)
	b.MaxInterval = max(most/2, 1)
	b.Multiplier = 2
	b.RandomizationFactor = 1
	b.Reset()
	return b
}

// sleep waits for d or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
