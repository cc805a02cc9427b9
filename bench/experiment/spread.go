package experiment

import (
	"fmt"
	"math"
	"slices"
)

// Spread summarises one figure over the rounds.
type Spread struct{ Median, Low, High float64 }

// spreadOf returns the median, the lowest and the highest of values, or NaN for no values.
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

// format formats the three numbers with the verb.
func (s Spread) format(verb string) string {
	if math.IsNaN(s.Median) {
		return "–"
	}
	return fmt.Sprintf(verb+" ("+verb+"–"+verb+")", s.Median, s.Low, s.High)
}
