// Package report holds the report of a run, and writes it as report.json for programs and as
// report.html for people. Both files are written from the same value.
package report

import (
	"fmt"
	"math"
	"time"

	"rabbitmq-rpc/internal/placement"
)

// Report is the content of report.json. Calls always equals OK plus the sum of Errors plus
// Lost. Times are in seconds or, if the name says so, in milliseconds; offsets count from
// Started.
type Report struct {
	// Passed is true if every call made got the expected result.
	Passed bool `json:"passed"`
	// Calls counts the calls made; fewer than planned only if Interrupted or GivenUp is true.
	Calls int64 `json:"calls"`
	// OK counts the calls with the expected result.
	OK int64 `json:"ok"`
	// Errors counts all other settled calls by code; unexpected results are counted as
	// "mismatched".
	Errors map[string]int64 `json:"errors"`
	// Lost counts the calls that never settled.
	Lost int64 `json:"lost"`
	// Duplicates counts second responses to a call; they were dropped.
	Duplicates uint64 `json:"duplicates"`
	// Mismatched counts the unexpected results.
	Mismatched int64 `json:"mismatched"`
	// Reconnects counts the connections to the broker after the first.
	Reconnects uint64 `json:"reconnects"`
	// Seconds is the time from the start of the first call to the end of the last call.
	Seconds float64 `json:"seconds"`
	// CallsPerSecond is Calls divided by Seconds.
	CallsPerSecond float64 `json:"calls_per_second"`
	// LatencyMS is the latency of the calls with the expected result, seen by the caller.
	LatencyMS Latency `json:"latency_ms"`
	// Corrected is true if latencies count from the time when a call was due and not from its
	// start, so that a stall shows in all calls that it delayed.
	Corrected bool `json:"corrected"`
	// Interrupted is true if a signal ended the run before the last planned call.
	Interrupted bool `json:"interrupted"`
	// GivenUp is true if the run ended early because no call ever got a response and no server
	// could be found; NotTried counts the planned calls that were not made.
	GivenUp  bool  `json:"given_up,omitempty"`
	NotTried int64 `json:"not_tried,omitempty"`
	// PlannedCalls and PlannedSeconds are the limits of the run; 0: no such limit.
	PlannedCalls   int64   `json:"planned_calls,omitempty"`
	PlannedSeconds float64 `json:"planned_seconds,omitempty"`
	// Rate is set if calls started at a constant rate.
	Rate *Rate `json:"rate,omitempty"`
	// Resent counts re-sends, Late responses that arrived after their call had ended, Unknown
	// responses to no call of this client, Batched the requests sent in a batch.
	Resent  uint64 `json:"resent"`
	Late    uint64 `json:"late"`
	Unknown uint64 `json:"unknown"`
	Batched uint64 `json:"batched"`
	// BlockedSeconds is the time in which the broker blocked publishing.
	BlockedSeconds float64 `json:"blocked_seconds"`
	// QueueWaitMS and HandlerMS are the times inside the server.
	QueueWaitMS ServerTime `json:"queue_wait_ms"`
	HandlerMS   ServerTime `json:"handler_ms"`
	// Percentiles is the curve of the latency, Histogram its distribution.
	Percentiles []Percentile `json:"percentiles"`
	Histogram   []Bin        `json:"histogram"`
	// Timeline counts the settled calls in time slices; all slices except the last have the
	// same length.
	Timeline []Slice `json:"timeline"`
	// Events holds the changes of the connection; EventsOmitted counts events beyond the
	// limit.
	Events        []Event `json:"events"`
	EventsOmitted int     `json:"events_omitted,omitempty"`
	// Broker is the address, host:port.
	Broker string `json:"broker"`
	// Node is the name of the node of the last connection, or "unknown".
	Node string `json:"node"`
	// Placement says which node holds what; nil: unknown.
	Placement *placement.Placement `json:"placement,omitempty"`
	// Settings holds the variables in force, without secrets.
	Settings map[string]string `json:"settings"`
	// Versions holds the versions of the program and its parts.
	Versions map[string]string `json:"versions"`
	// Started is the time when the first call could start, Finished the end of the last call.
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
}

