package amqpx

import (
	"math"
	"sync/atomic"
	"time"
)

// load estimates how long a request that arrives now waits for a worker. Safe for
// concurrent use.
type load struct {
	workers int64
	start   time.Time
	places  []atomic.Pointer[invocation] // what the workers run
	busy    atomic.Int64
	average atomic.Int64 // of the time a worker spends on one request, in ns
}

// newLoad returns the load of an idle server. Its last place is of a worker that comes when
// the server drains.
func newLoad(workers int) load {
	return load{workers: int64(workers), start: time.Now(), places: make([]atomic.Pointer[invocation], workers+1)}
}

// loadWeight is the share of the newest time in the average: one eighth.
const loadWeight = 8

// started and ended enclose the work on one request.
func (l *load) started() { l.busy.Add(1) }

func (l *load) ended(took time.Duration) {
	l.busy.Add(-1)
	// An update that is lost to another at the same time does no harm to an estimate.
	average := l.average.Load()
	l.average.Store(average + (int64(took)-average)/loadWeight)
}

// take notes that a request has the worker of its place from now on.
func (l *load) take(r *invocation, now time.Time) {
	r.works.Store(int64(now.Sub(l.start)))
	l.places[r.place].Store(r)
}

// age returns how long a request has had its worker.
func (l *load) age(r *invocation, now time.Time) time.Duration {
	return max(now.Sub(l.start)-time.Duration(r.works.Load()), 0)
}

// wait estimates the wait of a request with waiting others before it: none while a worker is
// free, else until as many have come free as it takes. A handler is expected to take the
// average time, and one that runs longer as long again as it has run. While every handler
// has exceeded the average, the first to end is expected after as long as it has done so:
// handlers that never end let nobody wait.
func (l *load) wait(waiting int, now time.Time) time.Duration {
	if l.busy.Load() < l.workers {
		return 0
	}
	average := time.Duration(l.average.Load())
	first, rate := time.Duration(math.MaxInt64), 0.0
	for i := range l.workers {
		age := time.Duration(0) // of one that only begins
		if r := l.places[i].Load(); r != nil {
			age = l.age(r, now)
		}
		first = min(first, max(age-average, 0))
		rate += 1 / float64(max(average, age, 1))
	}
	return max(time.Duration(float64(waiting+1)/rate), first+time.Duration(float64(waiting)/rate))
}

// shed refuses a request at once when it would expire before a worker is free, unless
// the same request runs here, or has run; it reports whether the job is dealt with. To an idempotent call, which may be sent again whatever became of it, it
// does not say "did not run": so its request need not be acknowledged before.
func (s *Server) shed(j *job) bool {
	wait := s.load.wait(s.jobs.len(), j.arrived)
	if wait == 0 || s.isDraining() { // a server that drains leaves it to another
		return false
	}
	in, failed := j.decode()
	if failed != nil || in.budget == noBudget || in.budget > wait || in.OneWay || s.dedup.knows(j) {
		return false
	}
	e := refusal(CodeResourceExhausted, "every worker is busy for about %v more, the call's time is %v", wait, in.budget)
	e.retryAfter = wait
	if in.Idempotent || in.Redelivered {
		e.outcome = MayHaveRun
	}
	s.refuse(j, e)
	s.counts.shed.Add(1)
	return true
}
