package report

import (
	"math"
	"strconv"

	"rabbitmq-rpc/internal/chart"
)

// shortest is the shortest time, in milliseconds, that figures can show.
const shortest = 0.001

// timeUnit is the unit of the time axes.
type timeUnit struct {
	seconds float64
	name    string
}

func (r *Report) timeUnit() timeUnit {
	const minute, hour = 60, 3600
	switch length := r.length(); {
	case length > 4*hour:
		return timeUnit{hour, "hours"}
	case length > 5*minute:
		return timeUnit{minute, "minutes"}
	default:
		return timeUnit{1, "seconds"}
	}
}

// length returns the time that figures over time cover.
func (r *Report) length() float64 {
	if n := len(r.Timeline); n > 0 {
		return max(r.Seconds, r.Timeline[n-1].Start+r.Timeline[n-1].Seconds)
	}
	return r.Seconds
}

func (r *Report) timeScale(u timeUnit) chart.Scale {
	return chart.Scale{Label: u.name + " since the start", Max: max(r.length(), shortest) / u.seconds}
}

// milliseconds returns an axis of latencies, logarithmic if the range is wide.
func milliseconds(low, high float64) chart.Scale {
	const far = 20
	low, high = max(low, shortest), max(high, shortest)
	s := chart.Scale{Label: "milliseconds", Min: 0, Max: headroom(high)}
	if low < high/far {
		s.Min, s.Log = roundDown(low), true
	}
	return s
}

// roundDown returns the largest 1, 2 or 5 times a power of ten that is at most v.
func roundDown(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, round := range []float64{5, 2} {
		if v >= round*power {
			return round * power
		}
	}
	return power
}

// headroom adds space above the highest value.
func headroom(high float64) float64 {
	const share = 1.06
	if high <= 0 {
		return 1
	}
	return high * share
}

// place returns the position of a percentile: each further 9 takes equal space.
func place(percent float64) float64 { return -math.Log10(1 - percent/100) }

// curve draws percentiles. The maximum, at 100 percent, is left out, because its position is
// infinite.
func curve(list []Percentile, ink chart.Ink, dashed bool) chart.Line {
	l := chart.Line{Ink: ink, Dashed: dashed}
	for _, p := range list {
		if p.Percent < 100 {
			l.Points = append(l.Points, chart.Point{X: place(p.Percent), Y: max(p.MS, shortest)})
		}
	}
	return l
}

// percentScale returns an axis of percentiles that covers the list.
func percentScale(list []Percentile) chart.Scale {
	s := chart.Scale{Label: "percentile", Max: 1, Ticks: []chart.Tick{{At: 0, Label: "0"}}}
	for _, p := range list {
		if p.Percent < 100 {
			s.Max = max(s.Max, place(p.Percent))
		}
	}
	s.Ticks = append(s.Ticks, chart.Tick{At: place(50), Label: "50"})
	for nines := 1; float64(nines) <= s.Max+1e-9; nines++ {
		places := max(nines-2, 0)
		percent := 100 - math.Pow10(2-nines)
		s.Ticks = append(s.Ticks, chart.Tick{At: float64(nines), Label: strconv.FormatFloat(percent, 'f', places, 64)})
	}
	return s
}
