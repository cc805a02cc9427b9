package main

import (
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"rabbitmq-rpc/services/rpc-client/internal/report"
)

// Percentiles returns the percentile curve of a histogram: ten points from each nine to the
// next, as far as the number of calls can distinguish points, and the maximum. For any number
// of calls, the curve has not much more than a hundred points.
func Percentiles(h *hdrhistogram.Histogram, unit time.Duration) []report.Percentile {
	count := h.TotalCount()
	list := []report.Percentile{}
	if count == 0 {
		return list
	}
	add := func(percent float64) {
		v := h.ValueAtPercentile(percent)
		if percent == 0 {
			v = h.Min()
		}
		list = append(list, report.Percentile{Percent: percent, MS: inMilliseconds(v, unit)})
	}
	for decade := 1.0; decade <= float64(count); decade *= 10 {
		for _, step := range []float64{1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.3, 8} {
			if beyond := decade * step; beyond <= float64(count) { // one call in this many is slower
				const digits = 11
				add(report.Round(100-100/beyond, digits))
			}
		}
	}
	return append(list, report.Percentile{Percent: 100, MS: inMilliseconds(h.Max(), unit)})
}

// maxBins is the maximum number of columns of a histogram.
const maxBins = 48

// Bins returns the distribution of latencies in columns of equal width on a logarithmic axis.
// No column is narrower than the resolution of the histogram.
func Bins(h *hdrhistogram.Histogram) []report.Bin {
	if h.TotalCount() == 0 {
		return []report.Bin{}
	}
	const narrowest = 1.01 // one percent
	low, high := math.Log(max(float64(h.Min()), 1)), math.Log(float64(h.Max())+1)
	number := min(max(int((high-low)/math.Log(narrowest)), 1), maxBins)
	width := (high - low) / float64(number)
	edge := func(i int) float64 { return report.Milliseconds(time.Duration(math.Exp(low + float64(i)*width))) }
	list := make([]report.Bin, number)
	for i := range list {
		list[i] = report.Bin{FromMS: edge(i), ToMS: edge(i + 1)}
	}
	for _, bar := range h.Distribution() {
		if bar.Count > 0 {
			middle := math.Log(max(float64(bar.From+bar.To)/2, 1))
			list[min(max(int((middle-low)/width), 0), number-1)].Calls += bar.Count
		}
	}
	return list
}
