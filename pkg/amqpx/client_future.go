package amqpx

import (
	"bytes"
	"context"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// Future is a call made with [Client.Go]. Its methods are safe for concurrent use.
type Future struct {
	client  *Client
	ctx     context.Context //nolint:containedctx // of the call, for when it needs a goroutine.
	watched *observation    // nil without an observer

	mu    sync.Mutex
	state futureState
	early bool // woken in futureMade
	own   bool // ctx is a canceler made by the future, not the caller's context

	response []byte // set before done
	err      error
	// done is closed when the call has settled. The channel is made on the first use of Done.
	done atomic.Pointer[chan struct{}]
}

type futureState uint8

const (
	futureMade   futureState = iota // being made
	futureAsleep                    // no goroutine works for the call; the next event wakes the future
	futureAwake                     // a goroutine works for the call, or the call has settled
)

// settledFuture is the done channel of futures that settled before the first use of Done.
//
//nolint:gochecknoglobals // it never changes.
var settledFuture = func() *chan struct{} {
	c := make(chan struct{})
	close(c)
	return &c
}()

// Go makes a call like [Client.Call] and does not wait for the response. A waiting call costs
// some hundred bytes instead of a goroutine, so a hundred thousand calls may be in flight at
// once; [WithMaxInFlight] bounds the number. A call that goes through middleware takes a
// goroutine, because middleware waits.
//
// Deadline, outcome and errors are those of Call. The body may be changed as soon as Go has
// returned.
func (c *Client) Go(ctx context.Context, method string, body []byte, opts ...CallOption) *Future { //nolint:contextcheck // the context of a Future is ctx or its child.
	if err := c.checkCall(ctx, opts); err != nil {
		f := &Future{err: err}
		f.done.Store(settledFuture)
		return f
	}
	if !c.calls.Enter() { // finish calls Leave
		f := &Future{err: c.refused(method)}
		f.done.Store(settledFuture)
		return f
	}
	f := &Future{client: c, ctx: ctx}
	if c.cfg.observer != nil {
		f.watched = new(c.observe(method))
	}
	req, timeout, mistake := c.newRequest(method, body, opts)
	if mistake != nil {
		f.settle(nil, misused(mistake))
		return f
	}
	if own := f.begun().Add(timeout); timeout > 0 {
		if deadline, ok := ctx.Deadline(); !ok || own.Before(deadline) {
			f.bound(own)
			ctx = f.ctx
		}
	}
	if h := c.handlerOf(ctx, &req); h != nil {
		f.runInGoroutine(h, req)
		return f
	}
	// Close waits until the call is parked or has a goroutine.
	if !c.pending.unlessClosed(func() { c.futures.Add(1) }) {
		f.settle(nil, c.limitError(ErrClosed))
		return f
	}
	defer c.futures.Done()
	deadline, its := ctx.Deadline()
	if !its {
		deadline = f.begun().Add(c.cfg.timeout)
	}
	k, watched, err := c.begin(&req, deadline, !its, f)
	if err != nil {
		f.settle(nil, err)
		return f
	}
	if !its && !watched {
		f.bound(deadline)
	}
	c.pending.watch(f.ctx, k)
	if f.ctx.Err() == nil { // otherwise the watch notifies the call
		k.send()
	}
	f.park(k)
	return f
}

// canceler is a context that can be canceled.
type canceler interface{ Cancel() }

// bound gives the call its own context with a deadline; finish cancels the context.
func (f *Future) bound(deadline time.Time) {
	f.ctx, f.own = xsync.WithDeadline(f.ctx, deadline), true
}

// begun returns the start time of the call.
func (f *Future) begun() time.Time {
	if f.watched == nil {
		return time.Now()
	}
	return f.watched.now()
}

// runInGoroutine makes the call in a new goroutine.
func (f *Future) runInGoroutine(h Handler, shared Request) {
	own := &callContext{client: f.client, req: shared} // middleware may keep the request
	req := &own.req
	req.Body = bytes.Clone(req.Body)
	if _, ok := f.ctx.Deadline(); !ok {
		own.Init(f.ctx, time.Now().Add(f.client.cfg.timeout))
		f.ctx, f.own = own, true
	}
	work := func() { // ends with the call, at the latest by Close
		var response []byte
		err := error(localError(CodeInternal, MayHaveRun, nil, "the client's middleware ended its goroutine"))
		defer func() {
			if v := recover(); v != nil {
				f.client.cfg.logger.Error("middleware panicked", zap.String("method", req.Method), zap.String("correlation_id", req.CorrelationID),
					zap.String("panic", panicText(v)), zap.ByteString("stack", debug.Stack()))
				response, err = nil, localError(CodeInternal, MayHaveRun, nil, "the client's middleware panicked")
			}
			f.settle(response, err)
		}()
		response, err = h(f.ctx, req)
	}
	if !f.client.pending.unlessClosed(func() { f.client.futures.Go(work) }) {
		f.settle(nil, localError(CodeUnavailable, DidNotRun, ErrClosed, ""))
	}
}

// park makes the future react to events without a goroutine.
func (f *Future) park(k *call) {
	f.mu.Lock()
	f.state = futureAsleep
	early := f.early
	f.mu.Unlock()
	if early {
		f.onEvent(k)
	}
}

// onEvent handles an event of the call. It runs on the reporting goroutine (the response
// reader, the publisher or a timer) and must not block. A successful response settles the
// future inline, unless the client checks responses; any other event starts a goroutine.
func (f *Future) onEvent(k *call) {
	result := false
	f.mu.Lock()
	state := f.state
	switch state {
	case futureMade:
		f.early = true
	case futureAsleep:
		f.state = futureAwake
		result = k.has(eventResponse) && k.response.Failure == nil && k.route.check == nil
		if !result {
			k.callProgress = &callProgress{wake: make(chan struct{}, 1)}
			f.client.futures.Add(1) // added here because Close notifies every call before waiting
		}
	case futureAwake:
	}
	var wake chan struct{}
	if k.callProgress != nil {
		wake = k.wake
	}
	f.mu.Unlock()
	switch {
	case state == futureAsleep && result:
		k.cancelSend() // the response came before a re-send was written
		k.responded = true
		f.client.pending.remove(k)
		f.client.account(k, k.response.Times)
		f.settle(k.response.Body, nil)
	case state == futureAsleep:
		go func() { // ends with the call, at the latest by Close
			defer f.client.futures.Done()
			f.settle(f.client.runCall(f.ctx, k, nil, k.await(nil, nil)))
		}()
	case state == futureAwake: // no channel: the call has settled
		offerToken(wake)
	}
}

// settle settles the future, once.
func (f *Future) settle(response []byte, err error) {
	defer f.finish(response, err) // also when an observer ends this goroutine
	var o observation
	if f.watched != nil {
		o = *f.watched
	}
	f.client.recordCall(o, err)
}

// finish sets the results of Wait.
func (f *Future) finish(response []byte, err error) {
	if own, ok := f.ctx.(canceler); ok && f.own {
		own.Cancel()
	}
	f.response, f.err = response, err
	f.client.calls.Leave()
	if done := f.done.Swap(settledFuture); done != nil {
		close(*done)
	}
}

// Done returns a channel that is closed when the call has settled.
func (f *Future) Done() <-chan struct{} {
	if done := f.done.Load(); done != nil {
		return *done
	}
	if f.client == nil { // not made by Client.Go, or failed in it at once
		return *settledFuture
	}
	done := make(chan struct{})
	if !f.done.CompareAndSwap(nil, &done) {
		return *f.done.Load()
	}
	return done
}

// Wait waits until the call has settled and returns the results of [Client.Call]. The wait
// ends at the call's deadline at the latest.
func (f *Future) Wait() ([]byte, error) {
	<-f.Done()
	if f.client == nil && f.err == nil {
		return nil, misused(errNoFuture)
	}
	return f.response, f.err
}
