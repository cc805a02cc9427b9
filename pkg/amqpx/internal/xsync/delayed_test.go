package xsync

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestDelayedFunctions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var d Delayed
		calls := 0
		count := func() { calls++ }
		d.After(time.Second, count)
		d.After(time.Minute, count)
		pass(time.Second)
		wantSame(t, "calls after the first pause", calls, 1)
		d.Flush()
		wantSame(t, "calls after the flush", calls, 2)
		d.After(time.Second, count)
		pass(time.Minute)
		wantSame(t, "calls of a function added after the flush", calls, 3)
		d.After(time.Second, count)
		d.Close()
		d.After(time.Second, count)
		d.Flush()
		pass(time.Hour)
		wantSame(t, "calls after Close", calls, 3)
	})
}

func TestGrowingPauseDoublesUpToItsBound(t *testing.T) {
	t.Parallel()
	for tries, bound := range map[int]time.Duration{0: 100, 1: 200, 4: 1600, 6: 5000, 15: 5000, 16: 5000, 1 << 30: 5000} {
		bound *= time.Millisecond
		for range 1000 {
			if d := GrowingPause(100*time.Millisecond, 5*time.Second, tries); d < bound/2 || d > bound {
				t.Fatalf("pause of %v before attempt %d: want %v to %v", d, tries+1, bound/2, bound)
			}
		}
	}
}
