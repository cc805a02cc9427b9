package main

import (
	"fmt"
	"math"
	"time"
)

// goal says when a run has made enough calls, and when they begin.
type goal struct {
	// calls bounds how many; noLimit: time alone ends the run.
	calls int64
	// duration is how long calls begin; 0: until there are enough.
	duration time.Duration
	// rate is how many calls begin a second, whatever the answers do; 0: each caller
	// begins one as soon as its last has settled.
	rate int64
	// inFlight bounds the calls under way at once.
	inFlight int
}

const noLimit = math.MaxInt64

// openInFlight is how many calls may be under way at once in an open loop, at least: a
// bound that only a rate far beyond what is answered comes to. A call that is due beyond it
// begins as soon as another settles, and its wait counts as latency.
const openInFlight = 4096

// defaultCalls is the default of RPC_CALLS. Beside RPC_DURATION it is no bound.
const defaultCalls = 1000

// goal returns what the settings ask for.
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

// open reports whether calls begin at a rate.
func (g goal) open() bool { return g.rate > 0 }

// counted reports whether the number of calls alone ends the run, whatever they end in.
func (g goal) counted() bool { return g.duration == 0 && !g.open() }

// due is when call n of an open loop begins, counted from the start. Each is reckoned for
// itself, so that no error adds up.
func (g goal) due(n int64) time.Duration {
	return time.Duration(n/g.rate)*time.Second + time.Duration(n%g.rate)*time.Second/time.Duration(g.rate)
}

// dueBy counts the calls of an open loop that were due within a time.
func (g goal) dueBy(passed time.Duration) int64 {
	if g.duration > 0 {
		passed = min(passed, g.duration-1)
	}
	const second = int64(time.Second)
	whole, rest := int64(passed)/second, int64(passed)%second
	return min(g.calls, whole*g.rate+rest*g.rate/second+1)
}

// expected is how long the run takes if every call is answered at once; 0: unknown.
func (g goal) expected() time.Duration {
	switch {
	case g.open() && g.calls != noLimit && (g.duration == 0 || g.due(g.calls) < g.duration):
		return g.due(g.calls)
	default:
		return g.duration
	}
}

// share is how much of the run is done, from 0 to 1.
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

// String says how calls begin.
func (g goal) String() string {
	if g.open() {
		return fmt.Sprintf("%d a second", g.rate)
	}
	return fmt.Sprintf("%d at a time", g.inFlight)
}
