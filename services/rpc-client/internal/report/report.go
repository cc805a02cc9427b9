// Package report holds how a run went, and writes it as report.json for programs and
// report.html for people. Both come from the same value.
package report

import (
	"fmt"
	"math"
	"time"
)

// Report is what report.json holds. Calls equals OK plus the sum of Errors plus Lost,
// always. Times are in seconds or, where the name says so, in milliseconds; offsets count
// from Started.
type Report struct {
	// Passed says that every call made got the expected answer.
	Passed bool `json:"passed"`
	// Calls counts the calls made; fewer than planned only when Interrupted or GivenUp.
	Calls int64 `json:"calls"`
	// OK counts the expected answers.
	OK int64 `json:"ok"`
	// Errors counts the other settled calls by code; wrong answers are among them
	// as "mismatched".
	Errors map[string]int64 `json:"errors"`
	// Lost counts the calls that never settled.
	Lost int64 `json:"lost"`
	// Duplicates counts second answers to a call; they were dropped.
	Duplicates uint64 `json:"duplicates"`
	// Mismatched counts the answers that were not the expected one.
	Mismatched int64 `json:"mismatched"`
	// Reconnects counts the links to the broker after the first.
	Reconnects uint64 `json:"reconnects"`
	// Seconds is the time from the first call to the end of the last.
	Seconds float64 `json:"seconds"`
	// CallsPerSecond is Calls divided by Seconds.
	CallsPerSecond float64 `json:"calls_per_second"`
	// LatencyMS is over the expected answers, seen by the caller.
	LatencyMS Latency `json:"latency_ms"`
	// Corrected says that latencies count from when a call was due and not from when it
	// began, so that a stall shows in all the calls it held up.
	Corrected bool `json:"corrected"`
	// Interrupted says that a signal ended the run before the last planned call.
	Interrupted bool `json:"interrupted"`
	// GivenUp says that the run ended early because no call was ever answered and no server
	// could be found; NotTried counts the planned calls that it did not make.
	GivenUp  bool  `json:"given_up,omitempty"`
	NotTried int64 `json:"not_tried,omitempty"`
	// PlannedCalls and PlannedSeconds are what bounds the run; 0: not that.
	PlannedCalls   int64   `json:"planned_calls,omitempty"`
	PlannedSeconds float64 `json:"planned_seconds,omitempty"`
	// Rate is there when calls began at a constant rate.
	Rate *Rate `json:"rate,omitempty"`
	// Resent counts requests sent again, Late answers that came after their call had been
	// given up, Unknown answers to no call of this client, Batched the requests that
	// travelled in a batch.
	Resent  uint64 `json:"resent"`
	Late    uint64 `json:"late"`
	Unknown uint64 `json:"unknown"`
	Batched uint64 `json:"batched"`
	// BlockedSeconds is how long the broker blocked publishing.
	BlockedSeconds float64 `json:"blocked_seconds"`
	// QueueWaitMS and HandlerMS say where the time went inside the server.
	QueueWaitMS ServerTime `json:"queue_wait_ms"`
	HandlerMS   ServerTime `json:"handler_ms"`
	// Percentiles is the curve of the latency, Histogram its distribution.
	Percentiles []Percentile `json:"percentiles"`
	Histogram   []Bin        `json:"histogram"`
	// Timeline has what settled when, in slices of the same length but the last.
	Timeline []Slice `json:"timeline"`
	// Events are what happened to the link; EventsOmitted counts those beyond the bound.
	Events        []Event `json:"events"`
	EventsOmitted int     `json:"events_omitted,omitempty"`
	// Broker is the address, host:port.
	Broker string `json:"broker"`
	// Settings are the variables in force, without secrets.
	Settings map[string]string `json:"settings"`
	// Versions are those of the program and what it is made of.
	Versions map[string]string `json:"versions"`
	// Started is when the first call could begin, Finished the end of the last.
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
}

