package amqpx

import (
	"bytes"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
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

// pending is the table of calls waiting for a response, by correlation id. It contains a call
// from before the request is sent until Call returns, over every re-send. Safe for concurrent
// use.
type pending struct {
	maxCalls, maxBytes int

	mu        sync.Mutex
	closed    bool
	entries   map[string]*pendingEntry // waiting calls, and the last settled calls
	calls     int                      // number of waiting calls
	bytes     int                      // size of their bodies
	recent    []*pendingEntry          // the last settled calls, a ring in the order of removal
	next      int
	deadlines deadlineList
	watchers  ctxWatchers
}

// pendingEntry is a call's entry in the table.
type pendingEntry struct {
	id       string
	call     *call // nil after the call has settled
	answered bool
	terminal []event // events that end the call in any round
}

// newPending returns a table for at most maxCalls calls, whose bodies have at most maxBytes in
// total.
func newPending(maxCalls, maxBytes int) *pending {
	return &pending{maxCalls: maxCalls, maxBytes: maxBytes, entries: make(map[string]*pendingEntry), watchers: make(ctxWatchers)}
}

// add registers call k, or returns ErrClosed or ErrTooManyCalls. If its correlation id is
// already in the table, for example because middleware sends a request twice, k gets a new id
// (see anew), so that a late response to the first send cannot match the second. If watch is
// true and k's deadline is not before the deadline of the newest tracked call (deadlineSlack),
// the table expires k and add returns watched = true.
func (p *pending) add(k *call, watch bool) (watched bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return false, ErrClosed
	case p.calls >= p.maxCalls, len(k.req.Body) > p.maxBytes-p.bytes:
		return false, ErrTooManyCalls
	}
	id := k.req.CorrelationID
	if s := p.entries[id]; s != nil {
		k.req = s.anew(k.req)
		id = k.req.CorrelationID
	}
	p.calls++
	p.bytes += len(k.req.Body)
	k.entry = &pendingEntry{id: id, call: k}
	p.entries[id] = k.entry
	return watch && p.deadlines.add(k, p.expire), nil
}

// anew returns a copy of req with a new correlation id, for a call whose id is already in
// entry s. The copy is a different call if the earlier send got a response, or is still
// pending and req is not idempotent or has another body; an idempotent copy then has a new
// key. Otherwise the copy repeats the earlier request under the earlier key: a server that
// runs the earlier request, or has run it, does not run the copy. A key chosen by the
// application is kept.
func (s *pendingEntry) anew(req *Request) *Request {
	again := *req
	again.CorrelationID = newID()
	chosen := req.IdempotencyKey != "" && req.IdempotencyKey != s.id
	switch {
	case chosen:
	case s.answered, s.call != nil && (!req.Idempotent || !bytes.Equal(s.call.req.Body, req.Body)):
		again.IdempotencyKey = ""
		if req.Idempotent {
			again.IdempotencyKey = again.CorrelationID
		}
	default:
		again.IdempotencyKey = s.id
	}
	return &again
}

// expire notifies the calls whose deadline has passed.
func (p *pending) expire() {
	p.mu.Lock()
	expired := p.deadlines.expired(time.Now())
	for _, k := range expired {
		k.entry.terminal = append(k.entry.terminal, event{kind: eventExpired})
	}
	p.mu.Unlock()
	for _, k := range expired {
		k.notify(event{kind: eventExpired})
	}
}

// renew replaces a call by its next round, which can receive a response again.
func (p *pending) renew(k *call) *call {
	next := k.nextRound()
	p.mu.Lock()
	defer p.mu.Unlock()
	next.entry = k.entry
	next.entry.call, next.entry.answered = next, false
	p.deadlines.replace(k, next)
	p.watchers.replace(k, next)
	// The events that end the call went to the previous round, which has no reader any more.
	for _, ev := range next.entry.terminal {
		next.events <- ev
	}
	return next
}

// remove ends a call's registration; a later response is dropped.
func (p *pending) remove(k *call) {
	p.mu.Lock()
	stop := p.watchers.remove(k)
	p.forget(k)
	p.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// forget moves a call to the last settled calls. The caller holds mu.
func (p *pending) forget(k *call) {
	p.deadlines.remove(k)
	p.calls--
	p.bytes -= len(k.req.Body)
	k.entry.call = nil
	if len(p.recent) < maxRecent {
		p.recent = append(p.recent, k.entry)
		return
	}
	if oldest := p.recent[p.next]; p.entries[oldest.id] == oldest { // the id may be in use again
		delete(p.entries, oldest.id)
	}
	p.recent[p.next] = k.entry
	p.next = (p.next + 1) % maxRecent
}

// answer delivers a single response to its call and returns the match.
func (p *pending) answer(d *amqp.Delivery) matchResult {
	a := receive(d)
	p.mu.Lock()
	k, v := p.entries[d.CorrelationId].match(&a)
	p.mu.Unlock()
	if k != nil {
		k.notify(event{kind: eventAnswered})
	}
	return v
}

// answerAll delivers the responses of a batch to their calls and sets the match of each.
func (p *pending) answerAll(answers []batchedAnswer) {
	p.mu.Lock()
	for i := range answers {
		a := &answers[i]
		a.call, a.verdict = p.entries[string(a.id)].match(&a.received)
	}
	p.mu.Unlock()
	for i := range answers {
		if k := answers[i].call; k != nil {
			k.notify(event{kind: eventAnswered})
		}
	}
}

// match assigns a response to the call it settles, or returns the reason for no match. The
// caller holds the table's lock.
func (s *pendingEntry) match(a *received) (*call, matchResult) {
	if s == nil {
		return nil, verdictUnknown
	}
	switch k := s.call; {
	case k != nil && !s.answered && !a.outdated(k.round):
		s.answered = true
		k.answer, k.echoed = a.reply, a.echoed
		return k, verdictTaken
	case k == nil && !s.answered:
		if failed := a.reply.failed; failed != nil && failed.code == CodeCanceled {
			return nil, verdictCanceled
		}
		return nil, verdictLate
	case a.redelivered:
		return nil, verdictRedelivered
	default:
		return nil, verdictDuplicate
	}
}

// returned marks the call whose request was returned by the broker.
func (p *pending) returned(r amqp.Return) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.entries[r.CorrelationId]; s != nil && s.call != nil {
		s.call.returned.Store(true)
	}
}

// snapshot returns the pending calls.
func (p *pending) snapshot() []*call {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all()
}

// all is snapshot for a caller holding mu.
func (p *pending) all() []*call {
	all := make([]*call, 0, p.calls)
	for _, s := range p.entries {
		if s.call != nil {
			all = append(all, s.call)
		}
	}
	return all
}

// close refuses further calls, and ends the pending calls.
func (p *pending) close() {
	p.mu.Lock()
	p.closed = true
	p.deadlines.stop()
	all := p.all()
	for _, k := range all {
		k.entry.terminal = append(k.entry.terminal, event{kind: eventClosed})
	}
	p.mu.Unlock()
	for _, k := range all {
		k.notify(event{kind: eventClosed})
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

// len returns the number of pending calls.
func (p *pending) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls
}
