package amqpx

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// queueWatch checks the request queue and the batch queue with passive declarations: about once
// a second while calls are pending, and soon after the broker nacked or returned a request. The
// first checks of both are before the connection is ready. The checks use a channel opened during
// the session's set-up, because the broker's refusal to open a channel would end the connection.
// Only a failed declaration closes the channel; the next check then opens a new channel. Safe for
// concurrent use.
type queueWatch struct {
	wanted  chan struct{} // has a token when a call requests a check
	urgent  chan struct{} // has a token when a call waits for the result
	servers atomic.Int32  // consumers of the request queue at the last check
	others  atomic.Int32  // consumers that do not unpack batches

	mu      sync.Mutex
	state   queueState
	checked chan struct{} // closed at the end of the next check; nil without waiting calls
}

// queueState is the result of a check of a queue.
type queueState struct {
	at        time.Time
	known     bool      // the broker said whether the queue exists
	away      bool      // the queue is missing, its node is down, or the broker does not answer
	missing   bool      // the broker said: no queue, or the queue's node is down
	fault     FaultKind // reason for away
	messages  int       // waiting in the queue
	filled    bool      // messages waited at this check and, if any, at the previous check
	consumers int
}

// full reports whether the queue may be at its bound. An empty queue is not, nor a queue that
// was empty at the previous check, for example while it recovered its messages from the disk.
func (st queueState) full() bool { return st.known && !st.away && st.filled }

// risky reports whether the queue may lose its requests unnoticed before the next check: a queue
// that is away, or that no server consumes, may be deleted and declared again.
func (st queueState) risky() bool { return st.known && (st.away || st.consumers == 0) }

// recovered reports whether the queue answers again, or servers consume it again, since the previous
// check.
func (st queueState) recovered(before queueState) bool {
	return before.risky() && st.known && !st.away && (before.away || st.consumers > 0)
}

const (
	// checkEvery is how often a client checks the queues while calls are pending.
	checkEvery = time.Second
	// checkSoonest is the shortest pause between two checks, used when calls were nacked or
	// returned.
	checkSoonest = 100 * time.Millisecond
	// checkMissingMax bounds the pause between checks of a missing queue: the broker logs a line
	// for each such check.
	checkMissingMax = 30 * time.Second
	// checkTimeout is the time limit for the broker's answer to a check.
	checkTimeout = time.Second
	// firstCheckTimeout is the time limit for the broker's answer to the check before the
	// connection is ready: a broker that does not answer must not keep calls waiting that can
	// travel alone.
	firstCheckTimeout = 100 * time.Millisecond
)

func newQueueWatch() *queueWatch {
	return &queueWatch{wanted: make(chan struct{}, 1), urgent: make(chan struct{}, 1)}
}

// want requests a check of the queues.
func (w *queueWatch) want() {
	if len(w.wanted) == 0 {
		offerToken(w.wanted)
	}
}

// next requests a check that begins from now on, and returns a channel closed at the end of the
// check.
func (w *queueWatch) next() <-chan struct{} {
	w.mu.Lock()
	if w.checked == nil {
		w.checked = make(chan struct{})
	}
	checked := w.checked
	w.mu.Unlock()
	offerToken(w.urgent)
	return checked
}

// last returns the result of the last check.
func (w *queueWatch) last() queueState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

// forget drops the last result, for a new session.
func (w *queueWatch) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state = queueState{}
}

// waiting takes the channel of the calls waiting for the check that begins now.
func (w *queueWatch) waiting() chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	waiting := w.checked
	w.checked = nil
	return waiting
}

// found stores the result of a check, wakes the waiting calls, and returns the previous result.
func (w *queueWatch) found(st queueState, waiting chan struct{}) (before queueState) {
	st.at = time.Now()
	w.mu.Lock()
	before = w.state
	st.filled = st.messages > 0 && (!before.known || before.messages > 0)
	w.state = st
	w.mu.Unlock()
	if waiting != nil {
		close(waiting)
	}
	return before
}

