package main

import (
	"context"
	"sync"
	"syscall"
	"time"
)

// tick is the shortest sleep of the open loop. Calls due within the same tick start together.
const tick = 100 * time.Microsecond

// overrun is the delay behind the schedule after which an open loop is aborted.
const overrun = 5 * time.Second

// open starts calls at a constant rate. The latency of each call is measured from the time at
// which the call was due, not from its sending, and every call is counted. If a candidate
// falls behind, the latencies of the waiting calls show the delay.
func (d *driver) open(ctx context.Context, sleep func(time.Duration)) {
	due := make(chan time.Time)
	var callers sync.WaitGroup
	for i := range d.turn.InFlight {
		callers.Go(func() { // ends with the schedule
			for at := range due {
				d.call(ctx, i, at)
			}
		})
	}
	d.missed = d.schedule(ctx, due, sleep)
	close(due)
	callers.Wait()
}

// schedule starts every call at its due time, or later as soon as a caller is free. The result
// is the number of calls not started before the loop was aborted.
func (d *driver) schedule(ctx context.Context, due chan<- time.Time, sleep func(time.Duration)) (missed int64) {
	calls := min(int64(d.turn.Rate*d.turn.Duration.Seconds()), int64(d.turn.MaxCalls))
	deadline := time.NewTimer(d.turn.Duration + overrun)
	defer deadline.Stop()
	for n := range calls {
		at := d.due(n)
		if wait := time.Until(at); wait > 0 {
			sleep(max(wait, tick))
		}
		select {
		case due <- at:
		case <-ctx.Done():
			return 0
		case <-deadline.C:
			for left := n; left < calls; left++ {
				d.fast.record(0, time.Since(d.due(left)))
			}
			return calls - n
		}
	}
	return 0
}

// due returns the scheduled start of call n of an open loop.
func (d *driver) due(n int64) time.Time {
	return d.begun.Add(time.Duration(float64(n) / d.turn.Rate * float64(time.Second)))
}

// preciseSleep sleeps with a precision of some ten microseconds. A timer of the Go runtime may
// be a millisecond late.
func preciseSleep(d time.Duration) {
	ts := syscall.NsecToTimespec(d.Nanoseconds())
	_ = syscall.Nanosleep(&ts, nil) // a signal may end it early: the caller looks at the clock again
}
