package main

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"rabbitmq-rpc/services/rpc-client/internal/report"
)

// Timeline counts settled calls in time slices of equal width. The number of slices is at most
// maxSlices: when more are needed, each two slices are merged.
type Timeline struct {
	width  time.Duration
	slices []slice
}

// slice is a part of the run.
type slice struct {
	ok, errors int64
	latency    *hdrhistogram.Histogram // nil without an expected result
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

func (l *Timeline) add(r Result) {
	at := int(r.Ended / l.width)
	for ; at >= maxSlices; at = int(r.Ended / l.width) {
		l.merge()
	}
	for at >= len(l.slices) {
		l.slices = append(l.slices, slice{})
	}
	s := &l.slices[at]
	if r.Key != "" {
		s.errors++
		return
	}
	s.ok++
	if s.latency == nil {
		const lowest, digits = int64(time.Microsecond), 2
		s.latency = hdrhistogram.New(lowest, int64(slowest), digits)
	}
	_ = s.latency.RecordValue(min(int64(r.Latency), int64(slowest))) // within the limit
}

// merge merges each two slices.
func (l *Timeline) merge() {
	l.width *= 2
	half := l.slices[:0]
	for i := 0; i < len(l.slices); i += 2 {
		s := l.slices[i]
		if i+1 < len(l.slices) {
			s = s.with(l.slices[i+1])
		}
		half = append(half, s)
	}
	clear(l.slices[len(half):])
	l.slices = half
}

// with returns the sum of both slices.
func (s slice) with(other slice) slice {
	s.ok, s.errors = s.ok+other.ok, s.errors+other.errors
	switch {
	case s.latency == nil:
		s.latency = other.latency
	case other.latency != nil:
		s.latency.Merge(other.latency)
	}
	return s
}

// report returns the slices of a run of length elapsed, merged until they are readable.
func (l *Timeline) report(elapsed time.Duration) []report.Slice {
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
		l.slices[last-1] = l.slices[last-1].with(l.slices[last])
		l.slices = l.slices[:last]
	}
	list := make([]report.Slice, 0, len(l.slices))
	for i, s := range l.slices {
		start := time.Duration(i) * l.width
		length := l.width
		if i == len(l.slices)-1 && elapsed > start {
			length = elapsed - start
		}
		r := report.Slice{Start: report.Seconds(start), Seconds: report.Seconds(length), OK: s.ok, Errors: s.errors}
		if s.ok > 0 {
			r.P50MS = report.Milliseconds(time.Duration(s.latency.ValueAtPercentile(50)))
			r.P99MS = report.Milliseconds(time.Duration(s.latency.ValueAtPercentile(99)))
		}
		list = append(list, r)
	}
	return list
}
