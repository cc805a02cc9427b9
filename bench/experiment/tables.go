package experiment

import (
	"fmt"
	"strings"

	"rabbitmq-rpc/bench/contender"
)

// tables renders a table for each number of callers, with ratios to the baselines.
func (s *Section) tables(callers []int) string {
	var b strings.Builder
	var baselines []string
	for _, name := range []string{contender.Baseline, contender.BaselineConfirms, contender.BaselineSame} {
		if s.has(name) {
			baselines = append(baselines, name)
		}
	}
	for _, n := range callers {
		title := labelCallers(n)
		if n == 1 {
			title = "Sequential (1 caller)"
		}
		fmt.Fprintf(&b, "\n### %s\n", title)
		heads := []string{"contender", "calls/s"}
		for _, name := range baselines {
			heads = append(heads, "× "+name)
		}
		heads = append(heads, "p50 ms", "p99 ms", s.headOfCPU(), "allocs/call client + server")
		var rows [][]string
		for _, e := range s.setups {
			rows = append(rows, s.cells(e.Label, labelCallers(n), baselines))
		}
		table(&b, heads, rows)
	}
	return b.String()
}

// headOfCPU returns the column title for the processor time, with the measured sides.
func (s *Section) headOfCPU() string {
	if s.brokerMeasured {
		return "CPU µs/call client + server + broker"
	}
	return "CPU µs/call client + server"
}

func (s *Section) cells(name, load string, baselines []string) []string {
	of := func(figure func(Sample) float64) Spread { return s.spread(name, load, figure) }
	cells := []string{name, of(rate).format("%.0f")}
	for _, against := range baselines {
		cells = append(cells, s.ratio(cell{name, load}, cell{against, load}, rate).format("%.2f"))
	}
	return append(cells,
		medians("%.2f", of(p50)),
		medians("%.2f", of(p99)),
		s.cpu(name, load, "%.0f"),
		medians("%.0f", of(func(s Sample) float64 { return s.Client.Allocs }), of(func(s Sample) float64 { return s.Server.Allocs })),
	)
}

// cpu formats the processor time of a call, of each measured side.
func (s *Section) cpu(name, load, verb string) string {
	of := func(figure func(Sample) float64) Spread { return s.spread(name, load, figure) }
	sides := []Spread{of(func(s Sample) float64 { return s.Client.CPU }), of(func(s Sample) float64 { return s.Server.CPU })}
	if s.brokerMeasured {
		sides = append(sides, of(func(s Sample) float64 { return s.BrokerCPU }))
	}
	return medians(verb, sides...)
}

// grid renders a figure of every setup at every load.
func (s *Section) grid(unit string, figure func(Sample) float64, verb string) string {
	return s.gridOf(unit, func(setup, load string) string { return s.spread(setup, load, figure).format(verb) })
}

// cpuGrid renders the processor time of a call of every setup at every load.
func (s *Section) cpuGrid() string {
	return s.gridOf(s.headOfCPU(), func(setup, load string) string { return s.cpu(setup, load, "%.0f") })
}

// gridOf renders a cell for every setup at every load.
func (s *Section) gridOf(unit string, cell func(setup, load string) string) string {
	var b strings.Builder
	heads := []string{unit}
	for _, l := range s.loads {
		heads = append(heads, l.label)
	}
	var rows [][]string
	for _, e := range s.setups {
		cells := []string{e.Label}
		for _, l := range s.loads {
			cells = append(cells, cell(e.Label, l.label))
		}
		rows = append(rows, cells)
	}
	table(&b, heads, rows)
	return b.String()
}

// latencies renders the percentiles at every rate, and compares p99 with that of the first
// contender.
func (s *Section) latencies() string {
	var b strings.Builder
	var rows [][]string
	for _, e := range s.setups {
		for _, l := range s.loads {
			if len(s.samples[cell{e.Label, l.label}]) == 0 {
				continue
			}
			of := func(figure func(Sample) float64) Spread { return s.spread(e.Label, l.label, figure) }
			rows = append(rows, []string{
				e.Label, l.label, grouped(of(rate).Median),
				of(p50).format("%.2f"), of(p99).format("%.2f"), of(p999).format("%.2f"),
				s.ratio(cell{e.Label, l.label}, cell{s.setups[0].Label, l.label}, p99).format("%.2f"),
				s.cpu(e.Label, l.label, "%.1f"),
				medians("%.0f", of(func(s Sample) float64 { return s.Missed })),
			})
		}
	}
	table(&b, []string{"contender", "rate asked for", "calls/s", "p50 ms", "p99 ms", "p99.9 ms", "p99 against " + s.setups[0].Label, s.headOfCPU(), "missed"}, rows)
	return b.String()
}

