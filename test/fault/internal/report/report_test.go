package report_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/items"
	"rabbitmq-rpc/test/fault/internal/report"
)

func sample() report.Run {
	return report.Run{
		Command: "make chaos SEED=7", Seed: 7, Broker: "3", Batch: "auto",
		Rows: []report.Row{
			{
				Scenario: "cut", About: "connections closed", Injected: 3, Batch: "auto", Batched: 70, Verdict: report.Passed,
				Result:     check.Result{Calls: 100, OK: 90, Abandoned: 4, Lost: 1, Duplicates: 2, LongestStall: time.Second},
				Recoveries: []time.Duration{time.Second, 3 * time.Second, 2 * time.Second},
			},
			{
				Scenario: "kill", About: "SIGKILL", Injected: 2, Verdict: report.Failed,
				Result:   check.Result{Calls: 50, OK: 50, Mismatched: 1, WrongDidNotRun: 1, LongestStall: 2 * time.Second},
				Problems: []string{"wrong\nanswer", "no end"},
			},
		},
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	text := sample().Markdown()
	for _, line := range []string{
		"RabbitMQ 3, batch auto, seed 7: `make chaos SEED=7`",
		"| cut | connections closed | 3 | 100 | 70 | 90 | 5 | 4 | 1 | 2 | 0 | 0 | 1s | passed |",
		"| kill | SIGKILL | 2 | 50 | 0 | 50 | 0 | 0 | 0 | 0 | 1 | 1 | 2s | FAILED |",
		"| **all** |  | 5 | 150 | 70 | 140 | 5 | 4 | 1 | 2 | 1 | 1 | 2s | 1 of 2 passed |",
		"1 of 2 passed |\n\n- kill: wrong answer\n- kill: no end\n",
		"answered call: median 2s, p99 3s, longest 3s, of 3.",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("%q is not in\n%s", line, text)
		}
	}
	if strings.Contains(text, "silence") {
		t.Errorf("tells of notices that nobody measured:\n%s", text)
	}
}

func TestTableOfShapes(t *testing.T) {
	t.Parallel()
	run := sample()
	if text := run.Markdown(); strings.Contains(text, "shape") {
		t.Errorf("tells of shapes that nobody used:\n%s", text)
	}
	run.Rows[0].Shapes = map[string]*check.Shape{
		"send":  {Calls: 10, OK: 6, Abandoned: 1, Lost: 1, NeverRan: 2, WrongDidNotRun: 3},
		"hedge": {Calls: 4, OK: 4, Duplicates: 3},
	}
	run.Rows[1].Shapes = map[string]*check.Shape{"send": {Calls: 5, OK: 5}, "all": {Calls: 2, OK: 1, Responses: 3, Mismatched: 1}}
	text := run.Markdown()
	for _, line := range []string{
		"| all | 2 | 1 | 1 | 0 | 0 | 0 | 1 | 0 | 3 | 0 |",
		"| hedge | 4 | 4 | 0 | 0 | 0 | 3 | 0 | 0 | 0 | 0 |",
		"| send | 15 | 11 | 2 | 1 | 1 | 0 | 0 | 3 | 0 | 2 |",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("%q is not in\n%s", line, text)
		}
	}
}

func TestTableOfKeys(t *testing.T) {
	t.Parallel()
	run := sample()
	if text := run.Markdown(); strings.Contains(text, "keys") {
		t.Errorf("tells of keys that nobody used:\n%s", text)
	}
	run.Rows[0].Keys = check.Keys{Keys: 10, Several: 8, Started: 13, Ended: 11, Unclaimed: 1}
	run.Rows[1].Keys = check.Keys{Keys: 2, Several: 1, Started: 3, Ended: 3, Anonymous: 1}
	text := run.Markdown()
	for _, line := range []string{
		"| cut | 10 | 8 | 13 | 11 | 1 | 0 |",
		"| kill | 2 | 1 | 3 | 3 | 0 | 1 |",
		"| **all** | 12 | 9 | 16 | 14 | 1 | 1 |",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("%q is not in\n%s", line, text)
		}
	}
}

func TestTableOfStreams(t *testing.T) {
	t.Parallel()
	run := sample()
	if text := run.Markdown(); strings.Contains(text, "streams") {
		t.Errorf("tells of streams that nobody opened:\n%s", text)
	}
	run.Rows[0].Streams = check.Streams{Opened: 10, OK: 6, Abandoned: 1, Lost: 1, Items: 500, LongestSilence: time.Second}
	run.Rows[1].Streams = check.Streams{
		Opened: 5, OK: 5, Items: 100, LongestSilence: 2 * time.Second,
		Wrong: items.Wrong{Missing: 1, Repeated: 2, Misplaced: 3, Foreign: 4}, WrongProgress: 5,
	}
	text := run.Markdown()
	for _, line := range []string{
		"| cut | 10 | 6 | 2 | 1 | 1 | 500 | 0 | 0 | 0 | 0 | 0 | 1s |",
		"| kill | 5 | 5 | 0 | 0 | 0 | 100 | 1 | 2 | 3 | 4 | 5 | 2s |",
		"| **all** | 15 | 11 | 2 | 1 | 1 | 600 | 1 | 2 | 3 | 4 | 5 | 2s |",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("%q is not in\n%s", line, text)
		}
	}
}

func TestWrittenTwice(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	for range 2 {
		if err := sample().Write(dir, "chaos-3"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"chaos-3.md", "chaos-3.json"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(string(text), "make chaos SEED=7") {
			t.Errorf("%s holds %q, %v", name, text, err)
		}
	}
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	var all []time.Duration
	for i := 100; i > 0; i-- {
		all = append(all, time.Duration(i))
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 50, 0.99: 99, 1: 100} {
		if got := report.Quantile(all, q); got != want {
			t.Errorf("quantile %v: %d, want %d", q, got, want)
		}
	}
	if got := report.Quantile(all[:1], 0.5); got != 100 {
		t.Errorf("of one: %d, want 100", got)
	}
}

func TestLeaks(t *testing.T) {
	t.Parallel()
	held := func(goroutines int, heap uint64) report.Held {
		return report.Held{Goroutines: goroutines, HeapBytes: heap}
	}
	ready, idle := held(10, 0), held(10, 0)
	s := report.Summary{Node: "c", Fresh: held(2, 1000), Ready: &ready, Idle: &idle, Closed: held(2, 2000)}
	if leaks := s.Leaks(); len(leaks) != 0 {
		t.Errorf("found %v, want nothing", leaks)
	}
	idle.Goroutines, s.Closed = 11, held(3, 1<<30)
	if leaks := s.Leaks(); len(leaks) != 3 {
		t.Errorf("found %v, want three leaks", leaks)
	}
	s.Ready, s.Idle = nil, nil
	if leaks := s.Leaks(); len(leaks) != 2 {
		t.Errorf("found %v, want two leaks of a server", leaks)
	}
}
