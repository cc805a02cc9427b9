package loadgen

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Loop starts the calls of a workload: a closed loop if the workload has no rate, otherwise an
// open loop. A Loop is used only once.
type Loop struct {
	// Workload defines how many calls start, and when. Its duration ends no closed loop; the
	// context of Run does.
	Workload Workload
	Pacer    Pacer
	// Start is the time from which calls are due.
	Start time.Time
	// NewCaller returns a new caller. Only the goroutine of Run calls it.
	NewCaller func() Caller

	// taken counts the started calls; in a closed loop it may exceed Workload.Calls.
	taken   atomic.Int64
	callers sync.WaitGroup
	// ended is the schedule of an open loop that has started its last call.
	ended atomic.Pointer[Schedule]
}

// Caller makes call n, counted from 0, which was due at the given time, and reports whether it
// may make further calls. It makes one call at a time.
type Caller func(n int64, due time.Time) (more bool)

// Run starts calls until all calls are started, begin ends, or no caller may start further
// calls, and waits for the calls in progress.
func (l *Loop) Run(begin context.Context) {
	if l.Workload.Open() {
		s := l.scheduled(l.open(begin))
		l.ended.Store(&s)
	} else {
		l.closed(begin)
	}
	l.callers.Wait()
}

// Begun returns the number of calls that have started.
func (l *Loop) Begun() int64 { return min(l.taken.Load(), l.Workload.Calls) }

// closed starts the callers of a closed loop: each caller starts a call as soon as the
// previous call has settled, so responses set the pace.
func (l *Loop) closed(begin context.Context) {
	for range min(int64(l.Workload.InFlight), l.Workload.Calls) {
		call := l.NewCaller()
		// Ends when all calls are taken, begin ends, or the caller may not go on.
		l.callers.Go(func() {
			for begin.Err() == nil {
				n := l.taken.Add(1)
				if n > l.Workload.Calls || !call(n-1, time.Now()) {
					return
				}
			}
		})
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

// Schedule returns the schedule of an open loop: until its last call started, or until now.
func (l *Loop) Schedule() Schedule {
	if s := l.ended.Load(); s != nil {
		return *s
	}
	return l.scheduled(l.Begun())
}

// scheduled returns the schedule of an open loop that ends now.
func (l *Loop) scheduled(begun int64) Schedule {
	took := time.Since(l.Start)
	return Schedule{
		Begun:    begun,
		Took:     max(took, l.Workload.Due(begun)),
		NotBegun: max(l.Workload.DueBy(took)-begun, 0),
	}
}

// open starts calls when they are due, independently of earlier calls. Latency counts from the
// due time, so a stall shows in all calls that it delayed and not only in the calls in
// progress (coordinated omission). Callers are started as needed, up to the limit. open
// returns the number of calls started.
func (l *Loop) open(begin context.Context) int64 {
	due := make(chan int64)
	defer close(due)
	w := l.Workload
	callers, n := 0, int64(0)
	for ; n < w.Calls; n++ {
		at := w.Due(n)
		if w.Duration > 0 && at >= w.Duration || !l.Pacer.until(begin, l.Start.Add(at)) {
			break
		}
		select {
		case due <- n: // a caller is free
			continue
		default:
		}
		if callers < w.InFlight {
			callers++
			call, first := l.NewCaller(), n
			l.callers.Go(func() { l.serve(call, first, due) }) // ends with the schedule
			continue
		}
		if !handOver(begin, due, n) {
			break
		}
	}
	return n
}

// handOver waits for a free caller, and reports whether a caller became free in time.
func handOver(begin context.Context, due chan<- int64, n int64) bool {
	select {
	case due <- n:
		return true
	case <-begin.Done():
		return false
	}
}

// serve makes call n and then further due calls, until the channel is closed.
func (l *Loop) serve(call Caller, n int64, due <-chan int64) {
	for more := true; more; n, more = <-due {
		l.taken.Add(1)
		if !call(n, l.Start.Add(l.Workload.Due(n))) {
			return
		}
	}
}
