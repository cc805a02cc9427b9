package main

import (
	"fmt"
	"strings"
	"time"
)

// Sample is one contender's turn in one round.
type Sample struct {
	Rate      float64 // calls per second
	P50, P99  float64 // latency in milliseconds
	Client    Cost
	Server    Cost
	BrokerCPU float64 // microseconds for one call; 0 when not measured
}

// Cost is what one side used for one call.
type Cost struct {
	CPU    float64 // microseconds of processor time
	Allocs float64
	Bytes  float64
}

func newSample(o outcome, client, server usage, broker time.Duration) Sample {
	return Sample{
		Rate:      float64(o.Calls) / o.Elapsed.Seconds(),
		P50:       float64(o.P50) / 1e3,
		P99:       float64(o.P99) / 1e3,
		Client:    newCost(client, o.Calls),
		Server:    newCost(server, o.Calls),
		BrokerCPU: perCall(broker, o.Calls),
	}
}

func newCost(u usage, calls int64) Cost {
	n := float64(calls)
	return Cost{
		CPU:    perCall(u.CPU, calls),
		Allocs: float64(u.Mallocs) / n,
		Bytes:  float64(u.Bytes) / n,
	}
}

func perCall(d time.Duration, calls int64) float64 {
	return float64(d.Nanoseconds()) / 1e3 / float64(calls)
}

// Report is the result of a run. Samples of one contender and load are in the
// order of the rounds, so equal places of two contenders were measured together.
type Report struct {
	Machine    Machine
	Rounds     int
	Duration   time.Duration // of one turn
	Callers    []int
	Contenders []string
	Baselines  []string // those of the contenders that others are compared with
	Settings   map[string]string
	// BrokerMeasured says that samples hold the broker's processor time.
	BrokerMeasured bool

	samples map[cell][]Sample
}

type cell struct {
	contender string
	callers   int
}

func newReport(o options) *Report {
	r := &Report{
		Rounds:     o.rounds,
		Duration:   o.duration,
		Callers:    o.callers,
		Contenders: o.contenders,
		Settings:   make(map[string]string),
		samples:    make(map[cell][]Sample),

		BrokerMeasured: o.brokerPID != 0,
	}
	for _, label := range o.contenders {
		if label == baseline || label == baselineSame {
			r.Baselines = append(r.Baselines, label)
		}
		name, _ := splitLabel(label)
		if c, err := findContender(name); err == nil {
			r.Settings[label] = c.settings()
		}
	}
	return r
}

// Add appends the next round's sample.
func (r *Report) Add(contender string, callers int, s Sample) {
	at := cell{contender, callers}
	r.samples[at] = append(r.samples[at], s)
}

// series takes one figure out of every round.
func (r *Report) series(contender string, callers int, figure func(Sample) float64) []float64 {
	var all []float64
	for _, s := range r.samples[cell{contender, callers}] {
		all = append(all, figure(s))
	}
	return all
}

// Ratio compares the rates of two contenders round by round.
func (r *Report) Ratio(contender, against string, callers int) Spread {
	mine, other := r.series(contender, callers, rate), r.series(against, callers, rate)
	var ratios []float64
	for i := range min(len(mine), len(other)) {
		ratios = append(ratios, mine[i]/other[i])
	}
	return spreadOf(ratios)
}

func rate(s Sample) float64 { return s.Rate }

// Markdown renders the report.
func (r *Report) Markdown() string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "Machine: %s\n\n", join(", ", m.CPU, fmt.Sprintf("%d cores", m.Cores), m.OS, m.Go, m.Broker, prefixed("load before ", m.Load)))
	fmt.Fprintf(&b, "%d rounds after a warm-up, contenders in turn, %v each; client and server of a contender are processes of their own. "+
		"Figures are medians over the rounds, with (lowest–highest); ratios are taken within a round. "+
		"Request body %q, answer %q, every answer checked.\n", r.Rounds, r.Duration, requestBody, answerBody)
	for _, callers := range r.Callers {
		r.table(&b, callers)
	}
	b.WriteString("\nSettings:\n\n")
	for _, name := range r.Contenders {
		fmt.Fprintf(&b, "- %s: %s.\n", name, r.Settings[name])
	}
	return b.String()
}

func (r *Report) table(b *strings.Builder, callers int) {
	title := fmt.Sprintf("%d callers", callers)
	if callers == 1 {
		title = "Sequential (1 caller)"
	}
	fmt.Fprintf(b, "\n### %s\n\n", title)
	heads := []string{"contender", "calls/s"}
	for _, name := range r.Baselines {
		heads = append(heads, "× "+name)
	}
	heads = append(heads, "p50 ms", "p99 ms", "CPU µs/call client + server"+r.brokerHead(), "allocs/call client + server")
	row(b, heads...)
	row(b, append([]string{"---"}, repeat("---:", len(heads)-1)...)...)
	for _, name := range r.Contenders {
		row(b, r.cells(name, callers)...)
	}
}

// brokerHead names the broker's share where it was measured.
func (r *Report) brokerHead() string {
	if !r.BrokerMeasured {
		return ""
	}
	return " + broker"
}

func (r *Report) cells(name string, callers int) []string {
	of := func(figure func(Sample) float64) Spread { return spreadOf(r.series(name, callers, figure)) }
	median := func(figure func(Sample) float64) float64 { return of(figure).Median }
	cells := []string{name, of(rate).format("%.0f")}
	for _, against := range r.Baselines {
		cells = append(cells, r.Ratio(name, against, callers).format("%.2f"))
	}
	cpu := fmt.Sprintf("%.0f + %.0f", median(func(s Sample) float64 { return s.Client.CPU }), median(func(s Sample) float64 { return s.Server.CPU }))
	if r.BrokerMeasured {
		cpu += fmt.Sprintf(" + %.0f", median(func(s Sample) float64 { return s.BrokerCPU }))
	}
	return append(cells,
		fmt.Sprintf("%.2f", median(func(s Sample) float64 { return s.P50 })),
		fmt.Sprintf("%.2f", median(func(s Sample) float64 { return s.P99 })),
		cpu,
		fmt.Sprintf("%.0f + %.0f", median(func(s Sample) float64 { return s.Client.Allocs }), median(func(s Sample) float64 { return s.Server.Allocs })),
	)
}

func row(b *strings.Builder, cells ...string) {
	fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
}

func repeat(text string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = text
	}
	return all
}

// join joins what is not empty.
func join(sep string, parts ...string) string {
	var kept []string
	for _, p := range parts {
		if p != "" {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, sep)
}

// prefixed puts prefix before text that is not empty.
func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}
