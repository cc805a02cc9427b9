package loadgen

import (
	"testing"
	"time"
)

func TestTimelineKeepsEveryCall(t *testing.T) {
	t.Parallel()
	for _, length := range []time.Duration{time.Millisecond, time.Second, time.Minute, 168 * time.Hour} {
		l := newTimeline()
		const calls = 10_000
		for i := range calls {
			r := Result{Ended: length * time.Duration(i) / calls, Latency: 5 * time.Millisecond}
			if i%10 == 0 {
				r = Result{Ended: r.Ended, Key: "unavailable"}
			}
			l.add(r)
		}
		list := l.Slices(length)
		if len(list) > maxSlices {
			t.Errorf("%v: %d slices", length, len(list))
		}
		var ok, errs int64
		covered := time.Duration(0)
		for i, s := range list {
			ok, errs, covered = ok+s.OK, errs+s.Errors, covered+s.Length
			if i > 0 && s.Start <= list[i-1].Start || s.Length <= 0 {
				t.Fatalf("%v: slice %d begins at %v and takes %v", length, i, s.Start, s.Length)
			}
			if s.OK > 0 && (s.P50 < 4900*time.Microsecond || s.P50 > 5100*time.Microsecond || s.P99 < 4900*time.Microsecond || s.P99 > 5100*time.Microsecond) {
				t.Fatalf("%v: slice %d has latencies %v and %v", length, i, s.P50, s.P99)
			}
		}
		if ok != calls*9/10 || errs != calls/10 {
			t.Errorf("%v: %d ok and %d errors are left", length, ok, errs)
		}
		if covered != length {
			t.Errorf("%v: the slices cover %v", length, covered)
		}
	}
}

// The rate of a very short slice would be out of proportion.
func TestTimelineHasNoScrap(t *testing.T) {
	t.Parallel()
	l := newTimeline()
	for i := range 1000 {
		l.add(Result{Ended: time.Duration(i) * time.Millisecond, Latency: time.Millisecond})
	}
	l.add(Result{Ended: time.Second + time.Microsecond, Latency: time.Millisecond})
	list := l.Slices(time.Second + time.Microsecond)
	last := list[len(list)-1]
	if rate := float64(last.OK) / last.Length.Seconds(); rate < 900 || rate > 1100 {
		t.Errorf("the last slice has %v calls a second: %+v", rate, last)
	}
}

// Few calls in many slices would be all noise, so there are fewer slices.
func TestTimelineOfFewCalls(t *testing.T) {
	t.Parallel()
	l := newTimeline()
	for i := range 30 {
		l.add(Result{Ended: time.Duration(i) * 50 * time.Millisecond, Latency: time.Millisecond})
	}
	if n := len(l.Slices(1500 * time.Millisecond)); n > enoughSlices {
		t.Errorf("30 calls are in %d slices", n)
	}
	if list := newTimeline().Slices(time.Second); len(list) != 0 {
		t.Errorf("nothing is in %d slices", len(list))
	}
}

// A gap without calls has slices too; otherwise the time in a figure would be wrong.
func TestTimelineHasGaps(t *testing.T) {
	t.Parallel()
	l := newTimeline()
	l.add(Result{Ended: 0, Latency: time.Millisecond})
	l.add(Result{Ended: 390 * time.Millisecond, Key: "internal"})
	list := l.Slices(400 * time.Millisecond)
	if len(list) != 40 || list[20].OK+list[20].Errors != 0 || list[39].Errors != 1 || list[39].P50 != 0 {
		t.Errorf("%d slices: %+v", len(list), list)
	}
}
