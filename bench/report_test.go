package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/experiment"
)

func testReport() *Report {
	o := options{Options: experiment.Options{Rounds: 3, Duration: time.Second, MaxCalls: 1, Callers: []int{1, 64}, Contenders: []string{contender.Baseline, contender.Single, contender.Batched, "python"}}}
	r := newReport(o, []string{"-rounds", "3"})
	r.Machine = Machine{Cores: 2, OS: "linux/amd64", Go: "go1.26", Broker: "RabbitMQ 3.10"}
	s := experiment.NewSection(experiment.New(experiment.Table, o.Options), o.Options)
	// The rate doubles from round to round; the ratio within a round does not change that
	// much.
	for i, rate := range []float64{100, 200, 400} {
		s.Add(contender.Baseline, "1 caller", experiment.Sample{Rate: rate, P50: 1})
		s.Add(contender.Single, "1 caller", experiment.Sample{Rate: rate * (0.8 + 0.1*float64(i)), P50: 1.5, P99: 2, Client: experiment.Cost{CPU: 10, Allocs: 20}, Server: experiment.Cost{CPU: 11, Allocs: 21}})
		s.Add(contender.Batched, "1 caller", experiment.Sample{Rate: rate * 0.85})
		s.Add(contender.Baseline, "64 callers", experiment.Sample{Rate: 10})
		s.Add(contender.Batched, "64 callers", experiment.Sample{Rate: 70})
	}
	r.Sections = append(r.Sections, s)
	return r
}

func markdownOf(r *Report) string { return r.Markdown(r.Sections) }

func TestMarkdown(t *testing.T) {
	t.Parallel()
	got := markdownOf(testReport())
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
		"- amqpx-batch: pkg/amqpx, batches",
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
	if strings.Contains(markdownOf(r), notice) {
		t.Error("a whole experiment is said to have failed")
	}
	r.Sections[0].Cut = true
	if !strings.Contains(markdownOf(r), notice) {
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
	_, got, ok := strings.Cut(markdownOf(testReport()), "## Goals\n")
	if !ok {
		t.Fatal("no goals")
	}
	want := []string{
		"", "| goal | must | aim | measured | verdict |", "| --- | ---: | ---: | ---: | ---: |",
		"| sequential, batch on against batch off | ≥ 0.95 | ≥ 1 | 0.944 (0.85–1.06) | **not met** |",
		"| 64 callers, batch, against loop | ≥ 4.5 | ≥ 6 | 7 (7–7) | met, aim too |", "",
	}
	if lines := strings.Split(got, "\n"); !slices.Equal(lines, want) {
		t.Errorf("goals:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}

func TestPublish(t *testing.T) {
	t.Parallel()
	o := options{Options: experiment.Options{Rounds: 1, Duration: time.Second, MaxCalls: 1, Contenders: []string{contender.Baseline}}}
	r := newReport(o, nil)
	s := experiment.NewSection(experiment.New(experiment.Callers, o.Options), o.Options)
	s.Add(contender.Baseline, "1 caller", experiment.Sample{Rate: 5})
	s.Add(contender.Baseline, "64 callers", experiment.Sample{Rate: 50})
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
