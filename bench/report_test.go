package main

import (
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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
	o := options{Options2: Options2{Rounds: 3, Duration: time.Second, MaxCalls: 1, Callers: []int{1, 64}, Candidates: []string{Baseline, Single, Batched, "python"}}}
	r := newReport(o, []string{"-rounds", "3"})
	r.Machine = Machine{Cores: 2, OS: "linux/amd64", Go: "go1.26", Broker: "RabbitMQ 3.10"}
	s := newSection(New(Table, o.Options2), o.Options2)
	// The rate doubles from round to round; the ratio within a round does not change that
	// much.
	for i, rate := range []float64{100, 200, 400} {
		s.add(Baseline, "1 caller", Sample{Rate: rate, P50: 1})
		s.add(Single, "1 caller", Sample{Rate: rate * (0.8 + 0.1*float64(i)), P50: 1.5, P99: 2, Client: Cost{CPU: 10, Allocs: 20}, Server: Cost{CPU: 11, Allocs: 21}})
		s.add(Batched, "1 caller", Sample{Rate: rate * 0.85})
		s.add(Baseline, "64 callers", Sample{Rate: 10})
		s.add(Batched, "64 callers", Sample{Rate: 70})
	}
	r.Sections = append(r.Sections, s)
	return r
}

func TestRatioIsTakenWithinRounds(t *testing.T) {
	t.Parallel()
	got := testReport().Sections[0].ratio(cell{Single, "1 caller"}, cell{Baseline, "1 caller"}, rate).format("%.2f")
	if want := "0.90 (0.80–1.00)"; got != want {
		t.Errorf("ratio %s, want %s", got, want)
	}
}

func TestMarkdown(t *testing.T) {
	t.Parallel()
	got := testReport().Markdown()
	for _, want := range []string{
		"Machine: 2 cores, linux/amd64, go1.26, RabbitMQ 3.10\n",
		"Command: `make bench BENCHFLAGS='-rounds 3'`\n",
		"### Sequential (1 caller)\n",
		"### 64 callers\n",
		"| contender | calls/s | × loop | p50 ms | p99 ms | CPU µs/call client + server | allocs/call client + server |\n",
		"| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
		"| loop | 200 (100–400) | 1.00 (1.00–1.00) | 1.00 | 0.00 | 0 + 0 | 0 + 0 |\n",
		"| amqpx | 180 (80–400) | 0.90 (0.80–1.00) | 1.50 | 2.00 | 10 + 11 | 20 + 21 |\n",
		"| python | – | – | – | – | – | – |\n",
		"- amqpx-batch: pkg/amqpx, batch lane",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
}

func TestCutExperimentSaysSo(t *testing.T) {
	t.Parallel()
	r := testReport()
	const notice = "It failed before its end"
	if strings.Contains(r.Markdown(), notice) {
		t.Error("a whole experiment is said to have failed")
	}
	r.Sections[0].Cut = true
	if !strings.Contains(r.Markdown(), notice) {
		t.Error("a cut experiment looks whole")
	}
}

func TestCommandKeepsNoURL(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"-url", "amqp://u:secret@h/", "-rounds", "3"},
		{"--url=amqp://u:secret@h/", "-rounds", "3"},
		{"-rounds", "3", "-url", "amqp://u:secret@h/"},
	} {
		if got, want := commandOf(args), "make bench BENCHFLAGS='-rounds 3'"; got != want {
			t.Errorf("%v: %s, want %s", args, got, want)
		}
	}
	if got := commandOf(nil); got != "make bench" {
		t.Errorf("no arguments: %s", got)
	}
}

func TestGoalsOfWhatWasMeasured(t *testing.T) {
	t.Parallel()
	_, got, ok := strings.Cut(testReport().Markdown(), "## Goals\n")
	if !ok {
		t.Fatal("no goals")
	}
	want := []string{
		"", "| goal | must | aim | measured | verdict |", "| --- | ---: | ---: | ---: | ---: |",
		"| sequential, single messages, against loop | ≥ 0.95 | ≥ 1 | 0.9 (0.8–1) | **not met** |",
		"| sequential, batch on against batch off | ≥ 0.95 | ≥ 1 | 0.944 (0.85–1.06) | **not met** |",
		"| 64 callers, batch, against loop | ≥ 3.5 | ≥ 5 | 7 (7–7) | met, aim too |", "",
	}
	if lines := strings.Split(got, "\n"); !slices.Equal(lines, want) {
		t.Errorf("goals:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
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
	o := Outcome{Calls: 1000, Elapsed: 500 * time.Millisecond, All: Latencies{P50: 250, P99: 1500, P999: 2000}, Slow: Latencies{P50: 200_000}, Missed: 3}
	before := Consumption{Client: Usage{CPU: time.Millisecond, Mallocs: 1}, Broker: 10 * time.Millisecond}
	after := Consumption{
		Client: Usage{CPU: 21 * time.Millisecond, Mallocs: 50_001, Bytes: 1_000_000, RSS: 7_000_000, Peak: 8_000_000},
		Server: Usage{Peak: 9_000_000},
		Broker: 60 * time.Millisecond,
	}
	want := Sample{
		Rate: 2000, P50: 0.25, P99: 1.5, P999: 2, SlowP50: 200, Missed: 3,
		Client: Cost{CPU: 20, Allocs: 50, Bytes: 1000}, BrokerCPU: 50,
		Memory: Memory{Client: 7, ClientPeak: 8, ServerPeak: 9},
	}
	if got := newSample(Measurement{Outcome: o, Before: before, After: after, Memory: after}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestPublish(t *testing.T) {
	t.Parallel()
	o := options{Options2: Options2{Rounds: 1, Duration: time.Second, MaxCalls: 1, Candidates: []string{Baseline}}}
	r := newReport(o, nil)
	s := newSection(New(Callers, o.Options2), o.Options2)
	s.add(Baseline, "1 caller", Sample{Rate: 5})
	s.add(Baseline, "64 callers", Sample{Rate: 50})
	r.Sections = append(r.Sections, s)
	var shown strings.Builder
	dir := filepath.Join(t.TempDir(), "new")
	if err := r.publish(&shown, dir); err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile(filepath.Join(dir, "results.md"))
	if err != nil || !strings.Contains(string(kept), shown.String()) || shown.Len() == 0 {
		t.Errorf("results.md, %v:\n%s\nshown:\n%s", err, kept, shown.String())
	}
	plots := regexpImage().FindAllStringSubmatch(string(kept), -1)
	if len(plots) != 1 {
		t.Fatalf("results.md shows %d plots, want 1", len(plots))
	}
	if _, err := os.Stat(filepath.Join(dir, plots[0][1])); err != nil {
		t.Error(err)
	}
}

// regexpImage matches the images in a Markdown text and captures their file names.
func regexpImage() *regexp.Regexp { return regexp.MustCompile(`!\[[^]]*\]\(([^)]+)\)`) }
