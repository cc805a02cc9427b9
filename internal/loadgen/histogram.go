package loadgen

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Histogram counts durations. One goroutine owns it; a [Recorder] is for several.
type Histogram struct {
	counts  *hdrhistogram.Histogram
	unit    time.Duration // of the counted values
	longest time.Duration
}

// NewHistogram returns a histogram of durations from shortest to longest, in whole units, with
// the given number of significant digits. A longer duration counts as the longest.
func NewHistogram(unit, shortest, longest time.Duration, digits int) *Histogram {
	return &Histogram{counts: hdrhistogram.New(int64(shortest/unit), int64(longest/unit), digits), unit: unit, longest: longest}
}

// Record counts a duration.
func (h *Histogram) Record(d time.Duration) {
	_ = h.counts.RecordValue(int64(min(d, h.longest) / h.unit)) // fails only beyond the longest
}

// Count returns the number of durations.
func (h *Histogram) Count() int64 { return h.counts.TotalCount() }

// Min returns the shortest duration.
func (h *Histogram) Min() time.Duration { return time.Duration(h.counts.Min()) * h.unit }

// Max returns the longest duration.
func (h *Histogram) Max() time.Duration { return time.Duration(h.counts.Max()) * h.unit }

// Mean returns the mean duration.
func (h *Histogram) Mean() time.Duration { return time.Duration(h.counts.Mean() * float64(h.unit)) }

// At returns the duration that the given percentage of the durations do not exceed.
func (h *Histogram) At(percent float64) time.Duration {
	return time.Duration(h.counts.ValueAtPercentile(percent)) * h.unit
}

// Merge adds the durations of a histogram with the same unit.
func (h *Histogram) Merge(other *Histogram) { h.counts.Merge(other.counts) }

// reset removes all durations.
func (h *Histogram) reset() { h.counts.Reset() }

// Recorder counts durations of many goroutines. It spreads them over several histograms, so
// that goroutines rarely wait for each other.
type Recorder struct {
	create func() *Histogram
	shards [16]shard
}

type shard struct {
	mu        sync.Mutex
	histogram *Histogram
}

// NewRecorder returns a recorder with histograms that create returns.
func NewRecorder(create func() *Histogram) *Recorder {
	r := &Recorder{create: create}
	for i := range r.shards {
		r.shards[i].histogram = create()
	}
	return r
}

// Record counts the duration of call n, counted from 0.
func (r *Recorder) Record(n int64, d time.Duration) {
	s := &r.shards[n%int64(len(r.shards))]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.histogram.Record(d)
}

// Merged returns a histogram of all durations. No goroutine may call Record at the same time.
func (r *Recorder) Merged() *Histogram {
	all := r.create()
	for i := range r.shards {
		all.Merge(r.shards[i].histogram)
	}
	return all
}
