package main

import (
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/services/rpc-client/internal/report"
)

// progress shows how far the run is. One goroutine uses it.
type progress interface {
	// every is how often to call tick; 0 is never.
	every() time.Duration
	// tick follows the time, also while nothing settles.
	tick(t *tally)
	// step follows each settled call.
	step(t *tally)
	// finish follows the last.
	finish(t *tally)
}

// newProgress returns a bar where one can be drawn, else log lines.
func newProgress(s *screen, g goal, logger *zap.Logger) progress {
	if s.columns() > 0 {
		return newBar(s, g)
	}
	return &lines{goal: g, logger: logger}
}

// rarest is how far log lines by time are apart at least.
const rarest = 5 * time.Second

// lines logs a line for every tenth of the run: of its calls, or, if time has a say in its
// end or its pace, of its time, but then no more often than every five seconds.
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

// sample is how far a run was at a moment.
type sample struct {
	passed  time.Duration
	settled int64
}

func sampleOf(t *tally) sample { return sample{time.Since(t.start), t.settled()} }

// since returns the calls a second that settled since an earlier sample.
func (s sample) since(before sample) float64 {
	if s.passed <= before.passed {
		return 0
	}
	return float64(s.settled-before.settled) / (s.passed - before.passed).Seconds()
}
