package loadgen

import (
	"slices"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// spread returns a histogram of many latencies between a tenth of a millisecond and an hour.
func spread(t *testing.T, each int64) *Histogram {
	t.Helper()
	h := NewResults().Latency
	for v := int64(100 * time.Microsecond); v < int64(time.Hour); v = v * 11 / 10 {
		if err := h.counts.RecordValues(v, each); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func TestPercentiles(t *testing.T) {
	t.Parallel()
	for _, each := range []int64{1, 1000, 10_000_000} {
		h := spread(t, each)
		list := h.Percentiles()
		if len(list) > 120 {
			t.Errorf("%d calls have %d places", h.Count(), len(list))
		}
		if list[0].Percent != 0 || list[0].Latency != h.Min() || list[len(list)-1].Percent != 100 || list[len(list)-1].Latency != h.Max() {
			t.Errorf("from %+v to %+v", list[0], list[len(list)-1])
		}
		for i := 1; i < len(list); i++ {
			if list[i].Percent <= list[i-1].Percent || list[i].Latency < list[i-1].Latency {
				t.Fatalf("%+v follows %+v", list[i], list[i-1])
			}
		}
		for _, percent := range []float64{50, 75, 90, 99} {
			at := slices.IndexFunc(list, func(p Percentile) bool { return p.Percent == percent })
			if at < 0 || list[at].Latency != h.At(percent) {
				t.Errorf("%v %% of %d calls are missing or wrong", percent, h.Count())
			}
		}
	}
	if list := NewResults().Latency.Percentiles(); list == nil || len(list) != 0 {
		t.Errorf("nothing has the curve %v", list)
	}
}

func TestBins(t *testing.T) {
	t.Parallel()
	one := NewResults().Latency
	if err := one.counts.RecordValues(int64(time.Millisecond), 7); err != nil {
		t.Fatal(err)
	}
	zero := NewResults().Latency
	if err := zero.counts.RecordValues(0, 3); err != nil {
		t.Fatal(err)
	}
	for name, h := range map[string]*Histogram{"many": spread(t, 3), "one": one, "zero": zero, "none": NewResults().Latency} {
		list := h.Bins()
		var sum int64
		for i, b := range list {
			sum += b.Calls
			if b.To < b.From || i > 0 && b.From != list[i-1].To {
				t.Errorf("%s: bin %d is %+v", name, i, b)
			}
		}
		if sum != h.Count() || len(list) > maxBins || list == nil {
			t.Errorf("%s: %d calls in %d bins, want %d", name, sum, len(list), h.Count())
		}
	}
}

func TestServerTimes(t *testing.T) {
	t.Parallel()
	s := newServerTimes()
	for i := range 100 {
		s.add(amqpx.CallInfo{QueueTime: time.Duration(i+1) * time.Millisecond, HandlerTime: 250 * time.Microsecond})
	}
	s.add(amqpx.CallInfo{})                           // no times reported
	s.add(amqpx.CallInfo{QueueTime: 100 * time.Hour}) // beyond the limit
	if n, p50, most := s.Queue.Count(), s.Queue.At(50), s.Queue.Max(); n != 101 || p50 < 50900*time.Microsecond || p50 > 51100*time.Microsecond || most < 7100*time.Second {
		t.Errorf("queue wait: %d times, median %v, maximum %v", n, p50, most)
	}
	if n, p50, p99, most := s.Handler.Count(), s.Handler.At(50), s.Handler.At(99), s.Handler.Max(); n != 101 || p50 != 250*time.Microsecond || p99 != p50 || most != p50 {
		t.Errorf("handler: %d times, median %v, p99 %v, maximum %v", n, p50, p99, most)
	}
}

func TestHistogramBoundsDurations(t *testing.T) {
	t.Parallel()
	got := NewResults()
	got.Add(Result{Latency: 100 * time.Hour})
	got.Add(Result{Latency: 0})
	if n := got.Latency.Count(); n != 2 {
		t.Errorf("%d of 2 latencies were counted", n)
	}
	if most := got.Latency.Max(); most < slowest || most > slowest*1001/1000 {
		t.Errorf("the longest is %v, want %v", most, slowest)
	}
}

// Every duration is in the merged histogram once, whichever goroutine recorded it.
func TestRecorderMergesItsShards(t *testing.T) {
	t.Parallel()
	r := NewRecorder(func() *Histogram { return NewHistogram(time.Microsecond, time.Microsecond, time.Minute, 3) })
	const calls = 1000
	done := make(chan struct{})
	for caller := range int64(2) {
		go func() { // awaited below
			defer func() { done <- struct{}{} }()
			for n := caller; n < calls; n += 2 {
				r.Record(n, time.Duration(n+1)*time.Microsecond)
			}
		}()
	}
	<-done
	<-done
	for range 2 { // merging takes nothing away
		h := r.Merged()
		if h.Count() != calls || h.Min() != time.Microsecond || h.Max() != calls*time.Microsecond || h.At(50) != calls/2*time.Microsecond {
			t.Errorf("%d durations from %v to %v, median %v", h.Count(), h.Min(), h.Max(), h.At(50))
		}
	}
}
