package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/services/rpc-client/internal/report"
)

// counted returns results: a number of latencies from 1 ms to ok ms, and of errors.
func counted(ok int, errs map[string]int64) *Results {
	t := NewResults()
	for i := range ok {
		t.Add(Result{Latency: time.Duration(i+1) * time.Millisecond})
	}
	for key, n := range errs {
		for range n {
			t.Add(Result{Key: key})
		}
	}
	t.Calls, t.Elapsed = t.Settled(), 2*time.Second
	return t
}

func TestReportArithmetic(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		results *Results
		lost    int64
		planned int
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
			r := newReport(c.results, plan(c.planned, 1), amqpx.ClientStats{Duplicates: 6, Reconnects: 7})
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
	got := newReport(counted(1000, map[string]int64{"internal": 9}), plan(1009, 1), amqpx.ClientStats{}).LatencyMS
	want := report.Latency{Min: 1, Mean: 500.5, P50: 500, P90: 900, P99: 990, P999: 999, Max: 1000}
	near := func(a, b float64) bool { return a > b*0.998 && a < b*1.002 }
	if !near(got.Min, want.Min) || !near(got.Mean, want.Mean) || !near(got.P50, want.P50) || !near(got.P90, want.P90) ||
		!near(got.P99, want.P99) || !near(got.P999, want.P999) || !near(got.Max, want.Max) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if none := newReport(counted(0, nil), plan(1, 1), amqpx.ClientStats{}).LatencyMS; none != (report.Latency{}) {
		t.Errorf("latency of nothing: %+v", none)
	}
}

func TestReportInterrupted(t *testing.T) {
	t.Parallel()
	cut := counted(5, nil)
	cut.Interrupted = true
	if r := newReport(cut, plan(10, 1), amqpx.ClientStats{}); !r.Interrupted || r.Err() != nil {
		t.Errorf("a clean interrupted run: interrupted %v, %v", r.Interrupted, r.Err())
	}
	if r := newReport(cut, plan(5, 1), amqpx.ClientStats{}); r.Interrupted {
		t.Error("a signal after the last call interrupted nothing")
	}
}

func TestReportWithoutErrorsHasAnEmptyObject(t *testing.T) {
	t.Parallel()
	content, err := json.Marshal(newReport(counted(1, nil), plan(1, 1), amqpx.ClientStats{}))
	if err != nil || !strings.Contains(string(content), `"errors":{}`) {
		t.Errorf("got %s, %v", content, err)
	}
}

// occupied returns a path below a file, where even root cannot write.
func occupied(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(file, "dir")
}

// newReport returns the report of results under the given settings.
func newReport(t *Results, settings *Config, stats amqpx.ClientStats) *report.Report {
	return Build(Run{Results: t, Workload: settings.workload(), Stats: stats, Settings: config.Describe(settings)})
}

func TestReportServerTimes(t *testing.T) {
	t.Parallel()
	results := counted(0, nil)
	results.Add(Result{Info: &amqpx.CallInfo{Queue: 50 * time.Millisecond, Handler: 250 * time.Microsecond}})
	r := newReport(results, plan(1, 1), amqpx.ClientStats{})
	if got := r.QueueWaitMS; got.Sampled != 1 || got.P50 < 49.9 || got.P50 > 50.1 || got.Max < 49.9 || len(got.Percentiles) == 0 {
		t.Errorf("queue wait %+v", got)
	}
	if got := r.HandlerMS; got.Sampled != 1 || got.P50 != 0.25 || got.P90 != 0.25 || got.P99 != 0.25 || got.Max != 0.25 {
		t.Errorf("handler %+v", got)
	}
	if none := newReport(counted(1, nil), plan(1, 1), amqpx.ClientStats{}).QueueWaitMS; none.Sampled != 0 || none.Max != 0 || none.Percentiles == nil {
		t.Errorf("nothing is %+v", none)
	}
}

// Figures over time and over latency agree with the counted results, in the report's units.
func TestReportFigures(t *testing.T) {
	t.Parallel()
	results := counted(1000, map[string]int64{"unavailable": 3})
	r := newReport(results, plan(1003, 1), amqpx.ClientStats{})
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
