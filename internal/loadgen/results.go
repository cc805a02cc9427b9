package loadgen

import (
	"time"
)

// Results counts the results of calls. One goroutine owns it.
type Results struct {
	Start    time.Time
	OK       int64
	Errors   map[string]int64
	Latency  *Histogram // of expected results
	Timeline *Timeline
	Server   *ServerTimes
	Behind   time.Duration // the longest delay of a call's start

	// Set at the end of the run.
	Calls       int64 // calls made, settled or not
	Elapsed     time.Duration
	Interrupted bool
	GivenUp     bool
	Schedule    Schedule // of an open loop
}

// slowest is the upper bound of the latency histograms. A call's timeout is at most an hour;
// an open loop adds the wait for a free caller.
const slowest = 2 * time.Hour

// NewResults returns the results of a run that starts now.
func NewResults() *Results {
	const digits = 3
	return &Results{
		Start:    time.Now(),
		Errors:   make(map[string]int64),
		Latency:  NewHistogram(time.Nanosecond, time.Microsecond, slowest, digits),
		Timeline: newTimeline(),
		Server:   newServerTimes(),
	}
}

// Add counts a result.
func (t *Results) Add(r Result) {
	t.Timeline.add(r)
	t.Behind = max(t.Behind, r.Late)
	if r.Info != nil {
		t.Server.add(*r.Info)
	}
	if r.Key != "" {
		t.Errors[r.Key]++
		return
	}
	t.OK++
	t.Latency.Record(r.Latency)
}

// Failed returns the number of calls that settled without the expected result.
func (t *Results) Failed() int64 {
	var sum int64
	for _, n := range t.Errors {
		sum += n
	}
	return sum
}

// Settled returns the number of settled calls.
func (t *Results) Settled() int64 { return t.OK + t.Failed() }
