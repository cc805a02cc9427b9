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
	// Step is called after each settled call.
	Step(t *Results)
	// Finish is called after the last call.
	Finish(t *Results)
}

// collect counts results until the last result, or until no call settles any more. It calls
// cut when drain has ended and patience has run out.
func (r *Runner) collect(drain context.Context, cut func(), t *Results) {
	stall := time.NewTicker(r.options.Timeout + stallGrace)
	defer stall.Stop()
	redraw, stopRedraw := ticks(r.progress.Every())
	defer stopRedraw()
	defer func() { r.progress.Finish(t) }()
	interrupted := drain.Done()
	var impatient <-chan time.Time
	var begunBefore, settledBefore int64
	for {
		select {
		case res, open := <-r.results:
			if !open {
				return
			}
			r.record(t, res)
		case <-redraw:
			r.progress.Tick(t)
		case <-interrupted:
			interrupted, impatient = nil, time.After(patience)
			r.logger.Info("interrupted: no new calls, waiting for those under way")
		case <-impatient:
			r.logger.Warn("calls under way are cut off", zap.Duration("waited", patience))
			cut()
		case <-stall.C:
			// Every call in progress at the last tick should have settled by now.
			if begunBefore > settledBefore && t.Settled() == settledBefore {
				r.logger.Error("calls did not settle", zap.Duration("silence", r.options.Timeout+stallGrace))
				return
			}
			begunBefore, settledBefore = r.loop.Begun(), t.Settled()
		}
	}
}

// ticks returns a channel that ticks at the interval, or never if the interval is 0.
func ticks(interval time.Duration) (<-chan time.Time, func()) {
	if interval <= 0 {
		return nil, func() {}
	}
	ticker := time.NewTicker(interval)
	return ticker.C, ticker.Stop
}

// record counts one result. The first failure of each kind is logged as a warning; further
// failures are in the report, and in the log at debug level.
func (r *Runner) record(t *Results, res Result) {
	t.Add(res)
	if res.Err != nil {
		level := zap.DebugLevel
		if t.Errors[res.Key] == 1 {
			level = zap.WarnLevel
		}
		r.logger.Log(level, "call failed", zap.String("code", res.Key), zap.Error(res.Err))
	}
	r.progress.Step(t)
}
