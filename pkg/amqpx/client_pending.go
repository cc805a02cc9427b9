package amqpx

import (
	"bytes"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// maxRecent is how many settled calls are kept in mind to tell a duplicate or a
// late answer from one that belongs to nobody.
const maxRecent = 4096

// matchResult says whose an answer was.
type matchResult uint8

const (
	verdictTaken       matchResult = iota // it settled its call
	verdictDuplicate                      // its call has an answer already
	verdictRedelivered                    // the same answer again, after a reconnect
	verdictLate                           // its call was given up
	verdictUnknown                        // no such call
	verdictCanceled                       // its call was canceled, and so the server says
)

// pending is the table of calls that wait for an answer, by correlation id.
// A call is in it before its request leaves and until Call returns, over every
// re-send. Safe for concurrent use.
type pending struct {
	maxCalls, maxBytes int

	mu        sync.Mutex
	closed    bool
	entries   map[string]*pendingEntry // of the calls that wait, and of the last that were settled
	calls     int                      // how many of them wait
	bytes     int                      // of the calls' bodies
	recent    []*pendingEntry          // the last settled ones, in the order they are forgotten
	next      int
	deadlines deadlineList
	watchers  ctxWatchers
}

// pendingEntry is a call's place in the table.
type pendingEntry struct {
	id       string
	call     *call // nil when it was settled
	answered bool
	terminal []event // that end its call, in whichever round it is
}

// newPending returns a table of at most maxCalls calls with bodies of maxBytes
// together.
func newPending(maxCalls, maxBytes int) *pending {
	return &pending{maxCalls: maxCalls, maxBytes: maxBytes, entries: make(map[string]*pendingEntry), watchers: make(ctxWatchers)}
}

// add registers a call, or returns ErrClosed or ErrTooManyCalls. A correlation id that was
// used before, as when middleware sends one request twice, is replaced (see anew): what is
// still to come for the first must not be taken for the second's. With watch the call learns when its
// deadline passes, if it comes after those of the others: watched says so.
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

// anew returns the request of a call whose correlation id s has. After a send that got no
// response, or has none yet, it repeats that one: the idempotency key says so, and a server
// that runs it, or has run it, does not run it again. After a response it is another call,
// unless the application chose a key.
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

// expire tells the calls whose deadline has passed.
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

// renew puts the next round of a call in its place: it takes an answer again.
func (p *pending) renew(k *call) *call {
	next := k.nextRound()
	p.mu.Lock()
	defer p.mu.Unlock()
	next.entry = k.entry
	next.entry.call, next.entry.answered = next, false
	p.deadlines.replace(k, next)
	p.watchers.replace(k, next)
	// What ended the call was told to the round before, which nobody listens to any more.
	for _, ev := range next.entry.terminal {
		next.events <- ev
	}
	return next
}

// remove ends a call's registration; an answer that comes later is dropped.
func (p *pending) remove(k *call) {
	p.mu.Lock()
	stop := p.watchers.remove(k)
	p.forget(k)
	p.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// forget makes a call one of the last that were settled. The caller holds mu.
func (p *pending) forget(k *call) {
	p.deadlines.remove(k)
	p.calls--
	p.bytes -= len(k.req.Body)
	k.entry.call = nil
	if len(p.recent) < maxRecent {
		p.recent = append(p.recent, k.entry)
		return
	}
	if oldest := p.recent[p.next]; p.entries[oldest.id] == oldest { // its id may be in use again
		delete(p.entries, oldest.id)
	}
	p.recent[p.next] = k.entry
	p.next = (p.next + 1) % maxRecent
}

// answer hands an answer that came alone to its call and says whose it was.
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

// answerAll hands the answers of a batch to their calls and says whose they were.
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

// match gives an answer to the call that it settles, or says why there is none. The
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

// returned marks the call whose request the broker gave back.
func (p *pending) returned(r amqp.Return) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.entries[r.CorrelationId]; s != nil && s.call != nil {
		s.call.returned.Store(true)
	}
}

// snapshot returns the calls that are pending now.
func (p *pending) snapshot() []*call {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all()
}

// all is snapshot for a caller that holds mu.
func (p *pending) all() []*call {
	all := make([]*call, 0, p.calls)
	for _, s := range p.entries {
		if s.call != nil {
			all = append(all, s.call)
		}
	}
	return all
}

// close refuses further calls, and ends those that are pending.
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

// unlessClosed calls f, which does not wait, unless the table is closed.
func (p *pending) unlessClosed(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		f()
	}
	return !p.closed
}

// len returns how many calls are pending.
func (p *pending) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls
}
