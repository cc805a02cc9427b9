package loadgen

import (
	"fmt"
	"math"
	"time"
)

// Workload defines when the calls of a run start, and when the run ends.
type Workload struct {
	// Calls is the maximum number of calls; NoLimit: time alone ends the run.
	Calls int64
	// Duration is the time in which calls are started; 0: until the number is reached.
	Duration time.Duration
	// Rate is the number of calls started per second, independently of responses; 0: each
	// caller starts a call as soon as the previous call has settled.
	Rate int64
	// InFlight is the maximum number of calls in progress.
	InFlight int
}

// NoLimit is the number of calls of a run that time alone ends.
const NoLimit = math.MaxInt64

// OpenInFlight is the minimum of the limit on calls in progress in an open loop. Only a rate
// far beyond the rate of responses reaches the limit. A call that is due while the limit is
// reached starts as soon as another call settles, and the wait counts as latency.
const OpenInFlight = 4096

// Open reports whether calls start at a fixed rate.
func (w Workload) Open() bool { return w.Rate > 0 }

// Counted reports whether the number of calls alone ends the run.
func (w Workload) Counted() bool { return w.Duration == 0 && !w.Open() }

// Due returns when call n of an open loop starts, counted from the start of the run. Each time
// is computed from n, so that no error accumulates.
func (w Workload) Due(n int64) time.Duration {
	return time.Duration(n/w.Rate)*time.Second + time.Duration(n%w.Rate)*time.Second/time.Duration(w.Rate)
}

// DueBy returns the number of calls of an open loop that are due after the time passed.
func (w Workload) DueBy(passed time.Duration) int64 {
	if w.Duration > 0 {
		passed = min(passed, w.Duration-1)
	}
	const second = int64(time.Second)
	whole, rest := int64(passed)/second, int64(passed)%second
	return min(w.Calls, whole*w.Rate+rest*w.Rate/second+1)
}

// Expected returns the duration of the run if every call settles at once; 0: unknown.
func (w Workload) Expected() time.Duration {
	switch {
	case w.Open() && w.Calls != NoLimit && (w.Duration == 0 || w.Due(w.Calls) < w.Duration):
		return w.Due(w.Calls)
	default:
		return w.Duration
	}
}

// Share returns the completed part of the run, from 0 to 1.
func (w Workload) Share(settled int64, passed time.Duration) float64 {
	done := 0.0
	if w.Calls != NoLimit {
		done = float64(settled) / float64(w.Calls)
	}
	if w.Duration > 0 {
		done = max(done, float64(passed)/float64(w.Duration))
	}
	return min(done, 1)
}

// String describes how calls start.
func (w Workload) String() string {
	if w.Open() {
		return fmt.Sprintf("%d a second", w.Rate)
	}
	return fmt.Sprintf("%d at a time", w.InFlight)
}
