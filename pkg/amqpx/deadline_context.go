package amqpx

import (
	"context"
	"sync/atomic"
	"time"
)

// lazyContext is what context.WithDeadline makes, but made late: until somebody
// waits for it, or asks for a value, it costs no timer and no place in its parent.
// Most calls end before anybody does.
type lazyContext struct {
	parent   context.Context //nolint:containedctx // this is a context.
	deadline time.Time       // zero: it ends only with its parent or by end
	ended    atomic.Bool
	made     atomic.Pointer[realContext] // nil until it is needed
}

type realContext struct {
	context.Context //nolint:containedctx // the real one.

	cancel context.CancelFunc
}

// withDeadline returns a context that ends with its parent, at the deadline, or when
// end is called.
func withDeadline(parent context.Context, deadline time.Time) *lazyContext {
	return &lazyContext{parent: parent, deadline: deadline}
}

// init makes it a child of parent, before anybody else has it; the deadline may be zero.
func (c *lazyContext) init(parent context.Context, deadline time.Time) {
	c.parent, c.deadline = parent, deadline
}

// cancel releases what the context holds; it counts as cancelled then.
func (c *lazyContext) cancel() {
	c.ended.Store(true)
	if m := c.made.Load(); m != nil {
		m.cancel()
	}
}

// created reports whether there is a real context.
func (c *lazyContext) created() bool { return c.made.Load() != nil }

func (c *lazyContext) real() context.Context {
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
func (c *lazyContext) Deadline() (time.Time, bool) {
	if c.deadline.IsZero() {
		return c.parent.Deadline()
	}
	return c.deadline, true
}

// Done implements context.Context.
func (c *lazyContext) Done() <-chan struct{} { return c.real().Done() }

// Value implements context.Context. The standard library finds a context to hang others
// on, and its cause, by a value under a key of this type, so for that the real one is
// asked. All other values are the parent's: they are asked for by whoever traces calls, of
// each of them.
func (c *lazyContext) Value(key any) any {
	if _, ofTheLibrary := key.(*int); ofTheLibrary || c.created() {
		return c.real().Value(key)
	}
	return c.parent.Value(key)
}

// Err implements context.Context.
func (c *lazyContext) Err() error {
	over := c.created() || c.ended.Load() || c.parent.Err() != nil ||
		!c.deadline.IsZero() && !time.Now().Before(c.deadline)
	if !over {
		return nil
	}
	return c.real().Err()
}
