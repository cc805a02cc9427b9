package main

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// recorder collects the latencies of many callers in a few histograms.
type recorder struct{ shards [16]shard }

type shard struct {
	mu        sync.Mutex
	histogram *hdrhistogram.Histogram
}

func newRecorder() *recorder {
	r := &recorder{}
	for i := range r.shards {
		r.shards[i].histogram = newHistogram()
	}
	return r
}

// newHistogram returns a histogram of microseconds up to one minute, with three significant
// digits.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, time.Minute.Microseconds(), 3)
}

func (r *recorder) record(i int, d time.Duration) {
	s := &r.shards[i%len(r.shards)]
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.histogram.RecordValue(min(d.Microseconds(), time.Minute.Microseconds())) // in range
}

func (r *recorder) merged() *hdrhistogram.Histogram {
	all := newHistogram()
	for i := range r.shards {
		all.Merge(r.shards[i].histogram)
	}
	return all
}

func latenciesOf(h *hdrhistogram.Histogram) Latencies {
	return Latencies{P50: h.ValueAtQuantile(50), P99: h.ValueAtQuantile(99), P999: h.ValueAtQuantile(99.9), Max: h.Max()}
}
