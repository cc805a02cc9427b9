package main

import (
	"fmt"
	"math"
	"time"
)

// goal defines when the calls of a run start, and when the run ends.
type goal struct {
	// calls is the maximum number of calls; noLimit: time alone ends the run.
	calls int64
	// duration is the time in which calls are started; 0: until the number is reached.
	duration time.Duration
	// rate is the number of calls started per second, independently of responses; 0: each
	// caller starts a call as soon as the previous call has settled.
	rate int64
	// inFlight is the maximum number of calls in progress.
	inFlight int
}

const noLimit = math.MaxInt64

// openInFlight is the minimum of the limit on calls in progress in an open loop. Only a rate
// far beyond the rate of responses reaches the limit. A call that is due while the limit is
// reached starts as soon as another call settles, and the wait counts as latency.
const openInFlight = 4096

// defaultCalls is the default of RPC_CALLS. Together with RPC_DURATION the default is not a
// limit.
const defaultCalls = 1000

// goal returns the goal that the settings define.
func (c *Config) goal() goal {
	g := goal{calls: int64(c.Calls), duration: c.Duration, rate: int64(c.Rate), inFlight: c.Concurrency}
	if c.Duration > 0 && c.Calls == defaultCalls {
		g.calls = noLimit
	}
	if c.Rate > 0 {
		g.inFlight = max(c.Concurrency, openInFlight)
	}
	return g
}

// open reports whether calls start at a fixed rate.
func (g goal) open() bool { return g.rate > 0 }

// counted reports whether the number of calls alone ends the run.
func (g goal) counted() bool { return g.duration == 0 && !g.open() }

// due returns when call n of an open loop starts, counted from the start of the run. Each time
// is computed from n, so that no error accumulates.
func (g goal) due(n int64) time.Duration {
	return time.Duration(n/g.rate)*time.Second + time.Duration(n%g.rate)*time.Second/time.Duration(g.rate)
}

// dueBy returns the number of calls of an open loop that are due after the time passed.
func (g goal) dueBy(passed time.Duration) int64 {
	if g.duration > 0 {
		passed = min(passed, g.duration-1)
	}
	const second = int64(time.Second)
	whole, rest := int64(passed)/second, int64(passed)%second
	return min(g.calls, whole*g.rate+rest*g.rate/second+1)
}

// expected returns the duration of the run if every call settles at once; 0: unknown.
func (g goal) expected() time.Duration {
	switch {
	case g.open() && g.calls != noLimit && (g.duration == 0 || g.due(g.calls) < g.duration):
		return g.due(g.calls)
	default:
		return g.duration
	}
}

// share returns the completed part of the run, from 0 to 1.
func (g goal) share(settled int64, passed time.Duration) float64 {
	done := 0.0
	if g.calls != noLimit {
		done = float64(settled) / float64(g.calls)
	}
	if g.duration > 0 {
		done = max(done, float64(passed)/float64(g.duration))
	}
	return min(done, 1)
}

// String describes how calls start.
func (g goal) String() string {
	if g.open() {
		return fmt.Sprintf("%d a second", g.rate)
	}
	return fmt.Sprintf("%d at a time", g.inFlight)
}
