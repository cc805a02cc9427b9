package xsync

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestBackoffHasFullJitterUnderADoublingBound(t *testing.T) {
	t.Parallel()
	const rounds = 2000
	bounds := []time.Duration{100, 200, 400, 800, 1000, 1000, 1000}
	lowest, highest := make([]time.Duration, len(bounds)), make([]time.Duration, len(bounds))
	for round := range rounds {
		b := NewBackoff(100*time.Millisecond, time.Second)
		for i, bound := range bounds {
			bound *= time.Millisecond
			d := b.NextBackOff()
			if d < 0 || d > bound {
				t.Fatalf("wait %d is %v: want 0 to %v", i, d, bound)
			}
			if round == 0 {
				lowest[i] = d
			}
			lowest[i], highest[i] = min(lowest[i], d), max(highest[i], d)
		}
	}
	for i, bound := range bounds {
		bound *= time.Millisecond
		if lowest[i] > bound/20 || highest[i] < bound*19/20 {
			t.Errorf("wait %d spreads from %v to %v: want nearly 0 to %v", i, lowest[i], highest[i], bound)
		}
	}
}

func TestBackoffNeverStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBackoff(time.Millisecond, 2*time.Millisecond)
		pass(24 * time.Hour)
		for range 10_000 {
			if d := b.NextBackOff(); d < 0 || d > 2*time.Millisecond {
				t.Fatalf("wait of %v", d)
			}
		}
	})
}

func TestBackoffOfTheSmallestBounds(t *testing.T) {
	t.Parallel()
	b := NewBackoff(1, 1)
	for range 100 {
		if d := b.NextBackOff(); d < 0 || d > 2 {
			t.Fatalf("wait of %v", d)
		}
	}
}

func TestSleepEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		Sleep(ctx, time.Hour)
		wantSame(t, "slept", time.Since(start), time.Second)
		Sleep(t.Context(), time.Minute)
		wantSame(t, "slept", time.Since(start), time.Second+time.Minute)
	})
}
