package main

import (
	"testing"
	"time"
)

func TestGoalOfTheSettings(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		settings Config
		want     goal
	}{
		"default":            {Config{Calls: 1000, Concurrency: 1}, goal{calls: 1000, inFlight: 1}},
		"by time":            {Config{Calls: 1000, Concurrency: 8, Duration: time.Minute}, goal{calls: noLimit, duration: time.Minute, inFlight: 8}},
		"whichever is first": {Config{Calls: 999, Concurrency: 1, Duration: time.Minute}, goal{calls: 999, duration: time.Minute, inFlight: 1}},
		"open":               {Config{Calls: 1000, Concurrency: 1, Rate: 50}, goal{calls: 1000, rate: 50, inFlight: 4096}},
		"open, wider":        {Config{Calls: 5, Concurrency: 5000, Rate: 50}, goal{calls: 5, rate: 50, inFlight: 5000}},
	} {
		if got := c.settings.goal(); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// The constant equals the default of the variable.
//
//nolint:paralleltest // sets the environment
func TestDefaultCalls(t *testing.T) {
	isolate(t)
	if c, faults := load(t); c.Calls != defaultCalls || faults != nil {
		t.Errorf("RPC_CALLS defaults to %d, %q", c.Calls, faults)
	}
}

func TestDue(t *testing.T) {
	t.Parallel()
	for _, rate := range []int64{1, 3, 7, 1000, 9_999_999, 10_000_000} {
		g := goal{calls: noLimit, rate: rate}
		if g.due(0) != 0 || g.due(rate) != time.Second || g.due(100*rate) != 100*time.Second {
			t.Errorf("%d a second: %v, %v, %v", rate, g.due(0), g.due(rate), g.due(100*rate))
		}
		// After a billion calls, no error has accumulated.
		if got, want := g.due(1_000_000_000), time.Duration(float64(1e9)/float64(rate)*1e9); got-want > time.Microsecond || want-got > time.Microsecond {
			t.Errorf("%d a second: the billionth call is due at %v, want %v", rate, got, want)
		}
		for n := range int64(50) {
			if by := g.dueBy(g.due(n) + time.Nanosecond); by < n+1 {
				t.Errorf("%d a second: %d due when call %d is", rate, by, n)
			}
		}
	}
	bounded := goal{calls: noLimit, rate: 100, duration: 10 * time.Second}
	if got := bounded.dueBy(time.Hour); got != 1000 {
		t.Errorf("%d calls are due in 10 s at 100 a second", got)
	}
	bounded.calls = 30
	if got := bounded.dueBy(time.Hour); got != 30 {
		t.Errorf("%d of 30 calls are due", got)
	}
}

func TestExpected(t *testing.T) {
	t.Parallel()
	for want, goals := range map[time.Duration][]goal{
		0:                {{calls: 10}},
		time.Minute:      {{calls: noLimit, duration: time.Minute}, {calls: noLimit, duration: time.Minute, rate: 5}, {calls: 600, rate: 1, duration: time.Minute}},
		10 * time.Second: {{calls: 100, rate: 10}, {calls: 100, rate: 10, duration: time.Minute}},
	} {
		for _, g := range goals {
			if got := g.expected(); got != want {
				t.Errorf("%+v takes %v, want %v", g, got, want)
			}
		}
	}
}

func TestShare(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		goal    goal
		settled int64
		passed  time.Duration
		want    float64
	}{
		{goal{calls: 10}, 5, time.Hour, 0.5},
		{goal{calls: noLimit, duration: time.Minute}, 5, 15 * time.Second, 0.25},
		{goal{calls: noLimit, duration: time.Minute}, 5, time.Hour, 1},
		{goal{calls: 100, duration: time.Minute}, 50, 15 * time.Second, 0.5},
	} {
		if got := c.goal.share(c.settled, c.passed); got != c.want {
			t.Errorf("%+v: %v, want %v", c.goal, got, c.want)
		}
	}
}
