package amqpx

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// Bounds of the wait before a request that did not run is sent again.
const (
	resendMin = 20 * time.Millisecond
	resendMax = time.Second
)

// Bounds of the hint with ErrTooManyCalls. The hint is random so that refused callers do not
// return all at once.
const (
	fullRetryMin = 50 * time.Millisecond
	fullRetryMax = 150 * time.Millisecond
)

// roundTrip is the innermost Handler of a client: it makes the tries of a call, or opens a stream.
func (c *Client) roundTrip(ctx context.Context, req *Request) ([]byte, error) {
	switch {
	case req.sent.stream != nil:
		return req.sent.stream.roundTrip(ctx, req)
	case req.sent.all != nil:
		return nil, req.sent.all.run(ctx, c, req)
	case req.makesTries():
		return c.makeTries(ctx, req)
	default:
		return c.tryOnce(ctx, req)
	}
}

// makesTries reports whether the call may need more than one try.
func (req *Request) makesTries() bool {
	return (req.sent.retry != nil || req.sent.hedge > 0) && req.sent.stream == nil && req.sent.all == nil
}

// tryOnce sends the request, sends it again when this is safe, and waits for the response. A context
// without a deadline, which is the caller's own or was detached by middleware, gets the client's
// default deadline.
func (c *Client) tryOnce(ctx context.Context, req *Request) ([]byte, error) {
	if own, ok := ctx.(*callContext); ok && own.client == c {
		return c.roundTripOf(own, req) //nolint:contextcheck // own is ctx.
	}
	return c.roundTripOfCall(ctx, req, observation{})
}

// roundTripOfCall is tryOnce for a context that is not a callContext. The default timeout counts
// from the start of the observation, if there is one.
func (c *Client) roundTripOfCall(ctx context.Context, req *Request, o observation) ([]byte, error) { //nolint:contextcheck // a lazyContext is its parent's child.
	deadline, hasDeadline := ctx.Deadline()
	if !hasDeadline {
		deadline = o.now().Add(c.cfg.timeout)
	}
	k, watched, err := c.begin(req, deadline, !hasDeadline, nil)
	if err != nil {
		return nil, err
	}
	if !hasDeadline && !watched { // otherwise the pending table tracks the deadline
		bounded := xsync.WithDeadline(ctx, deadline)
		defer bounded.Cancel()
		ctx = bounded
	}
	response, err := c.runCall(ctx, k, ctx.Done(), event{kind: eventAttempt})
	k.release()
	return response, err
}

// roundTripOf is roundTrip for a call whose middleware has passed the call's own context on. The
// pending table tracks the deadline, as without middleware, so the context needs no timer.
func (c *Client) roundTripOf(own *callContext, req *Request) ([]byte, error) {
	deadline, _ := own.Deadline()
	k, watched, err := c.begin(req, deadline, true, nil)
	if err != nil {
		return nil, err
	}
	if !watched || !own.attach(k) {
		response, err := c.runCall(own, k, own.Done(), event{kind: eventAttempt})
		k.release()
		return response, err
	}
	response, err := c.runCall(own, k, own.Parent().Done(), event{kind: eventAttempt})
	if own.detach(k) {
		k.release()
	}
	return response, err
}

// begin registers a call, for a future or for a waiting goroutine. ours means that the
// deadline is the client's default; if possible, the pending table then tracks the deadline
// with one timer for all such calls and begin returns watched = true.
func (c *Client) begin(req *Request, deadline time.Time, ours bool, f *Future) (k *call, watched bool, err error) {
	if req.sent.info != nil {
		*req.sent.info = CallInfo{}
	}
	k = c.route.makeCall(f)
	k.deadline, k.unknownBefore = deadline, uint32(c.counts.unknown.Load()) //nolint:gosec // modulo 1<<32.
	if req.sent.resent {
		k.uncertain = true // never of a future, which has no callProgress
	}
	buffer := k.req.body[:0]
	if err = k.setRequest(req, c.cfg.maxMessageSize); err != nil {
		return nil, false, localError(CodeInvalidArgument, DidNotRun, nil, err.Error(), err)
	}
	if watched, err = c.pending.add(k, ours); err != nil {
		return nil, false, c.limitError(err)
	}
	// A canceled call may return while the publisher still reads the body, which belongs to
	// the caller after the return.
	c.pending.setBody(k, append(buffer, k.req.body...), !req.sent.ours)
	c.budget.earn()
	return k, watched, nil
}

