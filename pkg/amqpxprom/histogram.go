package amqpxprom

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What bounds a native histogram: at this factor two buckets in a row are at most 10 %
// apart, 160 of them reach over six orders of magnitude, and one that needs more starts
// anew, at most once an hour, rather than lose resolution.
const (
	nativeFactor  = 1.1
	nativeBuckets = 160
	nativeReset   = time.Hour
)

// histogram returns the options of a histogram that is classic, with buckets, and native.
func histogram(name, help, queue string, buckets []float64) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{
		Name:                            name,
		Help:                            help,
		ConstLabels:                     queueLabel(queue),
		Buckets:                         buckets,
		NativeHistogramBucketFactor:     nativeFactor,
		NativeHistogramMaxBucketNumber:  nativeBuckets,
		NativeHistogramMinResetDuration: nativeReset,
	}
}

// durations are the classic buckets of what takes time, in seconds.
func durations() []float64 {
	return []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}
}

// batchSizes are the classic buckets of how many calls are in a batch, which amqpx
// bounds to 512.
func batchSizes() []float64 { return prometheus.ExponentialBuckets(1, 2, 10) }
