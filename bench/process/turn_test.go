package process

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/internal/loadgen"
)

// scripted is a caller that responds after a duration given by takes.
type scripted struct {
	mu    sync.Mutex
	calls []time.Time
	takes func(n int, method string) time.Duration
	body  string // of responses; empty: the right body
}

// Call implements caller.
func (s *scripted) Call(ctx context.Context, method string, body []byte) ([]byte, error) {
	s.mu.Lock()
	n := len(s.calls)
	s.calls = append(s.calls, time.Now())
	s.mu.Unlock()
	if s.takes != nil {
		if err := contender.Pause(ctx, s.takes(n, method)); err != nil {
			return nil, err
		}
	}
	switch {
	case s.body != "":
		return []byte(s.body), nil
	case method == contender.MethodEcho:
		return body, nil
	default:
		return []byte(contender.ResponseBody), nil
	}
}

// Close implements caller.
func (s *scripted) Close(context.Context) error { return nil }

func TestClosedLoop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{takes: func(_ int, method string) time.Duration {
			if method == contender.MethodSlow {
				return 50 * time.Millisecond
			}
			return 10 * time.Millisecond
		}}
		o, err := drive(t.Context(), s, Turn{Callers: 1, Duration: time.Second, MaxCalls: 20, ApartEvery: 5, Apart: contender.MethodSlow}, loadgen.Pacer{})
		if err != nil {
			t.Fatal(err)
		}
		// Sixteen calls take 10 ms, and four take 50 ms.
		if o.Calls != 20 || o.Elapsed != 360*time.Millisecond {
			t.Errorf("%d calls in %v, want 20 in 360ms", o.Calls, o.Elapsed)
		}
		near(t, "fast", o.All.Max, 10_000)
		near(t, "slow", o.Apart.P50, 50_000)
	})
}

func TestClosedLoopEndsWithItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{takes: func(int, string) time.Duration { return 30 * time.Millisecond }}
		o, err := drive(t.Context(), s, Turn{Callers: 3, Duration: 100 * time.Millisecond, MaxCalls: 1000}, loadgen.Pacer{})
		if err != nil || o.Calls != 12 || o.Elapsed != 120*time.Millisecond {
			t.Errorf("%d calls in %v, %v, want 12 in 120ms", o.Calls, o.Elapsed, err)
		}
	})
}

func TestDriveChecksResponses(t *testing.T) {
	t.Parallel()
	for _, body := range []int{0, 100} {
		_, err := drive(t.Context(), &scripted{body: "c"}, Turn{Callers: 4, Duration: time.Minute, MaxCalls: 1 << 30, Body: body}, loadgen.Pacer{})
		if err == nil || !strings.Contains(err.Error(), `"c"`) {
			t.Errorf("body of %d bytes: error %v, want one about the response", body, err)
		}
	}
	if o, err := drive(t.Context(), &scripted{}, Turn{Callers: 1, Duration: time.Minute, MaxCalls: 3, Body: 100}, loadgen.Pacer{}); err != nil || o.Calls != 3 {
		t.Errorf("echo: %d calls, %v, want 3", o.Calls, err)
	}
}

func TestDriveEndsStuckCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{takes: func(int, string) time.Duration { return time.Hour }}
		_, err := drive(t.Context(), s, Turn{Callers: 1, Duration: time.Second, MaxCalls: 10}, loadgen.Pacer{})
		if err == nil || errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "call") {
			t.Errorf("error %v, want one about a call that does not settle", err)
		}
	})
}

// several is a caller that consists of several.
type several struct {
	scripted
	members []*scripted
}

// Nth implements many.
func (s *several) Nth(n int64) contender.Caller { return s.members[n%int64(len(s.members))] }

// The calls of a loop go to all members of a caller in turn, also those of a single goroutine.
func TestCallsGoToAllMembers(t *testing.T) {
	t.Parallel()
	for _, callers := range []int{1, 4} {
		s := &several{members: []*scripted{{}, {}, {}}}
		o, err := drive(t.Context(), s, Turn{Callers: callers, Duration: time.Minute, MaxCalls: 30}, loadgen.Pacer{})
		if err != nil || o.Calls != 30 {
			t.Fatalf("%d calls, %v", o.Calls, err)
		}
		for i, member := range s.members {
			if len(member.calls) != 10 {
				t.Errorf("%d callers: member %d got %d calls, want 10", callers, i, len(member.calls))
			}
		}
		if len(s.calls) != 0 {
			t.Errorf("%d calls went to no member", len(s.calls))
		}
	}
}

// near compares microseconds to the three digits of a histogram.
func near(t *testing.T, what string, got, want int64) {
	t.Helper()
	if diff := got - want; diff < -want/500 || diff > want/500 {
		t.Errorf("%s: %d µs, want %d", what, got, want)
	}
}
