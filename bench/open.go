package main

import (
	"context"
	"sync"
	"syscall"
	"time"
)

// tick is how long the open loop sleeps at least: calls that are due within one leave
// together.
const tick = 100 * time.Microsecond

// overrun is how far an open loop may fall behind its schedule before it is given up.
const overrun = 5 * time.Second

// open has calls begin at a constant rate. Each counts from the moment when it was due
// and not from when it was sent, and none is left out: when a contender falls behind,
// the calls that wait for their turn show it.
func (d *driver) open(ctx context.Context, sleep func(time.Duration)) {
	due := make(chan time.Time)
	var callers sync.WaitGroup
	for i := range d.turn.InFlight {
		callers.Go(func() { // ends when the schedule does
			for at := range due {
				d.call(ctx, i, at)
			}
		})
	}
	d.missed = d.schedule(ctx, due, sleep)
	close(due)
	callers.Wait()
}

// schedule hands out every call when it is due, or as soon after it as a caller is
// free. It returns how many calls were left when it gave up.
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

// due is when call n of an open loop has to begin.
func (d *driver) due(n int64) time.Time {
	return d.begun.Add(time.Duration(float64(n) / d.turn.Rate * float64(time.Second)))
}

// preciseSleep sleeps to some ten microseconds, where a timer of the runtime may be a
// millisecond late.
func preciseSleep(d time.Duration) {
	ts := syscall.NsecToTimespec(d.Nanoseconds())
	_ = syscall.Nanosleep(&ts, nil) // a signal may end it early: the caller looks at the clock again
}
