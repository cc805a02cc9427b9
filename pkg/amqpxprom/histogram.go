package amqpxprom

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of a native histogram: with this factor, adjacent buckets are at most 10 % apart and
// 160 buckets span more than six orders of magnitude. A histogram that needs more buckets is
// reset, at most once an hour, and does not lose resolution.
const (
	nativeFactor  = 1.1
	nativeBuckets = 160
	nativeReset   = time.Hour
)

// histogram returns the options of a histogram with classic and, if configured, native buckets.
func (c *config) histogram(name, help, queue string, buckets []float64) prometheus.HistogramOpts {
	opts := prometheus.HistogramOpts{Name: name, Help: help, ConstLabels: queueLabel(queue), Buckets: buckets}
	if c.native {
		opts.NativeHistogramBucketFactor = nativeFactor
		opts.NativeHistogramMaxBucketNumber = nativeBuckets
		opts.NativeHistogramMinResetDuration = nativeReset
	}
	return opts
}

// durations returns the classic buckets of durations, in seconds.
func durations() []float64 {
	return []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}
}

// streamDurations returns the classic buckets of the durations of streams, in seconds: a stream may
// last for hours.
func streamDurations() []float64 {
	return []float64{0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 30, 60, 300, 1800, 3600, 6 * 3600, 24 * 3600}
}

// batchSizes returns the classic buckets of the number of calls in a batch; amqpx limits a
// batch to 512 calls.
func batchSizes() []float64 { return prometheus.ExponentialBuckets(1, 2, 10) }
