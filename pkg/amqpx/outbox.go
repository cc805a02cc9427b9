package amqpx

import "sync"

// outbox is the queue of messages for a publisher. It belongs to the client or the server and
// outlives sessions: the next session sends the unwritten messages of the last. The outbox has
// no bound of its own: the pending table bounds calls, the prefetch bounds responses. Safe for
// concurrent use.
type outbox struct {
	// wake has a token while there may be messages unknown to the publisher.
	wake chan struct{}

	mu       sync.Mutex
	waiting  []outbound
	canceled int // the number of canceled messages among the waiting
}

// sweepThreshold is the number of canceled messages before a sweep.
const sweepThreshold = 64

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1)} }

// put adds a message without blocking.
func (o *outbox) put(out outbound) {
	o.mu.Lock()
	o.waiting = append(o.waiting, out)
	first := len(o.waiting) == 1
	o.mu.Unlock()
	if first {
		o.notify()
	}
}

// pushFront inserts messages before all others, in the order of outs.
func (o *outbox) pushFront(outs []outbound) {
	if len(outs) == 0 {
		return
	}
	o.mu.Lock()
	o.waiting = append(append(make([]outbound, 0, len(outs)+len(o.waiting)), outs...), o.waiting...)
	o.mu.Unlock()
	o.notify()
}

func (o *outbox) notify() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// drain returns all messages and empties the outbox. The outbox reuses spare as its new, empty
// slice; the caller must not use spare afterwards.
func (o *outbox) drain(spare []outbound) []outbound {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.waiting
	o.waiting, o.canceled = spare[:0], 0
	return all
}

// takeMatching removes and returns the matching messages. The rest keep their order.
func (o *outbox) takeMatching(match func(outbound) bool) (out []outbound) {
	o.mu.Lock()
	defer o.mu.Unlock()
	rest := o.waiting[:0]
	for _, m := range o.waiting {
		if match(m) {
			out = append(out, m)
		} else {
			rest = append(rest, m)
		}
	}
	clear(o.waiting[len(rest):])
	o.waiting = rest
	return out
}

// noteCanceled counts a waiting message as canceled. Without a connection no publisher drains
// the outbox, so noteCanceled removes all canceled messages when they number at least
// sweepThreshold and half of the waiting messages.
func (o *outbox) noteCanceled() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.canceled++
	if o.canceled < sweepThreshold || o.canceled < len(o.waiting)/2 {
		return
	}
	live := o.waiting[:0]
	for _, out := range o.waiting {
		if !out.canceled() {
			live = append(live, out)
		}
	}
	clear(o.waiting[len(live):])
	o.waiting, o.canceled = live, 0
}

// len returns the number of waiting messages.
func (o *outbox) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.waiting)
}
