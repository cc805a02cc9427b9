package main

import (
	"math"
	"strings"
	"testing"
	"time"
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

func testReport() *Report {
	r := newReport(options{rounds: 3, duration: time.Second, callers: []int{1}, contenders: []string{baseline, "amqpx"}})
	r.Machine = Machine{Cores: 2, OS: "linux/amd64", Go: "go1.26", Broker: "RabbitMQ 3.10"}
	// Every round is twice as fast as the one before, the ratio within each is not.
	for i, rate := range []float64{100, 200, 400} {
		r.Add(baseline, 1, Sample{Rate: rate, P50: 1})
		r.Add("amqpx", 1, Sample{Rate: rate * (0.8 + 0.1*float64(i)), P50: 1.5, P99: 2, Client: Cost{CPU: 10, Allocs: 20}, Server: Cost{CPU: 11, Allocs: 21}})
	}
	return r
}

func TestRatioIsTakenWithinRounds(t *testing.T) {
	t.Parallel()
	got := testReport().Ratio("amqpx", baseline, 1).format("%.2f")
	if want := "0.90 (0.80–1.00)"; got != want {
		t.Errorf("ratio %s, want %s", got, want)
	}
}

func TestMarkdown(t *testing.T) {
	t.Parallel()
	got := testReport().Markdown()
	for _, want := range []string{
		"Machine: 2 cores, linux/amd64, go1.26, RabbitMQ 3.10\n",
		"### Sequential (1 caller)\n",
		"| contender | calls/s | × loop | p50 ms | p99 ms | CPU µs/call client + server | allocs/call client + server |\n",
		"| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
		"| loop | 200 (100–400) | 1.00 (1.00–1.00) | 1.00 | 0.00 | 0 + 0 | 0 + 0 |\n",
		"| amqpx | 180 (80–400) | 0.90 (0.80–1.00) | 1.50 | 2.00 | 10 + 11 | 20 + 21 |\n",
		"- amqpx: pkg/amqpx with its defaults",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
}

func TestNewSample(t *testing.T) {
	t.Parallel()
	o := outcome{Calls: 1000, Elapsed: 500 * time.Millisecond, P50: 250, P99: 1500}
	got := newSample(o, usage{CPU: 20 * time.Millisecond, Mallocs: 50_000, Bytes: 1_000_000}, usage{}, 50*time.Millisecond)
	want := Sample{Rate: 2000, P50: 0.25, P99: 1.5, Client: Cost{CPU: 20, Allocs: 50, Bytes: 1000}, BrokerCPU: 50}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
