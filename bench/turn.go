package main

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// Turn describes a load for a client: an open loop if a rate is set, otherwise a closed loop.
type Turn struct {
	Callers   int           `json:"callers,omitempty"`   // of a closed loop; each makes one call at a time
	Rate      float64       `json:"rate,omitempty"`      // of an open loop, in calls per second
	InFlight  int           `json:"in_flight,omitempty"` // most calls of an open loop at once
	Duration  time.Duration `json:"duration"`
	MaxCalls  int           `json:"max_calls"`
	Body      int           `json:"body,omitempty"`       // bytes each way; 0: requestBody and answerBody
	SlowEvery int           `json:"slow_every,omitempty"` // every SlowEvery-th call is slow; 0: none
}

// Outcome is the result of a turn.
type Outcome struct {
	Calls   int64         `json:"calls"`
	Elapsed time.Duration `json:"elapsed"`
	All     Latencies     `json:"all"` // without slow calls
	Slow    Latencies     `json:"slow"`
	// Missed counts the calls of an open loop not started before the loop was aborted. The
	// latencies include their waiting times until then.
	Missed int64 `json:"missed,omitempty"`
}

// Latencies holds percentiles in microseconds.
type Latencies struct {
	P50  int64 `json:"p50"`
	P99  int64 `json:"p99"`
	P999 int64 `json:"p999"`
	Max  int64 `json:"max"`
}

// stuck bounds a turn beyond its duration. A longer call is an error.
const stuck = 30 * time.Second

// drive runs a turn. The first wrong response or error ends the turn.
func drive(ctx context.Context, c Caller, t Turn) (Outcome, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	guard := time.AfterFunc(t.Duration+overrun+stuck, func() { cancel(fmt.Errorf("a call did not settle within %v", stuck)) })
	defer guard.Stop()
	d := newDriver(c, t, cancel)
	if t.Rate > 0 {
		d.open(ctx, preciseSleep)
	} else {
		d.closed(ctx)
	}
	elapsed := time.Since(d.begun)
	if err := context.Cause(ctx); err != nil {
		return Outcome{}, err
	}
	return d.outcome(elapsed), nil
}

// driver runs a turn.
type driver struct {
	turn   Turn
	caller Caller
	body   []byte // request body for MethodEcho; nil: RequestBody
	begun  time.Time
	fail   context.CancelCauseFunc

	numbers    atomic.Int64
	missed     int64
	fast, slow *recorder
}

func newDriver(c Caller, t Turn, fail context.CancelCauseFunc) *driver {
	d := &driver{turn: t, caller: c, begun: time.Now(), fail: fail, fast: newRecorder(), slow: newRecorder()}
	if t.Body > 0 {
		d.body = bytes.Repeat([]byte("0123456789abcdef"), t.Body/16+1)[:t.Body]
	}
	return d
}

func (d *driver) outcome(elapsed time.Duration) Outcome {
	fast, slow := d.fast.merged(), d.slow.merged()
	return Outcome{
		Calls:   fast.TotalCount() + slow.TotalCount() - d.missed,
		Elapsed: elapsed,
		All:     latenciesOf(fast),
		Slow:    latenciesOf(slow),
		Missed:  d.missed,
	}
}

// call makes the next call, checks the response and records the time since the call was due.
func (d *driver) call(ctx context.Context, shard int, due time.Time) {
	rec, method, body, want := d.fast, MethodQuick, []byte(RequestBody), []byte(ResponseBody)
	if d.body != nil {
		method, body, want = MethodEcho, d.body, d.body
	}
	if every := int64(d.turn.SlowEvery); every > 0 && d.numbers.Add(1)%every == 0 {
		rec, method = d.slow, MethodSlow
	}
	if err := checkedCall(ctx, d.caller, method, body, want); err != nil {
		d.fail(err)
		return
	}
	rec.record(shard, time.Since(due))
}

// checkedCall makes a call and checks the response.
func checkedCall(ctx context.Context, c Caller, method string, body, want []byte) error {
	got, err := c.Call(ctx, method, body)
	return checkAnswer(got, err, want)
}

func checkAnswer(got []byte, err error, want []byte) error {
	if err != nil {
		return fmt.Errorf("call: %w", err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("answer of %d bytes %.20q, want %d bytes %.20q", len(got), got, len(want), want)
	}
	return nil
}
