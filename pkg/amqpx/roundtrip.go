package amqpx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"time"
)

// Bounds of the wait before a request that did not run is sent again.
const (
	resendMin = 20 * time.Millisecond
	resendMax = time.Second
)

// Bounds of the hint with ErrTooManyCalls, random so that the refused do not come
// back all at once.
const (
	fullRetryMin = 50 * time.Millisecond
	fullRetryMax = 150 * time.Millisecond
)

// roundTrip is the innermost Handler of a client: it sends the request, again when
// that is safe, and waits for the answer. A context without a deadline gets the client's
// default: it is the caller's own, or middleware detached it.
func (c *Client) roundTrip(ctx context.Context, req *Request) ([]byte, error) { //nolint:contextcheck // a deadlineContext is its parent's child.
	deadline, hasDeadline := ctx.Deadline()
	if !hasDeadline {
		deadline = time.Now().Add(c.cfg.timeout)
	}
	k, watched, err := c.begin(req, deadline, !hasDeadline, nil)
	if err != nil {
		return nil, err
	}
	if !hasDeadline && !watched { // else the pending table watches the deadline
		bounded := withDeadline(ctx, deadline)
		defer bounded.end()
		ctx = bounded
	}
	return c.seeThrough(ctx, k, ctx.Done(), event{kind: eventTurn})
}

// begin registers a call, for a future or for a goroutine that waits. Where the deadline
// is only the client's own, the pending table watches it for all calls together, if it
// can: watched says so.
func (c *Client) begin(req *Request, deadline time.Time, ours bool, f *Future) (k *call, watched bool, err error) {
	if req.sent.info != nil {
		*req.sent.info = CallInfo{}
	}
	if err := checkRequest(req, c.cfg.maxMessageSize); err != nil {
		return nil, false, localError(CodeInvalidArgument, DidNotRun, nil, err.Error(), err)
	}
	if !req.sent.ours {
		own := *req
		own.Header = maps.Clone(own.Header)
		req = &own
	}
	k = &call{req: req, route: &c.route, deadline: deadline, future: f}
	if f == nil {
		k.events = make(chan event, mostEvents)
	}
	if watched, err = c.pending.add(k, ours); err != nil {
		return nil, false, c.notTaken(err)
	}
	// A call that gives up may leave the publisher in the middle of its body, which
	// belongs to the caller again then.
	k.req.Body = bytes.Clone(k.req.Body)
	c.budget.earn()
	return k, watched, nil
}

// seeThrough takes a call from an event to its end.
func (c *Client) seeThrough(ctx context.Context, k *call, gone <-chan struct{}, ev event) ([]byte, error) {
	defer func() {
		k.withdraw() // answered before a re-send left
		c.pending.remove(k)
	}()
	answer, t, err := c.exchange(ctx, k, gone, ev)
	for k.refusal != nil {
		wait, ok := c.mayRetry(k, k.refusal.retryAfter)
		if !ok {
			k.refusal.retryAfter = wait
			break
		}
		k = c.pending.renew(k)
		answer, t, err = c.exchange(ctx, k, gone, k.pause(gone, wait))
	}
	c.account(k, t)
	return answer, err
}

// account tells how a call went.
func (c *Client) account(k *call, t timing) {
	sends := int(k.sent.Load())
	if sends > 1 {
		c.counts.resent.Add(uint64(sends - 1))
	}
	if info := k.req.sent.info; info != nil {
		*info = CallInfo{Attempts: sends, Queue: t.queue, Handler: t.handler}
	}
}

// notTaken makes the error of a call that the pending table refused. It is not
// retried here: the bound is there to be felt.
func (c *Client) notTaken(sentinel error) error {
	if errors.Is(sentinel, ErrClosed) {
		return localError(CodeUnavailable, DidNotRun, sentinel, "")
	}
	c.counts.refused.Add(1)
	e := localError(CodeResourceExhausted, DidNotRun, sentinel,
		fmt.Sprintf("at most %d, of %d bytes together", c.cfg.maxInFlight, c.cfg.maxInFlightBytes))
	e.retryAfter = fullRetryMin + rand.N(fullRetryMax-fullRetryMin) //nolint:gosec // spreads load, guards nothing.
	return e
}

// exchange makes attempts until one is answered or nothing more may be sent.
func (c *Client) exchange(ctx context.Context, k *call, gone <-chan struct{}, ev event) ([]byte, timing, error) {
	for {
		switch ev.kind {
		case eventTurn:
			ev = k.attempt(gone)
		case eventFate:
			pause, err := c.afterFate(k, ev.fate)
			if err != nil {
				return nil, timing{}, err
			}
			ev = k.pause(gone, pause)
		case eventAnswered:
			return k.read(&k.answer)
		case eventExpired, eventGone, eventClosed:
			if k.hasArrived() { // which is better than the error of giving up
				return k.read(&k.answer)
			}
			return nil, timing{}, c.gaveUp(k, why(ctx, ev))
		}
	}
}

// why returns the error that an event means: nil when the client is closed.
func why(ctx context.Context, ev event) error {
	switch ev.kind {
	case eventExpired:
		return context.DeadlineExceeded
	case eventClosed:
		return nil
	default:
		return ctx.Err()
	}
}

// attempt sends a request, unless the caller has gone already, and waits.
func (k *call) attempt(gone <-chan struct{}) event {
	select {
	case <-gone:
		return event{kind: eventGone}
	default:
		k.send()
		return k.await(gone, nil)
	}
}

