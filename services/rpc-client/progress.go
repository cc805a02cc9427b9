package main

import (
	"time"

	"github.com/schollz/progressbar/v3"
	"go.uber.org/zap"
)

// progress shows how far the run is. One goroutine uses it.
type progress interface {
	// step follows each settled call.
	step(t *tally)
	// finish follows the last.
	finish()
}

// narrowest is the width in columns below which a bar would wrap.
const narrowest = 60

// newProgress returns a bar where one can be drawn, else log lines.
func newProgress(s *screen, calls int, logger *zap.Logger) progress {
	if s.columns < narrowest {
		return &lines{calls: int64(calls), logger: logger}
	}
	return newBar(s, calls)
}

// drawable returns the width to draw in: 0 where nothing can be drawn.
func drawable(columns int, term string) int {
	if term == "" || term == "dumb" {
		return 0
	}
	return columns
}

// bar draws on a terminal, without colors.
type bar struct {
	out *screen
	bar *progressbar.ProgressBar
}

func newBar(s *screen, calls int) *bar {
	const most = 40
	return &bar{out: s, bar: progressbar.NewOptions(calls,
		progressbar.OptionSetWriter(barWriter{s}),
		progressbar.OptionSetDescription("calls"),
		progressbar.OptionSetWidth(min(most, s.columns-narrowest+10)),
		progressbar.OptionEnableColorCodes(false),
		progressbar.OptionShowCount(),
		progressbar.OptionShowIts(),
		progressbar.OptionSetItsString("calls"),
		progressbar.OptionThrottle(100*time.Millisecond),
	)}
}

func (b *bar) step(t *tally) {
	// What cannot be drawn is not worth ending the run.
	_ = b.bar.Set64(t.settled())
}

func (b *bar) finish() { b.out.endBar() }

// lines logs a line for every tenth of the calls.
type lines struct {
	calls  int64
	tenths int64
	logger *zap.Logger
}

func (l *lines) step(t *tally) {
	done := t.settled()
	tenths := done * 10 / l.calls
	if tenths == l.tenths {
		return
	}
	l.tenths = tenths
	l.logger.Info("progress",
		zap.Int64("percent", tenths*10),
		zap.Int64("done", done),
		zap.Int64("calls", l.calls),
		zap.Int64("errors", t.failed()),
		zap.Float64("calls_per_second", round(float64(done)/time.Since(t.start).Seconds(), 1)),
	)
}

func (l *lines) finish() {}
