package xsync

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestDeadlineContext(t *testing.T) {
	t.Parallel()
	type key struct{}
	errCause := errors.New("the cause")
	for _, c := range []struct {
		name  string
		made  bool // the context was created before
		then  func(c *LazyContext, cancel context.CancelCauseFunc)
		want  error
		cause error
	}{
		{"under way", false, func(*LazyContext, context.CancelCauseFunc) {}, nil, nil},
		{"deadline", false, func(*LazyContext, context.CancelCauseFunc) { pass(time.Minute) }, context.DeadlineExceeded, context.DeadlineExceeded},
		{"deadline, made", true, func(*LazyContext, context.CancelCauseFunc) { pass(time.Minute) }, context.DeadlineExceeded, context.DeadlineExceeded},
		{"ended", false, func(c *LazyContext, _ context.CancelCauseFunc) { c.Cancel() }, context.Canceled, context.Canceled},
		{"ended, made", true, func(c *LazyContext, _ context.CancelCauseFunc) { c.Cancel() }, context.Canceled, context.Canceled},
		{"parent", false, func(_ *LazyContext, cancel context.CancelCauseFunc) { cancel(errCause) }, context.Canceled, errCause},
		{"parent, made", true, func(_ *LazyContext, cancel context.CancelCauseFunc) { cancel(errCause) }, context.Canceled, errCause},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				parent, cancel := context.WithCancelCause(context.WithValue(t.Context(), key{}, "value"))
				defer cancel(nil)
				ctx := WithDeadline(parent, time.Now().Add(time.Minute))
				defer ctx.Cancel()
				if c.made {
					ctx.Done()
				}
				c.then(ctx, cancel)
				wantSame(t, "error", ctx.Err(), c.want)
				wantSame(t, "cause", context.Cause(ctx), c.cause)
				wantSame(t, "value", ctx.Value(key{}), any("value"))
				select {
				case <-ctx.Done():
					wantSame(t, "done", c.want != nil, true)
				default:
					wantSame(t, "done", c.want != nil, false)
				}
				pass(2 * time.Minute)
				if c.want != nil {
					wantSame(t, "error for good", ctx.Err(), c.want)
				}
			})
		})
	}
}

// Tracing reads a value, the span, from every call's context. Reading must not create a timer.
func TestValuesOfADeadlineContextAreItsParents(t *testing.T) {
	t.Parallel()
	type key struct{}
	ctx := WithDeadline(context.WithValue(t.Context(), key{}, "value"), time.Now().Add(time.Hour))
	defer ctx.Cancel()
	wantSame(t, "value", ctx.Value(key{}), any("value"))
	wantSame(t, "created", ctx.created(), false)
	child, cancel := context.WithCancel(ctx) // registers with the real context
	defer cancel()
	wantSame(t, "created", ctx.created(), true)
	ctx.Cancel()
	wantSame(t, "error of the child", child.Err(), context.Canceled)
}

func BenchmarkLazyContext(b *testing.B) {
	deadline := time.Now().Add(time.Hour)
	b.ReportAllocs()
	for b.Loop() {
		ctx := WithDeadline(b.Context(), deadline)
		ctx.Cancel()
	}
}
