package experiment

import (
	"math"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/process"
)

func TestSpreadOf(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		values []float64
		want   Spread
	}{
		{"odd", []float64{3, 1, 2}, Spread{2, 1, 3}},
		{"even", []float64{4, 1, 3, 2}, Spread{2.5, 1, 4}},
		{"one", []float64{7}, Spread{7, 7, 7}},
		{"an outlier does not move the median", []float64{10, 11, 1000}, Spread{11, 10, 1000}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := spreadOf(tt.values); got != tt.want {
				t.Errorf("spreadOf(%v) = %v, want %v", tt.values, got, tt.want)
			}
		})
	}
	if got := spreadOf(nil); !math.IsNaN(got.Median) || got.format("%.0f") != "–" {
		t.Errorf("spreadOf(nil) = %v, want nothing", got)
	}
}

func TestRatioIsTakenWithinRounds(t *testing.T) {
	t.Parallel()
	s := NewSection(Experiment{}, Options{})
	// The rate doubles from round to round; the ratio within a round does not change that
	// much.
	for i, rate := range []float64{100, 200, 400} {
		s.Add(contender.Baseline, "1 caller", Sample{Rate: rate})
		s.Add(contender.Single, "1 caller", Sample{Rate: rate * (0.8 + 0.1*float64(i))})
	}
	got := s.ratio(cell{contender.Single, "1 caller"}, cell{contender.Baseline, "1 caller"}, rate).format("%.2f")
	if want := "0.90 (0.80–1.00)"; got != want {
		t.Errorf("ratio %s, want %s", got, want)
	}
}

func TestLatenciesAreComparedWithTheFirstContender(t *testing.T) {
	t.Parallel()
	o := Options{Contenders: []string{contender.Batched + "@old", contender.Batched}, Rates: []int{20_000}}
	s := NewSection(New(Rate, o), o)
	for i, p99 := range []float64{8, 16, 24} {
		cost := Cost{CPU: 4.25}
		s.Add(contender.Batched+"@old", "20000/s", Sample{Rate: 20_000, P50: 1, P99: p99, P999: p99, Client: cost, Server: cost})
		s.Add(contender.Batched, "20000/s", Sample{Rate: 20_000, P50: 1, P99: p99 * (0.25 + 0.25*float64(i)), P999: p99, Client: cost, Server: cost})
	}
	text := s.latencies()
	for _, want := range []string{"| p99 against amqpx-batch@old |", "| 1.00 (1.00–1.00) | 4.2 + 4.2 |", "| 0.50 (0.25–0.75) | 4.2 + 4.2 |"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
}

func TestGridsOfSizes(t *testing.T) {
	t.Parallel()
	o := Options{Contenders: []string{contender.Batched}}
	o.BrokerPID = 1
	s := NewSection(New(Size, o), o)
	s.Add(contender.Batched, "4 KiB", Sample{Rate: 20_000, Client: Cost{CPU: 11}, Server: Cost{CPU: 12}, BrokerCPU: 13})
	text := s.render(s)
	for _, want := range []string{"| calls/s | 16 B | 256 B | 1 KiB | 4 KiB |", "| 20000 (20000–20000) |", "| CPU µs/call client + server + broker | 16 B |", "| 11 + 12 + 13 |"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	least, most := goal{must: 3.5, aim: 5}, goal{must: 120, aim: 60, atMost: true}
	tests := []struct {
		goal   goal
		median float64
		want   string
	}{
		{least, 5, "met, aim too"},
		{least, 4.9, "met"},
		{least, 3.5, "met"},
		{least, 3.4, "**not met**"},
		{most, 60, "met, aim too"},
		{most, 60.1, "met"},
		{most, 120.1, "**not met**"},
	}
	for _, tt := range tests {
		if got := tt.goal.verdict(tt.median); got != tt.want {
			t.Errorf("%+v of %v: %s, want %s", tt.goal, tt.median, got, tt.want)
		}
	}
}

func TestNewSample(t *testing.T) {
	t.Parallel()
	o := process.Outcome{Calls: 1000, Elapsed: 500 * time.Millisecond, All: process.Latencies{P50: 250, P99: 1500, P999: 2000}, Apart: process.Latencies{P50: 200_000}, Missed: 3}
	before := process.Consumption{Client: process.Usage{CPU: time.Millisecond, Mallocs: 1}, Broker: 10 * time.Millisecond}
	after := process.Consumption{
		Client: process.Usage{CPU: 21 * time.Millisecond, Mallocs: 50_001, Bytes: 1_000_000, RSS: 7_000_000, Peak: 8_000_000},
		Server: process.Usage{Mallocs: 3000, Peak: 9_000_000},
		Broker: 60 * time.Millisecond,
	}
	want := Sample{
		Rate: 2000, P50: 0.25, P99: 1.5, P999: 2, ApartP50: 200, Missed: 3,
		Client: Cost{CPU: 20, Allocs: 50, Bytes: 1000}, Server: Cost{Allocs: 3}, BrokerCPU: 50,
		Memory: Memory{Client: 7, ClientPeak: 8, ServerPeak: 9},
	}
	if got := newSample(process.Measurement{Outcome: o, Before: before, After: after, Memory: after}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	// A program that does not count its allocations has no figure, and not the figure 0.
	if got := newSample(process.Measurement{Outcome: o}).Client; !math.IsNaN(got.Allocs) || got.CPU != 0 {
		t.Errorf("cost of a program that counts nothing: %+v", got)
	}
}
