package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// closed runs the callers of a closed loop: each makes one call after another until the turn's
// duration or its number of calls is used up.
func (d *driver) closed(ctx context.Context) {
	var (
		callers sync.WaitGroup
		calls   atomic.Int64
	)
	for i := range d.turn.Callers {
		callers.Go(func() {
			for time.Since(d.begun) < d.turn.Duration && calls.Add(1) <= int64(d.turn.MaxCalls) && ctx.Err() == nil {
				d.call(ctx, i, time.Now())
			}
		})
	}
	callers.Wait()
}
