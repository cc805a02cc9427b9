package main

import (
	"context"
	"sync"
	"time"
)

// closed starts the callers of a closed loop: each begins a call as soon as its last has
// settled, so the answers set the pace.
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

// deliver hands a result over and reports whether anybody took it.
func (r *runner) deliver(res result) bool {
	select {
	case r.results <- res:
		return true
	case <-r.abandoned:
		return false
	}
}

// schedule is how the beginning of calls went in an open loop.
type schedule struct {
	begun int64
	// took is the time in which they began, at least what the rate gives them.
	took time.Duration
	// notBegun counts the calls that were due and had not begun at the end.
	notBegun int64
}

// scheduled returns how the schedule of calls went that ends now.
func (r *runner) scheduled(begun int64) schedule {
	took := time.Since(r.start)
	return schedule{
		begun:    begun,
		took:     max(took, r.goal.due(begun)),
		notBegun: max(r.goal.dueBy(took)-begun, 0),
	}
}

// open begins calls when they are due, whatever became of those before: their latency
// counts from that moment, so that a stall shows in all the calls that it held up and not
// only in those that happened to be under way (coordinated omission). Callers are started
// as they are needed, up to the bound; workers awaits them. It returns how many calls
// began.
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

// handOver waits for a free caller, and reports whether there was one in time.
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

// serve makes call n and then each that is due, until there are no more.
func (r *runner) serve(force context.Context, n int64, due <-chan int64) {
	for more := true; more; n, more = <-due {
		r.taken.Add(1)
		if !r.deliver(r.call(force, n, r.start.Add(r.goal.due(n)))) {
			return
		}
	}
}
