package experiment

import (
	"errors"
	"fmt"
	"slices"

	"rabbitmq-rpc/bench/chart"
	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/process"
)

// plotted describes a plot of an experiment.
type plotted struct {
	chart.Plot // without its series

	file  string
	lines func(*Section) []chart.Series
}

// lines returns a line for each setup: the figure over the loads.
func (s *Section) lines(figure func(Sample) float64) []chart.Series {
	var all []chart.Series
	for _, e := range s.setups {
		all = append(all, chart.Series{Name: e.Label, Colour: colourOf(e), Bars: true, Points: s.points(e.Label, figure)})
	}
	return all
}

// points returns the loads with an x position and samples, all above 0, because a logarithmic
// axis cannot show 0.
func (s *Section) points(setup string, figure func(Sample) float64) []chart.Interval {
	var all []chart.Interval
	for _, l := range s.loads {
		if y := s.spread(setup, l.label, figure); l.x > 0 && y.Low > 0 {
			all = append(all, interval(l.x, y))
		}
	}
	return all
}

// latencyLines returns three lines for each setup: p50, p99 and p99.9. Only the p50 line has
// a name in the legend.
func (s *Section) latencyLines() []chart.Series {
	var all []chart.Series
	for _, e := range s.setups {
		for dash, figure := range []func(Sample) float64{p50, p99, p999} {
			l := chart.Series{Colour: colourOf(e), Dash: dash, Points: s.points(e.Label, figure)}
			if dash == 0 {
				l.Name = e.Label
			}
			all = append(all, l)
		}
	}
	return all
}

// fleetLines returns a line for each contender: the rate over the number of server processes.
func (s *Section) fleetLines() []chart.Series {
	var all []chart.Series
	for _, e := range s.setups {
		if len(all) == 0 || all[len(all)-1].Name != e.Contender {
			all = append(all, chart.Series{Name: e.Contender, Colour: colourOf(e), Bars: true})
		}
		if len(s.samples[cell{e.Label, s.loads[0].label}]) > 0 {
			last := &all[len(all)-1]
			last.Points = append(last.Points, interval(float64(e.Servers), s.spread(e.Label, s.loads[0].label, rate)))
		}
	}
	return all
}

// colourOf returns the contender's colour, which is the same in every plot.
func colourOf(e process.Setup) int { return slices.Index(contender.Names(), e.Contender) }

// interval returns the point of a spread.
func interval(x float64, y Spread) chart.Interval {
	return chart.Interval{X: x, Median: y.Median, Low: y.Low, High: y.High}
}

// Plots draws the plots of the experiment that have points, by file name.
func (s *Section) Plots() (map[string][]byte, error) {
	drawn := make(map[string][]byte)
	for _, p := range s.plots {
		p.Series = p.lines(s)
		svg, err := p.SVG()
		switch {
		case errors.Is(err, chart.ErrNoPoints):
		case err != nil:
			return nil, fmt.Errorf("%s: %w", p.file, err)
		default:
			drawn[p.file] = svg
		}
	}
	return drawn, nil
}
