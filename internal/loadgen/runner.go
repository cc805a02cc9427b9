package loadgen

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

// isSampled reports whether call n asks the server for times: every tenth of the first 10,000 calls,
// then every hundredth, because every tenth took 1 to 3 % of the calls/s of a long run without
// batches.
func isSampled(n int64) bool {
	const often, until, seldom = 10, 10_000, 100
	return n%seldom == 0 || n < until && n%often == 0
}

// KeyMismatched counts unexpected results, next to the codes of the errors.
const KeyMismatched = "mismatched"

var (
	errNeverAnswered = errors.New("no call got a response since the start, and no server can be found")
	errTimeOver      = errors.New("the time of the run is over")
)

// Client is the part of [amqpx.Client] that makes calls. A call has the client's own timeout,
// which costs less than a context for each call.
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
	// Timeout is the client's timeout of each call. A run in which no call settles for longer
	// ends.
	Timeout time.Duration
}

// Runner makes the planned calls. A runner is used only once.
type Runner struct {
	options  Options
	body     []byte
	client   Client
	progress Progress
	logger   *zap.Logger
	loop     Loop

	recorders *callRecorders
	// failed has the kinds of failures so far.
	failed sync.Map
	// settled counts the settled calls of a run that ends by number; steps has a token when a
	// further tenth of them has settled.
	settled atomic.Int64
	steps   chan struct{}

	// served is set by the first response, expected or not.
	served atomic.Bool
	// silent counts the calls that reached their deadlines since the last search for a server;
	// searching is true during a search.
	silent    atomic.Int64
	searching atomic.Bool
	// stop prevents further calls from starting.
	stop context.CancelCauseFunc
	// ended is closed when every caller has ended.
	ended chan struct{}
}

// NewRunner returns a runner that makes calls with client and shows the progress with p.
func NewRunner(options Options, client Client, p Progress, logger *zap.Logger) *Runner {
	return &Runner{
		options:  options,
		body:     []byte(options.Body),
		client:   client,
		progress: p,
		logger:   logger,
		loop:     Loop{Workload: options.Workload, Pacer: NewPacer()},
		steps:    make(chan struct{}, 1),
		ended:    make(chan struct{}),
	}
}

// Run makes the calls and returns their results. When drain ends, no further calls start; when
// force ends, or the patience after drain runs out, the calls in progress are canceled. Run
// returns at the latest when no call has settled for twice the sum of the calls' timeout and
// the grace.
func (r *Runner) Run(drain, force context.Context) *Results {
	t := NewResults()
	r.recorders = newCallRecorders(t.Timeline)
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
	r.loop.NewCaller = func() Caller { return r.newCaller(force) }
	// Ends with the callers: when all calls are started, begin ends, or the recorders are
	// closed.
	go func() {
		r.loop.Run(begin)
		close(r.ended)
	}()
	r.collect(drain, cut, t)
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

// newCaller returns a caller, which prepares once what its calls share.
func (r *Runner) newCaller(force context.Context) Caller {
	recorder, info := r.recorders.next(), new(amqpx.CallInfo)
	asking := []amqpx.CallOption{amqpx.WithCallInfo(info)}
	return func(n int64, due time.Time) bool {
		var res Result
		var options []amqpx.CallOption
		if isSampled(n) {
			*info = amqpx.CallInfo{}
			res.Info, options = info, asking
		}
		r.call(force, &res, due, options)
		if !recorder.add(res) {
			return false
		}
		if res.Err != nil {
			r.logFailure(res)
		}
		r.countSettled()
		return true
	}
}

// call makes a call that was due at the given time, and sets its result.
func (r *Runner) call(force context.Context, res *Result, due time.Time, options []amqpx.CallOption) {
	if r.options.Workload.Open() {
		res.Late = time.Since(due)
	}
	response, err := r.client.Call(force, r.options.Method, r.body, options...)
	end := time.Now()
	res.Ended = end.Sub(r.loop.Start)
	var coded *amqpx.Error
	switch {
	case err == nil, errors.As(err, &coded) && coded.Remote():
		if !r.served.Load() { // a write for each call would move the variable between processors
			r.served.Store(true)
		}
	case errors.Is(err, context.DeadlineExceeded):
		r.noteSilence(force)
	}
	switch {
	case err != nil:
		res.Key, res.Err = amqpx.CodeOf(err).String(), err
	case string(response) != r.options.Expect:
		res.Key, res.Err = KeyMismatched, mismatch(response, r.options.Expect)
	default:
		res.Latency = end.Sub(due)
	}
}

// logFailure logs the first failure of each kind as a warning; further failures are in the
// report, and in the log at debug level.
func (r *Runner) logFailure(res Result) {
	level := zap.WarnLevel
	if _, seen := r.failed.LoadOrStore(res.Key, true); seen {
		level = zap.DebugLevel
	}
	r.logger.Log(level, "call failed", zap.String("code", res.Key), zap.Error(res.Err))
}

// countSettled counts a recorded result, and wakes the collector at each tenth of a run that
// ends by number.
func (r *Runner) countSettled() {
	if !r.options.Workload.Counted() {
		return
	}
	const parts = 10
	calls, n := r.options.Workload.Calls, r.settled.Add(1)
	if n*parts/calls != (n-1)*parts/calls {
		select {
		case r.steps <- struct{}{}:
		default: // the collector is about to look
		}
	}
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

func mismatch(response []byte, want string) error {
	const most = 80
	return fmt.Errorf("response of %d bytes %.*q, want %.*q", len(response), most, response, most, want)
}
