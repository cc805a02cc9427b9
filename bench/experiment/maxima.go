package experiment

import (
	"slices"

	"rabbitmq-rpc/bench/process"
)

// maxima computes the turns of loads with a rate based on a setup's maximum rate.
type maxima struct {
	rates   map[string][]float64 // of each round so far, the warm-up included
	skipped map[[2]string]bool   // setup and load
}

func newMaxima() *maxima {
	return &maxima{rates: make(map[string][]float64), skipped: make(map[[2]string]bool)}
}

// found records a measured maximum rate.
func (p *maxima) found(e process.Setup, rate float64) {
	p.rates[e.Label] = append(p.rates[e.Label], rate)
}

// turn returns a setup's turn, or false if the setup skips the load. The first recorded
// round decides about fixed rates, so that every load has a sample of each round or none.
func (p *maxima) turn(e process.Setup, l load, round int) (process.Turn, bool) {
	t := l.turn
	if e.Sequential && t.Callers != 1 {
		return t, false
	}
	if t.Rate == 0 && l.share == 0 {
		return t, true
	}
	maxima := p.rates[e.Label]
	if len(maxima) == 0 {
		return t, l.share == 0
	}
	most := spreadOf(maxima).Median
	if l.share > 0 {
		t.Rate = l.share * most
		return t, true
	}
	at := [2]string{e.Label, l.label}
	if round <= 1 {
		p.skipped[at] = t.Rate > reach*slices.Max(maxima)
	}
	return t, !p.skipped[at]
}
