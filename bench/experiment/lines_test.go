package experiment

import (
	"slices"
	"testing"

	"rabbitmq-rpc/bench/chart"
)

func TestPointsForALogarithm(t *testing.T) {
	t.Parallel()
	s := NewSection(Experiment{loads: []load{{label: "none"}, {label: "a", x: 1}, {label: "b", x: 2}, {label: "c", x: 3}}}, Options{})
	for label, rate := range map[string]float64{"none": 4, "a": 5, "b": 0} {
		s.Add("x", label, Sample{Rate: rate})
	}
	want := []chart.Interval{{X: 1, Median: 5, Low: 5, High: 5}}
	if got := s.points("x", rate); !slices.Equal(got, want) {
		t.Errorf("points %v, want %v", got, want)
	}
}
