package amqpx

import (
	"context"
	"sync/atomic"
	"time"
)

// deadlineContext is what context.WithDeadline makes, but made late: until somebody
// waits for it, or asks for a value, it costs no timer and no place in its parent.
// Most calls end before anybody does.
type deadlineContext struct {
	parent   context.Context //nolint:containedctx // this is a context.
	deadline time.Time       // zero: it ends only with its parent or by end
	ended    atomic.Bool
	made     atomic.Pointer[madeContext] // nil until it is needed
}

type madeContext struct {
	context.Context //nolint:containedctx // the real one.

	cancel context.CancelFunc
}

// withDeadline returns a context that ends with its parent, at the deadline, or when
// end is called.
func withDeadline(parent context.Context, deadline time.Time) *deadlineContext {
	return &deadlineContext{parent: parent, deadline: deadline}
}

// begin makes it a child of parent, before anybody else has it; the deadline may be zero.
func (c *deadlineContext) begin(parent context.Context, deadline time.Time) {
	c.parent, c.deadline = parent, deadline
}

// end releases what the context holds; it counts as cancelled then.
func (c *deadlineContext) end() {
	c.ended.Store(true)
	if m := c.made.Load(); m != nil {
		m.cancel()
	}
}

// isMade reports whether there is a real context.
func (c *deadlineContext) isMade() bool { return c.made.Load() != nil }

func (c *deadlineContext) real() context.Context {
	if m := c.made.Load(); m != nil {
		return m
	}
	m := &madeContext{}
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
func (c *deadlineContext) Deadline() (time.Time, bool) {
	if c.deadline.IsZero() {
		return c.parent.Deadline()
	}
	return c.deadline, true
}

// Done implements context.Context.
func (c *deadlineContext) Done() <-chan struct{} { return c.real().Done() }

// Value implements context.Context. The standard library finds a context to hang others
// on, and its cause, by a value under a key of this type, so for that the real one is
// asked. All other values are the parent's: they are asked for by whoever traces calls, of
// each of them.
func (c *deadlineContext) Value(key any) any {
	if _, ofTheLibrary := key.(*int); ofTheLibrary || c.isMade() {
		return c.real().Value(key)
	}
	return c.parent.Value(key)
}

// Err implements context.Context.
func (c *deadlineContext) Err() error {
	over := c.isMade() || c.ended.Load() || c.parent.Err() != nil ||
		!c.deadline.IsZero() && !time.Now().Before(c.deadline)
	if !over {
		return nil
	}
	return c.real().Err()
}
