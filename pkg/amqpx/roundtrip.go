package amqpx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Bounds of the wait before a request that did not run is sent again.
const (
	resendMin = 20 * time.Millisecond
	resendMax = time.Second
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
	// A call that gives up may leave the publisher in the middle of its body, which
	// belongs to the caller again then.
	own := *req
	own.Body = bytes.Clone(req.Body)
	k := newCall(&own, c.cfg.queue.Name)
	select {
	case c.slots <- struct{}{}:
	default:
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, c.gaveUp(ctx, k)
		case <-c.closing:
			return nil, localError(CodeUnavailable, DidNotRun, ErrClosed, "")
		}
	}
	defer func() { <-c.slots }()
	if !c.pending.add(k) {
		return nil, localError(CodeUnavailable, DidNotRun, ErrClosed, "")
	}
	defer c.pending.remove(k)
	defer k.move(stageQueued, stageWithdrawn) // answered before a re-send left
	answer, t, err := c.exchange(ctx, k)
	sends := int(k.sent.Load())
	c.counts.resent.Add(uint64(max(sends-1, 0)))
	if info := req.call.info; info != nil {
		*info = CallInfo{Attempts: sends, Queue: t.queue, Handler: t.handler}
	}
	return answer, err
}

// exchange sends attempts until one is answered or nothing more may be sent.
func (c *Client) exchange(ctx context.Context, k *call) ([]byte, timing, error) {
	var wait *backoff.ExponentialBackOff
	for {
		ev, err := c.attempt(ctx, k)
		if err != nil {
			return nil, timing{}, err
		}
		if ev.answer == nil {
			var pause bool
			if pause, err = c.afterFate(k, ev.fate); err != nil {
				return nil, timing{}, err
			}
			if !pause {
				continue
			}
			if wait == nil {
				wait = newBackoff(resendMin, resendMax)
			}
			if ev, err = c.pause(ctx, k, wait.NextBackOff()); err != nil {
				return nil, timing{}, err
			}
		}
		if ev.answer != nil {
			answer, t, failed := decodeAnswer(ev.answer)
			if failed != nil {
				return nil, t, failed
			}
			return answer, t, nil
		}
	}
}

// attempt hands the request to the publisher and waits for an answer or a fate.
// Without a link it waits in the outbox for the next one.
func (c *Client) attempt(ctx context.Context, k *call) (event, error) {
	deadline, _ := ctx.Deadline()
	k.msg = encodeRequest(k.req, c.replyTo, max(time.Until(deadline), 0), c.cfg.persistent)
	k.stage.Store(uint32(stageQueued))
	outbox := c.outbox
	for {
		select {
		case outbox <- k:
			outbox = nil
		case ev := <-k.events:
			return ev, nil
		case <-ctx.Done():
			return c.ended(k, func() error { return c.gaveUp(ctx, k) })
		case <-c.closing:
			return c.ended(k, func() error { return localError(CodeUnavailable, k.outcome(), ErrClosed, "") })
		}
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
}

// afterFate decides what follows an attempt that got no answer: another one, at
// once or after a pause, or the error.
func (c *Client) afterFate(k *call, f fate) (pause bool, err error) {
	k.note(f)
	outcome := DidNotRun
	if k.uncertain {
		outcome = MayHaveRun
	}
	switch f {
	case fateUnsent:
		return false, nil
	case fateLost:
		if k.req.Idempotent {
			return false, nil
		}
		return false, localError(CodeUnavailable, outcome, ErrOutcomeUnknown, "")
	case fateUnroutable:
		if k.req.call.waitForServer {
			return true, nil
		}
		return false, localError(CodeUnavailable, outcome, ErrUnroutable, fmt.Sprintf("no queue %q", k.key))
	default: // refused
		return true, nil
	}
}

// gaveUp makes the error of a call whose context ended, with the reason why it got
// no further.
func (c *Client) gaveUp(ctx context.Context, k *call) error {
	outcome := k.outcome()
	st := c.Status()
	var sentinel error
	detail := fmt.Sprintf("no answer from queue %q", k.key)
	switch {
	case st.State == StateBlocked:
		sentinel, detail = ErrBlocked, st.Reason
	case st.State != StateReady:
		if sentinel, detail = ErrNotConnected, ""; st.Err != nil {
			detail = st.Err.Error()
		}
	case outcome == DidNotRun && k.lastFate == fateUnroutable:
		sentinel, detail = ErrUnroutable, fmt.Sprintf("no queue %q", k.key)
	case outcome == DidNotRun && k.lastFate == fateRefused:
		sentinel, detail = ErrRefused, fmt.Sprintf("queue %q", k.key)
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