// Latency holds milliseconds, exact to three digits; all are 0 without an expected result.
type Latency struct {
	Min  float64 `json:"min"`
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

// Rate compares the starts of calls with the requested rate.
type Rate struct {
	// Asked is the requested rate, Achieved the achieved rate, in calls started per second.
	Asked    float64 `json:"asked"`
	Achieved float64 `json:"achieved"`
	// KeptUp is true if Achieved is at least 99 % of Asked.
	KeptUp bool `json:"kept_up"`
	// BehindMS is the longest delay of a call's start.
	BehindMS float64 `json:"behind_max_ms"`
	// NotBegun counts the calls that were due when the run ended and had not started; the
	// report's Calls do not include them.
	NotBegun int64 `json:"not_begun"`
	// InFlight is the limit on the calls in progress.
	InFlight int `json:"in_flight_limit"`
}

// ServerTime is in milliseconds, over the Sampled calls whose responses included server times;
// all are 0 without such responses.
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

// Bin counts the calls with a latency from FromMS to ToMS.
type Bin struct {
	FromMS float64 `json:"from_ms"`
	ToMS   float64 `json:"to_ms"`
	Calls  int64   `json:"calls"`
}

// Slice counts the calls that settled in a part of the run. P50MS and P99MS are latencies of
// the calls with the expected result, exact to two digits, and 0 without such calls.
type Slice struct {
	Start   float64 `json:"start"`
	Seconds float64 `json:"seconds"`
	OK      int64   `json:"ok"`
	Errors  int64   `json:"errors"`
	P50MS   float64 `json:"p50_ms"`
	P99MS   float64 `json:"p99_ms"`
}

// Event is a change of the connection.
type Event struct {
	// At is the offset in seconds; 0 for a state that held from the start.
	At   float64   `json:"at"`
	Kind EventKind `json:"kind"`
	// Text is the reason, if known.
	Text string `json:"text,omitempty"`
}

// EventKind is a kind of change.
type EventKind string

// The kinds of changes.
const (
	EventConnect   EventKind = "connect"   // the first connection, after the start
	EventLost      EventKind = "lost"      // the connection is lost
	EventReconnect EventKind = "reconnect" // a later connection
	EventBlocked   EventKind = "blocked"   // the broker blocks publishing
	EventUnblocked EventKind = "unblocked" // the broker does not block any more
)

// Err returns nil if every call made got the expected result and no planned call was left
// untried.
func (r *Report) Err() error {
	bad := r.Calls - r.OK
	switch {
	case r.NotTried > 0:
		return fmt.Errorf("%d of %d calls did not get the expected response, and %d were not tried: %s", bad, r.Calls, r.NotTried, nobodyServes)
	case bad > 0:
		return fmt.Errorf("%d of %d calls did not get the expected response", bad, r.Calls)
	}
	return nil
}

// nobodyServes is the reason for ending a run early.
const nobodyServes = "no call got a response since the start, no server responded to a ping, and no consumer of the queue was seen"

// WhyGivenUp returns why the run ended early, or "" if GivenUp is false.
func (r *Report) WhyGivenUp() string {
	if !r.GivenUp {
		return ""
	}
	return nobodyServes
}

// Failed returns the number of calls that settled without the expected result.
func (r *Report) Failed() int64 {
	var sum int64
	for _, n := range r.Errors {
		sum += n
	}
	return sum
}

// Milliseconds returns d in milliseconds, rounded to the microsecond.
func Milliseconds(d time.Duration) float64 { return Round(float64(d)/float64(time.Millisecond), 3) }

// Seconds returns d in seconds, rounded to the microsecond.
func Seconds(d time.Duration) float64 { return Round(d.Seconds(), 6) }

// Round rounds x to the given number of decimals.
func Round(x float64, digits int) float64 {
	scale := math.Pow10(digits)
	return math.Round(x*scale) / scale
}
