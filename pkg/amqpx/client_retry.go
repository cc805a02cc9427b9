package amqpx

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// Defaults of a [RetryPolicy].
const (
	// DefaultMaxRetries is the number of retries of one call.
	DefaultMaxRetries = 3
	// DefaultRetryBackoffMin and DefaultRetryBackoffMax bound the wait before a retry.
	DefaultRetryBackoffMin = 50 * time.Millisecond
	DefaultRetryBackoffMax = 2 * time.Second
)

// RetryPolicy says when a failed call is made again, see [WithRetry]. The zero value of a field is
// its default.
type RetryPolicy struct {
	// MaxRetries bounds the retries of one call; the first try is not a retry. The default is
	// [DefaultMaxRetries]. A negative number means no retries, for a method or a call without the
	// policy of its client.
	MaxRetries int
	// MinBackoff and MaxBackoff bound the wait before a retry, which is random between zero and a
	// bound that doubles from MinBackoff to MaxBackoff ("full jitter"). The defaults are
	// [DefaultRetryBackoffMin] and [DefaultRetryBackoffMax]. If only one of the two is set, and the
	// default of the other does not suit it, both have its value.
	MinBackoff, MaxBackoff time.Duration
	// Codes are the codes after which a call is made again. The default is [CodeUnavailable],
	// [CodeResourceExhausted] and [CodeAborted]. [CodeCanceled] is not allowed.
	Codes []Code
}

// WithRetry makes the client call again when a call fails with a code of the policy. A call that
// is not idempotent ([Idempotent]) is made again only if it certainly did not run ([DidNotRun]);
// an idempotent call also if it ran, or may have run. The retries are requests with the same
// idempotency key and new correlation ids, and one call for middleware, observers and
// [Client.Stats].
//
// The wait before a retry is that of the policy and the hint of the error ([Error.RetryAfter])
// together. A retry that could not begin before the deadline of the call, or for which the budget
// of [WithRetryBudget] has nothing left, is not made: the call then returns its last error at
// once. The outcome of this error is never [DidNotRun] if an earlier request of the call may have
// run.
//
// This policy adds to the re-sends of every call: after the loss of a connection, to other
// servers after [CodeUnimplemented], and after refusals of servers that did not run the call.
// Calls after [ErrTooManyCalls] and [ErrClosed], and streams, are not retried. The default is no
// policy; of several, the last counts. The zero RetryPolicy retries with all defaults.
func WithRetry(policy RetryPolicy) CallOption {
	var complete *retryPolicy
	if policy.MaxRetries >= 0 {
		complete = policy.complete()
	}
	return func(c *callConfig) { c.retry = complete }
}

// retryPolicy is a RetryPolicy without defaults. It does not change.
type retryPolicy struct {
	RetryPolicy

	fault error // a mistake in the policy
}

// complete returns the policy with its defaults.
func (p RetryPolicy) complete() *retryPolicy {
	full := &retryPolicy{RetryPolicy: p}
	if full.Codes = slices.Clone(p.Codes); len(p.Codes) == 0 {
		full.Codes = []Code{CodeUnavailable, CodeResourceExhausted, CodeAborted}
	}
	if p.MaxRetries == 0 {
		full.MaxRetries = DefaultMaxRetries
	}
	if p.MinBackoff == 0 {
		full.MinBackoff = DefaultRetryBackoffMin
		if p.MaxBackoff > 0 {
			full.MinBackoff = min(full.MinBackoff, p.MaxBackoff)
		}
	}
	if p.MaxBackoff == 0 {
		full.MaxBackoff = max(DefaultRetryBackoffMax, p.MinBackoff)
	}
	var faults []error
	if full.MinBackoff < 0 || full.MaxBackoff < full.MinBackoff {
		faults = append(faults, fmt.Errorf("WithRetry: backoff from %v to %v: want more than 0, and the second not less", full.MinBackoff, full.MaxBackoff))
	}
	for _, code := range full.Codes {
		if !code.Valid() || code == CodeCanceled {
			faults = append(faults, fmt.Errorf("WithRetry: code %q: want a code of this package other than %q", code, CodeCanceled))
		}
	}
	full.fault = errors.Join(faults...)
	return full
}

