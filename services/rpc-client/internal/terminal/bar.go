package terminal

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"

	"rabbitmq-rpc/internal/chart"
	"rabbitmq-rpc/internal/loadgen"
	"rabbitmq-rpc/services/rpc-client/internal/report"
)

// bar draws one line on a terminal, without colors: the progress, the current rate, the
// latencies and errors so far, and the time.
type bar struct {
	out      *Screen
	workload loadgen.Workload
	// recent holds the samples of the last window, the oldest first.
	recent []sample
}

const (
	redrawEvery = 100 * time.Millisecond
	// window is the time over which the rate is averaged.
	window = 2 * time.Second
)

// Widths, in characters, of a bar between its brackets.
const (
	shortestBar = 8
	longestBar  = 40
)

func newBar(s *Screen, g loadgen.Workload) *bar {
	return &bar{out: s, workload: g, recent: []sample{{}}}
}

func (b *bar) Every() time.Duration { return redrawEvery }

func (b *bar) Step(*loadgen.Results) {}

func (b *bar) Tick(t *loadgen.Results) {
	now := sampleOf(t)
	b.recent = append(b.recent, now)
	for len(b.recent) > 2 && now.passed-b.recent[1].passed >= window {
		b.recent = b.recent[1:]
	}
	// The width of the terminal may have changed. A drawing error must not end the run.
	if columns := b.out.Columns(); columns > 0 {
		_ = b.out.draw(b.line(columns-1, now, t))
	}
}

func (b *bar) Finish(t *loadgen.Results) {
	b.Tick(t)
	b.out.endBar()
}

// line returns the parts that fit into columns: all, or, as columns get fewer, without the
// latencies, the time, the bar.
func (b *bar) line(columns int, now sample, t *loadgen.Results) string {
	share := b.workload.Share(now.settled, now.passed)
	rate := chart.Short(now.since(b.recent[0])) + "/s"
	errs := fmt.Sprintf("%d errors", t.Failed())
	latencies := fmt.Sprintf("p50 %s p99 %s ms", shortLatency(t, 50), shortLatency(t, 99))
	times := clock(share, now.passed)
	for _, parts := range [][]string{{rate, latencies, errs, times}, {rate, errs, times}, {rate, errs}} {
		text := strings.Join(parts, "  ")
		// The space for the text is rounded up, so that the bar does not move when the number
		// of digits changes.
		const beside, step = len(" 100% ||  "), 8
		if width := columns - beside - (len(text)+step-1)/step*step; width >= shortestBar {
			return barAndText(share, min(width, longestBar), text)
		}
	}
	text := fmt.Sprintf("%3.0f%% %s %s", share*100, rate, errs)
	if len(text) > columns {
		text = fmt.Sprintf("%.0f%% %s %d err", share*100, rate, t.Failed())
	}
	return text[:min(len(text), columns)]
}

func shortLatency(t *loadgen.Results, percent float64) string {
	return chart.Short(report.Milliseconds(t.Latency.At(percent)))
}

// clock returns the elapsed time and, if it can be estimated, the remaining time.
func clock(share float64, passed time.Duration) string {
	text := passed.Truncate(time.Second).String()
	if share <= 0 || share >= 1 {
		return text
	}
	left := float64(passed) * (1 - share) / share
	const most = 1000 * time.Hour // a longer estimate is meaningless
	if left > float64(most) {
		return text
	}
	return text + ", " + time.Duration(left).Round(time.Second).String() + " left"
}

// barAndText draws a bar followed by text.
func barAndText(share float64, width int, text string) string {
	const steps = 1000
	drawn := progressbar.NewOptions(steps,
		progressbar.OptionSetWriter(io.Discard),
		progressbar.OptionSetWidth(width),
		progressbar.OptionSetDescription(text),
		progressbar.OptionShowDescriptionAtLineEnd(),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionSetElapsedTime(false),
		progressbar.OptionEnableColorCodes(false),
		progressbar.OptionSetRenderBlankState(true),
	)
	if err := drawn.Set(int(share * steps)); err != nil {
		return text
	}
	return strings.TrimRight(strings.TrimPrefix(drawn.String(), "\r"), " ")
}
