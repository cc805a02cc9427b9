package main

import (
	"strconv"
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

// Widths, in characters, of a bar between its brackets.
const (
	shortestBar = 10
	longestBar  = 40
)

// barWidth returns the width of a bar that fits columns with all that stands
// beside it; less than shortestBar means that none does.
func barWidth(columns, calls int) int {
	const beside = len("calls 100% || (/, 1234567 calls/s) [59m59s:59m59s]") + 1
	return min(longestBar, columns-beside-2*len(strconv.Itoa(calls)))
}

// newProgress returns a bar where one can be drawn, else log lines.
func newProgress(s *screen, calls int, logger *zap.Logger) progress {
	if barWidth(s.columns, calls) < shortestBar {
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
	return &bar{out: s, bar: progressbar.NewOptions(calls,
		progressbar.OptionSetWriter(barWriter{s}),
		progressbar.OptionSetDescription("calls"),
		progressbar.OptionSetWidth(barWidth(s.columns, calls)),
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
		zap.Int64("percent", done*100/l.calls),
		zap.Int64("done", done),
		zap.Int64("calls", l.calls),
		zap.Int64("errors", t.failed()),
		zap.Float64("calls_per_second", round(float64(done)/time.Since(t.start).Seconds(), 1)),
	)
}

func (l *lines) finish() {}