// fleets renders the rates, and their ratios to the rate with a single server process.
func (s *Section) fleets() string {
	var b strings.Builder
	var rows [][]string
	var one string
	for _, e := range s.setups {
		if e.Servers == 1 {
			one = e.Label
		}
		l := s.loads[0].label
		rows = append(rows, []string{
			e.Label, s.spread(e.Label, l, rate).format("%.0f"), s.ratio(cell{e.Label, l}, cell{one, l}, rate).format("%.2f"),
			medians("%.2f", s.spread(e.Label, l, p50)), medians("%.2f", s.spread(e.Label, l, p99)),
		})
	}
	table(&b, []string{"contender × servers", "calls/s", "against 1", "p50 ms", "p99 ms"}, rows)
	return b.String()
}

// slows renders the latencies of fast and slow calls.
func (s *Section) slows() string {
	var b strings.Builder
	var rows [][]string
	for _, e := range s.setups {
		for _, l := range s.loads {
			of := func(figure func(Sample) float64) Spread { return s.spread(e.Label, l.label, figure) }
			slow := []string{"–", "–"}
			if l.turn.ApartEvery > 0 {
				slow = []string{medians("%.1f", of(apartP50)), medians("%.1f", of(apartP99))}
			}
			rows = append(rows, append([]string{
				e.Label, l.label, of(p50).format("%.2f"), of(p99).format("%.2f"),
				s.ratio(cell{e.Label, l.label}, cell{e.Label, labelNoSlow}, p99).format("%.2f"), medians("%.2f", of(p999)),
			}, slow...))
		}
	}
	table(&b, []string{"contender", "load", "fast p50 ms", "fast p99 ms", "× no slow calls", "fast p99.9 ms", "slow p50 ms", "slow p99 ms"}, rows)
	return b.String()
}

// memory renders resident memory of both sides.
func (s *Section) memory() string {
	var b strings.Builder
	var rows [][]string
	for _, e := range s.setups {
		rows = append(rows, []string{
			e.Label,
			s.spread(e.Label, labelHeld, clientMemory).format("%.0f"),
			s.spread(e.Label, labelHeld, func(s Sample) float64 { return s.Memory.ClientPeak }).format("%.0f"),
			medians("%.0f", s.spread(e.Label, labelHeld, func(s Sample) float64 { return s.Memory.ClientStacks }), s.spread(e.Label, labelHeld, func(s Sample) float64 { return s.Memory.ClientHeap })),
			s.spread(e.Label, labelFull, serverMemory).format("%.0f"),
			s.spread(e.Label, labelFull, rate).format("%.0f"),
		})
	}
	table(&b, []string{"contender", fmt.Sprintf("client MB, %s calls in flight", grouped(heldCalls)), "client MB, peak", "of it goroutines' stacks + heap in use", fmt.Sprintf("server MB, peak at %d callers", heavyCallers), "calls/s there"}, rows)
	return b.String()
}

// telemetryCosts renders the throughput relative to the same contender without telemetry.
func (s *Section) telemetryCosts() string {
	var b strings.Builder
	for _, l := range s.loads {
		fmt.Fprintf(&b, "\n### %s\n", l.label)
		var rows [][]string
		against := contender.Single
		for _, e := range s.setups {
			if e.Contender == contender.Batched {
				against = contender.Batched
			}
			cells := s.cells(e.Label, l.label, nil)
			ratio := s.ratio(cell{e.Label, l.label}, cell{against, l.label}, rate).format("%.2f")
			rows = append(rows, append([]string{cells[0], cells[1], ratio}, cells[2:]...))
		}
		table(&b, []string{"contender", "calls/s", "× without", "p50 ms", "p99 ms", s.headOfCPU(), "allocs/call client + server"}, rows)
	}
	return b.String()
}
