package loadgen

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx"
)

// someResults returns n results of a caller over the given time, in about the order in which
// they ended: a caller may be interrupted before it records a result.
func someResults(random *rand.Rand, n int, over time.Duration) []Result {
	list := make([]Result, n)
	for i := range list {
		r := Result{Ended: over * time.Duration(i) / time.Duration(n), Late: time.Duration(random.Int64N(1e6))}
		r.Ended = max(0, r.Ended-time.Duration(random.Int64N(int64(over)/20)))
		switch random.IntN(10) {
		case 0:
			r.Key = KeyMismatched
		case 1:
			r.Key = "unavailable"
		default:
			r.Latency = time.Duration(random.Int64N(1e9))
		}
		if isSampled(int64(i)) {
			r.Info = &amqpx.CallInfo{QueueTime: time.Duration(random.Int64N(1e8)), HandlerTime: time.Millisecond}
		}
		list[i] = r
	}
	return list
}

// wantSameResults compares everything that a report is made of.
func wantSameResults(t *testing.T, got, want *Results, elapsed time.Duration) {
	t.Helper()
	if got.OK != want.OK || !maps.Equal(got.Errors, want.Errors) || got.Behind != want.Behind || got.Settled() != want.Settled() {
		t.Errorf("ok %d, errors %v, behind %v; want %d, %v, %v", got.OK, got.Errors, got.Behind, want.OK, want.Errors, want.Behind)
	}
	for name, pair := range map[string][2]*Histogram{
		"latency": {got.Latency, want.Latency},
		"queue":   {got.Server.Queue, want.Server.Queue},
		"handler": {got.Server.Handler, want.Server.Handler},
	} {
		g, w := pair[0], pair[1]
		if g.Count() != w.Count() || g.Min() != w.Min() || g.Max() != w.Max() || g.Mean() != w.Mean() || !slices.Equal(g.Percentiles(), w.Percentiles()) || !slices.Equal(g.Bins(), w.Bins()) {
			t.Errorf("%s: %d from %v to %v, want %d from %v to %v", name, g.Count(), g.Min(), g.Max(), w.Count(), w.Min(), w.Max())
		}
	}
	if g, w := got.Timeline.Slices(elapsed), want.Timeline.Slices(elapsed); !slices.Equal(g, w) {
		t.Errorf("timeline %v, want %v", g, w)
	}
}

// Whatever callers record at the same time, while the collector merges, counts once, as if one
// goroutine had counted all results in turn.
func TestRecordersCountLikeOne(t *testing.T) {
	t.Parallel()
	const callers, each, part = 32, 100, 25
	for _, over := range []time.Duration{50 * time.Millisecond, 10 * time.Second} {
		random := rand.New(rand.NewPCG(1, uint64(over)))
		want, got := NewResults(), NewResults()
		recorders := newCallRecorders(got.Timeline)
		var running sync.WaitGroup
		recorded := make(chan struct{})
		for range callers {
			list, recorder := someResults(random, each, over), recorders.next()
			for _, r := range list {
				want.Add(r)
			}
			running.Go(func() {
				for i, r := range list {
					if !recorder.add(r) {
						t.Error("an open recorder refused a result")
					}
					if (i+1)%part == 0 {
						recorded <- struct{}{}
					}
				}
			})
		}
		for i := range int64(callers * each / part) { // while the other callers record
			<-recorded
			if recorders.merge(&got.Totals); got.Settled() < (i+1)*part {
				t.Errorf("%d settled, want at least %d", got.Settled(), (i+1)*part)
			}
		}
		running.Wait()
		if got.Settled() != callers*each {
			t.Errorf("%d settled before the end, want %d", got.Settled(), callers*each)
		}
		recorders.close(&got.Totals)
		wantSameResults(t, got, want, over)
	}
}

// A call that settles after the report was begun must not change it.
func TestClosedRecorderRefuses(t *testing.T) {
	t.Parallel()
	got := NewResults()
	recorders := newCallRecorders(got.Timeline)
	recorder := recorders.next()
	if !recorder.add(Result{Ended: time.Millisecond, Latency: time.Millisecond}) {
		t.Error("an open recorder refused a result")
	}
	recorders.close(&got.Totals)
	if recorder.add(Result{Ended: time.Second, Latency: time.Second}) || recorder.add(Result{Key: KeyMismatched}) {
		t.Error("a closed recorder took a result")
	}
	list := got.Timeline.Slices(2 * time.Second)
	if got.OK != 1 || got.Settled() != 1 || len(list) != 1 || list[0].OK != 1 || list[0].Errors != 0 {
		t.Errorf("%d settled, timeline %+v; want the first result alone", got.Settled(), list)
	}
}

// Results add up to the calls made, whatever many callers do at once.
func TestRunOfManyCallersAddsUp(t *testing.T) {
	t.Parallel()
	const calls = 20_000
	f := &fake{response: func(_ context.Context, n int64) ([]byte, error) {
		if n%100 == 0 {
			return []byte("wrong"), nil
		}
		return []byte("b"), nil
	}}
	p := &silent{}
	got := NewRunner(plan(calls, 200), f, p, zap.NewNop()).Run(t.Context(), t.Context())
	check(t, got, calls, calls*99/100, map[string]int64{KeyMismatched: calls / 100})
	var ok, errs int64
	for _, s := range got.Timeline.Slices(got.Elapsed) {
		ok, errs = ok+s.OK, errs+s.Errors
	}
	if ok != got.OK || errs != got.Failed() || got.Latency.Count() != got.OK || p.settled != calls {
		t.Errorf("timeline %d and %d, %d latencies, last step at %d", ok, errs, got.Latency.Count(), p.settled)
	}
}