// covers reports whether a call with this error may be made again.
func (p *retryPolicy) covers(e *Error, idempotent bool) bool {
	switch {
	case !idempotent && e.Outcome() != DidNotRun, errors.Is(e, ErrTooManyCalls), errors.Is(e, ErrClosed):
		return false
	default:
		return slices.Contains(p.Codes, e.Code())
	}
}

// makeTries makes the tries of a call with a retry policy or a hedge: round trips, one after the
// other.
func (c *Client) makeTries(ctx context.Context, req *Request) ([]byte, error) {
	policy, sum := req.sent.retry, 0
	var wait *xsync.Backoff
	mayHaveRun := false // a try before
	for retries := 0; ; retries++ {
		body, err := c.hedge(ctx, req)
		if info := req.sent.info; info != nil {
			sum += info.Attempts
			info.Attempts = sum
		}
		e := codedError(err)
		if e == nil {
			return body, err
		}
		e = e.after(mayHaveRun)
		if policy == nil || retries == policy.MaxRetries || !policy.covers(e, req.Idempotent) {
			return nil, e
		}
		mayHaveRun = e.Outcome() != DidNotRun
		if wait == nil {
			wait = xsync.NewBackoff(policy.MinBackoff, policy.MaxBackoff)
		}
		pause := e.RetryAfter() + wait.NextBackOff()
		if end, ok := ctx.Deadline(); ok && time.Until(end) <= pause || !c.budget.spend() {
			return nil, e
		}
		c.counts.retried.Add(1)
		if err := c.awaitRetry(ctx, pause, e); err != nil {
			return nil, err
		}
		req = req.again(mayHaveRun)
	}
}

// after returns the error of a call of which an earlier try may have run, if mayHaveRun says so.
func (e *Error) after(mayHaveRun bool) *Error {
	if !mayHaveRun || e.outcome != DidNotRun {
		return e
	}
	own := *e
	own.outcome = MayHaveRun
	return &own
}

// awaitRetry waits before a retry. It returns an error if the call or the client ends first; last
// is the error of the last try.
func (c *Client) awaitRetry(ctx context.Context, pause time.Duration, last *Error) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return contextError(ctx.Err(), last.outcome, nil, "before a retry after: "+last.Error())
	case <-c.closing:
		return localError(CodeUnavailable, last.outcome, ErrClosed, "before a retry after: "+last.Error())
	}
}

// again returns the request of the next try of a call: the same under a new correlation id, so
// that a late response to an earlier try is not mistaken for its own. mayHaveRun tells whether an
// earlier try may have run: then the request is marked as re-sent, for methods that run at most
// once.
func (req *Request) again(mayHaveRun bool) *Request {
	next := *req
	next.sent.resent = mayHaveRun
	next.CorrelationID = newID()
	return &next
}

// attemptCheckMin and attemptCheckMax bound the pause between two checks of attempts for
// WithAttemptTimeout. The pause is an eighth of the time limit.
const (
	attemptCheckMin = 5 * time.Millisecond
	attemptCheckMax = time.Second
)

// attemptDoublings bounds how often the time limit of a call's attempts doubles.
const attemptDoublings = 10

// WithAttemptTimeout sets a time limit for the attempts of idempotent calls. When the broker
// has confirmed the request and no response arrives for d, for example because a server
// acknowledged the request and lost it, the call is sent again under the same ids, marked as
// re-sent. Each further attempt of a call gets twice the time of the previous attempt, to
// protect slow servers; the call's deadline bounds all attempts. The first response counts,
// whichever attempt it belongs to. Calls that are not idempotent are not affected. The
// default, 0, sets no limit; a negative d is an error. The limit is checked at intervals of an
// eighth of d, 5 ms to 1 s.
func WithAttemptTimeout(d time.Duration) ClientOption {
	return clientOption(func(c *clientConfig) { c.attemptTimeout = d })
}

// checkAttempts re-sends the calls whose attempts have reached their time limit, while a
// session lasts.
func (c *Client) checkAttempts(s *transport.Session) {
	limit := c.cfg.attemptTimeout
	tick := time.NewTicker(min(max(limit/8, attemptCheckMin), attemptCheckMax))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.Done:
			return
		}
		now := time.Now().UnixNano()
		for _, a := range c.pending.attempts() {
			doublings := min(max(a.call.sent.Load()-1, 0), attemptDoublings)
			if a.call.req.idempotent && now-a.sentAt.Load() >= int64(limit)<<doublings {
				a.loseConfirmed(publish.Lost)
			}
		}
	}
}
