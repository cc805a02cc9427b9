package loadgen

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx"
)

// virtual returns a runner that uses the test's virtual time.
func virtual(options Options, f *fake) *Runner {
	f.timeout = options.Timeout
	r := NewRunner(options, f, &silent{}, zap.NewNop())
	r.loop.Pacer = Pacer{}
	return r
}

// after returns a response function that responds after d.
func after(d time.Duration) func(context.Context, int64) ([]byte, error) {
	return func(ctx context.Context, _ int64) ([]byte, error) {
		select {
		case <-time.After(d):
			return []byte("b"), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func TestOpenLoopByNumber(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		options := openPlan(200, 100)
		var begun []time.Duration
		start := time.Now()
		f := &fake{}
		f.response = func(ctx context.Context, n int64) ([]byte, error) {
			begun = append(begun, time.Since(start)) // the next call starts 10 ms later
			return after(5*time.Millisecond)(ctx, n)
		}
		got := virtual(options, f).Run(t.Context(), t.Context())
		check(t, got, 200, 200, map[string]int64{})
		for n, at := range begun {
			if want := time.Duration(n) * 10 * time.Millisecond; at != want {
				t.Fatalf("call %d began at %v, want %v", n, at, want)
			}
		}
		if got.Elapsed != 1995*time.Millisecond || got.Interrupted || got.Behind != 0 {
			t.Errorf("took %v, interrupted %v, behind %v", got.Elapsed, got.Interrupted, got.Behind)
		}
		if want := (Schedule{Begun: 200, Took: 2 * time.Second}); got.Schedule != want {
			t.Errorf("schedule %+v, want %+v", got.Schedule, want)
		}
		// The last call started 10 ms before the end of the second, and one caller sufficed.
		if most := f.most.Load(); most != 1 {
			t.Errorf("%d calls at once, want 1", most)
		}
	})
}

// A stall of a second must show in all calls that were due during the stall, and not only in
// the calls in progress at its start: this is the purpose of the open loop.
func TestOpenLoopShowsAStall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const stall, rate = time.Second, 1000
		begin := time.Now()
		stalled := func(ctx context.Context, _ int64) ([]byte, error) {
			if now := time.Since(begin); now >= 2*time.Second && now < 2*time.Second+stall {
				<-time.After(2*time.Second + stall - now)
			} else {
				<-time.After(time.Millisecond)
			}
			return []byte("b"), ctx.Err()
		}
		options := openPlan(5*rate, rate)
		options.Timeout = 10 * time.Second
		open := virtual(options, &fake{response: stalled}).Run(t.Context(), t.Context())
		check(t, open, 5*rate, 5*rate, map[string]int64{})
		// Of 5,000 calls, 1,000 were delayed, by a second down to zero: the slowest tenth by
		// half a second or more.
		if p90 := open.Latency.At(90); p90 < 450*time.Millisecond || p90 > 550*time.Millisecond {
			t.Errorf("p90 is %v, want about half a second", p90)
		}
		begin = time.Now()
		options.Workload.Rate, options.Workload.InFlight = 0, 1
		closed := virtual(options, &fake{response: stalled}).Run(t.Context(), t.Context())
		if p90 := closed.Latency.At(90); p90 > 2*time.Millisecond {
			t.Errorf("the closed loop's p90 is %v: it should miss the stall", p90)
		}
	})
}

// Beyond the limit calls wait for a free caller, and the wait counts as latency.
func TestOpenLoopIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		options := openPlan(3*OpenInFlight, 1_000_000)
		f := &fake{response: after(500 * time.Millisecond)}
		got := virtual(options, f).Run(t.Context(), t.Context())
		check(t, got, 3*OpenInFlight, 3*OpenInFlight, map[string]int64{})
		if most := f.most.Load(); most != OpenInFlight {
			t.Errorf("%d calls at once, want %d", most, OpenInFlight)
		}
		if got.Behind < 900*time.Millisecond || got.Behind > time.Second {
			t.Errorf("behind by %v, want two rounds", got.Behind)
		}
		if slowest := got.Latency.Max(); slowest < 1400*time.Millisecond {
			t.Errorf("the slowest took %v, want three rounds", slowest)
		}
		if s := got.Schedule; s.Begun != 3*OpenInFlight || s.Took < 900*time.Millisecond {
			t.Errorf("schedule %+v: the calls began as if none had waited", s)
		}
	})
}

