package amqpx

import (
	"bytes"
	"context"
	"hash/maphash"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// maxRecent is the number of remembered settled calls, which tell a duplicate or late response
// from a response to an unknown call.
const maxRecent = 4096

// matchResult is the result of matching a response to a call.
type matchResult uint8

const (
	verdictTaken       matchResult = iota // the response settles its call
	verdictDuplicate                      // the call has a response already
	verdictRedelivered                    // the same response again, after a reconnect
	verdictLate                           // the call ended without a response
	verdictUnknown                        // no such call
	verdictCanceled                       // the call was canceled, and the response confirms the cancellation
)

// match is the match of a response.
type match struct {
	call   *call // the call that the response settles, or nil
	result matchResult
	stop   func() bool // ends the watch of the call's context; nil: nothing to end
}

// notify tells the call of a match that it has a response.
func (m *match) notify() {
	if m.stop != nil {
		m.stop()
	}
	if m.call != nil {
		m.call.notify(eventResponse)
	}
}

// pending is the table of calls waiting for a response, by correlation id. It contains a call
// from before the request is sent until the call has its result or ends without one, over every
// re-send. Safe for concurrent use.
type pending struct {
	maxCalls, maxBytes int

	mu        sync.Mutex
	closed    bool
	calls     callTable
	bytes     int // size of the bodies of the calls
	recent    recentCalls
	deadlines deadlineList
	watchers  ctxWatchers
}

// newPending returns a table for at most maxCalls calls, whose bodies have at most maxBytes in
// total.
func newPending(maxCalls, maxBytes int) *pending {
	p := &pending{maxCalls: maxCalls, maxBytes: maxBytes, calls: callTable{seed: maphash.MakeSeed()}, watchers: make(ctxWatchers)}
	p.deadlines.expire = p.expire
	return p
}

// add registers call k, or returns ErrClosed or ErrTooManyCalls. If its correlation id is
// already in the table, for example because middleware sends a request twice, k gets a new id
// (see newIDs), so that a late response to the first send cannot match the second. If watch is
// true and k's deadline is not before the deadline of the newest tracked call (deadlineSlack),
// the table expires k and add returns watched = true.
func (p *pending) add(k *call, watch bool) (watched bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return false, ErrClosed
	case p.calls.count >= p.maxCalls, len(k.req.body) > p.maxBytes-p.bytes:
		return false, ErrTooManyCalls
	}
	id := k.req.tableID()
	k.req.hash = p.calls.hashOf(&id)
	earlier, settled := p.calls.find(k.req.hash, &id), p.recent.find(k.req.hash, &id)
	if earlier != nil || settled != nil {
		k.newIDs(earlier, settled != nil && settled.answered)
		id = k.req.tableID()
		k.req.hash = p.calls.hashOf(&id)
	}
	p.bytes += len(k.req.body)
	p.calls.add(k)
	return watch && p.deadlines.add(k), nil
}

// newIDs sets a new correlation id in the request of a call whose id is already that of earlier,
// or of a settled call if earlier is nil. The request is that of a different call if the earlier
// send got a response, or is still pending and the request is not idempotent or has another
// body; an idempotent request then gets a new key. Otherwise the request repeats the earlier
// request under the earlier key: a server that runs the earlier request, or has run it, does not
// run this request. A key chosen by the application is kept.
func (k *call) newIDs(earlier *call, answered bool) {
	req := &k.req
	id := req.text()
	req.id, req.isText = newUUID(), false
	switch {
	case !req.keyIsID && req.key() != "": // chosen by the application
	case answered, earlier != nil && (earlier.answered || !req.idempotent || !bytes.Equal(earlier.req.body, req.body)):
		req.setKey("", req.idempotent)
	default:
		req.setKey(id, false)
	}
}

// setBody replaces the body of a call in the table by a copy. Only with middleware, newIDs may read
// the body of a call for another goroutine.
func (p *pending) setBody(k *call, body []byte, middleware bool) {
	if middleware {
		p.mu.Lock()
		defer p.mu.Unlock()
	}
	k.req.body = body
}

// expire notifies the calls whose deadline has passed.
func (p *pending) expire() {
	p.mu.Lock()
	expired := p.deadlines.expired(time.Now())
	p.mu.Unlock()
	for _, k := range expired {
		k.notify(eventExpired)
	}
}

// expectAgain starts the next round of a refused call, which can then receive a response again:
// the response to the request with the next number.
func (p *pending) expectAgain(k *call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k.retry++
	k.answered = false
}

