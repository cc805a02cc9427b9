package process

import (
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/internal/loadgen"
)

// openLoop runs an open loop on a fake clock.
func openLoop(t *testing.T, s *scripted, o Turn) (*driver, time.Duration) {
	t.Helper()
	d := newDriver(s, o, func(err error) { t.Error(err) })
	return d, d.run(t.Context(), loadgen.Pacer{})
}

func TestOpenLoopKeepsItsSchedule(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		// Far more calls are due at once than callers are there.
		for _, rate := range []float64{10, 1000, 200_000} {
			s := &scripted{}
			o := Turn{Rate: rate, InFlight: 4, Duration: time.Second, MaxCalls: 1_000_000}
			begun := time.Now()
			openLoop(t, s, o)
			if len(s.calls) != int(rate) {
				t.Fatalf("%v/s: %d calls in a second", rate, len(s.calls))
			}
			for n, at := range s.calls {
				due := begun.Add(time.Duration(float64(n) / rate * 1e9))
				if late := at.Sub(due); late < 0 || late > time.Microsecond {
					t.Fatalf("%v/s: call %d is %v late", rate, n, late)
				}
			}
		}
	})
}

func TestOpenLoopCountsFromTheSchedule(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		// The first call blocks the only caller for 100 ms. Ten more calls fall due in this
		// time.
		s := &scripted{takes: func(n int, _ string) time.Duration {
			if n == 0 {
				return 100 * time.Millisecond
			}
			return 0
		}}
		d, elapsed := openLoop(t, s, Turn{Rate: 100, InFlight: 1, Duration: 200 * time.Millisecond, MaxCalls: 1000})
		o := d.outcome(elapsed)
		if o.Calls != 20 || o.Missed != 0 || elapsed != 190*time.Millisecond {
			t.Errorf("%d calls, %d missed, in %v, want 20, 0, in 190ms", o.Calls, o.Missed, elapsed)
		}
		near(t, "max", o.All.Max, 100_000)
		// The delayed calls waited 90, 80, … 10 and 0 ms; the other nine calls did not wait.
		h := d.all.Merged()
		near(t, "tenth call of twenty", h.At(55).Microseconds(), 10_000)
		near(t, "nineteenth call of twenty", h.At(95).Microseconds(), 90_000)
	})
}

func TestOpenLoopHasManyCallsInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{takes: func(int, string) time.Duration { return time.Second }}
		d, elapsed := openLoop(t, s, Turn{Rate: 100, InFlight: 100, Duration: time.Second, MaxCalls: 1000})
		if o := d.outcome(elapsed); o.Calls != 100 || elapsed != 1990*time.Millisecond {
			t.Errorf("%d calls in %v, want 100 in 1.99s", o.Calls, elapsed)
		} else {
			near(t, "max", o.All.Max, 1_000_000)
		}
	})
}

func TestOpenLoopGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{takes: func(int, string) time.Duration { return 20 * time.Second }}
		d, elapsed := openLoop(t, s, Turn{Rate: 10, InFlight: 1, Duration: time.Second, MaxCalls: 1000})
		o := d.outcome(elapsed)
		if o.Calls != 1 || o.Missed != 9 || elapsed != 20*time.Second {
			t.Errorf("%d calls, %d missed, in %v, want 1, 9, in 20s", o.Calls, o.Missed, elapsed)
		}
		near(t, "what the median had waited", o.All.P50, (time.Second + overrun - 500*time.Millisecond).Microseconds())
	})
}

func TestOpenLoopNumbersSlowCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{takes: func(_ int, method string) time.Duration {
			if method == contender.MethodSlow {
				return contender.SlowTime
			}
			return time.Millisecond
		}}
		d, _ := openLoop(t, s, Turn{Rate: 1000, InFlight: 100, Duration: time.Second, MaxCalls: 1000, ApartEvery: 100, Apart: contender.MethodSlow})
		if fast, slow := d.all.Merged().Count(), d.apart.Merged().Count(); fast != 990 || slow != 10 {
			t.Errorf("%d fast and %d slow calls, want 990 and 10", fast, slow)
		}
		near(t, "fast", d.all.Merged().Max().Microseconds(), 1000)
	})
}