// queueChecker makes the checks of a session. It is used by a single goroutine.
type queueChecker struct {
	client  *Client
	s       *transport.Session
	ch      transport.Channel // nil when the last check closed the channel, or got no response
	queue   checkedQueue
	batches checkedQueue
	// unserved is the time of the first check without a consumer; zero while there is a
	// consumer.
	unserved time.Time
	checked  time.Time // when the last check ended
	control  controlCheck
	shards   []*shardCheck // of the shards beyond 0
}

// checkedQueue is a queue under observation.
type checkedQueue struct {
	name    string
	missing *xsync.Backoff     // between checks of a missing queue
	due     time.Time          // time of the next check
	open    <-chan checkResult // an unanswered question; else nil
	barred  bool               // this user may not see the queue
	asked   time.Time          // time of the last question
}

type checkResult struct {
	ch    transport.Channel
	found amqp.Queue
	err   error
}

// startChecks opens the channel for checks, checks the batch queue, so that already the first
// calls after the connection travel in batches, and starts to check until the session ends.
func (c *Client) startChecks(s *transport.Session) error {
	ch, err := s.Sub.Channel()
	if err != nil {
		return err
	}
	l := &queueChecker{client: c, s: s, ch: ch}
	l.queue = checkedQueue{name: c.route.queue, missing: xsync.NewBackoff(checkEvery, checkMissingMax)}
	if batch := c.route.batch; batch != nil {
		l.batches = checkedQueue{name: batch.queue, missing: xsync.NewBackoff(checkEvery, checkMissingMax)}
		batch.disable()
	}
	c.watch.forget()
	l.firstQueueCheck()
	if c.route.batch != nil {
		l.firstBatchCheck()
	}
	l.startShards()
	s.Run(l.run)
	return nil
}

// firstQueueCheck checks the request queue before the connection is ready. The next check then
// recognizes that the queue was deleted and declared again. If the queue is missing, or the broker
// does not respond in time, the state stays unknown until the first check for a call.
func (l *queueChecker) firstQueueCheck() {
	if found, err := l.ask(&l.queue, firstCheckTimeout); err == nil {
		l.client.watch.found(stateOf(found, nil), nil)
	}
}

// firstBatchCheck checks the batch queue before the connection is ready. If it finds no server, the
// first call checks again: servers may start at the same time as clients. A user who may not see
// the queue does not ask again, because the broker logs a line for each refusal.
func (l *queueChecker) firstBatchCheck() {
	found, err := l.ask(&l.batches, firstCheckTimeout)
	if st := stateOf(found, err); st.consumers > 0 || !st.known {
		l.batches.plan(st)
		l.client.route.batch.found(st)
	}
}

// run checks the queues until the session ends.
func (l *queueChecker) run() {
	w := l.client.watch
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		urgent := false
		select {
		case <-w.wanted:
		case <-w.urgent:
			urgent = true
		case <-l.s.Done:
			return
		}
		if !l.pace(timer, urgent) {
			return
		}
		l.checkQueues()
		l.checked = time.Now()
		if l.client.pending.len() > 0 || w.last().away {
			w.want()
		}
		timer.Reset(checkEvery)
	}
}

// pace waits until the next check is due: checkEvery after the last check, or checkSoonest when
// calls wait for the result. It returns false when the session has ended.
func (l *queueChecker) pace(timer *time.Timer, urgent bool) bool {
	for !urgent {
		select {
		case <-timer.C:
			return true
		case <-l.client.watch.urgent:
			urgent = true
		case <-l.s.Done:
			return false
		}
	}
	soon := time.NewTimer(checkSoonest - time.Since(l.checked))
	defer soon.Stop()
	select {
	case <-timer.C:
	case <-soon.C:
	case <-l.s.Done:
		return false
	}
	return true
}

