package report

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/internal/loadgen"
	"rabbitmq-rpc/pkg/amqpx"
)

// counted returns results: a number of latencies from 1 ms to ok ms, and of errors.
func counted(ok int, errs map[string]int64) *loadgen.Results {
	t := loadgen.NewResults()
	for i := range ok {
		t.Add(loadgen.Result{Latency: time.Duration(i+1) * time.Millisecond})
	}
	for key, n := range errs {
		for range n {
			t.Add(loadgen.Result{Key: key})
		}
	}
	t.Calls, t.Elapsed = t.Settled(), 2*time.Second
	return t
}

func TestReportArithmetic(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		results *loadgen.Results
		lost    int64
		planned int64
		fails   bool
	}{
		"all ok":       {counted(1000, nil), 0, 1000, false},
		"errors":       {counted(10, map[string]int64{"unavailable": 3, "mismatched": 2}), 0, 15, true},
		"lost":         {counted(10, nil), 4, 14, true},
		"nothing made": {counted(0, nil), 0, 10, false},
		"all wrong":    {counted(0, map[string]int64{"mismatched": 5}), 0, 5, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.results.Calls += c.lost
			r := build(c.results, planned(c.planned), amqpx.ClientStats{Duplicates: 6, Reconnects: 7})
			sum := r.OK + r.Lost
			for _, n := range r.Errors {
				sum += n
			}
			if r.Calls != sum || r.Lost != c.lost || r.Calls != c.results.Calls {
				t.Errorf("calls = ok + errors + lost does not hold: %+v", r)
			}
			if r.Mismatched != r.Errors["mismatched"] || r.Duplicates != 6 || r.Reconnects != 7 {
				t.Errorf("got %+v", r)
			}
			if r.Seconds != 2 || r.CallsPerSecond != float64(r.Calls)/2 {
				t.Errorf("%v calls in %v s are not %v a second", r.Calls, r.Seconds, r.CallsPerSecond)
			}
			if (r.Err() != nil) != c.fails {
				t.Errorf("err is %v", r.Err())
			}
		})
	}
}

func TestReportLatency(t *testing.T) {
	t.Parallel()
	got := build(counted(1000, map[string]int64{"internal": 9}), planned(1009), amqpx.ClientStats{}).LatencyMS
	want := Latency{Min: 1, Mean: 500.5, P50: 500, P90: 900, P99: 990, P999: 999, Max: 1000}
	near := func(a, b float64) bool { return a > b*0.998 && a < b*1.002 }
	if !near(got.Min, want.Min) || !near(got.Mean, want.Mean) || !near(got.P50, want.P50) || !near(got.P90, want.P90) ||
		!near(got.P99, want.P99) || !near(got.P999, want.P999) || !near(got.Max, want.Max) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if none := build(counted(0, nil), planned(1), amqpx.ClientStats{}).LatencyMS; none != (Latency{}) {
		t.Errorf("latency of nothing: %+v", none)
	}
}

func TestReportInterrupted(t *testing.T) {
	t.Parallel()
	cut := counted(5, nil)
	cut.Interrupted = true
	if r := build(cut, planned(10), amqpx.ClientStats{}); !r.Interrupted || r.Err() != nil {
		t.Errorf("a clean interrupted run: interrupted %v, %v", r.Interrupted, r.Err())
	}
	if r := build(cut, planned(5), amqpx.ClientStats{}); r.Interrupted {
		t.Error("a signal after the last call interrupted nothing")
	}
}

func TestReportWithoutErrorsHasAnEmptyObject(t *testing.T) {
	t.Parallel()
	content, err := json.Marshal(build(counted(1, nil), planned(1), amqpx.ClientStats{}))
	if err != nil || !strings.Contains(string(content), `"errors":{}`) {
		t.Errorf("got %s, %v", content, err)
	}
}

// planned returns the workload of a closed loop.
func planned(calls int64) loadgen.Workload { return loadgen.Workload{Calls: calls, InFlight: 1} }

// build returns the report of results.
func build(results *loadgen.Results, w loadgen.Workload, stats amqpx.ClientStats) *Report {
	return Build(Run{Results: results, Workload: w, Stats: stats})
}

func TestReportServerTimes(t *testing.T) {
	t.Parallel()
	results := counted(0, nil)
	results.Add(loadgen.Result{Info: &amqpx.CallInfo{QueueTime: 50 * time.Millisecond, HandlerTime: 250 * time.Microsecond}})
	r := build(results, planned(1), amqpx.ClientStats{})
	if got := r.QueueWaitMS; got.Sampled != 1 || got.P50 < 49.9 || got.P50 > 50.1 || got.Max < 49.9 || len(got.Percentiles) == 0 {
		t.Errorf("queue wait %+v", got)
	}
	if got := r.HandlerMS; got.Sampled != 1 || got.P50 != 0.25 || got.P90 != 0.25 || got.P99 != 0.25 || got.Max != 0.25 {
		t.Errorf("handler %+v", got)
	}
	if none := build(counted(1, nil), planned(1), amqpx.ClientStats{}).QueueWaitMS; none.Sampled != 0 || none.Max != 0 || none.Percentiles == nil {
		t.Errorf("nothing is %+v", none)
	}
}

