package loadgen

import (
	"context"
	"time"
)

// Pacer waits until points in time, as precisely as the system allows.
type Pacer struct {
	// fine is the last part of each wait, which nap covers: timers of the runtime may be a
	// millisecond late, and the delay would count as latency.
	fine time.Duration
	nap  func(time.Duration)
}

// shortestNap is the minimum duration of a nap; calls that are due within one nap start
// together.
const shortestNap = 100 * time.Microsecond

// until waits for the time at and reports whether ctx was still alive then.
func (p Pacer) until(ctx context.Context, at time.Time) bool {
	if wait := time.Until(at) - p.fine; wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return false
		}
	}
	if wait := time.Until(at); wait > 0 && p.nap != nil {
		p.nap(max(wait, shortestNap))
	}
	return ctx.Err() == nil
}
