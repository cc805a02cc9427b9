package loadgen

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
)

// fake is a client whose calls return the results of the function response.
type fake struct {
	response func(ctx context.Context, n int64) ([]byte, error)
	timeout  time.Duration // of calls; 0: that of plan
	// consumers and pings are the results of a search for servers.
	consumers int
	pings     bool
	searches  atomic.Int64

	calls, underWay, most atomic.Int64
}

func (f *fake) Call(ctx context.Context, method string, body []byte, _ ...amqpx.CallOption) ([]byte, error) {
	n := f.calls.Add(1)
	now := f.underWay.Add(1)
	defer f.underWay.Add(-1)
	for most := f.most.Load(); now > most && !f.most.CompareAndSwap(most, now); most = f.most.Load() {
	}
	if method != "b" || string(body) != "request" {
		return nil, amqpx.Errorf(amqpx.CodeInvalidArgument, "called %q with %q", method, body)
	}
	if _, ok := ctx.Deadline(); ok {
		return nil, errors.New("the call has a deadline of its own")
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(f.timeout, time.Second))
	defer cancel()
	return f.response(ctx, n)
}

func (f *fake) Ping(context.Context) (time.Duration, error) {
	if !f.pings {
		return 0, amqpx.Errorf(amqpx.CodeUnavailable, "no server responded")
	}
	return time.Millisecond, nil
}

func (f *fake) Consumers(context.Context) (int, error) {
	f.searches.Add(1)
	return f.consumers, nil
}

func good(context.Context, int64) ([]byte, error) { return []byte("b"), nil }

// plan returns the options of a closed loop.
func plan(calls int64, callers int) Options {
	return Options{
		Workload: Workload{Calls: calls, InFlight: callers}, Method: "b", Body: "request", Expect: "b", Timeout: time.Second,
	}
}

// openPlan returns the options of an open loop.
func openPlan(calls, rate int64) Options {
	options := plan(calls, OpenInFlight)
	options.Workload.Rate = rate
	return options
}

// silent is a progress without output.
type silent struct {
	steps, finished int
	settled         int64 // at the last step
}

func (s *silent) Every() time.Duration { return 0 }
func (s *silent) Tick(*Results)        {}
func (s *silent) Step(t *Results)      { s.steps, s.settled = s.steps+1, t.Settled() }
func (s *silent) Finish(*Results)      { s.finished++ }

func check(t *testing.T, got *Results, calls, ok int64, errs map[string]int64) {
	t.Helper()
	if got.Calls != calls || got.OK != ok || !maps.Equal(got.Errors, errs) {
		t.Errorf("calls %d, ok %d, errors %v; want %d, %d, %v", got.Calls, got.OK, got.Errors, calls, ok, errs)
	}
}

func TestRunAllOK(t *testing.T) {
	t.Parallel()
	for _, concurrency := range []int{1, 7, 64} {
		synctest.Test(t, func(t *testing.T) {
			f := &fake{response: func(context.Context, int64) ([]byte, error) {
				<-time.After(2 * time.Millisecond)
				return []byte("b"), nil
			}}
			p := &silent{}
			got := NewRunner(plan(50, concurrency), f, p, zap.NewNop()).Run(t.Context(), t.Context())
			check(t, got, 50, 50, map[string]int64{})
			if most := f.most.Load(); most != min(50, int64(concurrency)) {
				t.Errorf("%d calls at once, want %d", most, concurrency)
			}
			if p.steps < 1 || p.steps > 10 || concurrency == 1 && p.steps != 10 || p.settled != 50 || p.finished != 1 {
				t.Errorf("progress saw %d steps, %d calls and %d ends", p.steps, p.settled, p.finished)
			}
			if mean := got.Latency.Mean().Round(100 * time.Microsecond); mean != 2*time.Millisecond {
				t.Errorf("mean latency %v, want 2ms", mean)
			}
			rounds := time.Duration((50 + concurrency - 1) / concurrency)
			if got.Elapsed != rounds*2*time.Millisecond {
				t.Errorf("took %v, want %v", got.Elapsed, rounds*2*time.Millisecond)
			}
		})
	}
}

func TestRunCountsByKind(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	f := &fake{response: func(_ context.Context, n int64) ([]byte, error) {
		switch n % 5 {
		case 0:
			return nil, amqpx.Errorf(amqpx.CodeUnimplemented, "no such function")
		case 1:
			return []byte("wrong"), nil
		case 2:
			return nil, context.DeadlineExceeded
		case 3:
			return nil, errors.New("something else")
		default:
			return []byte("b"), nil
		}
	}}
	got := NewRunner(plan(50, 3), f, &silent{}, zap.New(core)).Run(t.Context(), t.Context())
	check(t, got, 50, 10, map[string]int64{
		"unimplemented": 10, "mismatched": 10, "deadline_exceeded": 10, "unknown": 10,
	})
	if got.Latency.Count() != 10 {
		t.Errorf("%d latencies, want those of the expected responses", got.Latency.Count())
	}
	failures := logs.FilterMessage("call failed")
	if warned := failures.FilterLevelExact(zap.WarnLevel).Len(); warned != 4 || failures.Len() != 40 {
		t.Errorf("%d failures logged, %d as warnings; want 40 and 4", failures.Len(), warned)
	}
}

