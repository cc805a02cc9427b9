package main

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// tally counts how calls ended. One goroutine owns it.
type tally struct {
	start    time.Time
	ok       int64
	errors   map[string]int64
	latency  *hdrhistogram.Histogram // of expected answers, in nanoseconds
	timeline *timeline
	server   *serverTimes
	behind   time.Duration // how much too late a call began at worst

	// Set at the end of the run.
	calls       int64 // made, whether they settled or not
	elapsed     time.Duration
	interrupted bool
	givenUp     bool
	schedule    schedule // of an open loop
}

// slowest is the longest latency that is told apart. A call's timeout is at most an hour;
// in an open loop its wait for its turn comes on top.
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
	// It can only fail for a value beyond the bound, which this one cannot be.
	_ = t.latency.RecordValue(min(int64(r.latency), int64(slowest)))
}

// failed counts the calls that settled with something else than the expected
// answer.
func (t *tally) failed() int64 {
	var sum int64
	for _, n := range t.errors {
		sum += n
	}
	return sum
}

func (t *tally) settled() int64 { return t.ok + t.failed() }
