package amqpx

import "sync"

// outbox holds what waits for a publisher. It belongs to the client or the server
// and outlives sessions: what no session has written leaves with the next one. It has
// no bound of its own: calls are bounded by the pending table, answers by the prefetch.
// Safe for concurrent use.
type outbox struct {
	// wake has a token while there is something that no publisher has seen.
	wake chan struct{}

	mu       sync.Mutex
	waiting  []outbound
	canceled int // how many of them have been withdrawn
}

// sweepThreshold is how many withdrawn messages may stay before a sweep is worth it.
const sweepThreshold = 64

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1)} }

// put adds a message. It never waits.
func (o *outbox) put(out outbound) {
	o.mu.Lock()
	o.waiting = append(o.waiting, out)
	first := len(o.waiting) == 1
	o.mu.Unlock()
	if first {
		o.notify()
	}
}

// pushFront puts messages before all others, in their order.
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

// drain empties the outbox into the messages that it returns. The caller gives it a
// slice that it no longer uses, to be filled from now on.
func (o *outbox) drain(spare []outbound) []outbound {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.waiting
	o.waiting, o.canceled = spare[:0], 0
	return all
}

// takeMatching takes the messages out that match, and leaves the others in their order.
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

// noteCanceled is told of a message that was put in and will not be granted its claim.
// Without a link nobody takes such messages out, so they are swept from time to time.
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

// len returns how many messages wait.
func (o *outbox) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.waiting)
}