// runCall processes a call from its first event to its end.
func (c *Client) runCall(ctx context.Context, k *call, gone <-chan struct{}, ev event) ([]byte, error) {
	defer func() {
		k.cancelSend() // the response came before a re-send was written
		k.endProbe()
		c.pending.remove(k)
	}()
	response, t, err := c.awaitResponse(ctx, k, gone, ev)
	for k.refusal != nil {
		wait, ok := c.afterRefusal(k, gone)
		if !ok {
			break
		}
		k.nextRound()
		c.pending.expectAgain(k)
		response, t, err = c.awaitResponse(ctx, k, gone, k.pause(gone, wait))
	}
	c.account(k, t)
	return response, err
}

// afterRefusal decides whether a call refused by a server is sent again, and after which wait.
func (c *Client) afterRefusal(k *call, gone <-chan struct{}) (wait time.Duration, ok bool) {
	if k.refusal.code == CodeUnimplemented {
		return c.mayTryElsewhere(k, gone)
	}
	if wait, ok = c.mayRetry(k, k.refusal.retryAfter); !ok {
		k.refusal.retryAfter = wait
	}
	return wait, ok
}

// account counts a finished call's re-sends and fills its CallInfo.
func (c *Client) account(k *call, t wire.Times) {
	sends := int(k.sent.Load())
	if sends > 1 {
		c.counts.resent.Add(uint64(sends - 1))
	}
	k.noteContent(c.cfg.maxMessageSize)
	if info := k.req.info(); info != nil {
		*info = CallInfo{Attempts: sends, QueueTime: t.Queue, HandlerTime: t.Handler, CorrelationID: k.req.text()}
		if k.responded {
			info.Response, info.Server = newResponse(k.response), string(k.response.Server)
		}
	}
}

// limitError returns the error of a call refused by the pending table. Such a call is not
// retried here: the caller is meant to notice the bound.
func (c *Client) limitError(sentinel error) error {
	if errors.Is(sentinel, ErrClosed) {
		return localError(CodeUnavailable, DidNotRun, sentinel, "")
	}
	c.counts.rejected.Add(1)
	e := localError(CodeResourceExhausted, DidNotRun, sentinel,
		fmt.Sprintf("at most %d, of %d bytes together", c.cfg.maxInFlight, c.cfg.maxInFlightBytes))
	e.retryAfter = fullRetryMin + rand.N(fullRetryMax-fullRetryMin) //nolint:gosec // spreads load, guards nothing.
	return e
}

// awaitResponse makes attempts until a response arrives or no further attempt is allowed.
func (c *Client) awaitResponse(ctx context.Context, k *call, gone <-chan struct{}, ev event) ([]byte, wire.Times, error) {
	for {
		switch ev.kind {
		case eventAttempt:
			ev = k.sendAndAwait(gone)
		case eventPublished, eventFull:
			var err error
			if ev, err = c.afterEvent(k, gone, ev); err == nil {
				continue
			}
			if k.responseArrived() { // a response is better than the error
				return k.readResponse()
			}
			return nil, wire.Times{}, err
		case eventResponse, eventConfirmed:
			return k.readResponse()
		case eventExpired, eventCanceled, eventClosed:
			if k.responseArrived() { // a response is better than the error
				return k.readResponse()
			}
			return nil, wire.Times{}, c.abandonError(k, eventCause(ctx, ev))
		}
	}
}

// eventCause returns the error for an event: nil when the client is closed.
func eventCause(ctx context.Context, ev event) error {
	switch ev.kind {
	case eventExpired:
		return context.DeadlineExceeded
	case eventClosed:
		return nil
	default:
		return ctx.Err()
	}
}

// sendAndAwait makes an attempt, unless the caller's context has ended, and waits for an event.
func (k *call) sendAndAwait(gone <-chan struct{}) event {
	select {
	case <-gone:
		return event{kind: eventCanceled}
	default:
	}
	if k.probes == 0 && k.route.queueGate.isShut.Load() && k.mayPark() && !k.req.traits.has(traitKeyed) {
		if ev := k.park(gone); ev.kind != eventAttempt {
			return ev
		}
	}
	k.send()
	return k.await(gone, nil)
}

