package terminal

import (
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/loadgen"
	"rabbitmq-rpc/services/rpc-client/internal/report"
)

// NewProgress returns a bar if the terminal can draw a bar, else log lines.
func NewProgress(s *Screen, g loadgen.Workload, logger *zap.Logger) loadgen.Progress {
	if s.Columns() > 0 {
		return newBar(s, g)
	}
	return &lines{workload: g, logger: logger}
}

// rarest is the minimum time between log lines of a timed run.
const rarest = 5 * time.Second

// lines logs a line for every tenth of the run: of the calls, or, if time limits or paces the
// run, of the time, but then at most every five seconds.
type lines struct {
	workload loadgen.Workload
	logger   *zap.Logger

	tenths int64
	last   sample
}

func (l *lines) Every() time.Duration {
	if l.workload.Counted() {
		return 0
	}
	return max(l.workload.Expected()/10, rarest)
}

func (l *lines) Step(t *loadgen.Results) {
	if !l.workload.Counted() {
		return
	}
	if tenths := t.Settled() * 10 / l.workload.Calls; tenths != l.tenths {
		l.tenths = tenths
		l.log(t)
	}
}

func (l *lines) Tick(t *loadgen.Results) { l.log(t) }

func (l *lines) Finish(t *loadgen.Results) {
	if !l.workload.Counted() && t.Settled() > l.last.settled {
		l.log(t)
	}
}

func (l *lines) log(t *loadgen.Results) {
	now := sampleOf(t)
	fields := []zap.Field{
		zap.Int64("percent", int64(l.workload.Share(now.settled, now.passed)*100)),
		zap.Int64("done", now.settled),
	}
	if l.workload.Calls != loadgen.NoLimit {
		fields = append(fields, zap.Int64("calls", l.workload.Calls))
	}
	l.logger.Info("progress", append(fields,
		zap.Int64("errors", t.Failed()),
		zap.Float64("calls_per_second", report.Round(now.since(sample{}), 1)),
		zap.Float64("recent_calls_per_second", report.Round(now.since(l.last), 1)),
		zap.Float64("p50_ms", report.Milliseconds(t.Latency.At(50))),
		zap.Float64("p99_ms", report.Milliseconds(t.Latency.At(99))),
	)...)
	l.last = now
}

// sample is the state of a run at a point in time.
type sample struct {
	passed  time.Duration
	settled int64
}

func sampleOf(t *loadgen.Results) sample { return sample{time.Since(t.Start), t.Settled()} }

// since returns the rate of settled calls per second since an earlier sample.
func (s sample) since(before sample) float64 {
	if s.passed <= before.passed {
		return 0
	}
	return float64(s.settled-before.settled) / (s.passed - before.passed).Seconds()
}