func TestOpenLoopByTime(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		calls          int64
		response       time.Duration
		made, notBegun int64
		elapsed        time.Duration
	}{
		"by time":        {NoLimit, time.Millisecond, 1000, 0, 9991 * time.Millisecond},
		"number first":   {50, time.Millisecond, 50, 0, 491 * time.Millisecond},
		"time first":     {2000, time.Millisecond, 1000, 0, 9991 * time.Millisecond},
		"answers go on":  {NoLimit, 700 * time.Millisecond, 1000, 0, 10690 * time.Millisecond},
		"never answered": {NoLimit, time.Hour, 103, 0, 2020 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			options := openPlan(c.calls, 100)
			options.Workload.Duration = 10 * time.Second
			f := &fake{response: after(c.response)}
			got := virtual(options, f).Run(t.Context(), t.Context())
			if got.Calls < c.made-1 || got.Calls > c.made+1 || got.Interrupted || got.Schedule.NotBegun > c.notBegun+1 {
				t.Errorf("%s: %d calls, %+v, interrupted %v", name, got.Calls, got.Schedule, got.Interrupted)
			}
			if off := got.Elapsed - c.elapsed; off > 20*time.Millisecond || off < -20*time.Millisecond {
				t.Errorf("%s: took %v, want %v", name, got.Elapsed, c.elapsed)
			}
			if got.GivenUp != (name == "never answered") {
				t.Errorf("%s: given up %v", name, got.GivenUp)
			}
		})
	}
}

// Calls that were due and could not start are reported.
func TestOpenLoopTellsWhatDidNotBegin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		options := openPlan(NoLimit, 10_000)
		options.Workload.Duration, options.Timeout = time.Second, 10*time.Second
		got := virtual(options, &fake{response: after(3 * time.Second)}).Run(t.Context(), t.Context())
		check(t, got, OpenInFlight, OpenInFlight, map[string]int64{})
		if want := (Schedule{Begun: OpenInFlight, Took: time.Second, NotBegun: 10_000 - OpenInFlight}); got.Schedule != want {
			t.Errorf("schedule %+v, want %+v", got.Schedule, want)
		}
	})
}

func TestOpenLoopInterrupted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		options := openPlan(NoLimit, 10)
		drain, interrupt := context.WithCancel(t.Context())
		time.AfterFunc(2050*time.Millisecond, interrupt)
		got := virtual(options, &fake{response: after(time.Millisecond)}).Run(drain, t.Context())
		check(t, got, 21, 21, map[string]int64{})
		if !got.Interrupted || got.Elapsed != 2050*time.Millisecond || got.Schedule.NotBegun != 0 {
			t.Errorf("interrupted %v after %v, %+v", got.Interrupted, got.Elapsed, got.Schedule)
		}
	})
}

// A slow rate is not a stall; a call that never returns is a stall.
func TestOpenLoopStalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		options := openPlan(4, 1)
		options.Timeout = time.Millisecond // 5 s, together with the grace
		slow := virtual(options, &fake{response: good})
		slow.loop.Workload.Rate, slow.loop.Workload.Calls = 1, 60
		check(t, slow.Run(t.Context(), t.Context()), 60, 60, map[string]int64{})

		released := make(chan struct{})
		defer close(released)
		f := &fake{response: func(_ context.Context, n int64) ([]byte, error) {
			if n == 2 {
				<-released
			}
			return []byte("b"), nil
		}}
		got := virtual(options, f).Run(t.Context(), t.Context())
		check(t, got, 4, 3, map[string]int64{})
	})
}

func TestClosedLoopByTime(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		calls int64
		want  int64
		took  time.Duration
	}{
		"by time":      {NoLimit, 4 * 1000, 10 * time.Second},
		"number first": {40, 40, 100 * time.Millisecond},
		"time first":   {1_000_000, 4 * 1000, 10 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			options := plan(c.calls, 4)
			options.Workload.Duration = 10 * time.Second
			got := virtual(options, &fake{response: after(10 * time.Millisecond)}).Run(t.Context(), t.Context())
			// Whether the last round still starts at the very end is open.
			if got.Calls < c.want || got.Calls > c.want+4 || got.OK != got.Calls || got.Interrupted || got.GivenUp {
				t.Errorf("%s: %d calls, %d ok, interrupted %v", name, got.Calls, got.OK, got.Interrupted)
			}
			if off := got.Elapsed - c.took; off < 0 || off > 10*time.Millisecond {
				t.Errorf("%s: took %v, want %v", name, got.Elapsed, c.took)
			}
		})
	}
}

