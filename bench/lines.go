package main

import "slices"

// lines returns a line for each entrant: the figure over the loads.
func (s *section) lines(figure func(Sample) float64) []line {
	var all []line
	for _, e := range s.lineup {
		all = append(all, line{name: e.label, colour: colourOf(e), bars: true, points: s.points(e.label, figure)})
	}
	return all
}

// points returns the loads with an x position and samples, all above 0, because a logarithmic
// axis cannot show 0.
func (s *section) points(entrant string, figure func(Sample) float64) []point {
	var all []point
	for _, l := range s.loads {
		if y := s.spread(entrant, l.label, figure); l.x > 0 && y.Low > 0 {
			all = append(all, point{l.x, y})
		}
	}
	return all
}

// latencyLines returns three lines for each entrant: p50, p99 and p99.9. Only the p50 line has
// a name in the legend.
func (s *section) latencyLines() []line {
	var all []line
	for _, e := range s.lineup {
		for dash, figure := range []func(Sample) float64{p50, p99, p999} {
			l := line{colour: colourOf(e), dash: dash, points: s.points(e.label, figure)}
			if dash == 0 {
				l.name = e.label
			}
			all = append(all, l)
		}
	}
	return all
}

// fleetLines returns a line for each contender: the rate over the number of server processes.
func (s *section) fleetLines() []line {
	var all []line
	for _, e := range s.lineup {
		if len(all) == 0 || all[len(all)-1].name != e.contender {
			all = append(all, line{name: e.contender, colour: colourOf(e), bars: true})
		}
		if len(s.samples[cell{e.label, s.loads[0].label}]) > 0 {
			last := &all[len(all)-1]
			last.points = append(last.points, point{float64(e.servers), s.spread(e.label, s.loads[0].label, rate)})
		}
	}
	return all
}

// colourOf returns the contender's colour, which is the same in every plot.
func colourOf(e entrant) int { return slices.Index(allContenders(), e.contender) }
