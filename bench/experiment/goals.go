package experiment

import (
	"fmt"
	"math"
	"strings"

	"rabbitmq-rpc/bench/candidate"
)

// goal is a performance target of the library.
type goal struct {
	what      string
	must, aim float64
	atMost    bool // the bounds are upper bounds; otherwise lower bounds
	unit      string
	measured  func([]*Section) Spread
}

// Goals renders the goals for which the sections have measurements.
func Goals(sections []*Section) string {
	var rows [][]string
	for _, g := range allGoals() {
		s := g.measured(sections)
		if math.IsNaN(s.Median) {
			continue
		}
		sign := "≥"
		if g.atMost {
			sign = "≤"
		}
		rows = append(rows, []string{
			g.what, fmt.Sprintf("%s %.4g%s", sign, g.must, g.unit), fmt.Sprintf("%s %.4g%s", sign, g.aim, g.unit),
			s.format("%.3g") + g.unit, g.verdict(s.Median),
		})
	}
	if len(rows) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\n## Goals\n")
	table(&b, []string{"goal", "must", "aim", "measured", "verdict"}, rows)
	return b.String()
}

// verdict compares a median with the bounds aim and must.
func (g goal) verdict(median float64) string {
	reached := func(bound float64) bool {
		if g.atMost {
			return median <= bound
		}
		return median >= bound
	}
	switch {
	case reached(g.aim):
		return "met, aim too"
	case reached(g.must):
		return "met"
	default:
		return "**not met**"
	}
}

// allGoals returns the goals in the order of the report.
func allGoals() []goal {
	one, some, many := labelCallers(1), labelCallers(64), labelCallers(heavyCallers)
	return []goal{
		{"sequential, single messages, against the loop that confirms", 0.95, 1.1, false, "", ratioOf(cell{candidate.Single, one}, cell{candidate.BaselineConfirms, one}, rate)},
		{"sequential, batch on against batch off", 0.95, 1, false, "", ratioOf(cell{candidate.Batched, one}, cell{candidate.Single, one}, rate)},
		{"64 callers, single messages, against the loop that confirms", 1, 1.2, false, "", ratioOf(cell{candidate.Single, some}, cell{candidate.BaselineConfirms, some}, rate)},
		{"64 callers, batch, against loop", 4.5, 6, false, "", ratioOf(cell{candidate.Batched, some}, cell{candidate.Baseline, some}, rate)},
		{"64 callers, batch, against NATS core request-reply", 1, 1.2, false, "", ratioOf(cell{candidate.Batched, some}, cell{candidate.CoreNATS, some}, rate)},
		{"1,024 callers, batch, against loop", 15, 20, false, "", ratioOf(cell{candidate.Batched, many}, cell{candidate.Baseline, many}, rate)},
		{"1,024 callers, batch, against NATS core request-reply", 1.8, 2.5, false, "", ratioOf(cell{candidate.Batched, many}, cell{candidate.CoreNATS, many}, rate)},
		{"1,024 callers, shipped pair, against NATS core request-reply", 1.5, 2, false, "", ratioOf(cell{candidate.Pair, many}, cell{candidate.CoreNATS, many}, rate)},
		{"shipped pair against the library: sequential", 0.95, 1, false, "", ratioOf(cell{candidate.Pair, one}, cell{candidate.Batched, one}, rate)},
		{"shipped pair against the library: 64 callers, single messages", 0.95, 1, false, "", ratioOf(cell{candidate.PairSingle, some}, cell{candidate.Single, some}, rate)},
		{"shipped pair against the library: 64 callers, batch", 0.95, 1, false, "", ratioOf(cell{candidate.Pair, some}, cell{candidate.Batched, some}, rate)},
		{"shipped pair against the library: 1,024 callers, batch", 0.9, 1, false, "", ratioOf(cell{candidate.Pair, many}, cell{candidate.Batched, many}, rate)},
		{"64 callers, single messages, metrics on against off", 0.97, 1, false, "", ratioOf(cell{candidate.SingleMetrics, some}, cell{candidate.Single, some}, rate)},
		{"64 callers, single messages, metrics and 1 % traced against off", 0.97, 1, false, "", ratioOf(cell{candidate.SingleSampled, some}, cell{candidate.Single, some}, rate)},
		{"64 callers, batch, metrics on against off", 0.92, 1, false, "", ratioOf(cell{candidate.BatchedMetrics, some}, cell{candidate.Batched, some}, rate)},
		{"64 callers, batch, metrics and 1 % traced against off", 0.92, 1, false, "", ratioOf(cell{candidate.BatchedSampled, some}, cell{candidate.Batched, some}, rate)},
		{"1,024 callers, batch, metrics on against off", 0.92, 1, false, "", ratioOf(cell{candidate.BatchedMetrics, many}, cell{candidate.Batched, many}, rate)},
		{"1,024 callers, batch, metrics and 1 % traced against off", 0.92, 1, false, "", ratioOf(cell{candidate.BatchedSampled, many}, cell{candidate.Batched, many}, rate)},
		{"1,024 callers, batch: p50 against loop's", 0.1, 1. / 15, true, "", ratioOf(cell{candidate.Batched, many}, cell{candidate.Baseline, many}, p50)},
		{"batch, 5,000 calls/s, 1 % slow: p99 of the fast against no slow calls", 1.5, 1.1, true, "", ratioOf(cell{candidate.Batched, labelSlow}, cell{candidate.Batched, labelNoSlow}, p99)},
		{"batch, open loop at half of maximum rate: p99", 5, 2, true, " ms", figureOf(cell{candidate.Batched, labelHalf}, p99)},
		{"client memory, 100,000 calls in flight with Client.Go", 120, 60, true, " MB", figureOf(cell{labelAsync(candidate.Batched), labelHeld}, clientMemory)},
		{"server memory at full load", 60, 30, true, " MB", figureOf(cell{candidate.Batched, labelFull}, serverMemory)},
		{
			"4 server processes against 1, batch", 3.5, 3.9, false, "",
			ratioOf(cell{labelFleetOf(candidate.Batched, 4), labelFleet}, cell{labelFleetOf(candidate.Batched, 1), labelFleet}, rate),
		},
	}
}

// ratioOf returns the ratio of two cells in the first section that has samples of both.
func ratioOf(of, against cell, figure func(Sample) float64) func([]*Section) Spread {
	return func(sections []*Section) Spread {
		for _, s := range sections {
			if len(s.samples[of]) > 0 && len(s.samples[against]) > 0 {
				return s.ratio(of, against, figure)
			}
		}
		return spreadOf(nil)
	}
}

// figureOf returns a figure from the first section that has samples of the cell.
func figureOf(of cell, figure func(Sample) float64) func([]*Section) Spread {
	return func(sections []*Section) Spread {
		for _, s := range sections {
			if len(s.samples[of]) > 0 {
				return s.spread(of.candidate, of.load, figure)
			}
		}
		return spreadOf(nil)
	}
}
