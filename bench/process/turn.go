package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/internal/loadgen"
)

// Turn describes a load for a client: an open loop if a rate is set, otherwise a closed loop.
type Turn struct {
	Callers  int           `json:"callers,omitempty"`   // of a closed loop; each makes one call at a time
	Rate     float64       `json:"rate,omitempty"`      // of an open loop, in calls per second
	InFlight int           `json:"in_flight,omitempty"` // most calls of an open loop at once
	Duration time.Duration `json:"duration"`
	MaxCalls int           `json:"max_calls"`
	Body     int           `json:"body,omitempty"` // bytes each way; 0: the fixed bodies of package contender
	// Every ApartEvery-th call is of the method Apart, and its latency is recorded apart; 0: none.
	ApartEvery int    `json:"apart_every,omitempty"`
	Apart      string `json:"apart,omitempty"`
}

// Outcome is the result of a turn.
type Outcome struct {
	Calls   int64         `json:"calls"`
	Elapsed time.Duration `json:"elapsed"`
	All     Latencies     `json:"all"` // without the calls that are recorded apart
	Apart   Latencies     `json:"apart"`
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

// overrun is the delay behind the schedule after which an open loop is aborted.
const overrun = 5 * time.Second

// stuck bounds a turn beyond its duration. A longer call is an error.
const stuck = 30 * time.Second

// drive runs a turn. The first wrong response or error ends the turn.
func drive(ctx context.Context, c contender.Caller, t Turn, p loadgen.Pacer) (Outcome, error) {
	if d, ok := c.(contender.Driver); ok {
		return driveItself(ctx, d, t)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	guard := time.AfterFunc(t.Duration+overrun+stuck, func() { cancel(fmt.Errorf("a call did not settle within %v", stuck)) })
	defer guard.Stop()
	d := newDriver(c, t, cancel)
	elapsed := d.run(ctx, p)
	if err := context.Cause(ctx); err != nil {
		return Outcome{}, err
	}
	return d.outcome(elapsed), nil
}

// driveItself has the contender run a turn.
func driveItself(ctx context.Context, d contender.Driver, t Turn) (Outcome, error) {
	if t.Body > 0 || t.ApartEvery > 0 {
		return Outcome{}, errors.New("makes only calls of the fixed body")
	}
	w := t.workload()
	limit := t.Duration + overrun + stuck
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("a turn of %v did not end within %v", t.Duration, limit))
	defer cancel()
	f, err := d.Drive(ctx, contender.Load{Callers: t.Callers, Rate: w.Rate, InFlight: t.InFlight, Duration: t.Duration, Calls: t.MaxCalls})
	if err != nil {
		return Outcome{}, errors.Join(err, context.Cause(ctx))
	}
	return Outcome{
		Calls: f.Calls, Elapsed: f.Elapsed, Missed: f.NotBegun,
		All: Latencies{P50: f.P50.Microseconds(), P99: f.P99.Microseconds(), P999: f.P999.Microseconds(), Max: f.Max.Microseconds()},
	}, nil
}

// driver runs a turn.
type driver struct {
	turn   Turn
	caller contender.Caller
	many   contender.Many // the same caller, if it consists of several; else nil
	body   []byte         // request body for MethodEcho; nil: RequestBody
	fail   context.CancelCauseFunc

	missed     int64
	all, apart *loadgen.Recorder
}

func newDriver(c contender.Caller, t Turn, fail context.CancelCauseFunc) *driver {
	d := &driver{turn: t, caller: c, fail: fail, all: loadgen.NewRecorder(newHistogram), apart: loadgen.NewRecorder(newHistogram)}
	d.many, _ = c.(contender.Many)
	if t.Body > 0 {
		d.body = bytes.Repeat([]byte("0123456789abcdef"), t.Body/16+1)[:t.Body]
	}
	return d
}

// newHistogram returns a histogram of microseconds up to one minute, with three significant
// digits.
func newHistogram() *loadgen.Histogram {
	const digits = 3
	return loadgen.NewHistogram(time.Microsecond, time.Microsecond, time.Minute, digits)
}

// workload returns the calls of the turn. All calls of an open loop are due within the turn's
// duration, and start later if the contender falls behind.
func (t Turn) workload() loadgen.Workload {
	if t.Rate > 0 {
		calls := min(int64(t.Rate*t.Duration.Seconds()), int64(t.MaxCalls))
		return loadgen.Workload{Calls: calls, Rate: max(int64(math.Round(t.Rate)), 1), InFlight: t.InFlight}
	}
	return loadgen.Workload{Calls: int64(t.MaxCalls), Duration: t.Duration, InFlight: t.Callers}
}

// run runs the turn's loop and returns its duration. The latency of each call of an open loop
// counts from the time at which the call was due, and every call is counted, also the calls
// that the loop did not start before it was aborted.
func (d *driver) run(ctx context.Context, p loadgen.Pacer) (elapsed time.Duration) {
	w, limit := d.turn.workload(), d.turn.Duration
	if w.Open() {
		limit += overrun
	}
	begin, end := context.WithTimeout(ctx, limit)
	defer end()
	loop := loadgen.Loop{Workload: w, Pacer: p, Start: time.Now(), NewCaller: func() loadgen.Caller {
		return func(n int64, due time.Time) bool { return d.call(ctx, n, due) }
	}}
	loop.Run(begin)
	elapsed = time.Since(loop.Start)
	if w.Open() && ctx.Err() == nil {
		s := loop.Schedule()
		d.missed = s.NotBegun
		for n := s.Begun; n < w.Calls; n++ {
			d.all.Record(n, s.Took-w.Due(n))
		}
	}
	return elapsed
}

func (d *driver) outcome(elapsed time.Duration) Outcome {
	all, apart := d.all.Merged(), d.apart.Merged()
	return Outcome{
		Calls:   all.Count() + apart.Count() - d.missed,
		Elapsed: elapsed,
		All:     latenciesOf(all),
		Apart:   latenciesOf(apart),
		Missed:  d.missed,
	}
}

func latenciesOf(h *loadgen.Histogram) Latencies {
	at := func(percent float64) int64 { return h.At(percent).Microseconds() }
	return Latencies{P50: at(50), P99: at(99), P999: at(99.9), Max: h.Max().Microseconds()}
}

// call makes call n, checks the response and records the time since the call was due. It
// reports whether the turn goes on.
func (d *driver) call(ctx context.Context, n int64, due time.Time) bool {
	rec, method, body, want := d.all, contender.MethodQuick, []byte(contender.RequestBody), []byte(contender.ResponseBody)
	if d.body != nil {
		method, body, want = contender.MethodEcho, d.body, d.body
	}
	if every := int64(d.turn.ApartEvery); every > 0 && (n+1)%every == 0 {
		rec, method = d.apart, d.turn.Apart
	}
	c := d.caller
	if d.many != nil {
		c = d.many.Nth(n)
	}
	if err := checkedCall(ctx, c, method, body, want); err != nil {
		d.fail(err)
		return false
	}
	rec.Record(n, time.Since(due))
	return true
}

// checkedCall makes a call and checks the response.
func checkedCall(ctx context.Context, c contender.Caller, method string, body, want []byte) error {
	got, err := c.Call(ctx, method, body)
	return checkResponse(got, err, want)
}

func checkResponse(got []byte, err error, want []byte) error {
	if err != nil {
		return fmt.Errorf("call: %w", err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("response of %d bytes %.20q, want %d bytes %.20q", len(got), got, len(want), want)
	}
	return nil
}