// Figures over time and over latency agree with the counted results, in the report's units.
func TestReportFigures(t *testing.T) {
	t.Parallel()
	results := counted(1000, map[string]int64{"unavailable": 3})
	r := build(results, planned(1003), amqpx.ClientStats{})
	var ok, errs, inBins int64
	for _, s := range r.Timeline {
		ok, errs = ok+s.OK, errs+s.Errors
	}
	for _, b := range r.Histogram {
		inBins += b.Calls
	}
	if ok != 1000 || errs != 3 || inBins != 1000 {
		t.Errorf("%d ok and %d errors in the timeline, %d calls in the histogram", ok, errs, inBins)
	}
	if first := r.Timeline[0]; first.Seconds != 2 || first.P50MS < 495 || first.P50MS > 505 {
		t.Errorf("first slice %+v, want one of 2 s with a median of 500 ms", first)
	}
	if low, high := r.Histogram[0].FromMS, r.Histogram[len(r.Histogram)-1].ToMS; low < 0.99 || low > 1.01 || high < 995 || high > 1005 {
		t.Errorf("the histogram reaches from %v to %v ms", low, high)
	}
	if last := r.Percentiles[len(r.Percentiles)-1]; last.Percent != 100 || last.MS != r.LatencyMS.Max {
		t.Errorf("the curve ends in %+v, want the maximum %v", last, r.LatencyMS.Max)
	}
}

func TestSummaryIsAligned(t *testing.T) {
	t.Parallel()
	r := build(counted(990, map[string]int64{"unavailable": 7, "deadline_exceeded": 3}), planned(1000), amqpx.ClientStats{})
	var out bytes.Buffer
	if err := r.WriteSummary(&out, "title"); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	for _, line := range lines[1:] {
		if len(line) != len(lines[1]) {
			t.Errorf("%q is not as long as %q", line, lines[1])
		}
	}
	for _, want := range []string{
		"calls 1000", "ok 990", "errors 10", "deadline_exceeded 3", "unavailable 7", "lost 0", "duplicates 0",
		"mismatched 0", "late responses 0", "unknown responses 0", "reconnects 0", "seconds 2.000", "calls/s 500.0", "latency p50 (ms)", "latency p90 (ms)",
		"latency p99 (ms)", "latency max (ms)",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	out.Reset()
	if err := build(counted(0, nil), planned(1), amqpx.ClientStats{}).WriteSummary(&out, "title"); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "latency") {
		t.Errorf("latency of nothing is shown:\n%s", out.String())
	}
}

// A run that ended because nothing ever answered says so, and how many calls were not tried.
func TestReportOfAGivenUpRun(t *testing.T) {
	t.Parallel()
	results := counted(0, map[string]int64{"deadline_exceeded": 3})
	results.GivenUp = true
	r := build(results, planned(1000), amqpx.ClientStats{})
	if !r.GivenUp || r.Passed || r.NotTried != 997 || r.PlannedCalls != 1000 || r.Calls != r.OK+r.Failed()+r.Lost {
		t.Errorf("reported %+v", r)
	}
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "997 were not tried: no call got a response") {
		t.Errorf("error %v", err)
	}
	var out bytes.Buffer
	if err := r.WriteSummary(&out, "title"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"FAILED: title", "not tried 997", "given up: no call got a response"} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	timed := build(results, loadgen.Workload{Calls: loadgen.NoLimit, Duration: time.Hour, InFlight: 3}, amqpx.ClientStats{})
	if timed.Passed || !timed.GivenUp || timed.PlannedSeconds != 3600 || timed.PlannedCalls != 0 || timed.NotTried != 0 {
		t.Errorf("a run by time: reported %+v", timed)
	}
}

func TestReportRate(t *testing.T) {
	t.Parallel()
	open := func(rate int64) loadgen.Workload {
		return loadgen.Workload{Calls: loadgen.NoLimit, Rate: rate, InFlight: loadgen.OpenInFlight}
	}
	for name, c := range map[string]struct {
		asked    int64
		schedule loadgen.Schedule
		want     Rate
	}{
		"kept":          {100, loadgen.Schedule{Begun: 200, Took: 2 * time.Second}, Rate{Achieved: 100, KeptUp: true}},
		"nearly":        {1000, loadgen.Schedule{Begun: 990, Took: time.Second}, Rate{Achieved: 990, KeptUp: true}},
		"not kept":      {1000, loadgen.Schedule{Begun: 989, Took: time.Second, NotBegun: 11}, Rate{Achieved: 989, NotBegun: 11}},
		"far from kept": {1_000_000, loadgen.Schedule{Begun: 12_288, Took: time.Second}, Rate{Achieved: 12_288}},
		"none begun":    {10, loadgen.Schedule{}, Rate{KeptUp: true}},
	} {
		results := counted(5, nil)
		results.Schedule, results.Behind = c.schedule, 1500*time.Microsecond
		r := build(results, open(c.asked), amqpx.ClientStats{})
		c.want.Asked, c.want.BehindMS, c.want.InFlight = float64(c.asked), 1.5, loadgen.OpenInFlight
		if r.Rate == nil || *r.Rate != c.want || !r.Corrected {
			t.Errorf("%s: rate %+v, want %+v; corrected %v", name, r.Rate, c.want, r.Corrected)
		}
	}
	if r := build(counted(5, nil), planned(5), amqpx.ClientStats{}); r.Rate != nil || r.Corrected {
		t.Errorf("a closed loop has the rate %+v, corrected %v", r.Rate, r.Corrected)
	}
}
