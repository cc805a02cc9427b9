package main

import "slices"

// lines draws one figure of every entrant against the loads.
func (s *section) lines(figure func(Sample) float64) []line {
	var all []line
	for _, e := range s.lineup {
		all = append(all, line{name: e.label, colour: colourOf(e), bars: true, points: s.points(e.label, figure)})
	}
	return all
}

// points takes the loads that have a place on the axis and samples, all above 0, where
// a logarithmic axis ends.
func (s *section) points(entrant string, figure func(Sample) float64) []point {
	var all []point
	for _, l := range s.loads {
		if y := s.spread(entrant, l.label, figure); l.x > 0 && y.Low > 0 {
			all = append(all, point{l.x, y})
		}
	}
	return all
}

// latencyLines draws three percentiles of every entrant, of which the legend names one.
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

// fleetLines draws rates against the number of server processes.
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

// colourOf gives a contender the same colour in every plot.
func colourOf(e entrant) int { return slices.Index(allContenders(), e.contender) }
