package loadgen

import (
	"runtime"
	"sync"
)

// callRecorder counts the results of some callers where the results arise: in the callers'
// goroutines. A caller uses one recorder for all of its calls. Safe for concurrent use.
type callRecorder struct {
	timeline *Timeline // shared by all recorders

	mu     sync.Mutex
	totals *Totals   // of the calls since the last take
	open   openSlice // the newest slice of the timeline, not yet added to it
	closed bool
}

// add counts a result. It returns false if the recorder was closed before, so that the result
// is not counted.
func (c *callRecorder) add(r Result) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.totals.add(r)
	if r.Ended < c.open.from { // the caller was interrupted between the end of its call and here
		c.timeline.add(r)
		return true
	}
	if r.Ended >= c.open.until {
		c.timeline.turn(&c.open, r.Ended)
	}
	c.open.add(r)
	return true
}

// take returns the results since the last take. The recorder goes on with next, which is empty.
func (c *callRecorder) take(next *Totals) *Totals {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.totals
	c.totals = next
	return taken
}

// close completes the timeline and returns the results since the last take. Later results are
// not counted.
func (c *callRecorder) close() *Totals {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.timeline.turn(&c.open, c.open.from)
	return c.totals
}

// callRecorders holds the recorders of a run. One goroutine at a time calls merge and close,
// and one goroutine calls next.
type callRecorders struct {
	list  []*callRecorder
	spare *Totals // empty
	used  int
}

// maxRecorders is the maximum number of recorders. Each takes 0.6 MB, and with fewer callers in
// progress at the same moment than recorders, callers do not wait for each other.
const maxRecorders = 8

// newCallRecorders returns as many recorders as processors run callers.
func newCallRecorders(timeline *Timeline) *callRecorders {
	r := &callRecorders{spare: newTotals()}
	for range min(runtime.GOMAXPROCS(0), maxRecorders) {
		r.list = append(r.list, &callRecorder{timeline: timeline, totals: newTotals()})
	}
	return r
}

// next returns the recorder of a new caller.
func (r *callRecorders) next() *callRecorder {
	c := r.list[r.used%len(r.list)]
	r.used++
	return c
}

// merge adds the results since the last merge to t.
func (r *callRecorders) merge(t *Totals) {
	for _, c := range r.list {
		taken := c.take(r.spare)
		t.merge(taken)
		taken.reset()
		r.spare = taken
	}
}

// close adds the remaining results to t. Later results are not counted.
func (r *callRecorders) close(t *Totals) {
	for _, c := range r.list {
		t.merge(c.close())
	}
}
