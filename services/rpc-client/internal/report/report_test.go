package report

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"
)

// sample returns a report in which every field has a distinct value.
func sample() *Report {
	started := time.Date(2026, 3, 4, 5, 6, 7, 890_123_000, time.UTC)
	r := &Report{
		Calls: 1_234_567, OK: 1_234_500, Errors: map[string]int64{"unavailable": 60, "mismatched": 5}, Lost: 2,
		Duplicates: 3, Mismatched: 5, Reconnects: 1, Seconds: 61.234567, CallsPerSecond: 20161.3,
		LatencyMS: Latency{Min: 0.301, Mean: 1.512, P50: 0.801, P90: 2.003, P99: 11.105, P999: 250.1, Max: 1234.567},
		Corrected: true, PlannedSeconds: 60,
		Rate:   &Rate{Asked: 20000, Achieved: 19001.2, BehindMS: 1203.4, NotBegun: 17, InFlight: 4096},
		Resent: 7, Late: 8, Unknown: 9, Batched: 1_000_001, BlockedSeconds: 2.5,
		QueueWaitMS: ServerTime{Sampled: 123_401, P50: 0.02, P90: 0.09, P99: 1.3, Max: 9.2},
		HandlerMS:   ServerTime{Sampled: 123_401, P50: 0.003, P90: 0.005, P99: 0.05, Max: 3.4},
		Events: []Event{
			{At: 10, Kind: EventLost, Text: "connection reset"},
			{At: 10.25, Kind: EventReconnect, Text: "h:1"},
			{At: 30, Kind: EventBlocked, Text: "low on memory"},
			{At: 32.5, Kind: EventUnblocked},
		},
		Broker: "broker:5672", Node: "rabbit@a", Settings: map[string]string{"RPC_METHOD": "b", "RPC_QUEUE": "q", "AMQP_URL": "amqp://u:xxxxx@broker:5672/", "RPC_EXPECT": ""},
		Versions: map[string]string{"go": "go1.26.8", "revision": "0123abc"},
		Started:  started, Finished: started.Add(61234567 * time.Microsecond),
	}
	for _, times := range []struct {
		list *[]Percentile
		to   float64
	}{{&r.Percentiles, 1e6}, {&r.QueueWaitMS.Percentiles, 1e5}, {&r.HandlerMS.Percentiles, 1e5}} {
		for beyond := 1.0; beyond <= times.to; beyond *= 2 {
			*times.list = append(*times.list, Percentile{Percent: 100 - 100/beyond, MS: 0.3 + math.Log(beyond)})
		}
		*times.list = append(*times.list, Percentile{Percent: 100, MS: 1234.567})
	}
	for i := range 48 {
		r.Histogram = append(r.Histogram, Bin{FromMS: 0.3 * math.Pow(1.19, float64(i)), ToMS: 0.3 * math.Pow(1.19, float64(i+1)), Calls: int64(i * 100)})
	}
	for i := range 120 {
		r.Timeline = append(r.Timeline, Slice{Start: float64(i) * 0.51, Seconds: 0.51, OK: int64(10_000 + i), Errors: int64(i % 3), P50MS: 0.8, P99MS: 11})
	}
	return r
}

// odd returns reports of unusual runs.
func odd() map[string]*Report {
	nothing := func() *Report {
		return &Report{
			Errors: map[string]int64{}, Percentiles: []Percentile{}, Histogram: []Bin{}, Timeline: []Slice{}, Events: []Event{},
			Settings: map[string]string{"RPC_METHOD": "b"}, Versions: map[string]string{}, Passed: true,
		}
	}
	all := map[string]*Report{"empty value": {}, "no call": nothing()}

	one := nothing()
	one.Calls, one.OK, one.Seconds, one.CallsPerSecond = 1, 1, 0.001, 1000
	one.LatencyMS = Latency{1, 1, 1, 1, 1, 1, 1}
	one.Percentiles = []Percentile{{0, 1}, {100, 1}}
	one.Histogram = []Bin{{1, 1, 1}}
	one.Timeline = []Slice{{Seconds: 0.001, OK: 1, P50MS: 1, P99MS: 1}}
	one.QueueWaitMS = ServerTime{Sampled: 1, P50: 0.001, P90: 0.001, P99: 0.001, Max: 0.001, Percentiles: []Percentile{{0, 0.001}, {100, 0.001}}}
	one.HandlerMS = ServerTime{Sampled: 1, Percentiles: []Percentile{{0, 0}, {100, 0}}}
	all["one call"] = one

	zero := nothing() // a clock that stands still
	zero.Calls, zero.OK = 3, 3
	zero.Percentiles, zero.Histogram = []Percentile{{0, 0}, {50, 0}, {100, 0}}, []Bin{{0, 0, 3}}
	zero.Timeline = []Slice{{OK: 3}}
	all["no time passed"] = zero

	failed := nothing()
	failed.Calls, failed.Errors, failed.Seconds = 100, map[string]int64{"deadline_exceeded": 100}, 30
	failed.Timeline = []Slice{{Start: 0, Seconds: 15}, {Start: 15, Seconds: 15, Errors: 100}}
	failed.GivenUp, failed.PlannedSeconds = true, 60
	failed.Events = []Event{{Kind: EventLost, Text: "refused"}}
	all["all failed"] = failed

	lost := nothing()
	lost.Calls, lost.Lost, lost.Seconds = 4, 4, 70
	all["all lost"] = lost

	cut := nothing()
	cut.Calls, cut.OK, cut.PlannedCalls, cut.Interrupted, cut.Seconds = 412, 412, 1000, true, 1
	cut.LatencyMS, cut.Percentiles, cut.Histogram = one.LatencyMS, one.Percentiles, one.Histogram
	cut.Timeline = []Slice{{Seconds: 1, OK: 412, P50MS: 1, P99MS: 1}}
	all["interrupted"] = cut

	huge := sample()
	huge.Calls, huge.OK, huge.Errors, huge.Lost = 1e9, 1e9, map[string]int64{}, 0
	huge.Seconds = 168 * 3600
	huge.Timeline = nil
	for i := range 200 {
		huge.Timeline = append(huge.Timeline, Slice{Start: float64(i) * 3024, Seconds: 3024, OK: 5_000_000, P50MS: 0.5, P99MS: 7_200_000})
	}
	huge.Events = nil
	for i := range 200 {
		huge.Events = append(huge.Events, Event{At: float64(i) * 3000, Kind: []EventKind{EventLost, EventReconnect, EventBlocked, EventUnblocked}[i%4], Text: "x"})
	}
	huge.EventsOmitted = 12345
	all["a billion calls in a week"] = huge
	for _, r := range all {
		r.Passed = r.Err() == nil
	}
	return all
}

