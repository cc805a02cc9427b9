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

// sampleEvery is of how many calls one asks the server for its times. Asking costs a call
// that travels alone an eighth of its throughput, so this costs about 1 %.
const sampleEvery = 10

// keyMismatched is the key of answers that were not the expected one, among the
// codes of the errors.
const keyMismatched = "mismatched"

var (
	errNeverAnswered = errors.New("no call was answered since the start, and no server can be found")
	errTimeOver      = errors.New("the time of the run is over")
)

// caller is the part of [amqpx.Client] that calls are made with.
type caller interface {
	Call(ctx context.Context, method string, body []byte, opts ...amqpx.CallOption) ([]byte, error)
	Ping(ctx context.Context) (took time.Duration, err error)
	Consumers(ctx context.Context) (int, error)
}

// result is how one call ended.
type result struct {
	// latency is set for expected answers only.
	latency time.Duration
	// key is empty for the expected answer, else an error code or keyMismatched.
	key string
	err error
	// ended is when, counted from the start; late is how long after it was due it began.
	ended, late time.Duration
	// info is there for calls that asked the server for its times.
	info *amqpx.CallInfo
}

// runner makes the planned calls. Use it once.
type runner struct {
	settings *Config
	goal     goal
	link     caller
	progress progress
	logger   *zap.Logger
	pace     pace
	start    time.Time

	// taken counts the calls that were begun; it may pass goal.calls.
	taken atomic.Int64
	// served is set by the first answer, right or wrong.
	served atomic.Bool
	// silent counts the calls that waited out their deadlines since the last search for a
	// server; searching says that one is under way.
	silent    atomic.Int64
	searching atomic.Bool
	// stop ends the beginning of calls.
	stop context.CancelCauseFunc
	// results is closed when every worker has ended.
	results chan result
	// abandoned is closed when nobody reads results any more.
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

// run makes the calls and returns how they ended. The end of drain stops it from
// beginning more; the end of force, or of the patience after drain, cuts off those
// under way. It returns at the latest when no call has settled for twice the calls'
// timeout and grace.
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
		// Ends when all calls are begun, begin ends, or the results are abandoned.
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
		default: // it was abandoned before its end
			t.schedule = r.scheduled(t.calls)
		}
	}
	cause := context.Cause(begin)
	t.givenUp = errors.Is(cause, errNeverAnswered)
	t.interrupted = drain.Err() != nil && !errors.Is(cause, errTimeOver) && !t.givenUp
	return t
}

// call makes call n, which was due at a moment, bounded by its timeout.
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
	// enoughSilence is how many calls must wait out their deadlines, without any answer,
	// before servers are searched for. One call may have been swallowed by a faulty server.
	enoughSilence = 3
	// searchTimeout bounds the search.
	searchTimeout = 2 * time.Second
)

// noteSilence counts a call that waited out its deadline. A broker, or servers, that are out
// of reach from the start on are most likely misconfigured: when several calls were silent and
// no server can be found, the run ends, as the other calls would only wait one by one.
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

// findsServer reports whether a server answers a ping, or any program consumes the queue.
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
