package amqpx

import (
	"bytes"
	"context"
	"sync/atomic"
	"time"
)

// Future is a call that was made with [Client.Go]. Its methods are safe for any number of
// goroutines.
type Future struct {
	client *Client
	ctx    context.Context //nolint:containedctx // of the call, until it has settled.
	unhook func() bool     // takes the call's hook off its context
	asleep atomic.Bool     // no goroutine is at work for the call

	answer []byte // set before done is
	err    error
	// done is closed when the call has settled. It is made when somebody asks for it.
	done atomic.Pointer[chan struct{}]
}

// settledFuture is the done of futures that had settled before anybody asked.
//
//nolint:gochecknoglobals // it never changes.
var settledFuture = func() *chan struct{} {
	c := make(chan struct{})
	close(c)
	return &c
}()

// Go makes a call like [Client.Call] and does not wait for it. A call that waits costs
// some hundred bytes instead of a goroutine, so a hundred thousand may be under way at
// once; [WithMaxInFlight] bounds them. With middleware each takes a goroutine all the
// same, because middleware waits.
//
// What Call says about deadline, outcome and errors holds for the result. The body may
// be changed as soon as Go has returned.
func (c *Client) Go(ctx context.Context, method string, body []byte, opts ...CallOption) *Future { //nolint:contextcheck // a deadlineContext is its parent's child.
	if _, ok := ctx.Deadline(); !ok {
		ctx = withDeadline(ctx, time.Now().Add(c.cfg.timeout))
	}
	f := &Future{client: c, ctx: ctx}
	req := c.newRequest(method, body, opts)
	if len(c.cfg.middleware) > 0 {
		f.through(c.handler, req)
		return f
	}
	k, err := c.begin(ctx, req, f)
	if err != nil {
		f.settle(nil, err)
		return f
	}
	f.watch(k)
	k.send()
	f.sleep(k)
	return f
}

// watch has the call told when its context ends. Where only the client's own deadline
// would end it, the pending table does that.
func (f *Future) watch(k *call) {
	if f.client.gone(f.ctx, k) == nil {
		return
	}
	hooked := f.ctx
	if late, ok := f.ctx.(*deadlineContext); ok && !late.isMade() {
		hooked = late.parent
	}
	f.unhook = context.AfterFunc(hooked, func() { k.tell(event{kind: eventGone}) })
}

// through makes the call in a goroutine of its own.
func (f *Future) through(h Handler, req *Request) {
	req.Body = bytes.Clone(req.Body)
	work := func() { f.settle(h(f.ctx, req)) } // ends with the call, at the latest by Close
	if !f.client.pending.unlessClosed(func() { f.client.futures.Go(work) }) {
		f.settle(nil, localError(CodeUnavailable, DidNotRun, ErrClosed, ""))
	}
}

// sleep leaves the call to its events.
func (f *Future) sleep(k *call) {
	f.asleep.Store(true)
	select {
	case ev := <-k.events: // it came meanwhile
		k.tell(ev)
	default:
	}
}

// wake has the call go on after an event. This is the goroutine of whoever reports the
// event, which must not wait; only a result takes no more than a moment.
func (f *Future) wake(k *call, ev event) {
	c := f.client
	if ev.kind == eventAnswered && k.answer.failed == nil {
		k.withdraw() // answered before a re-send left
		c.pending.remove(k)
		c.account(k, k.answer.timing)
		f.settle(k.answer.body, nil)
		return
	}
	c.futures.Go(func() { // ends with the call, at the latest by Close
		f.settle(c.seeThrough(f.ctx, k, nil, ev))
	})
}

// settle ends the future, once.
func (f *Future) settle(answer []byte, err error) {
	f.client.counts.settled(err)
	if f.unhook != nil {
		f.unhook()
	}
	if late, ok := f.ctx.(*deadlineContext); ok {
		late.end()
	}
	f.answer, f.err = answer, err
	if done := f.done.Swap(settledFuture); done != nil {
		close(*done)
	}
}

// Done returns a channel that is closed when the call has settled.
func (f *Future) Done() <-chan struct{} {
	if done := f.done.Load(); done != nil {
		return *done
	}
	done := make(chan struct{})
	if !f.done.CompareAndSwap(nil, &done) {
		return *f.done.Load()
	}
	return done
}

// Wait waits until the call has settled and returns what Call would have returned.
// Calls settle by their deadlines, so it waits no longer than that.
func (f *Future) Wait() ([]byte, error) {
	<-f.Done()
	return f.answer, f.err
}
