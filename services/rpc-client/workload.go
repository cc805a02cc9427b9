package main

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

const NoLimit = math.MaxInt64

// OpenInFlight is the minimum of the limit on calls in progress in an open loop. Only a rate
// far beyond the rate of responses reaches the limit. A call that is due while the limit is
// reached starts as soon as another call settles, and the wait counts as latency.
const OpenInFlight = 4096

// defaultCalls is the default of RPC_CALLS. Together with RPC_DURATION the default is not a
// limit.
const defaultCalls = 1000

// workload returns the workload that the settings define.
func (c *Config) workload() Workload {
	g := Workload{Calls: int64(c.Calls), Duration: c.Duration, Rate: int64(c.Rate), InFlight: c.Concurrency}
	if c.Duration > 0 && c.Calls == defaultCalls {
		g.Calls = NoLimit
	}
	if c.Rate > 0 {
		g.InFlight = max(c.Concurrency, OpenInFlight)
	}
	return g
}

// Open reports whether calls start at a fixed rate.
func (g Workload) Open() bool { return g.Rate > 0 }

// Counted reports whether the number of calls alone ends the run.
func (g Workload) Counted() bool { return g.Duration == 0 && !g.Open() }

// Due returns when call n of an open loop starts, counted from the start of the run. Each time
// is computed from n, so that no error accumulates.
func (g Workload) Due(n int64) time.Duration {
	return time.Duration(n/g.Rate)*time.Second + time.Duration(n%g.Rate)*time.Second/time.Duration(g.Rate)
}

// DueBy returns the number of calls of an open loop that are due after the time passed.
func (g Workload) DueBy(passed time.Duration) int64 {
	if g.Duration > 0 {
		passed = min(passed, g.Duration-1)
	}
	const second = int64(time.Second)
	whole, rest := int64(passed)/second, int64(passed)%second
	return min(g.Calls, whole*g.Rate+rest*g.Rate/second+1)
}

// Expected returns the duration of the run if every call settles at once; 0: unknown.
func (g Workload) Expected() time.Duration {
	switch {
	case g.Open() && g.Calls != NoLimit && (g.Duration == 0 || g.Due(g.Calls) < g.Duration):
		return g.Due(g.Calls)
	default:
		return g.Duration
	}
}

// Share returns the completed part of the run, from 0 to 1.
func (g Workload) Share(settled int64, passed time.Duration) float64 {
	done := 0.0
	if g.Calls != NoLimit {
		done = float64(settled) / float64(g.Calls)
	}
	if g.Duration > 0 {
		done = max(done, float64(passed)/float64(g.Duration))
	}
	return min(done, 1)
}

// String describes how calls start.
func (g Workload) String() string {
	if g.Open() {
		return fmt.Sprintf("%d a second", g.Rate)
	}
	return fmt.Sprintf("%d at a time", g.InFlight)
}
