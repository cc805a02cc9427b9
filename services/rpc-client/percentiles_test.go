package main

import (
	"slices"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/services/rpc-client/internal/report"
)

// spread returns a histogram of many latencies between a tenth of a millisecond and an hour.
func spread(t *testing.T, each int64) *hdrhistogram.Histogram {
	t.Helper()
	h := NewResults().Latency
	for v := int64(100 * time.Microsecond); v < int64(time.Hour); v = v * 11 / 10 {
		if err := h.RecordValues(v, each); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func TestPercentiles(t *testing.T) {
	t.Parallel()
	for _, each := range []int64{1, 1000, 10_000_000} {
		h := spread(t, each)
		list := Percentiles(h, time.Nanosecond)
		if len(list) > 120 {
			t.Errorf("%d calls have %d places", h.TotalCount(), len(list))
		}
		if list[0].Percent != 0 || list[len(list)-1].Percent != 100 || list[len(list)-1].MS != inMilliseconds(h.Max(), time.Nanosecond) {
			t.Errorf("from %+v to %+v", list[0], list[len(list)-1])
		}
		for i := 1; i < len(list); i++ {
			if list[i].Percent <= list[i-1].Percent || list[i].MS < list[i-1].MS {
				t.Fatalf("%+v follows %+v", list[i], list[i-1])
			}
		}
		for _, percent := range []float64{50, 75, 90, 99} {
			at := slices.IndexFunc(list, func(p report.Percentile) bool { return p.Percent == percent })
			if at < 0 || list[at].MS != inMilliseconds(h.ValueAtPercentile(percent), time.Nanosecond) {
				t.Errorf("%v %% of %d calls are missing or wrong", percent, h.TotalCount())
			}
		}
	}
	if list := Percentiles(NewResults().Latency, time.Nanosecond); list == nil || len(list) != 0 {
		t.Errorf("nothing has the curve %v", list)
	}
}

func TestBins(t *testing.T) {
	t.Parallel()
	one := NewResults().Latency
	if err := one.RecordValues(int64(time.Millisecond), 7); err != nil {
		t.Fatal(err)
	}
	zero := NewResults().Latency
	if err := zero.RecordValues(0, 3); err != nil {
		t.Fatal(err)
	}
	for name, h := range map[string]*hdrhistogram.Histogram{"many": spread(t, 3), "one": one, "zero": zero, "none": NewResults().Latency} {
		list := Bins(h)
		var sum int64
		for i, b := range list {
			sum += b.Calls
			if b.ToMS < b.FromMS || i > 0 && b.FromMS != list[i-1].ToMS {
				t.Errorf("%s: bin %d is %+v", name, i, b)
			}
		}
		if sum != h.TotalCount() || len(list) > maxBins || list == nil {
			t.Errorf("%s: %d calls in %d bins, want %d", name, sum, len(list), h.TotalCount())
		}
	}
}

func TestServerTimes(t *testing.T) {
	t.Parallel()
	s := newServerTimes()
	for i := range 100 {
		s.add(amqpx.CallInfo{Queue: time.Duration(i+1) * time.Millisecond, Handler: 250 * time.Microsecond})
	}
	s.add(amqpx.CallInfo{})                       // no times reported
	s.add(amqpx.CallInfo{Queue: 100 * time.Hour}) // beyond the limit
	got, handler := serverTime(s.Queue), serverTime(s.Handler)
	if got.Sampled != 101 || got.P50 < 50.9 || got.P50 > 51.1 || got.Max < 7.1e6 {
		t.Errorf("queue wait %+v", got)
	}
	if handler.Sampled != 101 || handler.P50 != 0.25 || handler.P99 != 0.25 || handler.Max != 0.25 {
		t.Errorf("handler %+v", handler)
	}
	if none := serverTime(newServerTimes().Queue); none.Sampled != 0 || none.Max != 0 || none.Percentiles == nil {
		t.Errorf("nothing is %+v", none)
	}
}
