package loadgen

import (
	"math"
	"time"
)

// Percentile says that Percent of the calls took at most Latency.
type Percentile struct {
	Percent float64
	Latency time.Duration
}

// Percentiles returns the percentile curve: ten points from each nine to the next, as far as
// the number of calls can distinguish points, and the maximum. For any number of calls, the
// curve has not much more than a hundred points.
func (h *Histogram) Percentiles() []Percentile {
	count := h.Count()
	list := []Percentile{}
	if count == 0 {
		return list
	}
	add := func(percent float64) {
		latency := h.At(percent)
		if percent == 0 {
			latency = h.Min()
		}
		list = append(list, Percentile{Percent: percent, Latency: latency})
	}
	for decade := 1.0; decade <= float64(count); decade *= 10 {
		for _, step := range []float64{1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.3, 8} {
			if beyond := decade * step; beyond <= float64(count) { // one call in this many is slower
				add(rounded(100 - 100/beyond))
			}
		}
	}
	return append(list, Percentile{Percent: 100, Latency: h.Max()})
}

// rounded rounds a percentage to eleven decimals, which removes the errors of the arithmetic.
func rounded(percent float64) float64 {
	const scale = 1e11
	return math.Round(percent*scale) / scale
}

// Bin counts the calls with a latency from From to To.
type Bin struct {
	From, To time.Duration
	Calls    int64
}

// maxBins is the maximum number of columns of a histogram.
const maxBins = 48

// Bins returns the distribution of latencies in columns of equal width on a logarithmic axis.
// No column is narrower than the resolution of the histogram.
func (h *Histogram) Bins() []Bin {
	if h.Count() == 0 {
		return []Bin{}
	}
	const narrowest = 1.01 // one percent
	low, high := math.Log(max(float64(h.counts.Min()), 1)), math.Log(float64(h.counts.Max())+1)
	number := min(max(int((high-low)/math.Log(narrowest)), 1), maxBins)
	width := (high - low) / float64(number)
	edge := func(i int) time.Duration { return time.Duration(math.Exp(low+float64(i)*width) * float64(h.unit)) }
	list := make([]Bin, number)
	for i := range list {
		list[i] = Bin{From: edge(i), To: edge(i + 1)}
	}
	for _, bar := range h.counts.Distribution() {
		if bar.Count > 0 {
			middle := math.Log(max(float64(bar.From+bar.To)/2, 1))
			list[min(max(int((middle-low)/width), 0), number-1)].Calls += bar.Count
		}
	}
	return list
}