// Latency holds milliseconds, exact to three digits; all are 0 without an answer.
type Latency struct {
	Min  float64 `json:"min"`
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

// Rate says how well calls began when they were due.
type Rate struct {
	// Asked is how many calls a second were to begin, Achieved how many did.
	Asked    float64 `json:"asked"`
	Achieved float64 `json:"achieved"`
	// KeptUp says that Achieved is at least 99 % of Asked.
	KeptUp bool `json:"kept_up"`
	// BehindMS is how much too late a call began at worst.
	BehindMS float64 `json:"behind_max_ms"`
	// NotBegun counts the calls that were due when the run ended and had not begun; they
	// are not among the report's Calls.
	NotBegun int64 `json:"not_begun"`
	// InFlight is how many calls could be under way at once.
	InFlight int `json:"in_flight_limit"`
}

// ServerTime is in milliseconds, over Sampled calls whose answers told; all are 0 without
// any.
type ServerTime struct {
	Sampled     int64        `json:"sampled"`
	P50         float64      `json:"p50"`
	P90         float64      `json:"p90"`
	P99         float64      `json:"p99"`
	Max         float64      `json:"max"`
	Percentiles []Percentile `json:"percentiles"`
}

// Percentile says that Percent of the calls took at most MS.
type Percentile struct {
	Percent float64 `json:"percent"`
	MS      float64 `json:"ms"`
}

// Bin counts the calls that took between two times.
type Bin struct {
	FromMS float64 `json:"from_ms"`
	ToMS   float64 `json:"to_ms"`
	Calls  int64   `json:"calls"`
}

// Slice counts what settled in a part of the run. P50MS and P99MS are latencies of its
// expected answers, exact to two digits, 0 without any.
type Slice struct {
	Start   float64 `json:"start"`
	Seconds float64 `json:"seconds"`
	OK      int64   `json:"ok"`
	Errors  int64   `json:"errors"`
	P50MS   float64 `json:"p50_ms"`
	P99MS   float64 `json:"p99_ms"`
}

// Event is a change of the link.
type Event struct {
	// At is the offset in seconds; 0 for what was so from the start.
	At   float64   `json:"at"`
	Kind EventKind `json:"kind"`
	// Text is the reason, where there is one.
	Text string `json:"text,omitempty"`
}

// EventKind is a kind of change.
type EventKind string

// The kinds of changes.
const (
	EventConnect   EventKind = "connect"   // the first link, after the start
	EventLost      EventKind = "lost"      // the link is gone
	EventReconnect EventKind = "reconnect" // a later link
	EventBlocked   EventKind = "blocked"   // the broker blocks publishing
	EventUnblocked EventKind = "unblocked" // it does no longer
)

// Err returns nil if every call got the expected answer, so far as calls were made.
func (r *Report) Err() error {
	bad := r.Calls - r.OK
	switch {
	case r.NotTried > 0:
		return fmt.Errorf("%d of %d calls did not get the expected answer, and %d were not tried: %s", bad, r.Calls, r.NotTried, nobodyServes)
	case bad > 0:
		return fmt.Errorf("%d of %d calls did not get the expected answer", bad, r.Calls)
	}
	return nil
}

// nobodyServes is why a run is given up.
const nobodyServes = "no call was answered since the start, no server answered a ping, and no consumer of the queue was seen"

// WhyGivenUp returns why the run ended early, "" if it was not given up.
func (r *Report) WhyGivenUp() string {
	if !r.GivenUp {
		return ""
	}
	return nobodyServes
}

// Failed counts the calls that settled with something else than the expected answer.
func (r *Report) Failed() int64 {
	var sum int64
	for _, n := range r.Errors {
		sum += n
	}
	return sum
}

// Milliseconds returns a time as reports have it, to the microsecond.
func Milliseconds(d time.Duration) float64 { return Round(float64(d)/float64(time.Millisecond), 3) }

// Seconds returns a time as reports have it, to the microsecond.
func Seconds(d time.Duration) float64 { return Round(d.Seconds(), 6) }

// Round rounds to some digits after the point.
func Round(x float64, digits int) float64 {
	scale := math.Pow10(digits)
	return math.Round(x*scale) / scale
}
