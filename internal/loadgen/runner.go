package loadgen

import (
	"context"
	"errors"
	"fmt"
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
	errNeverAnswered = errors.New("no call got a response since the start, and no server can be found")
	errTimeOver      = errors.New("the time of the run is over")
)

// Client is the part of [amqpx.Client] that makes calls.
type Client interface {
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

// Options defines the calls of a run.
type Options struct {
	Workload Workload
	Method   string
	Body     string
	// Expect is the expected result of every call.
	Expect string
	// Timeout is the timeout of each call.
	Timeout time.Duration
}

// Runner makes the planned calls. A runner is used only once.
type Runner struct {
	options  Options
	client   Client
	progress Progress
	logger   *zap.Logger
	loop     Loop

	// served is set by the first response, expected or not.
	served atomic.Bool
	// silent counts the calls that reached their deadlines since the last search for a server;
	// searching is true during a search.
	silent    atomic.Int64
	searching atomic.Bool
	// stop prevents further calls from starting.
	stop context.CancelCauseFunc
	// results is closed when every caller has ended.
	results chan Result
	// abandoned is closed when results has no reader any more.
	abandoned chan struct{}
}

// NewRunner returns a runner that makes calls with client and shows the progress with p.
func NewRunner(options Options, client Client, p Progress, logger *zap.Logger) *Runner {
	return &Runner{
		options:   options,
		client:    client,
		progress:  p,
		logger:    logger,
		loop:      Loop{Workload: options.Workload, Pacer: NewPacer()},
		results:   make(chan Result, options.Workload.InFlight),
		abandoned: make(chan struct{}),
	}
}

// Run makes the calls and returns their results. When drain ends, no further calls start; when
// force ends, or the patience after drain runs out, the calls in progress are canceled. Run
// returns at the latest when no call has settled for twice the sum of the calls' timeout and
// the grace.
func (r *Runner) Run(drain, force context.Context) *Results {
	t := NewResults()
	begin, stop := context.WithCancelCause(drain)
	defer stop(nil)
	r.stop = stop
	w := r.options.Workload
	if w.Duration > 0 {
		defer time.AfterFunc(w.Duration, func() { stop(errTimeOver) }).Stop()
	}
	force, cut := context.WithCancel(force)
	defer cut()
	r.loop.Start = t.Start
	r.loop.Call = func(n int64, due time.Time) bool { return r.deliver(r.call(force, n, due)) }
	// Ends with the callers: when all calls are started, begin ends, or the results are
	// abandoned.
	go func() {
		r.loop.Run(begin)
		close(r.results)
	}()
	r.collect(drain, cut, t)
	close(r.abandoned)
	t.Elapsed = time.Since(t.Start)
	t.Calls = r.loop.Begun()
	if w.Open() {
		t.Schedule = r.loop.Schedule()
	}
	cause := context.Cause(begin)
	t.GivenUp = errors.Is(cause, errNeverAnswered)
	t.Interrupted = drain.Err() != nil && !errors.Is(cause, errTimeOver) && !t.GivenUp
	return t
}

// deliver sends a result and reports whether the result was received.
func (r *Runner) deliver(res Result) bool {
	select {
	case r.results <- res:
		return true
	case <-r.abandoned:
		return false
	}
}

// call makes call n, which was due at the given time, with the configured timeout.
func (r *Runner) call(force context.Context, n int64, due time.Time) Result {
	ctx, cancel := context.WithTimeout(force, r.options.Timeout)
	defer cancel()
	res := Result{Late: time.Since(due)}
	var options []amqpx.CallOption
	if n%sampleEvery == 0 {
		res.Info = new(amqpx.CallInfo)
		options = []amqpx.CallOption{amqpx.WithCallInfo(res.Info)}
	}
	answer, err := r.client.Call(ctx, r.options.Method, []byte(r.options.Body), options...)
	end := time.Now()
	res.Ended = end.Sub(r.loop.Start)
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
	case string(answer) != r.options.Expect:
		res.Key, res.Err = KeyMismatched, mismatch(answer, r.options.Expect)
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
	if consumers, err := r.client.Consumers(ctx); err == nil && consumers > 0 {
		return true
	}
	_, err := r.client.Ping(ctx)
	return err == nil
}

func mismatch(answer []byte, want string) error {
	const most = 80
	return fmt.Errorf("response of %d bytes %.*q, want %.*q", len(answer), most, answer, most, want)
}
