package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// turn asks for one closed-loop load: callers that call one after the other until
// the time or the number of calls is up.
type turn struct {
	Callers  int           `json:"callers"`
	Duration time.Duration `json:"duration"`
	MaxCalls int           `json:"max_calls"`
}

// outcome is what one turn measured. Latencies are in microseconds.
type outcome struct {
	Calls   int64         `json:"calls"`
	Elapsed time.Duration `json:"elapsed"`
	P50     int64         `json:"p50"`
	P99     int64         `json:"p99"`
	Max     int64         `json:"max"`
}

// stuck bounds a turn beyond its duration: a call that takes longer is a fault.
const stuck = 30 * time.Second

// drive runs one turn. The first wrong answer or error ends it.
func drive(ctx context.Context, c caller, t turn) (outcome, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	guard := time.AfterFunc(t.Duration+stuck, func() { cancel(fmt.Errorf("a call did not settle within %v", stuck)) })
	defer guard.Stop()
	var (
		callers sync.WaitGroup
		calls   atomic.Int64
		rec     = newRecorder(t.Callers)
		begun   = time.Now()
	)
	for i := range t.Callers {
		callers.Go(func() {
			for time.Since(begun) < t.Duration && calls.Add(1) <= int64(t.MaxCalls) && ctx.Err() == nil {
				called := time.Now()
				if err := checkedCall(ctx, c); err != nil {
					cancel(err)
					return
				}
				rec.record(i, time.Since(called))
			}
		})
	}
	callers.Wait()
	elapsed := time.Since(begun)
	if err := context.Cause(ctx); err != nil {
		return outcome{}, err
	}
	all := rec.merged()
	return outcome{
		Calls:   all.TotalCount(),
		Elapsed: elapsed,
		P50:     all.ValueAtQuantile(50),
		P99:     all.ValueAtQuantile(99),
		Max:     all.Max(),
	}, nil
}

// checkedCall makes one call and checks its answer.
func checkedCall(ctx context.Context, c caller) error {
	body, err := c.call(ctx)
	if err != nil {
		return fmt.Errorf("call: %w", err)
	}
	if string(body) != answerBody {
		return fmt.Errorf("answer %q, want %q", body, answerBody)
	}
	return nil
}

// recorder collects latencies of many callers in a few histograms.
type recorder struct{ shards []shard }

type shard struct {
	mu        sync.Mutex
	histogram *hdrhistogram.Histogram
}

const maxShards = 16

func newRecorder(callers int) *recorder {
	r := &recorder{shards: make([]shard, min(callers, maxShards))}
	for i := range r.shards {
		r.shards[i].histogram = newHistogram()
	}
	return r
}

// newHistogram counts microseconds up to a minute, to three digits.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, time.Minute.Microseconds(), 3)
}

func (r *recorder) record(i int, d time.Duration) {
	s := &r.shards[i%len(r.shards)]
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.histogram.RecordValue(min(d.Microseconds(), time.Minute.Microseconds())) // in range
}

func (r *recorder) merged() *hdrhistogram.Histogram {
	all := newHistogram()
	for i := range r.shards {
		all.Merge(r.shards[i].histogram)
	}
	return all
}
