package amqpx

import "sync/atomic"

// retryBudget is a token bucket that keeps retries to a share of the calls, so that
// they cannot multiply an outage: the "per-client retry budget" of
// https://sre.google/sre-book/handling-overload/. It starts full. Safe for concurrent
// use.
type retryBudget struct {
	most, deposit int64 // in millionths of a retry
	tokens        atomic.Int64
}

// retryCost is what one retry takes out of the bucket.
const retryCost = 1_000_000

func newRetryBudget(ratio float64, burst int) *retryBudget {
	b := &retryBudget{most: int64(burst) * retryCost, deposit: int64(ratio * retryCost)}
	b.tokens.Store(b.most)
	return b
}

// earn deposits one call's share. While the bucket is full it writes nothing.
func (b *retryBudget) earn() {
	for {
		have := b.tokens.Load()
		sum := min(have+b.deposit, b.most)
		if sum == have || b.tokens.CompareAndSwap(have, sum) {
			return
		}
	}
}

// spend takes one retry out of the bucket; false means that too little is in it.
func (b *retryBudget) spend() bool {
	for {
		have := b.tokens.Load()
		if have < retryCost {
			return false
		}
		if b.tokens.CompareAndSwap(have, have-retryCost) {
			return true
		}
	}
}
