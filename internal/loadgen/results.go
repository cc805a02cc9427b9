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
func (s *Results) Add(r Result) {
	s.Timeline.add(r)
	s.Behind = max(s.Behind, r.Late)
	if r.Info != nil {
		s.Server.add(*r.Info)
	}
	if r.Key != "" {
		s.Errors[r.Key]++
		return
	}
	s.OK++
	s.Latency.Record(r.Latency)
}

// Failed returns the number of calls that settled without the expected result.
func (s *Results) Failed() int64 {
	var sum int64
	for _, n := range s.Errors {
		sum += n
	}
	return sum
}

// Settled returns the number of settled calls.
func (s *Results) Settled() int64 { return s.OK + s.Failed() }
