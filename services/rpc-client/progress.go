package main

import (
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/services/rpc-client/internal/report"
)

// progress shows the progress of the run. Only one goroutine uses it.
type progress interface {
	// every returns the interval of tick; 0 means never.
	every() time.Duration
	// tick is called at the interval, also while no call settles.
	tick(t *tally)
	// step is called after each settled call.
	step(t *tally)
	// finish is called after the last call.
	finish(t *tally)
}

// newProgress returns a bar if the terminal can draw a bar, else log lines.
func newProgress(s *screen, g goal, logger *zap.Logger) progress {
	if s.columns() > 0 {
		return newBar(s, g)
	}
	return &lines{goal: g, logger: logger}
}

// rarest is the minimum time between log lines of a timed run.
const rarest = 5 * time.Second

// lines logs a line for every tenth of the run: of the calls, or, if time limits or paces the
// run, of the time, but then at most every five seconds.
type lines struct {
	goal   goal
	logger *zap.Logger

	tenths int64
	last   sample
}

func (l *lines) every() time.Duration {
	if l.goal.counted() {
		return 0
	}
	return max(l.goal.expected()/10, rarest)
}

func (l *lines) step(t *tally) {
	if !l.goal.counted() {
		return
	}
	if tenths := t.settled() * 10 / l.goal.calls; tenths != l.tenths {
		l.tenths = tenths
		l.log(t)
	}
}

func (l *lines) tick(t *tally) { l.log(t) }

func (l *lines) finish(t *tally) {
	if !l.goal.counted() && t.settled() > l.last.settled {
		l.log(t)
	}
}

func (l *lines) log(t *tally) {
	now := sampleOf(t)
	fields := []zap.Field{
		zap.Int64("percent", int64(l.goal.share(now.settled, now.passed)*100)),
		zap.Int64("done", now.settled),
	}
	if l.goal.calls != noLimit {
		fields = append(fields, zap.Int64("calls", l.goal.calls))
	}
	l.logger.Info("progress", append(fields,
		zap.Int64("errors", t.failed()),
		zap.Float64("calls_per_second", report.Round(now.since(sample{}), 1)),
		zap.Float64("recent_calls_per_second", report.Round(now.since(l.last), 1)),
		zap.Float64("p50_ms", inMilliseconds(t.latency.ValueAtPercentile(50), time.Nanosecond)),
		zap.Float64("p99_ms", inMilliseconds(t.latency.ValueAtPercentile(99), time.Nanosecond)),
	)...)
	l.last = now
}

// sample is the state of a run at a point in time.
type sample struct {
	passed  time.Duration
	settled int64
}

func sampleOf(t *tally) sample { return sample{time.Since(t.start), t.settled()} }

// since returns the rate of settled calls per second since an earlier sample.
func (s sample) since(before sample) float64 {
	if s.passed <= before.passed {
		return 0
	}
	return float64(s.settled-before.settled) / (s.passed - before.passed).Seconds()
}
