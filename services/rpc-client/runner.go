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

// sampleEvery is the interval, in calls, at which a call asks the server for its times. Asking
// costs a call that is not batched an eighth of its throughput, so sampling costs about 1 %.
const sampleEvery = 10

// keyMismatched counts unexpected results, next to the codes of the errors.
const keyMismatched = "mismatched"

var (
	errNeverAnswered = errors.New("no call was answered since the start, and no server can be found")
	errTimeOver      = errors.New("the time of the run is over")
)

// caller is the part of [amqpx.Client] that makes calls.
type caller interface {
	Call(ctx context.Context, method string, body []byte, opts ...amqpx.CallOption) ([]byte, error)
	Ping(ctx context.Context) (took time.Duration, err error)
	Consumers(ctx context.Context) (int, error)
}

// result is the result of one call.
type result struct {
	// latency is set only for expected results.
	latency time.Duration
	// key is empty for the expected result, else an error code or keyMismatched.
	key string
	err error
	// ended is the time of the result, counted from the start; late is the delay of the call's
	// start after it was due.
	ended, late time.Duration
	// info is set for calls that asked the server for its times.
	info *amqpx.CallInfo
}

// runner makes the planned calls. A runner is used only once.
type runner struct {
	settings *Config
	goal     goal
	link     caller
	progress progress
	logger   *zap.Logger
	pace     pace
	start    time.Time

	// taken counts the started calls; it may exceed goal.calls.
	taken atomic.Int64
	// served is set by the first response, expected or not.
	served atomic.Bool
	// silent counts the calls that reached their deadlines since the last search for a server;
	// searching is true during a search.
	silent    atomic.Int64
	searching atomic.Bool
	// stop prevents further calls from starting.
	stop context.CancelCauseFunc
	// results is closed when every worker has ended.
	results chan result
	// abandoned is closed when results has no reader any more.
	abandoned chan struct{}
}

func newRunner(settings *Config, link caller, p progress, logger *zap.Logger) *runner {
	g := settings.goal()
	return &runner{
		settings:  settings,
		goal:      g,
		link:      link,
		progress:  p,
		logger:    logger,
		pace:      newPace(),
		results:   make(chan result, g.inFlight),
		abandoned: make(chan struct{}),
	}
}

// run makes the calls and returns the tally of results. When drain ends, no further calls
// start; when force ends, or the patience after drain runs out, the calls in progress are
// canceled. run returns at the latest when no call has settled for twice the sum of the calls'
// timeout and the grace.
func (r *runner) run(drain, force context.Context) *tally {
	t := newTally()
	r.start = t.start
	begin, stop := context.WithCancelCause(drain)
	defer stop(nil)
	r.stop = stop
	if r.goal.duration > 0 {
		defer time.AfterFunc(r.goal.duration, func() { stop(errTimeOver) }).Stop()
	}
	force, cut := context.WithCancel(force)
	defer cut()
	var workers sync.WaitGroup
	schedules := make(chan schedule, 1)
	if r.goal.open() {
		// Ends when all calls are started, begin ends, or the results are abandoned.
		workers.Go(func() { schedules <- r.scheduled(r.open(begin, force, &workers)) })
	} else {
		r.closed(begin, force, &workers)
	}
	// Ends with the workers.
	go func() {
		workers.Wait()
		close(r.results)
	}()
	r.collect(drain, cut, t)
	close(r.abandoned)
	t.elapsed = time.Since(t.start)
	t.calls = min(r.taken.Load(), r.goal.calls)
	if r.goal.open() {
		select {
		case t.schedule = <-schedules:
		default: // the schedule was abandoned before its end
			t.schedule = r.scheduled(t.calls)
		}
	}
	cause := context.Cause(begin)
	t.givenUp = errors.Is(cause, errNeverAnswered)
	t.interrupted = drain.Err() != nil && !errors.Is(cause, errTimeOver) && !t.givenUp
	return t
}

// call makes call n, which was due at the given time, with the configured timeout.
func (r *runner) call(force context.Context, n int64, due time.Time) result {
	ctx, cancel := context.WithTimeout(force, r.settings.Timeout)
	defer cancel()
	res := result{late: time.Since(due)}
	var options []amqpx.CallOption
	if n%sampleEvery == 0 {
		res.info = new(amqpx.CallInfo)
		options = []amqpx.CallOption{amqpx.WithCallInfo(res.info)}
	}
	answer, err := r.link.Call(ctx, r.settings.Method, []byte(r.settings.Body), options...)
	end := time.Now()
	res.ended = end.Sub(r.start)
	var coded *amqpx.Error
	switch {
	case err == nil, errors.As(err, &coded) && coded.Remote():
		r.served.Store(true)
	case errors.Is(err, context.DeadlineExceeded):
		r.noteSilence(force)
	}
	switch {
	case err != nil:
		res.key, res.err = amqpx.CodeOf(err).String(), err
	case string(answer) != r.settings.Expect:
		res.key, res.err = keyMismatched, mismatch(answer, r.settings.Expect)
	default:
		res.latency = end.Sub(due)
	}
	return res
}

const (
	// enoughSilence is the number of calls that must reach their deadlines, without any
	// response, before servers are searched for. A faulty server may have swallowed a single
	// call.
	enoughSilence = 3
	// searchTimeout limits the search.
	searchTimeout = 2 * time.Second
)

// noteSilence counts a call that reached its deadline. If a broker or servers are unreachable
// from the start, the settings are most likely wrong. Therefore, if several calls got no
// response and no server can be found, the run ends; further calls would only time out one by
// one.
func (r *runner) noteSilence(ctx context.Context) {
	if r.silent.Add(1) < enoughSilence || r.served.Load() || !r.searching.CompareAndSwap(false, true) {
		return
	}
	defer r.searching.Store(false)
	if !r.findsServer(ctx) && !r.served.Load() {
		r.stop(errNeverAnswered)
	}
	r.silent.Store(0)
}

// findsServer reports whether a server responds to a ping, or any program consumes the queue.
func (r *runner) findsServer(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, searchTimeout)
	defer cancel()
	if consumers, err := r.link.Consumers(ctx); err == nil && consumers > 0 {
		return true
	}
	_, err := r.link.Ping(ctx)
	return err == nil
}

func mismatch(answer []byte, want string) error {
	const most = 80
	return fmt.Errorf("answer of %d bytes %.*q, want %.*q", len(answer), most, answer, most, want)
}
