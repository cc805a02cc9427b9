package experiment

import (
	"fmt"
	"math"
	"strings"

	"rabbitmq-rpc/bench/contender"
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
		{"sequential, single messages, against the loop that confirms", 0.95, 1.1, false, "", ratioOf(cell{contender.Single, one}, cell{contender.BaselineConfirms, one}, rate)},
		{"sequential, batch on against batch off", 0.95, 1, false, "", ratioOf(cell{contender.Batched, one}, cell{contender.Single, one}, rate)},
		{"64 callers, single messages, against the loop that confirms", 1, 1.2, false, "", ratioOf(cell{contender.Single, some}, cell{contender.BaselineConfirms, some}, rate)},
		{"64 callers, batch, against loop", 4.5, 6, false, "", ratioOf(cell{contender.Batched, some}, cell{contender.Baseline, some}, rate)},
		{"64 callers, batch, against NATS core request-reply", 1, 1.2, false, "", ratioOf(cell{contender.Batched, some}, cell{contender.CoreNATS, some}, rate)},
		{"1,024 callers, batch, against loop", 15, 20, false, "", ratioOf(cell{contender.Batched, many}, cell{contender.Baseline, many}, rate)},
		{"1,024 callers, batch, against NATS core request-reply", 1.8, 2.5, false, "", ratioOf(cell{contender.Batched, many}, cell{contender.CoreNATS, many}, rate)},
		{"1,024 callers, shipped pair, against NATS core request-reply", 1.5, 2, false, "", ratioOf(cell{contender.Pair, many}, cell{contender.CoreNATS, many}, rate)},
		{"shipped pair against the library: sequential", 0.95, 1, false, "", ratioOf(cell{contender.Pair, one}, cell{contender.Batched, one}, rate)},
		{"shipped pair against the library: 64 callers, single messages", 0.95, 1, false, "", ratioOf(cell{contender.PairSingle, some}, cell{contender.Single, some}, rate)},
		{"shipped pair against the library: 64 callers, batch", 0.95, 1, false, "", ratioOf(cell{contender.Pair, some}, cell{contender.Batched, some}, rate)},
		{"shipped pair against the library: 1,024 callers, batch", 0.9, 1, false, "", ratioOf(cell{contender.Pair, many}, cell{contender.Batched, many}, rate)},
		{"shipped pair against the library with idempotent calls: 64 callers, single messages", 0.95, 1, false, "", ratioOf(cell{contender.PairSingle, some}, cell{contender.SingleIdempotent, some}, rate)},
		{"shipped pair against the library with idempotent calls: 64 callers, batch", 0.95, 1, false, "", ratioOf(cell{contender.Pair, some}, cell{contender.BatchedIdempotent, some}, rate)},
		{"64 callers, single messages, metrics on against off", 0.97, 1, false, "", ratioOf(cell{contender.SingleMetrics, some}, cell{contender.Single, some}, rate)},
		{"64 callers, single messages, metrics and 1 % traced against off", 0.97, 1, false, "", ratioOf(cell{contender.SingleSampled, some}, cell{contender.Single, some}, rate)},
		{"64 callers, batch, metrics on against off", 0.92, 1, false, "", ratioOf(cell{contender.BatchedMetrics, some}, cell{contender.Batched, some}, rate)},
		{"64 callers, batch, metrics and 1 % traced against off", 0.92, 1, false, "", ratioOf(cell{contender.BatchedSampled, some}, cell{contender.Batched, some}, rate)},
		{"1,024 callers, batch, metrics on against off", 0.92, 1, false, "", ratioOf(cell{contender.BatchedMetrics, many}, cell{contender.Batched, many}, rate)},
		{"1,024 callers, batch, metrics and 1 % traced against off", 0.92, 1, false, "", ratioOf(cell{contender.BatchedSampled, many}, cell{contender.Batched, many}, rate)},
		{"1,024 callers, batch: p50 against loop's", 0.1, 1. / 15, true, "", ratioOf(cell{contender.Batched, many}, cell{contender.Baseline, many}, p50)},
		{"batch, 5,000 calls/s, 1 % slow: p99 of the fast against no slow calls", 1.5, 1.1, true, "", ratioOf(cell{contender.Batched, labelSlow}, cell{contender.Batched, labelNoSlow}, p99)},
		{"batch, open loop at half of maximum rate: p99", 5, 2, true, " ms", figureOf(cell{contender.Batched, labelHalf}, p99)},
		{"client memory, 100,000 calls in flight with Client.Go", 120, 60, true, " MB", figureOf(cell{labelAsync(contender.Batched), labelHeld}, clientMemory)},
		{"server memory at full load", 60, 30, true, " MB", figureOf(cell{contender.Batched, labelFull}, serverMemory)},
		{
			"4 server processes against 1, batch", 3.5, 3.9, false, "",
			ratioOf(cell{labelFleetOf(contender.Batched, 4), labelFleet}, cell{labelFleetOf(contender.Batched, 1), labelFleet}, rate),
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
				return s.spread(of.contender, of.load, figure)
			}
		}
		return spreadOf(nil)
	}
}
