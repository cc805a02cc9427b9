package amqpx

import "sync"

// outbox holds what waits for a publisher. It belongs to the client or the server
// and outlives sessions: what no session has written leaves with the next one. It has
// no bound of its own: calls are bounded by the pending table, answers by the prefetch.
// Safe for concurrent use.
type outbox struct {
	// wake has a token while there is something that no publisher has seen.
	wake chan struct{}

	mu      sync.Mutex
	waiting []outgoing
	stale   int // how many of them have been withdrawn
}

// staleMin is how many withdrawn messages may stay before a sweep is worth it.
const staleMin = 64

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1)} }

// put adds a message. It never waits.
func (o *outbox) put(out outgoing) {
	o.mu.Lock()
	o.waiting = append(o.waiting, out)
	first := len(o.waiting) == 1
	o.mu.Unlock()
	if first {
		o.rouse()
	}
}

// putBack puts messages before all others, in their order.
func (o *outbox) putBack(outs []outgoing) {
	if len(outs) == 0 {
		return
	}
	o.mu.Lock()
	o.waiting = append(append(make([]outgoing, 0, len(outs)+len(o.waiting)), outs...), o.waiting...)
	o.mu.Unlock()
	o.rouse()
}

func (o *outbox) rouse() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// takeAll empties the outbox into the messages that it returns. The caller gives it a
// slice that it no longer uses, to be filled from now on.
func (o *outbox) takeAll(spare []outgoing) []outgoing {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.waiting
	o.waiting, o.stale = spare[:0], 0
	return all
}

// takeOut takes the messages out that match, and leaves the others in their order.
func (o *outbox) takeOut(match func(outgoing) bool) (out []outgoing) {
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

// withdrew is told of a message that was put in and will not be granted its claim.
// Without a link nobody takes such messages out, so they are swept from time to time.
func (o *outbox) withdrew() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stale++
	if o.stale < staleMin || o.stale < len(o.waiting)/2 {
		return
	}
	live := o.waiting[:0]
	for _, out := range o.waiting {
		if !out.withdrawn() {
			live = append(live, out)
		}
	}
	clear(o.waiting[len(live):])
	o.waiting, o.stale = live, 0
}

// len returns how many messages wait.
func (o *outbox) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.waiting)
}