func TestErr(t *testing.T) {
	t.Parallel()
	if err := (&Report{Calls: 10, OK: 10}).Err(); err != nil {
		t.Errorf("all right: %v", err)
	}
	if err := (&Report{Calls: 10, OK: 7, Lost: 1}).Err(); err == nil || err.Error() != "3 of 10 calls did not get the expected response" {
		t.Errorf("got %v", err)
	}
}

func TestJSONFields(t *testing.T) {
	t.Parallel()
	content, err := sample().JSON()
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(content, &fields); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"batched", "blocked_seconds", "broker", "calls", "calls_per_second", "corrected", "duplicates", "errors", "events",
		"finished", "handler_ms", "histogram", "interrupted", "late", "latency_ms", "lost", "mismatched", "node", "ok", "passed",
		"percentiles", "planned_seconds", "queue_wait_ms", "rate", "reconnects", "resent", "seconds", "settings", "started",
		"timeline", "unknown", "versions",
	}
	if got := slices.Sorted(maps.Keys(fields)); !slices.Equal(got, want) {
		t.Errorf("fields %q, want %q", got, want)
	}
	latency, ok := fields["latency_ms"].(map[string]any)
	if got := slices.Sorted(maps.Keys(latency)); !ok || !slices.Equal(got, []string{"max", "mean", "min", "p50", "p90", "p99", "p999"}) {
		t.Errorf("latency_ms has %q", got)
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	runs := odd()
	slow, fast := sample(), sample()
	fast.Rate.KeptUp, fast.Rate.NotBegun = true, 0
	fast.OK, fast.Errors, fast.Lost = fast.Calls, nil, 0
	runs["slow"], runs["fast"] = slow, fast
	for name, want := range map[string]struct{ mood, headline, notes string }{
		"no call":    {"none", "No call was made", "[]"},
		"one call":   {"good", "Passed: every call got the expected response", "[]"},
		"all failed": {"bad", "Failed: 100 of 100 calls did not get the expected response", "[The run ended early, after 100 calls and 30.0 of 60 seconds: no call got a response since the start, no server responded to a ping, and no consumer of the queue was seen. The calls that were not tried are not among the errors.]"},
		"all lost":   {"bad", "Failed: 4 of 4 calls did not get the expected response", "[Lost calls never settled, neither with a result nor with an error. That is a fault of the library.]"},
		"interrupted": {
			"good", "Passed: every call got the expected response",
			"[A signal ended the run early, after 412 of 1,000 calls. What was under way then was waited for.]",
		},
		"slow": {"bad", "Failed: 67 of 1,234,567 calls did not get the expected response", "[Lost calls never settled, neither with a result nor with an error. That is a fault of the library. The rate was not kept: 20000 calls a second were asked for, 19001.2 began. 17 calls were due and had not begun when the run ended; their waiting is in no figure below. The server, the broker or this client is too slow for it.]"},
		"fast": {"good", "Passed: every call got the expected response", "[Calls began at the rate that was asked for, 20000 a second. Their latencies count from the moment they were due.]"},
	} {
		got := runs[name].verdict()
		if got.Mood != want.mood || got.Headline != want.headline || fmt.Sprint(got.Notes) != want.notes {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, want)
		}
	}
}

func TestTermsAreTheCalls(t *testing.T) {
	t.Parallel()
	for name, r := range odd() {
		var sum int64
		for _, term := range r.terms() {
			sum += term.Count
		}
		if sum != r.Calls {
			t.Errorf("%s: the terms are %d calls of %d", name, sum, r.Calls)
		}
	}
}

func TestGrouped(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0", 7: "7", 999: "999", 1000: "1,000", 1_000_000_000: "1,000,000,000", -1234: "-1,234"} {
		if got := grouped(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

func TestRoundDown(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]float64{0.0013: 0.001, 0.3: 0.2, 1: 1, 1.99: 1, 7: 5, 9999: 5000} {
		if got := roundDown(v); math.Abs(got-want) > want*1e-9 {
			t.Errorf("%v is rounded to %v, want %v", v, got, want)
		}
	}
}
