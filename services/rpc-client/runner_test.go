package main

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
)

// fake is a client whose calls return the results of the function answer.
type fake struct {
	answer   func(ctx context.Context, n int64) ([]byte, error)
	status   amqpx.Status
	stats    amqpx.ClientStats
	notReady error
	// consumers and pings are the results of a search for servers.
	consumers int
	pings     bool
	searches  atomic.Int64
	closeErr  error

	calls, underWay, most atomic.Int64
	closed                atomic.Bool
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
	return f.answer(ctx, n)
}

func (f *fake) Ping(context.Context) (time.Duration, error) {
	if !f.pings {
		return 0, amqpx.Errorf(amqpx.CodeUnavailable, "no server answered")
	}
	return time.Millisecond, nil
}

func (f *fake) Consumers(context.Context) (int, error) {
	f.searches.Add(1)
	return f.consumers, nil
}

func (f *fake) Status() amqpx.Status { return f.status }
func (f *fake) Watch() (<-chan amqpx.Status, func()) {
	updates := make(chan amqpx.Status, 1)
	updates <- f.status
	return updates, func() {}
}
func (f *fake) Stats() amqpx.ClientStats          { return f.stats }
func (f *fake) WaitReady(context.Context) error   { return f.notReady }
func (f *fake) Close(context.Context) error       { f.closed.Store(true); return f.closeErr }
func good(context.Context, int64) ([]byte, error) { return []byte("b"), nil }

// connected returns the status of a client that has connected.
func connected() amqpx.Status { return amqpx.Status{State: amqpx.StateReady, Generation: 1} }

func plan(calls, concurrency int) *Config {
	return &Config{
		Method: "b", Body: "request", Expect: "b", Calls: calls, Concurrency: concurrency, Timeout: time.Second,
	}
}

// silent is a progress without output.
type silent struct{ steps, finished int }

