package xsync

import "testing"

func TestFunctionIsCalledOnceWhenIdle(t *testing.T) {
	t.Parallel()
	var tracker IdleTracker
	calls := 0
	count := func() { calls++ }
	wantSame(t, "registered without work", tracker.CallWhenIdle(count), false)
	tracker.Add(2)
	wantSame(t, "registered", tracker.CallWhenIdle(count), true)
	tracker.Done()
	wantSame(t, "calls while work is in progress", calls, 0)
	tracker.Done()
	wantSame(t, "calls", calls, 1)
	tracker.Add(1)
	tracker.Done()
	wantSame(t, "calls after further work", calls, 1)
}

// A function may use the tracker.
func TestFunctionAddsWork(t *testing.T) {
	t.Parallel()
	var tracker IdleTracker
	tracker.Add(1)
	tracker.CallWhenIdle(func() {
		tracker.Add(1)
		tracker.CallWhenIdle(func() { tracker.Add(5) })
	})
	tracker.Done()
	wantSame(t, "work", tracker.Count(), 1)
	tracker.Done()
	wantSame(t, "work", tracker.Count(), 5)
}
