package amqpx

import (
	"sync"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
)

// remembered is how many settled calls are kept in mind to tell a duplicate or a
// late answer from one that belongs to nobody.
const remembered = 4096

// verdict says whose an answer was.
type verdict uint8

const (
	verdictTaken       verdict = iota // it settled its call
	verdictDuplicate                  // its call has an answer already
	verdictRedelivered                // the same answer again, after a reconnect
	verdictLate                       // its call was given up
	verdictUnknown                    // no such call
)

// pending is the table of calls that wait for an answer, by correlation id.
// A call is in it before its request leaves and until Call returns, over every
// re-send. Safe for concurrent use.
type pending struct {
	maxCalls, maxBytes int

	mu     sync.Mutex
	closed bool
	calls  map[string]*call
	bytes  int // of the calls' bodies
	// recent holds the last settled ids and whether they had an answer; ring holds
	// the same ids in the order they are forgotten.
	recent map[string]bool
	ring   []string
	next   int
}

// newPending returns a table of at most maxCalls calls with bodies of maxBytes
// together.
func newPending(maxCalls, maxBytes int) *pending {
	return &pending{
		maxCalls: maxCalls, maxBytes: maxBytes,
		calls: make(map[string]*call), recent: make(map[string]bool, remembered),
	}
}

// add registers a call, or returns ErrClosed or ErrTooManyCalls. A correlation id
// that is in use, as when middleware sends one request twice at once, is replaced.
func (p *pending) add(k *call) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return ErrClosed
	case len(p.calls) >= p.maxCalls, len(k.req.Body) > p.maxBytes-p.bytes:
		return ErrTooManyCalls
	}
	p.bytes += len(k.req.Body)
	if _, taken := p.calls[k.req.CorrelationID]; taken {
		again := *k.req
		again.CorrelationID = uuid.NewString()
		k.req = &again
	}
	p.calls[k.req.CorrelationID] = k
	return nil
}

// renew puts the next round of a call in its place: it takes an answer again.
func (p *pending) renew(k *call) *call {
	next := k.next()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls[k.req.CorrelationID] = next
	return next
}

// remove ends a call's registration; an answer that comes later is dropped.
func (p *pending) remove(k *call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := k.req.CorrelationID
	delete(p.calls, id)
	p.bytes -= len(k.req.Body)
	if len(p.ring) < remembered {
		p.ring = append(p.ring, id)
	} else {
		delete(p.recent, p.ring[p.next])
		p.ring[p.next] = id
		p.next = (p.next + 1) % remembered
	}
	p.recent[id] = k.answered
}

// answer hands an answer that came alone to its call and says whose it was.
func (p *pending) answer(d *amqp.Delivery) verdict {
	a := receive(d)
	return p.settle([]byte(d.CorrelationId), &a)
}

// settle hands an answer to its call and says whose it was.
func (p *pending) settle(id []byte, a *received) verdict {
	k, v := p.match(id, a)
	if v == verdictTaken {
		k.events <- event{answer: a}
	}
	return v
}

func (p *pending) match(id []byte, a *received) (*call, verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.calls[string(id)]
	if k != nil && !k.answered && !a.outdated(k.round) {
		k.answered = true
		return k, verdictTaken
	}
	answered, known := p.recent[string(id)]
	switch {
	case (k != nil || answered) && a.redelivered:
		return nil, verdictRedelivered
	case k != nil || answered:
		return nil, verdictDuplicate
	case known:
		return nil, verdictLate
	default:
		return nil, verdictUnknown
	}
}

// returned marks the call whose request the broker gave back.
func (p *pending) returned(r amqp.Return) {
	p.mu.Lock()
	k := p.calls[r.CorrelationId]
	p.mu.Unlock()
	if k != nil {
		k.returned.Store(true)
	}
}

// snapshot returns the calls that are pending now.
func (p *pending) snapshot() []*call {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*call, 0, len(p.calls))
	for _, k := range p.calls {
		all = append(all, k)
	}
	return all
}

// close refuses further calls.
func (p *pending) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}

// len returns how many calls are pending.
func (p *pending) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.calls)
}