// Without any response, a timed run must not fail calls as fast as possible until the time is
// over.
func TestClosedLoopByTimeGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		options := plan(NoLimit, 3)
		options.Workload.Duration = time.Hour
		got := virtual(options, &fake{response: after(2 * time.Hour)}).Run(t.Context(), t.Context())
		if got.Elapsed > 2*time.Second || got.Calls > 6 || !got.GivenUp || got.Interrupted || got.OK != 0 {
			t.Errorf("%d calls in %v, given up %v", got.Calls, got.Elapsed, got.GivenUp)
		}
	})
}

// One call in ten asks the server for its times.
func TestCallsAreSampled(t *testing.T) {
	t.Parallel()
	asked := make(chan int, 100)
	f := &sampler{asked: asked}
	got := NewRunner(plan(95, 1), f, &silent{}, zap.NewNop()).Run(t.Context(), t.Context())
	if len(asked) != 10 {
		t.Errorf("%d of 95 calls asked", len(asked))
	}
	if got.OK != 95 || got.Server.Queue.Count() != 0 {
		t.Errorf("%d ok, %d times though nobody told any", got.OK, got.Server.Queue.Count())
	}
}

// One call in ten of the first 10,000 asks the server for its times, and one in a hundred after these.
func TestLongRunsAreSampledLess(t *testing.T) {
	t.Parallel()
	asked := 0
	for n := range int64(100_000) {
		if isSampled(n) {
			asked++
		}
	}
	if want := 1_000 + 900; asked != want {
		t.Errorf("%d of 100,000 calls would ask, want %d", asked, want)
	}
}

// sampler counts the calls with an option.
type sampler struct{ asked chan int }

func (s *sampler) Ping(context.Context) (time.Duration, error) { return 0, nil }
func (s *sampler) Consumers(context.Context) (int, error)      { return 1, nil }

func (s *sampler) Call(_ context.Context, _ string, _ []byte, options ...amqpx.CallOption) ([]byte, error) {
	if len(options) > 0 {
		s.asked <- 1
	}
	return []byte("b"), nil
}

// always returns a function that returns the same caller to everyone.
func always(call Caller) func() Caller { return func() Caller { return call } }

// Every call starts once, under its own number, and at its due time.
func TestLoopNumbersItsCalls(t *testing.T) {
	t.Parallel()
	for name, w := range map[string]Workload{
		"closed": {Calls: 100, InFlight: 7},
		"open":   {Calls: 100, Rate: 1000, InFlight: 7},
	} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			seen := make(map[int64]int)
			l := Loop{Workload: w, Start: time.Now()}
			l.NewCaller = always(func(n int64, due time.Time) bool {
				mu.Lock()
				seen[n]++
				mu.Unlock()
				if want := l.Start.Add(time.Duration(n) * time.Millisecond); w.Open() && !due.Equal(want) {
					t.Errorf("%s: call %d was due at %v, want %v", name, n, due, want)
				}
				<-time.After(5 * time.Millisecond)
				return true
			})
			l.Run(t.Context())
			if l.Begun() != w.Calls || int64(len(seen)) != w.Calls {
				t.Errorf("%s: %d calls begun, %d numbers, want %d", name, l.Begun(), len(seen), w.Calls)
			}
			for n, times := range seen {
				if n < 0 || n >= w.Calls || times != 1 {
					t.Errorf("%s: call %d was made %d times", name, n, times)
				}
			}
		})
	}
}

// A caller that may not go on starts no further call, and a context that ends stops all others.
func TestLoopEndsEarly(t *testing.T) {
	t.Parallel()
	for name, w := range map[string]Workload{
		"closed": {Calls: NoLimit, InFlight: 3},
		"open":   {Calls: NoLimit, Rate: 1000, InFlight: 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			begin, end := context.WithCancel(t.Context())
			defer end()
			l := Loop{Workload: w, Start: time.Now()}
			l.NewCaller = always(func(int64, time.Time) bool {
				<-time.After(10 * time.Millisecond)
				return false
			})
			time.AfterFunc(time.Second, end)
			l.Run(begin)
			if l.Begun() != int64(w.InFlight) {
				t.Errorf("%s: %d calls begun, want one of each caller", name, l.Begun())
			}
			want := map[bool]time.Duration{false: 10 * time.Millisecond, true: time.Second}[w.Open()]
			if took := time.Since(l.Start); took != want {
				t.Errorf("%s: ended after %v, want %v", name, took, want)
			}
		})
	}
}
