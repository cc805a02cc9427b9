package main

import "slices"

// pacing turns loads that depend on an entrant's maximum rate into turns.
type pacing struct {
	maxima  map[string][]float64 // of each round so far, the warm-up included
	skipped map[[2]string]bool   // entrant and load
}

func newPacing() *pacing {
	return &pacing{maxima: make(map[string][]float64), skipped: make(map[[2]string]bool)}
}

// found notes a maximum.
func (p *pacing) found(e entrant, rate float64) { p.maxima[e.label] = append(p.maxima[e.label], rate) }

// turn returns what an entrant has to do, or false when it sits a load out. Whether it
// does is decided by the first round that counts, so that all have the same samples.
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