// checkQueues asks the broker for both queues and acts on the results.
func (l *queueChecker) checkQueues() {
	c, now := l.client, time.Now()
	waiting := c.watch.waiting()
	l.checkShards(waiting != nil)
	if waiting != nil || !now.Before(l.queue.due) {
		found, err := l.ask(&l.queue, checkTimeout)
		st := stateOf(found, err)
		l.queue.plan(st)
		c.markAtRisk(0, st)
		before := c.watch.found(st, waiting)
		c.queueChanged(before, st)
		c.showQueue(st)
		if len(c.route.shards) > 0 {
			c.route.shards[0].found(st)
		}
	}
	if c.route.batch != nil && !now.Before(l.batches.due) {
		found, err := l.ask(&l.batches, checkTimeout)
		st := stateOf(found, err)
		l.batches.plan(st)
		if c.route.batch.found(st); st.consumers == 0 {
			c.resendBatched(0)
		}
	}
	l.count()
	l.checkServed()
}

// errNotChecked means that the queue was not asked for, or that no response came in time.
var errNotChecked = errors.New("the broker does not answer for the queue")

// ask asks the broker for a queue. A check without a response in time stays open and keeps its
// channel: the other queue then uses another channel, and this queue is asked for again after
// the response.
func (l *queueChecker) ask(q *checkedQueue, limit time.Duration) (amqp.Queue, error) {
	if q.barred {
		return amqp.Queue{}, errNotChecked
	}
	if q.open == nil {
		response := make(chan checkResult, 1)
		q.open, q.asked = response, time.Now()
		ch := l.ch
		l.ch = nil
		l.s.Run(func() { // ends with the session at the latest, when the sockets are cut
			response <- checkQueue(l.s, ch, q.name)
		})
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case a := <-q.open:
		q.open = nil
		return l.answered(a)
	case <-timer.C:
	case <-l.s.Done:
	}
	return amqp.Queue{}, errNotChecked
}

// checkQueue makes a passive declaration, on a new channel if ch is nil.
func checkQueue(s *transport.Session, ch transport.Channel, queue string) (a checkResult) {
	if a.ch = ch; a.ch == nil {
		if a.ch, a.err = s.Sub.Channel(); a.err != nil {
			return a
		}
	}
	a.found, a.err = a.ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	return a
}

// answered keeps the channel of a finished check for the next check.
func (l *queueChecker) answered(a checkResult) (amqp.Queue, error) {
	switch {
	case a.err != nil: // the error closed the channel
	case l.ch == nil:
		l.ch = a.ch
	default:
		_ = a.ch.Close() // another channel took its place
	}
	return a.found, a.err
}

// stateOf converts the broker's answer to a queueState.
func stateOf(found amqp.Queue, err error) queueState {
	var refused *amqp.Error
	switch {
	case err == nil:
		return queueState{known: true, messages: found.Messages, consumers: found.Consumers}
	case errors.As(err, &refused) && refused.Code == amqp.NotFound:
		return queueState{known: true, away: true, missing: true, fault: transport.FaultOf(transport.Target{}, err)}
	case errors.As(err, &refused) && (refused.Code == amqp.AccessRefused || refused.Code == amqp.ResourceLocked):
		return queueState{} // an exclusive queue of another connection, or no permission
	default:
		return queueState{known: true, away: true, fault: FaultQueueSilent}
	}
}

// plan sets the time of the next check of the queue.
func (q *checkedQueue) plan(st queueState) {
	pause := checkEvery
	switch {
	case !st.known:
		q.barred = true
	case st.missing:
		pause = max(q.missing.NextBackOff(), checkEvery)
	case !st.away:
		q.missing.Reset()
	}
	q.due = time.Now().Add(pause - checkSoonest)
}