// remove ends a call's registration, if the call has no result yet; a later response is dropped.
func (p *pending) remove(k *call) {
	if k.responded && k.settled { // the call has read its response, so settled does not change any more
		return
	}
	var stop func() bool
	p.mu.Lock()
	if !k.settled {
		stop = p.forget(k)
	}
	p.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// forget moves a call to the last settled calls. It returns the function that ends the watch of
// the call's context, or nil. The caller holds mu.
func (p *pending) forget(k *call) (stop func() bool) {
	stop = p.watchers.remove(k)
	p.deadlines.remove(k)
	p.bytes -= len(k.req.body)
	p.calls.remove(k)
	p.recent.add(recentCall{id: k.req.tableID(), hash: k.req.hash, answered: k.answered})
	return stop
}

// matchOne delivers a single response to its call and returns the match.
func (p *pending) matchOne(d *amqp.Delivery) matchResult {
	a := wire.DecodeResponse(d)
	p.mu.Lock()
	m := p.match(tableIDOf([]byte(d.CorrelationId)), &a)
	p.mu.Unlock()
	m.notify()
	return m.result
}

// matchAll delivers the responses of a batch to their calls and appends the match of each to
// matches. matchAll calls expect with the number of these calls before their callers wake.
func (p *pending) matchAll(responses []wire.Response, matches []match, expect func(callers int)) []match {
	callers := 0
	p.mu.Lock()
	for i := range responses {
		a := &responses[i]
		m := p.match(tableIDOf(a.ID), a)
		if m.call != nil {
			callers++
		}
		matches = append(matches, m)
	}
	p.mu.Unlock()
	expect(callers)
	for i := range matches {
		matches[i].notify()
	}
	return matches
}

// match matches a response to the call with an id. A result settles the call, which is removed at
// once; an error may lead to a retry. The caller holds mu.
func (p *pending) match(id tableID, a *wire.Response) (m match) {
	hash := p.calls.hashOf(&id)
	k := p.calls.find(hash, &id)
	if k == nil {
		return match{result: p.recent.find(hash, &id).match(a)}
	}
	if k.answered || a.Outdated(int64(k.retry)) {
		return match{result: repeated(a)}
	}
	k.answered = true
	k.store(a)
	m = match{call: k, result: verdictTaken}
	if a.Failure == nil {
		m.stop = p.forget(k)
		k.settled = true
	}
	return m
}

// repeated returns the result of matching a response whose call has a response already.
func repeated(a *wire.Response) matchResult {
	if a.Redelivered {
		return verdictRedelivered
	}
	return verdictDuplicate
}

// returned marks the current attempt of the call whose request was returned by the broker.
func (p *pending) returned(r amqp.Return) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := p.find(r.CorrelationId); k != nil {
		if a := k.current.Load(); a != nil {
			a.marks.Or(markReturned)
		}
	}
}

// find returns the pending call with an id, or nil. The caller holds mu.
func (p *pending) find(id string) *call {
	t := tableIDOf([]byte(id))
	return p.calls.find(p.calls.hashOf(&t), &t)
}

// attempts returns the current attempts of the pending calls.
func (p *pending) attempts() []*attempt {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*attempt, 0, p.calls.count)
	for k := range p.calls.all {
		if a := k.current.Load(); a != nil {
			k.shared = true
			all = append(all, a)
		}
	}
	return all
}

// all returns the pending calls. The caller holds mu.
func (p *pending) all() []*call {
	all := make([]*call, 0, p.calls.count)
	for k := range p.calls.all {
		k.shared = true
		all = append(all, k)
	}
	return all
}

// close refuses further calls, and ends the pending calls.
func (p *pending) close() {
	p.mu.Lock()
	p.closed = true
	p.deadlines.stop()
	all := p.all()
	p.mu.Unlock()
	for _, k := range all {
		k.notify(eventClosed)
	}
}

// unlessClosed calls f, which must not block, unless the table is closed. It reports whether f
// was called.
func (p *pending) unlessClosed(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		f()
	}
	return !p.closed
}

// isClosed reports whether close was called.
func (p *pending) isClosed() bool { return !p.unlessClosed(func() {}) }

// len returns the number of pending calls.
func (p *pending) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls.count
}

// deadlineList holds the calls with the client's default timeout. The timeout is constant, so
// the calls are already ordered by deadline and one timer suffices. The pending table's lock
// guards the list.
type deadlineList struct {
	oldest, newest *call
	timer          *time.Timer // runs until due; nil at first
	due            time.Time   // the oldest call's deadline or an earlier deadline
	running        bool
	expire         func() // called when a deadline has passed
}

