package xsync

import (
	"context"
	"sync/atomic"
	"time"
)

// LazyContext is like a context of context.WithDeadline, but the real context is created only
// when a goroutine waits for its end. Until then it needs no timer and no entry in its parent.
// Most calls end before.
type LazyContext struct {
	parent   context.Context //nolint:containedctx // this is a context.
	deadline time.Time       // zero: ends only with its parent, or by Cancel
	ended    atomic.Bool
	made     atomic.Pointer[realContext] // nil until needed
}

type realContext struct {
	context.Context //nolint:containedctx // the real one.

	cancel context.CancelFunc
}

// WithDeadline returns a context that ends with its parent, at the deadline, or when Cancel is
// called.
func WithDeadline(parent context.Context, deadline time.Time) *LazyContext {
	return &LazyContext{parent: parent, deadline: deadline}
}

// Init sets the parent and the deadline, which may be zero, before c has other users.
func (c *LazyContext) Init(parent context.Context, deadline time.Time) {
	c.parent, c.deadline = parent, deadline
}

// Cancel ends the context and releases its resources.
func (c *LazyContext) Cancel() {
	c.ended.Store(true)
	if m := c.made.Load(); m != nil {
		m.cancel()
	}
}

// Canceled reports whether Cancel was called.
func (c *LazyContext) Canceled() bool { return c.ended.Load() }

// Parent returns the context that Init or WithDeadline was given.
func (c *LazyContext) Parent() context.Context { return c.parent }

// created reports whether the real context exists.
func (c *LazyContext) created() bool { return c.made.Load() != nil }

func (c *LazyContext) real() context.Context {
	if m := c.made.Load(); m != nil {
		return m
	}
	m := &realContext{}
	if c.deadline.IsZero() {
		m.Context, m.cancel = context.WithCancel(c.parent)
	} else {
		m.Context, m.cancel = context.WithDeadline(c.parent, c.deadline)
	}
	if !c.made.CompareAndSwap(nil, m) {
		m.cancel()
		m = c.made.Load()
	}
	if c.ended.Load() {
		m.cancel()
	}
	return m
}

// Deadline implements context.Context.
func (c *LazyContext) Deadline() (time.Time, bool) {
	if c.deadline.IsZero() {
		return c.parent.Deadline()
	}
	return c.deadline, true
}

// Done implements context.Context.
func (c *LazyContext) Done() <-chan struct{} { return c.real().Done() }

// Value implements context.Context. The standard library looks up the parent of a new context,
// and the cause, with a key of type *int, for which the real context is needed. Any other
// value is taken from the parent if there is no real context yet: tracing libraries look up
// values in every call.
func (c *LazyContext) Value(key any) any {
	if _, ofTheLibrary := key.(*int); ofTheLibrary || c.created() {
		return c.real().Value(key)
	}
	return c.parent.Value(key)
}

// Err implements context.Context.
func (c *LazyContext) Err() error {
	over := c.created() || c.ended.Load() || c.parent.Err() != nil ||
		!c.deadline.IsZero() && !time.Now().Before(c.deadline)
	if !over {
		return nil
	}
	return c.real().Err()
}