// await waits for an event, the end of the caller's context, or after, if not nil.
func (k *call) await(gone <-chan struct{}, after <-chan time.Time) event {
	for {
		if ev, ok := k.next(); ok {
			return ev
		}
		if gone == nil && after == nil { // cheaper than the select
			<-k.wake
			k.woken = true
			continue
		}
		select {
		case <-k.wake:
			k.woken = true
		case <-gone:
			return event{kind: eventCanceled}
		case <-after:
			return event{kind: eventAttempt}
		}
	}
}

// pause waits before the next attempt; any event ends it.
func (k *call) pause(gone <-chan struct{}, d time.Duration) event {
	if d <= 0 {
		return event{kind: eventAttempt}
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	return k.await(gone, timer.C)
}

// responseArrived reports whether there is a response, or the confirm of a one-way request, which
// the caller must read. Without it, it records the result of the current attempt, if the attempt has ended.
func (k *call) responseArrived() bool {
	if k.takeResponse() || k.has(eventConfirmed) {
		return true
	}
	if a := k.takeEnded(); a != nil {
		k.recordResult(a.publishResult())
	}
	return false
}

// readResponse returns the result of the call's response, or of the confirm of a one-way request.
// A refusal proves that its own request did not run, and nothing about an earlier request that may
// have arrived.
func (k *call) readResponse() ([]byte, wire.Times, error) {
	if k.has(eventConfirmed) {
		return nil, wire.Times{}, nil
	}
	k.responded = true
	a := k.response
	if a.Failure == nil {
		if k.route.check != nil {
			if failed := k.check(a); failed != nil {
				return nil, a.Times, failed
			}
		}
		return a.Body, a.Times, nil
	}
	failed := errorOf(a.Failure)
	if failed.outcome == DidNotRun {
		// Without the echo the response may be a copy of an earlier refusal, and the retry may
		// run.
		k.uncertain = k.uncertain || k.retry > 0 && !a.Echoed
		if k.uncertain {
			failed.outcome = MayHaveRun
		}
	}
	harmless := failed.outcome == DidNotRun || failed.outcome == MayHaveRun && k.req.idempotent
	// Unavailable has many reasons: only a refusal that certainly did not run is sent again.
	retryable := failed.code == CodeResourceExhausted || failed.code == CodeUnimplemented || failed.code == CodeUnavailable && failed.outcome == DidNotRun
	if retryable && harmless {
		k.refusal = failed
		k.uncertain = k.uncertain || failed.outcome == MayHaveRun // another server may still receive the refused request
	}
	return nil, a.Times, failed
}

// mayRetry decides whether a refused call may be retried: after a wait of at least the
// server's hint, within the call's deadline, and within the retry budget. Otherwise the wait
// is a hint for the caller.
func (c *Client) mayRetry(k *call, hint time.Duration) (wait time.Duration, ok bool) {
	wait = hint + k.nextWait()
	if time.Until(k.deadline) <= wait || !c.budget.spend() {
		return wait, false
	}
	c.counts.retried.Add(1)
	return wait, true
}

// recordResult stores the publish result of an attempt, and whether the request may have
// arrived.
func (k *call) recordResult(f publish.Result) {
	k.lastResult = f
	k.uncertain = k.uncertain || mayHaveArrived(f, k.route.nackProves)
	if f == publish.Suspect {
		k.suspected++
	}
}

// afterEvent decides the next step after an attempt without a response.
func (c *Client) afterEvent(k *call, gone <-chan struct{}, ev event) (event, error) {
	if ev.kind == eventFull {
		return c.afterFull(k, gone)
	}
	return c.afterPublish(k, gone, ev.attempt)
}

// afterPublish decides the next step after an attempt that ended without a response: another
// attempt, at once or after a wait, or the error.
func (c *Client) afterPublish(k *call, gone <-chan struct{}, a *attempt) (event, error) {
	f := a.publishResult()
	k.recordResult(f)
	outcome := k.outcome()
	again := event{kind: eventAttempt}
	if next, ok, err := c.afterShard(k, gone, a, outcome); ok {
		return next, err
	}
	switch f {
	case publish.Unsent:
		return again, nil
	case publish.Rejected:
		return again, rejectedError(outcome, *a.rejection)
	case publish.Lost, publish.Suspect:
		if k.req.idempotent {
			return again, nil
		}
		return again, localError(CodeUnavailable, outcome, ErrOutcomeUnknown, "")
	case publish.Unserved:
		return again, localError(CodeUnavailable, outcome, ErrNoServer, fmt.Sprintf("queue %q", k.queue()))
	case publish.Returned:
		if c.route.queueGate.shut(false) {
			c.resendConfirmed(0) // the requests in the queue are gone too
		}
		k.endProbe()
		if k.mayPark() {
			return k.park(gone), nil
		}
		if ev, over := c.checkOnce(k, gone); over {
			return ev, nil
		}
		detail, sentinel := c.noQueue(k)
		return again, localError(CodeUnavailable, outcome, sentinel, detail)
	default: // nacked
		return c.afterNack(k, gone, a.isBatched())
	}
}

// rejectedError returns the error of a call whose request the broker rejects.
func rejectedError(outcome Outcome, cause error) error {
	if errors.Is(cause, ErrTooLarge) {
		return localError(CodeInvalidArgument, outcome, nil, cause.Error(), cause)
	}
	return localError(CodeInvalidArgument, outcome, ErrRefused, cause.Error(), cause)
}

// afterNack decides the next step after a nack. The broker gives no reason for a nack, so the
// client checks the queue. A queue at its bound means overload, and retries use the retry
// budget. Any other queue that nacks is down, moves, or has no majority; such a fault passes,
// and attempts use no budget. Only an idempotent call is sent again, unless the nack proves
// that the request did not run.
func (c *Client) afterNack(k *call, gone <-chan struct{}, batched bool) (event, error) {
	full := c.route.queueGate.isFull()
	if !full {
		if ev, over := k.awaitCheck(gone); over {
			return ev, nil
		}
	}
	st := c.watch.last()
	full = full || st.full() || batched && c.route.batch.messages.Load() > 0
	switch {
	case !k.req.idempotent && k.uncertain:
		return event{}, c.nackError(k, full, k.nextWait())
	case batched: // batching is disabled now
		return k.pause(gone, k.nextWait()), nil
	case full && c.route.queueGate.isFull():
		k.endProbe()
		return c.afterFull(k, gone)
	case full && k.probes != 0: // a second nack: the first may have come from an ending queue
		c.route.queueGate.full()
		k.probes = 0
		return c.afterFull(k, gone)
	}
	if c.route.queueGate.shut(true) && !full {
		c.resendConfirmed(0) // the memory of the queue's process may be lost
	}
	k.endProbe()
	if !st.away && !full {
		c.replaceConnection()
	}
	return k.park(gone), nil
}

// awaitCheck waits for the end of a check of the queues. An event of the call ends the wait
// early.
func (k *call) awaitCheck(gone <-chan struct{}) (ev event, over bool) {
	limit := time.NewTimer(checkTimeout + checkSoonest)
	defer limit.Stop()
	checked := k.route.watch.next()
	for {
		if ev, over = k.next(); over {
			return ev, true
		}
		select {
		case <-k.wake:
		case <-gone:
			return event{kind: eventCanceled}, true
		case <-checked:
			return event{}, false
		case <-limit.C: // no connection, or a slow one
			return event{}, false
		}
	}
}

// checkOnce waits for a check of the queue of a returned request, unless the last check found no
// queue: the broker logs a line for each check of a missing queue.
func (c *Client) checkOnce(k *call, gone <-chan struct{}) (ev event, over bool) {
	if c.watch.last().away {
		return event{}, false
	}
	return k.awaitCheck(gone)
}

// noQueue explains why the broker returned a request: the queue does not exist, or lives on a
// node that is down.
func (c *Client) noQueue(k *call) (detail string, sentinel error) {
	queue := fmt.Sprintf("queue %q", k.queue())
	if st := c.queueState(k); st.away && st.fault != FaultQueueMissing {
		return queue + ": " + st.text(), ErrQueueUnavailable
	}
	return k.route.requests.Load().noQueue(k.queue()), ErrUnroutable
}

// afterFull decides the next step after a nack by a queue at its bound: another attempt within
// the retry budget, or the error.
func (c *Client) afterFull(k *call, gone <-chan struct{}) (event, error) {
	wait, ok := c.mayRetry(k, 0)
	if ok {
		return k.pause(gone, wait), nil
	}
	return event{}, c.nackError(k, true, wait)
}

// nackError returns the error of a call whose request was nacked.
func (c *Client) nackError(k *call, full bool, hint time.Duration) *Error {
	detail := fmt.Sprintf("queue %q", k.queue())
	if !full {
		if st := c.queueState(k); st.away {
			detail += ": " + st.text()
		}
		return localError(CodeUnavailable, k.outcome(), ErrQueueUnavailable, detail)
	}
	e := localError(CodeResourceExhausted, k.outcome(), ErrRefused, detail)
	e.retryAfter = hint
	return e
}

// nackedConnectionAfter is how long the broker may nack every request on a connection, while
// the queue answers and is not at its bound, before the connection is replaced. RabbitMQ 3.10
// and 3.11 do so for the lifetime of a channel whose first publish to a quorum queue came
// during the election of the queue's leader.
const nackedConnectionAfter = 2 * time.Second

// errConnectionNacked means that a connection was replaced because the broker nacked all
// messages published on the connection.
var errConnectionNacked error = &transport.KindError{Kind: FaultMessagesNacked, Cause: errors.New("the queue is there and not full")}

// replaceConnection ends a session in which the broker has nacked every request for a while.
func (c *Client) replaceConnection() {
	if s := c.sup.Current(); s != nil && c.route.queueGate.mayRenew(time.Since(s.Start)) {
		s.Fail(errConnectionNacked)
	}
}

// abandonError returns the error of a call whose context or time ended, with the reason for
// the lack of progress. A nil cause means that the client was closed.
func (c *Client) abandonError(k *call, cause error) error {
	outcome := k.outcome()
	if cause == nil {
		return localError(CodeUnavailable, outcome, ErrClosed, "")
	}
	c.sendCancel(&k.req, cause, outcome)
	detail, sentinel := c.reasonOf(k)
	e := contextError(cause, outcome, sentinel, detail)
	switch {
	case e.code != CodeDeadlineExceeded:
	case errors.Is(sentinel, ErrUnroutable), errors.Is(sentinel, ErrQueueUnavailable):
		e.code = CodeUnavailable
	case errors.Is(sentinel, ErrRefused):
		e.code = CodeResourceExhausted
	}
	return e
}

// reasonOf returns the reason why a call got no response, as far as the client knows.
func (c *Client) reasonOf(k *call) (detail string, sentinel error) {
	st, a := c.Status(), k.current.Load()
	queue := fmt.Sprintf("queue %q", k.queue())
	waits := a == nil || a.at() == stageUndelivered || a.at() == stageLost // for the next attempt
	shut := waits && c.route.queueGate.isShut.Load()
	switch {
	case st.State == StateBlocked:
		return st.Reason, ErrBlocked
	case st.State != StateReady:
		if st.Err != nil {
			detail = st.Err.Error()
		}
		return detail, ErrNotConnected
	case waits && k.lastResult == publish.Returned, shut && k.lastResult != publish.Nacked && c.route.queueGate.refusing() == 0:
		return c.noQueue(k)
	case waits && k.lastResult == publish.Nacked && (c.route.queueGate.isFull() || c.queueState(k).full()):
		return queue, ErrRefused
	case shut, waits && k.lastResult == publish.Nacked:
		return queue, ErrQueueUnavailable
	}
	if k.req.isOneWay() {
		return queue + c.observed(k, a), nil
	}
	return "no response from " + queue + c.observed(k, a), nil
}

// observed returns the client's observations that may explain a call without a response. a is
// the call's current attempt, or nil.
func (c *Client) observed(k *call, a *attempt) string {
	var all []string
	switch {
	case a != nil && a.at() == stageCanceled:
		all = append(all, "it was not sent, because the broker has not confirmed earlier requests")
	case a != nil && a.at() == stageWritten:
		all = append(all, "the broker has not confirmed the request")
	default:
		if text := c.queueState(k).text(); text != "" {
			all = append(all, text)
		}
	}
	if n := uint32(c.counts.unknown.Load()) - k.unknownBefore; n > 0 { //nolint:gosec // modulo 1<<32.
		all = append(all, fmt.Sprintf("%d responses to unknown calls came meanwhile", n))
	}
	if len(all) == 0 {
		return ""
	}
	return ": " + strings.Join(all, ", ")
}
