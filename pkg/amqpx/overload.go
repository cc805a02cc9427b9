package amqpx

import (
	"sync/atomic"
	"time"
)

// load estimates how long a request that arrives now waits for a worker. Its zero
// value is that of an idle server. Safe for concurrent use.
type load struct {
	workers int64
	busy    atomic.Int64
	average atomic.Int64 // of the time a worker spends on one request, in ns
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

// wait estimates the wait of a request with waiting others before it: none while a
// worker is free, else until as many have come free as it takes.
func (l *load) wait(waiting int) time.Duration {
	if l.busy.Load() < l.workers {
		return 0
	}
	return time.Duration(l.average.Load() * int64(waiting+1) / l.workers)
}

// shed refuses a request at once when it would expire before a worker is free, unless
// the same request runs here, or has run; it reports whether the job is dealt with. To an idempotent call, which may be sent again whatever became of it, it
// does not say "did not run": so its request need not be acknowledged before.
func (s *Server) shed(j *job) bool {
	wait := s.load.wait(s.jobs.len())
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
