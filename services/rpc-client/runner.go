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

// KeyMismatched counts unexpected results, next to the codes of the errors.
const KeyMismatched = "mismatched"

var (
	errNeverAnswered = errors.New("no call was answered since the start, and no server can be found")
	errTimeOver      = errors.New("the time of the run is over")
)

// Caller is the part of [amqpx.Client] that makes calls.
type Caller interface {
	Call(ctx context.Context, method string, body []byte, opts ...amqpx.CallOption) ([]byte, error)
	Ping(ctx context.Context) (took time.Duration, err error)
	Consumers(ctx context.Context) (int, error)
}

// Result is the result of one call.
type Result struct {
	// Latency is set only for expected results.
	Latency time.Duration
	// Key is empty for the expected result, else an error code or KeyMismatched.
	Key string
	Err error
	// Ended is the time of the result, counted from the start; Late is the delay of the call's
	// start after it was due.
	Ended, Late time.Duration
	// Info is set for calls that asked the server for its times.
	Info *amqpx.CallInfo
}

// Runner makes the planned calls. A runner is used only once.
type Runner struct {
	settings *Config
	workload Workload
	link     Caller
	progress Progress
	logger   *zap.Logger
	pacer    Pacer
	start    time.Time

	// taken counts the started calls; it may exceed Workload.Calls.
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
	results chan Result
	// abandoned is closed when results has no reader any more.
	abandoned chan struct{}
}

func NewRunner(settings *Config, link Caller, p Progress, logger *zap.Logger) *Runner {
	g := settings.workload()
	return &Runner{
		settings:  settings,
		workload:  g,
		link:      link,
		progress:  p,
		logger:    logger,
		pacer:     NewPacer(),
		results:   make(chan Result, g.InFlight),
		abandoned: make(chan struct{}),
	}
}

// Run makes the calls and returns their results. When drain ends, no further calls
// start; when force ends, or the patience after drain runs out, the calls in progress are
// canceled. Run returns at the latest when no call has settled for twice the sum of the calls'
// timeout and the grace.
func (r *Runner) Run(drain, force context.Context) *Results {
	t := NewResults()
	r.start = t.Start
	begin, stop := context.WithCancelCause(drain)
	defer stop(nil)
	r.stop = stop
	if r.workload.Duration > 0 {
		defer time.AfterFunc(r.workload.Duration, func() { stop(errTimeOver) }).Stop()
	}
	force, cut := context.WithCancel(force)
	defer cut()
	var workers sync.WaitGroup
	schedules := make(chan Schedule, 1)
	if r.workload.Open() {
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
	t.Elapsed = time.Since(t.Start)
	t.Calls = min(r.taken.Load(), r.workload.Calls)
	if r.workload.Open() {
		select {
		case t.Schedule = <-schedules:
		default: // the schedule was abandoned before its end
			t.Schedule = r.scheduled(t.Calls)
		}
	}
	cause := context.Cause(begin)
	t.GivenUp = errors.Is(cause, errNeverAnswered)
	t.Interrupted = drain.Err() != nil && !errors.Is(cause, errTimeOver) && !t.GivenUp
	return t
}

// call makes call n, which was due at the given time, with the configured timeout.
func (r *Runner) call(force context.Context, n int64, due time.Time) Result {
	ctx, cancel := context.WithTimeout(force, r.settings.Timeout)
	defer cancel()
	res := Result{Late: time.Since(due)}
	var options []amqpx.CallOption
	if n%sampleEvery == 0 {
		res.Info = new(amqpx.CallInfo)
		options = []amqpx.CallOption{amqpx.WithCallInfo(res.Info)}
	}
	answer, err := r.link.Call(ctx, r.settings.Method, []byte(r.settings.Body), options...)
	end := time.Now()
	res.Ended = end.Sub(r.start)
	var coded *amqpx.Error
	switch {
	case err == nil, errors.As(err, &coded) && coded.Remote():
		r.served.Store(true)
	case errors.Is(err, context.DeadlineExceeded):
		r.noteSilence(force)
	}
	switch {
	case err != nil:
		res.Key, res.Err = amqpx.CodeOf(err).String(), err
	case string(answer) != r.settings.Expect:
		res.Key, res.Err = KeyMismatched, mismatch(answer, r.settings.Expect)
	default:
		res.Latency = end.Sub(due)
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
func (r *Runner) noteSilence(ctx context.Context) {
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
func (r *Runner) findsServer(ctx context.Context) bool {
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
