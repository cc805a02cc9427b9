package rig

import (
	"context"
	"testing"
	"time"
)

const (
	// patience bounds the wait for any expected event on a busy machine. Only failing tests
	// wait so long.
	patience = 2 * time.Minute
	// pollEvery is the interval of Eventually.
	pollEvery = 50 * time.Millisecond
)

// Recv returns the next value of ch, and fails the test if no value arrives.
func Recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v := <-ch:
		return v
	case <-timer.C:
		t.Fatalf("waited %v for %s", patience, what)
		panic("unreachable")
	}
}

// Eventually polls until ok returns true. It is meant for conditions without an event from the
// broker.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited %v until %s", patience, what)
		}
	}
}

// Within returns a context that ends after d, or with the test.
func Within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// Patience returns a context for an operation that must succeed.
func Patience(t testing.TB) context.Context {
	t.Helper()
	return Within(t, patience)
}

// afterwards returns a context for cleanup after the end of the test's context.
func afterwards(t testing.TB) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(context.WithoutCancel(t.Context()), patience)
}
