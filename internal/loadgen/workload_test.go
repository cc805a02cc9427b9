package loadgen

import (
	"testing"
	"time"
)

func TestDue(t *testing.T) {
	t.Parallel()
	for _, rate := range []int64{1, 3, 7, 1000, 9_999_999, 10_000_000} {
		g := Workload{Calls: NoLimit, Rate: rate}
		if g.Due(0) != 0 || g.Due(rate) != time.Second || g.Due(100*rate) != 100*time.Second {
			t.Errorf("%d a second: %v, %v, %v", rate, g.Due(0), g.Due(rate), g.Due(100*rate))
		}
		// After a billion calls, no error has accumulated.
		if got, want := g.Due(1_000_000_000), time.Duration(float64(1e9)/float64(rate)*1e9); got-want > time.Microsecond || want-got > time.Microsecond {
			t.Errorf("%d a second: the billionth call is due at %v, want %v", rate, got, want)
		}
		for n := range int64(50) {
			if by := g.DueBy(g.Due(n) + time.Nanosecond); by < n+1 {
				t.Errorf("%d a second: %d due when call %d is", rate, by, n)
			}
		}
	}
	bounded := Workload{Calls: NoLimit, Rate: 100, Duration: 10 * time.Second}
	if got := bounded.DueBy(time.Hour); got != 1000 {
		t.Errorf("%d calls are due in 10 s at 100 a second", got)
	}
	bounded.Calls = 30
	if got := bounded.DueBy(time.Hour); got != 30 {
		t.Errorf("%d of 30 calls are due", got)
	}
}

func TestExpected(t *testing.T) {
	t.Parallel()
	for want, workloads := range map[time.Duration][]Workload{
		0:                {{Calls: 10}},
		time.Minute:      {{Calls: NoLimit, Duration: time.Minute}, {Calls: NoLimit, Duration: time.Minute, Rate: 5}, {Calls: 600, Rate: 1, Duration: time.Minute}},
		10 * time.Second: {{Calls: 100, Rate: 10}, {Calls: 100, Rate: 10, Duration: time.Minute}},
	} {
		for _, g := range workloads {
			if got := g.Expected(); got != want {
				t.Errorf("%+v takes %v, want %v", g, got, want)
			}
		}
	}
}

func TestShare(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		workload Workload
		settled  int64
		passed   time.Duration
		want     float64
	}{
		{Workload{Calls: 10}, 5, time.Hour, 0.5},
		{Workload{Calls: NoLimit, Duration: time.Minute}, 5, 15 * time.Second, 0.25},
		{Workload{Calls: NoLimit, Duration: time.Minute}, 5, time.Hour, 1},
		{Workload{Calls: 100, Duration: time.Minute}, 50, 15 * time.Second, 0.5},
	} {
		if got := c.workload.Share(c.settled, c.passed); got != c.want {
			t.Errorf("%+v: %v, want %v", c.workload, got, c.want)
		}
	}
}
