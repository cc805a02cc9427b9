package main

import (
	"context"
	"sync"
	"time"
)

// closed starts the callers of a closed loop: each caller starts a call as soon as the
// previous call has settled, so responses set the pace.
func (r *Runner) closed(begin, force context.Context, workers *sync.WaitGroup) {
	for range min(int64(r.workload.InFlight), r.workload.Calls) {
		// Ends when all calls are taken, begin ends, or the results are abandoned.
		workers.Go(func() {
			for begin.Err() == nil {
				n := r.taken.Add(1)
				if n > r.workload.Calls || !r.deliver(r.call(force, n-1, time.Now())) {
					return
				}
			}
		})
	}
}

// deliver sends a result and reports whether the result was received.
func (r *Runner) deliver(res Result) bool {
	select {
	case r.results <- res:
		return true
	case <-r.abandoned:
		return false
	}
}

// Schedule describes how well an open loop kept to its rate.
type Schedule struct {
	Begun int64
	// Took is the time in which the calls started, at least the time that the rate allots.
	Took time.Duration
	// NotBegun is the number of calls that were due and had not started at the end.
	NotBegun int64
}

// scheduled returns the schedule of an open loop that ends now.
func (r *Runner) scheduled(begun int64) Schedule {
	took := time.Since(r.start)
	return Schedule{
		Begun:    begun,
		Took:     max(took, r.workload.Due(begun)),
		NotBegun: max(r.workload.DueBy(took)-begun, 0),
	}
}

// open starts calls when they are due, independently of earlier calls. Latency counts from the
// due time, so a stall shows in all calls that it delayed and not only in the calls in
// progress (coordinated omission). Callers are started as needed, up to the limit; workers
// waits for them. open returns the number of calls started.
func (r *Runner) open(begin, force context.Context, workers *sync.WaitGroup) int64 {
	due := make(chan int64)
	defer close(due)
	callers, n := 0, int64(0)
	for ; n < r.workload.Calls; n++ {
		at := r.workload.Due(n)
		if r.workload.Duration > 0 && at >= r.workload.Duration || !r.pacer.until(begin, r.start.Add(at)) {
			break
		}
		select {
		case due <- n: // a caller is free
			continue
		default:
		}
		if callers < r.workload.InFlight {
			callers++
			first := n
			workers.Go(func() { r.serve(force, first, due) }) // ends with the schedule
			continue
		}
		if !r.handOver(begin, due, n) {
			break
		}
	}
	return n
}

// handOver waits for a free caller, and reports whether a caller became free in time.
func (r *Runner) handOver(begin context.Context, due chan<- int64, n int64) bool {
	select {
	case due <- n:
		return true
	case <-begin.Done():
		return false
	case <-r.abandoned:
		return false
	}
}

// serve makes call n and then further due calls, until the channel is closed.
func (r *Runner) serve(force context.Context, n int64, due <-chan int64) {
	for more := true; more; n, more = <-due {
		r.taken.Add(1)
		if !r.deliver(r.call(force, n, r.start.Add(r.workload.Due(n)))) {
			return
		}
	}
}
