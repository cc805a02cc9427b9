package loadgen

import (
	"time"
)

// Totals counts results of calls. One goroutine at a time uses it.
type Totals struct {
	OK      int64
	Errors  map[string]int64
	Latency *Histogram // of expected results
	Server  *ServerTimes
	Behind  time.Duration // the longest delay of a call's start
}

// Results counts the results of a run. One goroutine owns it.
type Results struct {
	Totals

	Start    time.Time
	Timeline *Timeline

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

func newTotals() *Totals {
	const digits = 3
	return &Totals{
		Errors:  make(map[string]int64),
		Latency: NewHistogram(time.Nanosecond, time.Microsecond, slowest, digits),
		Server:  newServerTimes(),
	}
}

// NewResults returns the results of a run that starts now.
func NewResults() *Results {
	return &Results{Totals: *newTotals(), Start: time.Now(), Timeline: newTimeline()}
}

// Add counts a result.
func (s *Results) Add(r Result) {
	s.Timeline.add(r)
	s.add(r)
}

func (t *Totals) add(r Result) {
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

// merge adds other results.
func (t *Totals) merge(other *Totals) {
	t.OK += other.OK
	for key, n := range other.Errors {
		t.Errors[key] += n
	}
	t.Latency.Merge(other.Latency)
	t.Server.merge(other.Server)
	t.Behind = max(t.Behind, other.Behind)
}

// reset removes all results.
func (t *Totals) reset() {
	t.OK, t.Behind = 0, 0
	clear(t.Errors)
	t.Latency.reset()
	t.Server.reset()
}

// Failed returns the number of calls that settled without the expected result.
func (t *Totals) Failed() int64 {
	var sum int64
	for _, n := range t.Errors {
		sum += n
	}
	return sum
}

// Settled returns the number of settled calls.
func (t *Totals) Settled() int64 { return t.OK + t.Failed() }