func (s *silent) Every() time.Duration { return 0 }
func (s *silent) Tick(*Results)        {}
func (s *silent) Step(*Results)        { s.steps++ }
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
			f := &fake{status: connected(), answer: func(ctx context.Context, _ int64) ([]byte, error) {
				if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) != time.Second {
					return nil, errors.New("the call has not the configured deadline")
				}
				<-time.After(2 * time.Millisecond)
				return []byte("b"), nil
			}}
			p := &silent{}
			got := NewRunner(plan(50, concurrency).calls(), f, p, zap.NewNop()).Run(t.Context(), t.Context())
			check(t, got, 50, 50, map[string]int64{})
			if most := f.most.Load(); most != min(50, int64(concurrency)) {
				t.Errorf("%d calls at once, want %d", most, concurrency)
			}
			if p.steps != 50 || p.finished != 1 {
				t.Errorf("progress saw %d steps and %d ends", p.steps, p.finished)
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
	f := &fake{status: connected(), answer: func(_ context.Context, n int64) ([]byte, error) {
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
	got := NewRunner(plan(50, 3).calls(), f, &silent{}, zap.New(core)).Run(t.Context(), t.Context())
	check(t, got, 50, 10, map[string]int64{
		"unimplemented": 10, "mismatched": 10, "deadline_exceeded": 10, "unknown": 10,
	})
	if got.Latency.Count() != 10 {
		t.Errorf("%d latencies, want those of the expected answers", got.Latency.Count())
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
		f := &fake{status: connected()}
		f.answer = func(ctx context.Context, n int64) ([]byte, error) {
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
		got := NewRunner(plan(100, 2).calls(), f, &silent{}, zap.New(core)).Run(drain, t.Context())
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
		f := &fake{status: connected(), answer: func(ctx context.Context, _ int64) ([]byte, error) {
			interrupt()
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		time.AfterFunc(300*time.Millisecond, cancel)
		got := NewRunner(plan(100, 4).calls(), f, &silent{}, zap.NewNop()).Run(drain, force)
		if got.Errors["canceled"] != got.Calls || got.Calls < 1 || got.Elapsed != 300*time.Millisecond {
			t.Errorf("calls %d, errors %v after %v", got.Calls, got.Errors, got.Elapsed)
		}
	})
}

func TestRunInterruptedLosesPatience(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		drain, interrupt := context.WithCancel(t.Context())
		f := &fake{status: connected(), answer: func(ctx context.Context, _ int64) ([]byte, error) {
			interrupt()
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		settings := plan(100, 2)
		settings.Timeout = time.Hour
		got := NewRunner(settings.calls(), f, &silent{}, zap.NewNop()).Run(drain, t.Context())
		if got.Errors["canceled"] != got.Calls || got.Calls < 1 || got.Elapsed != patience {
			t.Errorf("calls %d, errors %v after %v", got.Calls, got.Errors, got.Elapsed)
		}
	})
}

func TestRunNeverAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: func(ctx context.Context, _ int64) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		settings := plan(1000, 1)
		got := NewRunner(settings.calls(), f, &silent{}, zap.NewNop()).Run(t.Context(), t.Context())
		check(t, got, enoughSilence, 0, map[string]int64{"deadline_exceeded": enoughSilence})
		if got.Elapsed != enoughSilence*time.Second {
			t.Errorf("took %v, want %d calls' timeouts", got.Elapsed, enoughSilence)
		}
		r := newReport(got, settings, amqpx.ClientStats{})
		if !r.GivenUp || r.Passed || r.NotTried != 1000-enoughSilence || r.Calls != r.OK+r.Failed()+r.Lost {
			t.Errorf("reported %+v", r)
		}
		if err := r.Err(); err == nil || !strings.Contains(err.Error(), "997 were not tried: no call was answered") {
			t.Errorf("error %v", err)
		}
		var out bytes.Buffer
		if err := r.WriteSummary(&out, "title"); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"not tried 997", "given up: no call was answered"} {
			if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
				t.Errorf("no %q in\n%s", want, out.String())
			}
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
		"one call":              {&fake{answer: swallowed(1)}, 1, 0},
		"two calls":             {&fake{answer: swallowed(2)}, 2, 0},
		"the queue is consumed": {&fake{answer: swallowed(7), consumers: 1}, 7, 2},
		"a server answers":      {&fake{answer: swallowed(7), pings: true}, 7, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c.f.status = connected()
				got := NewRunner(plan(100, 1).calls(), c.f, &silent{}, zap.NewNop()).Run(t.Context(), t.Context())
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
		f := &fake{status: connected(), answer: func(ctx context.Context, n int64) ([]byte, error) {
			if n == 1 {
				return []byte("b"), nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		got := NewRunner(plan(4, 1).calls(), f, &silent{}, zap.NewNop()).Run(t.Context(), t.Context())
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
		f := &fake{status: connected(), answer: func(_ context.Context, n int64) ([]byte, error) {
			if n == 3 || n == 7 {
				<-released
			}
			return []byte("b"), nil
		}}
		got := NewRunner(plan(20, 4).calls(), f, &silent{}, zap.New(core)).Run(t.Context(), t.Context())
		check(t, got, 20, 18, map[string]int64{})
		if limit := 2 * (time.Second + stallGrace); got.Elapsed > limit {
			t.Errorf("took %v, more than %v", got.Elapsed, limit)
		}
		if logs.Len() != 1 {
			t.Errorf("logged %v", logs.All())
		}
	})
}

func TestLogResponses(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	for _, failure := range []error{nil, amqpx.Errorf(amqpx.CodeNotFound, "nothing there")} {
		h := logResponses(zap.New(core))(func(context.Context, *amqpx.Request) ([]byte, error) {
			return []byte("b"), failure
		})
		got, err := h(t.Context(), &amqpx.Request{Method: "b", CorrelationID: "id"})
		if string(got) != "b" || !errors.Is(err, failure) {
			t.Errorf("changed the answer to %q, %v", got, err)
		}
	}
	lines := logs.AllUntimed()
	if len(lines) != 2 {
		t.Fatalf("%d lines, want 2", len(lines))
	}
	if debug := logs.FilterLevelExact(zap.DebugLevel).Len(); debug != 2 {
		t.Errorf("%d of 2 lines are at debug level", debug)
	}
	for i, want := range []map[string]any{
		{"method": "b", "correlation_id": "id", "bytes": int64(1)},
		{"method": "b", "correlation_id": "id", "code": "not_found", "error": "not_found: nothing there"},
	} {
		fields := lines[i].ContextMap()
		if _, ok := fields["latency_ms"].(float64); !ok {
			t.Errorf("line %d has no latency: %v", i, fields)
		}
		delete(fields, "latency_ms")
		delete(fields, "errorVerbose")
		if !maps.Equal(fields, want) {
			t.Errorf("line %d has %v, want %v", i, fields, want)
		}
	}
	quiet, none := observer.New(zap.InfoLevel)
	h := logResponses(zap.New(quiet))(func(context.Context, *amqpx.Request) ([]byte, error) { return nil, nil })
	if _, err := h(t.Context(), &amqpx.Request{}); err != nil || none.Len() != 0 {
		t.Errorf("logged above debug level: %v", none.All())
	}
}
