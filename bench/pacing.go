package main

import "slices"

// pacing computes the turns of loads with a rate based on an entrant's maximum rate.
type pacing struct {
	maxima  map[string][]float64 // of each round so far, the warm-up included
	skipped map[[2]string]bool   // entrant and load
}

func newPacing() *pacing {
	return &pacing{maxima: make(map[string][]float64), skipped: make(map[[2]string]bool)}
}

// found records a measured maximum rate.
func (p *pacing) found(e entrant, rate float64) { p.maxima[e.label] = append(p.maxima[e.label], rate) }

// turn returns an entrant's turn, or false if the entrant skips the load. The first recorded
// round decides about fixed rates, so that every load has a sample of each round or none.
func (p *pacing) turn(e entrant, l load, round int) (turn, bool) {
	t := l.turn
	if e.sequential && t.Callers != 1 {
		return t, false
	}
	if t.Rate == 0 && l.share == 0 {
		return t, true
	}
	maxima := p.maxima[e.label]
	if len(maxima) == 0 {
		return t, l.share == 0
	}
	most := spreadOf(maxima).Median
	if l.share > 0 {
		t.Rate = l.share * most
		return t, true
	}
	at := [2]string{e.label, l.label}
	if round <= 1 {
		p.skipped[at] = t.Rate > reach*slices.Max(maxima)
	}
	return t, !p.skipped[at]
}
