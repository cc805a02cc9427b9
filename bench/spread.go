package main

import (
	"fmt"
	"math"
	"slices"
)

// Spread sums up one figure over the rounds.
type Spread struct{ Median, Low, High float64 }

// spreadOf returns the median and the ends of values; NaN when there are none.
func spreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{math.NaN(), math.NaN(), math.NaN()}
	}
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	median := sorted[half]
	if len(sorted)%2 == 0 {
		median = (sorted[half-1] + sorted[half]) / 2
	}
	return Spread{Median: median, Low: sorted[0], High: sorted[len(sorted)-1]}
}

// format renders the spread with one verb for each number.
func (s Spread) format(verb string) string {
	if math.IsNaN(s.Median) {
		return "–"
	}
	return fmt.Sprintf(verb+" ("+verb+"–"+verb+")", s.Median, s.Low, s.High)
}