// await waits for an event, the end of the caller's context, or, unless it is nil, for
// after.
func (k *call) await(gone <-chan struct{}, after <-chan time.Time) event {
	select {
	case ev := <-k.events:
		return ev
	case <-gone:
		return event{kind: eventGone}
	case <-after:
		return event{kind: eventTurn}
	}
}

// pause waits before the next attempt; any event ends it.
func (k *call) pause(gone <-chan struct{}, d time.Duration) event {
	if d <= 0 {
		return event{kind: eventTurn}
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	return k.await(gone, timer.C)
}

// hasArrived reports whether an answer has arrived that nobody has seen, and notes the
// fates of attempts.
func (k *call) hasArrived() bool {
	for {
		select {
		case ev := <-k.events:
			switch ev.kind {
			case eventAnswered:
				return true
			case eventFate:
				k.note(ev.fate)
			case eventExpired, eventClosed, eventGone, eventTurn:
			}
		default:
			return false
		}
	}
}

// read reads the call's answer. A refusal speaks for the one request it answers: it
// proves nothing about an earlier one that may have arrived.
func (k *call) read(a *reply) ([]byte, timing, error) {
	failed := a.failed
	if failed == nil {
		return a.body, a.timing, nil
	}
	if failed.outcome == DidNotRun {
		// Without the echo it may be an earlier refusal's copy, and the retry run.
		k.uncertain = k.uncertain || k.round > 0 && !k.echoed
		if k.uncertain {
			failed.outcome = MayHaveRun
		}
	}
	harmless := failed.outcome == DidNotRun || failed.outcome == MayHaveRun && k.req.Idempotent
	if failed.code == CodeResourceExhausted && harmless {
		k.refusal = failed
	}
	return nil, a.timing, failed
}

// mayRetry decides whether a call that was refused may be tried again: after a wait
// of at least the server's hint, within the call's deadline, and out of the budget.
// When it may not, the wait is a hint for the caller.
func (c *Client) mayRetry(k *call, hint time.Duration) (wait time.Duration, ok bool) {
	wait = hint + k.nextWait()
	if time.Until(k.deadline) <= wait || !c.budget.spend() {
		return wait, false
	}
	c.counts.retried.Add(1)
	return wait, true
}

// note keeps what an attempt's fate proves.
func (k *call) note(f fate) {
	k.lastFate = f
	k.uncertain = k.uncertain || f == fateLost
	k.noQueue = k.noQueue || f == fateUnroutable
}

// afterFate decides what follows an attempt that got no answer: another one, at
// once or after a pause, or the error.
func (c *Client) afterFate(k *call, f fate) (pause time.Duration, err error) {
	k.note(f)
	outcome := k.outcome()
	switch f {
	case fateUnsent:
		return 0, nil
	case fateLost:
		if k.req.Idempotent {
			return 0, nil
		}
		return 0, localError(CodeUnavailable, outcome, ErrOutcomeUnknown, "")
	case fateUnroutable:
		if k.req.sent.waitForServer {
			return k.nextWait(), nil
		}
		return 0, localError(CodeUnavailable, outcome, ErrUnroutable, fmt.Sprintf("no queue %q", k.route.queue))
	default: // refused
		if c.queueIsComingUp(k) {
			return k.nextWait(), nil
		}
		wait, ok := c.mayRetry(k, 0)
		if ok {
			return wait, nil
		}
		e := localError(CodeResourceExhausted, outcome, ErrRefused, fmt.Sprintf("queue %q", k.route.queue))
		e.retryAfter = wait
		return 0, e
	}
}

// comingUp is how long after the link became ready the broker's refusals are taken for
// those of a queue that is not up yet; after the first link only for calls that wait for a
// server.
const comingUp = 5 * time.Second

// queueIsComingUp reports whether the broker may refuse because the queue is being made
// or recovered, as RabbitMQ does while a quorum queue elects its leader, and not because
// it is full: the broker does not say. Such a call is sent again, with growing waits, out
// of no budget: idle callers that wait for a broker are no overload.
func (c *Client) queueIsComingUp(k *call) bool {
	s := c.sup.current()
	return k.noQueue || s == nil ||
		time.Since(s.begun) < comingUp && (s.generation > 1 || k.req.sent.waitForServer)
}

// gaveUp makes the error of a call whose context or time ended, with the reason why it
// got no further; without a cause the client was closed.
func (c *Client) gaveUp(k *call, cause error) error {
	outcome := k.outcome()
	if cause == nil {
		return localError(CodeUnavailable, outcome, ErrClosed, "")
	}
	c.giveUp(k.req, cause, outcome)
	st := c.Status()
	var sentinel error
	detail := fmt.Sprintf("no answer from queue %q", k.route.queue)
	switch {
	case st.State == StateBlocked:
		sentinel, detail = ErrBlocked, st.Reason
	case st.State != StateReady:
		if sentinel, detail = ErrNotConnected, ""; st.Err != nil {
			detail = st.Err.Error()
		}
	case outcome == DidNotRun && k.lastFate == fateUnroutable:
		sentinel, detail = ErrUnroutable, fmt.Sprintf("no queue %q", k.route.queue)
	case outcome == DidNotRun && k.lastFate == fateRefused:
		sentinel, detail = ErrRefused, fmt.Sprintf("queue %q", k.route.queue)
	}
	e := contextError(cause, outcome, sentinel, detail)
	switch {
	case e.code != CodeDeadlineExceeded:
	case errors.Is(sentinel, ErrUnroutable):
		e.code = CodeUnavailable
	case errors.Is(sentinel, ErrRefused):
		e.code = CodeResourceExhausted
	}
	return e
}