// deadlineSlack is how late a call may learn of its deadline because it was added out of
// order.
const deadlineSlack = time.Millisecond

// add appends a call, or returns false if the call's deadline is before the newest call's, or
// before the end of the running timer, by more than deadlineSlack: middleware may have held the
// call for a while.
func (l *deadlineList) add(k *call) bool {
	if l.newest != nil && k.deadline.Before(l.newest.deadline.Add(-deadlineSlack)) ||
		l.running && k.deadline.Before(l.due.Add(-deadlineSlack)) {
		return false
	}
	k.prevDue = l.newest
	if l.newest == nil {
		l.oldest = k
	} else {
		l.newest.nextDue = k
	}
	l.newest = k
	switch {
	case l.running:
		return true
	case l.timer == nil:
		l.timer = time.AfterFunc(time.Until(k.deadline), l.expire)
	default:
		l.timer.Reset(time.Until(k.deadline))
	}
	l.running, l.due = true, k.deadline
	return true
}

// remove removes a call, if present. The timer keeps running.
func (l *deadlineList) remove(k *call) {
	if k.prevDue == nil && l.oldest != k {
		return
	}
	l.link(k.prevDue, k.nextDue)
	k.prevDue, k.nextDue = nil, nil
}

// link makes two calls neighbors; nil stands for the end of the list.
func (l *deadlineList) link(older, newer *call) {
	if older == nil {
		l.oldest = newer
	} else {
		older.nextDue = newer
	}
	if newer == nil {
		l.newest = older
	} else {
		newer.prevDue = older
	}
}

// expired removes and returns the calls whose deadline has passed, and restarts the timer.
func (l *deadlineList) expired(now time.Time) (all []*call) {
	for k := l.oldest; k != nil && !k.deadline.After(now); k = l.oldest {
		l.remove(k)
		k.shared = true
		all = append(all, k)
	}
	if l.running = l.oldest != nil; l.running {
		l.due = l.oldest.deadline
		l.timer.Reset(l.due.Sub(now))
	}
	return all
}

// stop ends the timer.
func (l *deadlineList) stop() {
	if l.timer != nil {
		l.timer.Stop()
	}
}

// ctxWatchers notify calls without a goroutine when their contexts end. Calls with the same
// context share a watcher. The pending table's lock guards ctxWatchers.
type ctxWatchers map[<-chan struct{}]*ctxWatcher

// ctxWatcher watches the context of its calls.
type ctxWatcher struct {
	done  <-chan struct{}
	calls []*call     // call.watcherIndex is the index in calls
	stop  func() bool // ends the watch; nil until set
}

// watch notifies the call when its context ends.
func (p *pending) watch(ctx context.Context, k *call) {
	done := ctx.Done()
	if done == nil {
		return
	}
	p.mu.Lock()
	w := p.watchers[done]
	fresh := w == nil
	if fresh {
		w = &ctxWatcher{done: done}
		p.watchers[done] = w
	}
	k.watcher, k.watcherIndex = w, int32(len(w.calls)) //nolint:gosec // a number of pending calls.
	w.calls = append(w.calls, k)
	p.mu.Unlock()
	if !fresh {
		return
	}
	stop := context.AfterFunc(ctx, func() { p.contextEnded(w) })
	p.mu.Lock()
	w.stop = stop
	abandoned := p.watchers[done] != w
	p.mu.Unlock()
	if abandoned {
		stop()
	}
}

// contextEnded notifies the calls of a context.
func (p *pending) contextEnded(w *ctxWatcher) {
	p.mu.Lock()
	calls := w.calls
	w.calls = nil
	for _, k := range calls {
		k.watcher, k.shared = nil, true
	}
	p.watchers.forget(w)
	p.mu.Unlock()
	for _, k := range calls {
		k.notify(eventCanceled)
	}
}

// forget removes a watcher. The caller holds the table's lock.
func (all ctxWatchers) forget(w *ctxWatcher) {
	if all[w.done] == w {
		delete(all, w.done)
	}
}

// remove removes a call from its watcher, if any. It returns the watcher's stop function after
// the last call, else nil. The caller holds the table's lock.
func (all ctxWatchers) remove(k *call) (stop func() bool) {
	w := k.watcher
	if w == nil {
		return nil
	}
	k.watcher = nil
	last := len(w.calls) - 1
	w.calls[k.watcherIndex] = w.calls[last]
	w.calls[k.watcherIndex].watcherIndex = k.watcherIndex
	w.calls[last] = nil
	if w.calls = w.calls[:last]; last > 0 {
		return nil
	}
	all.forget(w)
	return w.stop
}
