package xsync

import (
	"context"
	"math/rand/v2"
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

// GrowingPause returns the pause before attempt tries+1: a random time between half of a bound
// and the bound, which doubles with each attempt from first to most.
func GrowingPause(first, most time.Duration, tries int) time.Duration {
	bound := most
	if tries < 16 { // with more doublings the bound exceeds every value of most
		bound = min(first<<tries, most)
	}
	return bound/2 + rand.N(bound/2+1) //nolint:gosec // spreads load, guards nothing.
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
