package main

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// tally counts the results of calls. One goroutine owns it.
type tally struct {
	start    time.Time
	ok       int64
	errors   map[string]int64
	latency  *hdrhistogram.Histogram // of expected results, in nanoseconds
	timeline *timeline
	server   *serverTimes
	behind   time.Duration // the longest delay of a call's start

	// Set at the end of the run.
	calls       int64 // calls made, settled or not
	elapsed     time.Duration
	interrupted bool
	givenUp     bool
	schedule    schedule // of an open loop
}

// slowest is the upper bound of the latency histograms. A call's timeout is at most an hour;
// an open loop adds the wait for a free caller.
const slowest = 2 * time.Hour

func newTally() *tally {
	const lowest, digits = int64(time.Microsecond), 3
	return &tally{
		start:    time.Now(),
		errors:   make(map[string]int64),
		latency:  hdrhistogram.New(lowest, int64(slowest), digits),
		timeline: newTimeline(),
		server:   newServerTimes(),
	}
}

func (t *tally) add(r result) {
	t.timeline.add(r)
	t.behind = max(t.behind, r.late)
	if r.info != nil {
		t.server.add(*r.info)
	}
	if r.key != "" {
		t.errors[r.key]++
		return
	}
	t.ok++
	// RecordValue fails only beyond the bound, and the value is within the bound.
	_ = t.latency.RecordValue(min(int64(r.latency), int64(slowest)))
}

// failed returns the number of calls that settled without the expected result.
func (t *tally) failed() int64 {
	var sum int64
	for _, n := range t.errors {
		sum += n
	}
	return sum
}

func (t *tally) settled() int64 { return t.ok + t.failed() }
