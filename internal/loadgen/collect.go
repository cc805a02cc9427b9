package loadgen

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// stallGrace is the allowed time of a call beyond its deadline. The library settles every call
// in time; the grace only keeps a fault in the library from hanging this process.
const stallGrace = 5 * time.Second

// patience limits the wait for calls in progress after an interruption. It is shorter than the
// time of a container between SIGTERM and SIGKILL.
const patience = 20 * time.Second

// Progress shows the progress of the run. Only one goroutine uses it.
type Progress interface {
	// Every returns the interval of Tick; 0 means never.
	Every() time.Duration
	// Tick is called at the interval, also while no call settles.
	Tick(t *Results)
	// Step is called in a run that ends by number, when a further tenth of the calls, or more
	// than a tenth, has settled.
	Step(t *Results)
	// Finish is called after the last call.
	Finish(t *Results)
}

// collect merges the results of the recorders for the progress, until the last call has
// settled, or until no call settles any more. It calls cut when drain has ended and patience
// has run out.
func (r *Runner) collect(drain context.Context, cut func(), t *Results) {
	stall := time.NewTicker(r.options.Timeout + stallGrace)
	defer stall.Stop()
	redraw, stopRedraw := ticks(r.progress.Every())
	defer stopRedraw()
	defer r.finish(t)
	interrupted := drain.Done()
	var impatient <-chan time.Time
	var begunBefore, settledBefore int64
	for {
		select {
		case <-r.ended:
			return
		case <-r.steps:
			r.recorders.merge(&t.Totals)
			r.progress.Step(t)
		case <-redraw:
			r.recorders.merge(&t.Totals)
			r.progress.Tick(t)
		case <-interrupted:
			interrupted, impatient = nil, time.After(patience)
			r.logger.Info("interrupted: no new calls, waiting for those under way")
		case <-impatient:
			r.logger.Warn("calls under way are cut off", zap.Duration("waited", patience))
			cut()
		case <-stall.C:
			r.recorders.merge(&t.Totals)
			// Every call in progress at the last tick should have settled by now.
			if begunBefore > settledBefore && t.Settled() == settledBefore {
				r.logger.Error("calls did not settle", zap.Duration("silence", r.options.Timeout+stallGrace))
				return
			}
			begunBefore, settledBefore = r.loop.Begun(), t.Settled()
		}
	}
}

// finish merges the remaining results and shows them.
func (r *Runner) finish(t *Results) {
	r.recorders.close(&t.Totals)
	select {
	case <-r.steps: // the last calls settled just now
		r.progress.Step(t)
	default:
	}
	r.progress.Finish(t)
}

// ticks returns a channel that ticks at the interval, or never if the interval is 0.
func ticks(interval time.Duration) (<-chan time.Time, func()) {
	if interval <= 0 {
		return nil, func() {}
	}
	ticker := time.NewTicker(interval)
	return ticker.C, ticker.Stop
}