// count stores the number of consumers, and of the consumers that do not unpack batches.
func (l *queueChecker) count() {
	w := l.client.watch
	all := int32(min(w.last().consumers, math.MaxInt32)) //nolint:gosec // bounded.
	w.servers.Store(all)
	if batch := l.client.route.batch; batch != nil {
		w.others.Store(max(all-batch.servers.Load(), 0))
	}
}

// queueChanged acts on a change of the request queue since the previous check. Confirmed
// requests are lost when the queue is missing. They may be lost when the queue answers again, and
// when servers consume it again after all servers had gone, but only if they were written before the
// last check without an answer or a consumer: servers that start, and a queue that they declare, are
// no reason to send later requests twice.
func (c *Client) queueChanged(before, now queueState) {
	switch {
	case now.missing && !before.missing:
		c.route.queueGate.shut(false)
		c.resendConfirmed(0)
	case now.recovered(before):
		c.resendAtRisk(0)
	}
}

// showQueue shows a fault of the request queue in the status of a ready connection.
func (c *Client) showQueue(st queueState) {
	reason := ""
	switch {
	case st.away:
		reason = "request queue " + strconv.Quote(c.route.queue) + ": " + st.text()
	case c.route.queueGate.refusing() > 0 && !c.route.queueGate.isFull():
		reason = "request queue " + strconv.Quote(c.route.queue) + ": " + ErrQueueUnavailable.Error()
	}
	if now := c.Status(); now.State == StateReady && now.Reason != reason {
		c.board.update(func(s *Status) {
			if s.State == StateReady {
				s.Reason = reason
			}
		})
	}
}

// resendConfirmed re-sends the idempotent calls whose requests the broker had confirmed in a shard,
// except calls in batches, whose requests are in another queue (resendBatched).
func (c *Client) resendConfirmed(shard int) {
	for _, a := range c.pending.attempts() {
		if a.isResendable(shard) {
			a.loseConfirmed(publish.Lost)
		}
	}
}

// resendAtRisk is resendConfirmed for requests at risk.
func (c *Client) resendAtRisk(shard int) {
	for _, a := range c.pending.attempts() {
		if a.isResendable(shard) && a.isAtRisk() {
			a.loseConfirmed(publish.Lost)
		}
	}
}

// markAtRisk marks the written requests of idempotent calls in a shard as at risk, if the result of a
// check of the shard says so.
func (c *Client) markAtRisk(shard int, st queueState) {
	if !st.risky() {
		return
	}
	for _, a := range c.pending.attempts() {
		if at := a.at(); (at == stageWritten || at == stageConfirmed) && a.isResendable(shard) {
			a.marks.Or(markAtRisk)
		}
	}
}

// isResendable reports whether the attempt is one of an idempotent call, sent to a shard outside of
// batches.
func (a *attempt) isResendable(shard int) bool {
	return a.call.req.idempotent && !a.isBatched() && a.shard() == shard
}

// checkServed ends the calls in a queue without a consumer in two checks, except calls with
// WaitForServer, and unless servers listen to the control plane: a draining server consumes no
// more requests, and still answers the requests it has started.
func (l *queueChecker) checkServed() {
	c, st := l.client, l.client.watch.last()
	batch := c.route.batch
	if !st.known || st.away || st.consumers > 0 || batch != nil && batch.servers.Load() > 0 || c.route.anotherIsServed() {
		l.unserved = time.Time{}
		return
	}
	if l.unserved.IsZero() {
		l.unserved = time.Now()
		return
	}
	if time.Since(l.unserved) < checkEvery-checkSoonest || l.someServerListens() {
		return
	}
	for _, a := range c.pending.attempts() {
		if !a.call.req.traits.has(traitWaitForServer) {
			a.loseConfirmed(publish.Unserved)
		}
	}
}

