package main

import (
	"context"
	"sync"
	"time"
)

// closed starts the callers of a closed loop: each caller starts a call as soon as the
// previous call has settled, so responses set the pace.
func (r *runner) closed(begin, force context.Context, workers *sync.WaitGroup) {
	for range min(int64(r.goal.inFlight), r.goal.calls) {
		// Ends when all calls are taken, begin ends, or the results are abandoned.
		workers.Go(func() {
			for begin.Err() == nil {
				n := r.taken.Add(1)
				if n > r.goal.calls || !r.deliver(r.call(force, n-1, time.Now())) {
					return
				}
			}
		})
	}
}

// deliver sends a result and reports whether the result was received.
func (r *runner) deliver(res result) bool {
	select {
	case r.results <- res:
		return true
	case <-r.abandoned:
		return false
	}
}

// schedule describes how well an open loop kept to its rate.
type schedule struct {
	begun int64
	// took is the time in which the calls started, at least the time that the rate allots.
	took time.Duration
	// notBegun is the number of calls that were due and had not started at the end.
	notBegun int64
}

// scheduled returns the schedule of an open loop that ends now.
func (r *runner) scheduled(begun int64) schedule {
	took := time.Since(r.start)
	return schedule{
		begun:    begun,
		took:     max(took, r.goal.due(begun)),
		notBegun: max(r.goal.dueBy(took)-begun, 0),
	}
}

// open starts calls when they are due, independently of earlier calls. Latency counts from the
// due time, so a stall shows in all calls that it delayed and not only in the calls in
// progress (coordinated omission). Callers are started as needed, up to the limit; workers
// waits for them. open returns the number of calls started.
func (r *runner) open(begin, force context.Context, workers *sync.WaitGroup) int64 {
	due := make(chan int64)
	defer close(due)
	callers, n := 0, int64(0)
	for ; n < r.goal.calls; n++ {
		at := r.goal.due(n)
		if r.goal.duration > 0 && at >= r.goal.duration || !r.pace.until(begin, r.start.Add(at)) {
			break
		}
		select {
		case due <- n: // a caller is free
			continue
		default:
		}
		if callers < r.goal.inFlight {
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
func (r *runner) handOver(begin context.Context, due chan<- int64, n int64) bool {
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
func (r *runner) serve(force context.Context, n int64, due <-chan int64) {
	for more := true; more; n, more = <-due {
		r.taken.Add(1)
		if !r.deliver(r.call(force, n, r.start.Add(r.goal.due(n)))) {
			return
		}
	}
}
