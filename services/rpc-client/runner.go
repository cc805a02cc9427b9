package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx"
)

// stallGrace is how long after its deadline a call may still settle. The library
// settles every call in time; the grace only keeps a fault in it from making this
// process hang.
const stallGrace = 5 * time.Second

// patience bounds the wait for the calls under way after an interruption; it is
// less than what containers get between SIGTERM and SIGKILL.
const patience = 20 * time.Second

// keyMismatched is the key of answers that were not the expected one, among the
// codes of the errors.
const keyMismatched = "mismatched"

var errNeverAnswered = errors.New("not tried: no call was answered since the start, and one waited out its deadline")

// caller is the part of [amqpx.Client] that calls are made with.
type caller interface {
	Call(ctx context.Context, method string, body []byte, opts ...amqpx.CallOption) ([]byte, error)
}

// result is how one call ended.
type result struct {
	// latency is set for expected answers only.
	latency time.Duration
	// key is empty for the expected answer, else an error code or keyMismatched.
	key string
	err error
}

// runner makes the planned calls. Use it once.
type runner struct {
	settings *Config
	link     caller
	progress progress
	logger   *zap.Logger

	// taken counts the calls that workers took; it may pass settings.Calls.
	taken atomic.Int64
	// served is set by the first answer, right or wrong, and expired by the first
	// call that waited out its deadline.
	served, expired atomic.Bool
	// results is closed when every worker has ended.
	results chan result
	// abandoned is closed when nobody reads results any more.
	abandoned chan struct{}
}

func newRunner(settings *Config, link caller, p progress, logger *zap.Logger) *runner {
	return &runner{
		settings:  settings,
		link:      link,
		progress:  p,
		logger:    logger,
		results:   make(chan result, settings.Concurrency),
		abandoned: make(chan struct{}),
	}
}

// run makes the calls and returns how they ended. The end of drain stops it from
// beginning more; the end of force, or of the patience after drain, cuts off those
// under way. It returns at the latest when no call has settled for twice the calls'
// timeout and grace.
func (r *runner) run(drain, force context.Context) *tally {
	t := newTally()
	force, cut := context.WithCancel(force)
	defer cut()
	var workers sync.WaitGroup
	for range min(r.settings.Concurrency, r.settings.Calls) {
		// Ends when all calls are taken, drain ends, or the results are abandoned.
		workers.Go(func() { r.work(drain, force) })
	}
	// Ends with the workers.
	go func() {
		workers.Wait()
		close(r.results)
	}()
	r.collect(drain, cut, t)
	close(r.abandoned)
	t.elapsed = time.Since(t.start)
	t.calls = min(r.taken.Load(), int64(r.settings.Calls))
	t.interrupted = drain.Err() != nil
	return t
}

func (r *runner) work(drain, force context.Context) {
	for drain.Err() == nil && r.taken.Add(1) <= int64(r.settings.Calls) {
		select {
		case r.results <- r.call(force):
		case <-r.abandoned:
			return
		}
	}
}

// call makes one call, bounded by its timeout.
func (r *runner) call(force context.Context) result {
	// A broker or a server that was out of reach for a whole call, from the start
	// on, is most likely misconfigured: the other calls need not wait one by one.
	if r.expired.Load() && !r.served.Load() {
		return result{key: amqpx.CodeUnavailable.String(), err: errNeverAnswered}
	}
	ctx, cancel := context.WithTimeout(force, r.settings.Timeout)
	defer cancel()
	start := time.Now()
	answer, err := r.link.Call(ctx, r.settings.Method, []byte(r.settings.Body))
	latency := time.Since(start)
	var coded *amqpx.Error
	switch {
	case err == nil, errors.As(err, &coded) && coded.Remote():
		r.served.Store(true)
	case errors.Is(err, context.DeadlineExceeded):
		r.expired.Store(true)
	}
	switch {
	case err != nil:
		return result{key: amqpx.CodeOf(err).String(), err: err}
	case string(answer) != r.settings.Expect:
		return result{key: keyMismatched, err: mismatch(answer, r.settings.Expect)}
	default:
		return result{latency: latency}
	}
}

func mismatch(answer []byte, want string) error {
	const most = 80
	return fmt.Errorf("answer of %d bytes %.*q, want %.*q", len(answer), most, answer, most, want)
}

// collect counts results until the last one, or until no call settles any more.
// It calls cut when drain ended and patience ran out.
func (r *runner) collect(drain context.Context, cut func(), t *tally) {
	stall := time.NewTicker(r.settings.Timeout + stallGrace)
	defer stall.Stop()
	defer r.progress.finish()
	interrupted := drain.Done()
	var impatient <-chan time.Time
	before := int64(-1)
	for {
		select {
		case res, open := <-r.results:
			if !open {
				return
			}
			r.record(t, res)
		case <-interrupted:
			interrupted, impatient = nil, time.After(patience)
			r.logger.Info("interrupted: no new calls, waiting for those under way")
		case <-impatient:
			r.logger.Warn("calls under way are cut off", zap.Duration("waited", patience))
			cut()
		case <-stall.C:
			// Whatever was under way at the last tick should have settled by now.
			if t.settled() == before {
				r.logger.Error("calls did not settle", zap.Duration("silence", r.settings.Timeout+stallGrace))
				return
			}
			before = t.settled()
		}
	}
}

// record counts one result. The first failure of each kind is worth a line; the
// others are in the report, and at debug level in the log.
func (r *runner) record(t *tally, res result) {
	t.add(res)
	if res.err != nil {
		level := zap.DebugLevel
		if t.errors[res.key] == 1 {
			level = zap.WarnLevel
		}
		r.logger.Log(level, "call failed", zap.String("code", res.key), zap.Error(res.err))
	}
	r.progress.step(t)
}