// controlCheck asks whether a server listens to the control plane: the broker returns a
// message that no queue accepts. The message is a cancellation of no calls, and has no effect.
type controlCheck struct {
	ch       transport.Channel // nil before the first use, and after a failure
	returned <-chan amqp.Return
	open     <-chan controlResponse // an unanswered question; else nil
	after    time.Time              // before then the exchange is not looked for again
}

type controlResponse struct {
	controlCheck

	listens bool
	err     error
}

// someServerListens reports whether a server has a queue at the control plane's exchange, as a
// draining server does although it consumes no requests. Without WithControl, and for
// checkMissingMax after a failed check, someServerListens returns false. Otherwise it returns
// true if the result is unknown.
func (l *queueChecker) someServerListens() bool {
	k := &l.control
	switch {
	case !l.client.cfg.control || k.ch == nil && k.open == nil && time.Now().Before(k.after):
		return false
	case l.s.Flow.Unblocked() != nil:
		return true
	}
	if k.open == nil {
		response := make(chan controlResponse, 1)
		k.open = response
		exchange, check := l.client.cfg.queue.controlExchange(), *k
		l.s.Run(func() { response <- check.ask(l.s, exchange) }) // ends with the session at the latest
	}
	timer := time.NewTimer(checkTimeout)
	defer timer.Stop()
	select {
	case a := <-k.open:
		k.open, k.ch, k.returned = nil, a.ch, a.returned
		var refused *amqp.Error
		if a.err == nil {
			return a.listens
		}
		k.ch, k.after = nil, time.Now().Add(checkMissingMax)
		return !errors.As(a.err, &refused) || refused.Code != amqp.NotFound
	case <-timer.C:
	case <-l.s.Done:
	}
	return true
}

// ask publishes the message and checks whether the broker returns it.
func (k controlCheck) ask(s *transport.Session, exchange string) (a controlResponse) {
	a.controlCheck = k
	if a.ch == nil {
		if a.ch, a.err = openControl(s.Pub, exchange); a.err != nil {
			return a
		}
		a.returned = a.ch.NotifyReturn(make(chan amqp.Return, 1))
	}
	if a.err = a.ch.PublishFanout(exchange, amqp.Publishing{AppId: wire.ControlCancel, ContentType: wire.ContentTypeRequests}); a.err != nil {
		return a
	}
	if a.err = a.ch.Barrier(); a.err != nil { // a return comes before the response of the barrier
		return a
	}
	select {
	case <-a.returned:
	default:
		a.listens = true
	}
	return a
}

// text returns the explanation for a call without a response.
func (st queueState) text() string {
	switch {
	case !st.known:
		return ""
	case st.fault == FaultQueueMissing:
		return "there is no such queue"
	case st.away:
		return strings.ReplaceAll(transport.WordsOf(st.fault), "queue {queue}", "the queue")
	case st.consumers == 0:
		return "the queue has no consumers"
	default:
		return strconv.Itoa(st.consumers) + " servers consume it"
	}
}

// Consumers asks the broker for the number of consumers of the request queue: servers of any
// kind, in any language. A missing queue has no consumers. An error is an [*Error]: ctx ended
// first, the queue's node is down, or the broker does not let this user see the queue. The
// result is at most as old as the call. Consumers is meant for health checks and reports at a
// low rate.
func (c *Client) Consumers(ctx context.Context) (int, error) {
	if err := c.check(ctx); err != nil {
		return 0, err
	}
	select {
	case <-c.watch.next():
	case <-ctx.Done():
		return 0, contextError(ctx.Err(), DidNotRun, nil, "")
	}
	switch st := c.watch.last(); {
	case st.missing:
		return 0, nil
	case st.away:
		return 0, localError(CodeUnavailable, DidNotRun, ErrQueueUnavailable, fmt.Sprintf("queue %q", c.route.queue))
	case !st.known:
		return 0, localError(CodePermissionDenied, DidNotRun, nil, fmt.Sprintf("the broker does not tell of queue %q", c.route.queue))
	default:
		return st.consumers, nil
	}
}
