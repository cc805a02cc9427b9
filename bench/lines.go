package main

import "slices"

// lines returns a line for each setup: the figure over the loads.
func (s *Section) lines(figure func(Sample) float64) []line {
	var all []line
	for _, e := range s.setups {
		all = append(all, line{name: e.Label, colour: colourOf(e), bars: true, points: s.points(e.Label, figure)})
	}
	return all
}

// points returns the loads with an x position and samples, all above 0, because a logarithmic
// axis cannot show 0.
func (s *Section) points(setup string, figure func(Sample) float64) []point {
	var all []point
	for _, l := range s.loads {
		if y := s.spread(setup, l.label, figure); l.x > 0 && y.Low > 0 {
			all = append(all, point{l.x, y})
		}
	}
	return all
}

// latencyLines returns three lines for each setup: p50, p99 and p99.9. Only the p50 line has
// a name in the legend.
func (s *Section) latencyLines() []line {
	var all []line
	for _, e := range s.setups {
		for dash, figure := range []func(Sample) float64{p50, p99, p999} {
			l := line{colour: colourOf(e), dash: dash, points: s.points(e.Label, figure)}
			if dash == 0 {
				l.name = e.Label
			}
			all = append(all, l)
		}
	}
	return all
}

// fleetLines returns a line for each candidate: the rate over the number of server processes.
func (s *Section) fleetLines() []line {
	var all []line
	for _, e := range s.setups {
		if len(all) == 0 || all[len(all)-1].name != e.Candidate {
			all = append(all, line{name: e.Candidate, colour: colourOf(e), bars: true})
		}
		if len(s.samples[cell{e.Label, s.loads[0].label}]) > 0 {
			last := &all[len(all)-1]
			last.points = append(last.points, point{float64(e.Servers), s.spread(e.Label, s.loads[0].label, rate)})
		}
	}
	return all
}

// colourOf returns the candidate's colour, which is the same in every plot.
func colourOf(e Setup) int { return slices.Index(Names(), e.Candidate) }
