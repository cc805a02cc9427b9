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
// that is safe, and waits for the answer.
func (c *Client) roundTrip(ctx context.Context, req *Request) ([]byte, error) {
	if req.call.info != nil {
		*req.call.info = CallInfo{}
	}
	if err := checkRequest(req, c.cfg.maxMessageSize); err != nil {
		return nil, localError(CodeInvalidArgument, DidNotRun, nil, err.Error(), err)
	}
	own := *req
	own.Header = maps.Clone(own.Header)
	k := newCall(&own, &c.route)
	k.deadline, _ = ctx.Deadline()
	if err := c.pending.add(k); err != nil {
		return nil, c.notTaken(err)
	}
	defer func() {
		k.withdraw() // answered before a re-send left
		c.pending.remove(k)
	}()
	// A call that gives up may leave the publisher in the middle of its body, which
	// belongs to the caller again then.
	k.req.Body = bytes.Clone(k.req.Body)
	c.budget.earn()
	answer, t, err := c.exchange(ctx, k, 0)
	for k.refusal != nil {
		wait, ok := c.mayRetry(ctx, k, k.refusal.retryAfter)
		if !ok {
			k.refusal.retryAfter = wait
			break
		}
		k = c.pending.renew(k)
		answer, t, err = c.exchange(ctx, k, wait)
	}
	sends := int(k.sent.Load())
	c.counts.resent.Add(uint64(max(sends-1, 0)))
	if info := req.call.info; info != nil {
		*info = CallInfo{Attempts: sends, Queue: t.queue, Handler: t.handler}
	}
	return answer, err
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

// exchange sends attempts, the first after a pause, until one is answered or nothing
// more may be sent.
func (c *Client) exchange(ctx context.Context, k *call, pause time.Duration) ([]byte, timing, error) {
	for {
		var ev event
		var err error
		if pause > 0 {
			ev, err = c.pause(ctx, k, pause)
		}
		if err == nil && ev.answer == nil {
			ev, err = c.attempt(ctx, k)
		}
		switch {
		case err != nil:
			return nil, timing{}, err
		case ev.answer != nil:
			return k.read(ev.answer)
		}
		if pause, err = c.afterFate(ctx, k, ev.fate); err != nil {
			return nil, timing{}, err
		}
	}
}

// read reads the call's answer. A refusal speaks for the one request it answers: it
// proves nothing about an earlier one that may have arrived.
func (k *call) read(a *received) ([]byte, timing, error) {
	failed := a.failed
	if failed == nil {
		return a.body, a.timing, nil
	}
	if failed.outcome == DidNotRun {
		// Without the echo it may be an earlier refusal's copy, and the retry run.
		k.uncertain = k.uncertain || k.round > 0 && !a.echoed
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
func (c *Client) mayRetry(ctx context.Context, k *call, hint time.Duration) (wait time.Duration, ok bool) {
	wait = hint + k.nextWait()
	deadline, _ := ctx.Deadline()
	if time.Until(deadline) <= wait || !c.budget.spend() {
		return wait, false
	}
	c.counts.retried.Add(1)
	return wait, true
}

// attempt hands the request to the publisher and waits for an answer or a fate.
func (c *Client) attempt(ctx context.Context, k *call) (event, error) {
	k.send()
	select {
	case ev := <-k.events:
		return ev, nil
	case <-ctx.Done():
		return c.ended(k, func() error { return c.gaveUp(ctx, k) })
	case <-c.closing:
		return c.ended(k, func() error { return localError(CodeUnavailable, k.outcome(), ErrClosed, "") })
	}
}

// pause waits before the next attempt; an answer to an earlier one ends it.
func (c *Client) pause(ctx context.Context, k *call, d time.Duration) (event, error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return event{}, nil
	case ev := <-k.events:
		return ev, nil
	case <-ctx.Done():
		return c.ended(k, func() error { return c.gaveUp(ctx, k) })
	case <-c.closing:
		return c.ended(k, func() error { return localError(CodeUnavailable, k.outcome(), ErrClosed, "") })
	}
}

// ended prefers an answer that has arrived over the error of giving up.
func (c *Client) ended(k *call, giveUp func() error) (event, error) {
	for {
		select {
		case ev := <-k.events:
			if ev.answer != nil {
				return ev, nil
			}
			k.note(ev.fate)
		default:
			return event{}, giveUp()
		}
	}
}

// note keeps what an attempt's fate proves.
func (k *call) note(f fate) {
	k.lastFate = f
	k.uncertain = k.uncertain || f == fateLost
	k.noQueue = k.noQueue || f == fateUnroutable
}

// afterFate decides what follows an attempt that got no answer: another one, at
// once or after a pause, or the error.
func (c *Client) afterFate(ctx context.Context, k *call, f fate) (pause time.Duration, err error) {
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
		if k.req.call.waitForServer {
			return k.nextWait(), nil
		}
		return 0, localError(CodeUnavailable, outcome, ErrUnroutable, fmt.Sprintf("no queue %q", k.route.queue))
	default: // refused
		if c.queueIsComingUp(k) {
			return k.nextWait(), nil
		}
		wait, ok := c.mayRetry(ctx, k, 0)
		if ok {
			return wait, nil
		}
		e := localError(CodeResourceExhausted, outcome, ErrRefused, fmt.Sprintf("queue %q", k.route.queue))
		e.retryAfter = wait
		return 0, e
	}
}

// comingUp is how long after a reconnect the broker's refusals are taken for those of a
// queue that is not up yet.
const comingUp = 5 * time.Second

// queueIsComingUp reports whether the broker may refuse because the queue is being made
// or recovered, as RabbitMQ does while a quorum queue elects its leader, and not because
// it is full: the broker does not say. Such a call is sent again, with growing waits, out
// of no budget: idle callers that wait for a broker are no overload.
func (c *Client) queueIsComingUp(k *call) bool {
	s := c.sup.current()
	return k.noQueue || s == nil || s.generation > 1 && time.Since(s.begun) < comingUp
}

// gaveUp makes the error of a call whose context ended, with the reason why it got
// no further.
func (c *Client) gaveUp(ctx context.Context, k *call) error {
	outcome := k.outcome()
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
	e := contextError(ctx, outcome, sentinel, detail)
	switch {
	case e.code != CodeDeadlineExceeded:
	case errors.Is(sentinel, ErrUnroutable):
		e.code = CodeUnavailable
	case errors.Is(sentinel, ErrRefused):
		e.code = CodeResourceExhausted
	}
	return e
}