func TestRunInterrupted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		drain, interrupt := context.WithCancel(t.Context())
		f := &fake{}
		f.response = func(ctx context.Context, n int64) ([]byte, error) {
			if n == 5 {
				interrupt()
			}
			select {
			case <-time.After(time.Millisecond):
				return []byte("b"), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		got := NewRunner(plan(100, 2), f, &silent{}, zap.New(core)).Run(drain, t.Context())
		if got.Calls != got.OK || got.Calls < 5 || got.Calls > 6 || !got.Interrupted {
			t.Errorf("calls %d, ok %d, interrupted %v", got.Calls, got.OK, got.Interrupted)
		}
		if got.Calls != f.calls.Load() {
			t.Errorf("%d calls counted, %d made", got.Calls, f.calls.Load())
		}
		if n := logs.FilterMessageSnippet("interrupted").Len(); n != 1 {
			t.Errorf("the interruption was logged %d times", n)
		}
	})
}

func TestRunForced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		force, cancel := context.WithCancel(t.Context())
		drain, interrupt := context.WithCancel(force)
		f := &fake{response: func(ctx context.Context, _ int64) ([]byte, error) {
			interrupt()
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		time.AfterFunc(300*time.Millisecond, cancel)
		got := NewRunner(plan(100, 4), f, &silent{}, zap.NewNop()).Run(drain, force)
		if got.Errors["canceled"] != got.Calls || got.Calls < 1 || got.Elapsed != 300*time.Millisecond {
			t.Errorf("calls %d, errors %v after %v", got.Calls, got.Errors, got.Elapsed)
		}
	})
}

func TestRunInterruptedLosesPatience(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		drain, interrupt := context.WithCancel(t.Context())
		f := &fake{response: func(ctx context.Context, _ int64) ([]byte, error) {
			interrupt()
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		options := plan(100, 2)
		options.Timeout, f.timeout = time.Hour, time.Hour
		got := NewRunner(options, f, &silent{}, zap.NewNop()).Run(drain, t.Context())
		if got.Errors["canceled"] != got.Calls || got.Calls < 1 || got.Elapsed != patience {
			t.Errorf("calls %d, errors %v after %v", got.Calls, got.Errors, got.Elapsed)
		}
	})
}

func TestRunNeverAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{response: func(ctx context.Context, _ int64) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		got := NewRunner(plan(1000, 1), f, &silent{}, zap.NewNop()).Run(t.Context(), t.Context())
		check(t, got, enoughSilence, 0, map[string]int64{"deadline_exceeded": enoughSilence})
		if got.Elapsed != enoughSilence*time.Second || !got.GivenUp || got.Interrupted {
			t.Errorf("took %v, want %d calls' timeouts; given up: %v, interrupted: %v", got.Elapsed, enoughSilence, got.GivenUp, got.Interrupted)
		}
	})
}

// A call swallowed by one faulty server proves nothing about other servers; nor do several
// such calls while a server can be found.
func TestRunGoesOnWhileServersCanBeFound(t *testing.T) {
	t.Parallel()
	swallowed := func(n int64) func(context.Context, int64) ([]byte, error) {
		return func(ctx context.Context, call int64) ([]byte, error) {
			if call > n {
				return []byte("b"), nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}
	}
	for name, c := range map[string]struct {
		f                *fake
		silent, searches int64
	}{
		"one call":              {&fake{response: swallowed(1)}, 1, 0},
		"two calls":             {&fake{response: swallowed(2)}, 2, 0},
		"the queue is consumed": {&fake{response: swallowed(7), consumers: 1}, 7, 2},
		"a server answers":      {&fake{response: swallowed(7), pings: true}, 7, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				got := NewRunner(plan(100, 1), c.f, &silent{}, zap.NewNop()).Run(t.Context(), t.Context())
				check(t, got, 100, 100-c.silent, map[string]int64{"deadline_exceeded": c.silent})
				if n := c.f.searches.Load(); n != c.searches || got.GivenUp {
					t.Errorf("searched %d times, want %d; given up: %v", n, c.searches, got.GivenUp)
				}
			})
		})
	}
}

func TestRunWaitsAgainOnceAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{response: func(ctx context.Context, n int64) ([]byte, error) {
			if n == 1 {
				return []byte("b"), nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		got := NewRunner(plan(4, 1), f, &silent{}, zap.NewNop()).Run(t.Context(), t.Context())
		check(t, got, 4, 1, map[string]int64{"deadline_exceeded": 3})
		if got.Elapsed != 3*time.Second {
			t.Errorf("took %v, want three timeouts", got.Elapsed)
		}
	})
}

// A call that never returns would be a fault of the library. The call is reported as lost, and
// the run ends nevertheless.
func TestRunLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		released := make(chan struct{})
		defer close(released)
		core, logs := observer.New(zap.ErrorLevel)
		f := &fake{response: func(_ context.Context, n int64) ([]byte, error) {
			if n == 3 || n == 7 {
				<-released
			}
			return []byte("b"), nil
		}}
		got := NewRunner(plan(20, 4), f, &silent{}, zap.New(core)).Run(t.Context(), t.Context())
		check(t, got, 20, 18, map[string]int64{})
		if limit := 2 * (time.Second + stallGrace); got.Elapsed > limit {
			t.Errorf("took %v, more than %v", got.Elapsed, limit)
		}
		if logs.Len() != 1 {
			t.Errorf("logged %v", logs.All())
		}
	})
}
