package loadgen

import (
	"sync"
	"time"
)

// Timeline counts settled calls in time slices of equal width. The number of slices is at most
// maxSlices: when more are needed, each two slices are merged. Safe for concurrent use.
type Timeline struct {
	mu     sync.Mutex
	width  time.Duration
	slices []counts
}

// openSlice counts the results from a part of a slice's callers before they are added to the
// timeline. Its time is within one slice, also after slices were merged.
type openSlice struct {
	counts

	from, until time.Duration
}

// counts holds the results of the calls that settled in a slice.
type counts struct {
	ok, errors int64
	latency    *Histogram // nil without an expected result
}

// Slice counts the calls that settled in a part of the run. P50 and P99 are latencies of the
// calls with the expected result, and 0 without such calls.
type Slice struct {
	Start, Length time.Duration
	OK, Errors    int64
	P50, P99      time.Duration
}

const (
	// firstWidth is the initial width of a slice.
	firstWidth = 10 * time.Millisecond
	// maxSlices is the maximum number of slices. Each slice may take 28 kB.
	maxSlices = 200
	// enoughSlices and enoughCalls define a readable figure: with more slices than
	// enoughSlices, slices of fewer calls than enoughCalls show more noise than trend.
	enoughSlices = 40
	enoughCalls  = 20
)

func newTimeline() *Timeline { return &Timeline{width: firstWidth} }

// add counts a result.
func (l *Timeline) add(r Result) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at(r.Ended).add(r)
}

// turn adds the results of an open slice, and opens the slice at the time ended instead.
func (l *Timeline) turn(o *openSlice, ended time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o.ok+o.errors > 0 {
		l.at(o.from).take(&o.counts)
	}
	for ended >= maxSlices*l.width {
		l.merge()
	}
	o.from = ended.Truncate(l.width)
	o.until = o.from + l.width
}

// at returns the slice at a time. The caller holds mu.
func (l *Timeline) at(ended time.Duration) *counts {
	for ended >= maxSlices*l.width {
		l.merge()
	}
	for int(ended/l.width) >= len(l.slices) {
		l.slices = append(l.slices, counts{})
	}
	return &l.slices[ended/l.width]
}

// add counts a result.
func (s *counts) add(r Result) {
	if r.Key != "" {
		s.errors++
		return
	}
	s.ok++
	if s.latency == nil {
		const digits = 2
		s.latency = NewHistogram(time.Nanosecond, time.Microsecond, slowest, digits)
	}
	s.latency.Record(r.Latency)
}

// take moves the results of other to s. Other keeps its histogram, empty, if s has one.
func (s *counts) take(other *counts) {
	s.ok, s.errors = s.ok+other.ok, s.errors+other.errors
	other.ok, other.errors = 0, 0
	switch {
	case other.latency == nil:
	case s.latency == nil:
		s.latency, other.latency = other.latency, nil
	default:
		s.latency.Merge(other.latency)
		other.latency.reset()
	}
}

// merge merges each two slices. The caller holds mu.
func (l *Timeline) merge() {
	l.width *= 2
	half := l.slices[:0]
	for i := 0; i < len(l.slices); i += 2 {
		s := l.slices[i]
		if i+1 < len(l.slices) {
			s.take(&l.slices[i+1])
		}
		half = append(half, s)
	}
	clear(l.slices[len(half):])
	l.slices = half
}

// Slices returns the slices of a run of length elapsed, merged until they are readable.
func (l *Timeline) Slices(elapsed time.Duration) []Slice {
	l.mu.Lock()
	defer l.mu.Unlock()
	var settled int64
	for _, s := range l.slices {
		settled += s.ok + s.errors
	}
	for len(l.slices) > enoughSlices && settled < enoughCalls*int64(len(l.slices)) {
		l.merge()
	}
	// A short rest at the end is merged into the previous slice: a rate over so short a time
	// would be meaningless.
	if last := len(l.slices) - 1; last > 0 && elapsed-time.Duration(last)*l.width < l.width/2 {
		l.slices[last-1].take(&l.slices[last])
		l.slices = l.slices[:last]
	}
	list := make([]Slice, 0, len(l.slices))
	for i, s := range l.slices {
		start := time.Duration(i) * l.width
		length := l.width
		if i == len(l.slices)-1 && elapsed > start {
			length = elapsed - start
		}
		r := Slice{Start: start, Length: length, OK: s.ok, Errors: s.errors}
		if s.ok > 0 {
			r.P50, r.P99 = s.latency.At(50), s.latency.At(99)
		}
		list = append(list, r)
	}
	return list
}
