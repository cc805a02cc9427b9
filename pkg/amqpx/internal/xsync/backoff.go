package xsync

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Backoff is a sequence of waits. It is for one goroutine at a time.
type Backoff = backoff.ExponentialBackOff

// NewBackoff returns waits with full jitter: each wait is random between zero and a bound,
// which doubles from first to most
// (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). The library
// spreads a wait by a factor around a middle; a middle of half the bound and a factor of 1
// reach from zero to the bound.
func NewBackoff(first, most time.Duration) *Backoff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = max(first/2, 1)
	b.MaxInterval = max(most/2, 1)
	b.Multiplier = 2
	b.RandomizationFactor = 1
	b.Reset()
	return b
}

// Sleep waits for d or for the end of ctx.
func Sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
