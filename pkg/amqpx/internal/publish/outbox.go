package publish

import "sync"

// Outbox is the queue of messages for a publisher. It belongs to the client or the server and
// outlives sessions: the next session sends the unwritten messages of the last. The outbox has
// no bound of its own: the pending table bounds calls, the prefetch bounds responses. Safe for
// concurrent use.
type Outbox struct {
	// Wake has a token while there may be messages unknown to the publisher.
	Wake chan struct{}

	mu       sync.Mutex
	waiting  []Outbound
	canceled int // the number of canceled messages among the waiting
}

// sweepThreshold is the number of canceled messages before a sweep.
const sweepThreshold = 64

// NewOutbox returns an empty outbox.
func NewOutbox() *Outbox { return &Outbox{Wake: make(chan struct{}, 1)} }

// Put adds a message without blocking.
func (o *Outbox) Put(out Outbound) {
	o.mu.Lock()
	o.waiting = append(o.waiting, out)
	first := len(o.waiting) == 1
	o.mu.Unlock()
	if first {
		o.Notify()
	}
}

// PushFront inserts messages before all others, in the order of outs.
func (o *Outbox) PushFront(outs []Outbound) {
	if len(outs) == 0 {
		return
	}
	o.mu.Lock()
	o.waiting = append(append(make([]Outbound, 0, len(outs)+len(o.waiting)), outs...), o.waiting...)
	o.mu.Unlock()
	o.Notify()
}

// Notify makes the publisher look at the outbox.
func (o *Outbox) Notify() {
	select {
	case o.Wake <- struct{}{}:
	default:
	}
}

// Drain returns all messages and empties the outbox. The outbox reuses spare as its new, empty
// slice, if spare is not large; the caller must not use spare afterwards.
func (o *Outbox) Drain(spare []Outbound) []Outbound {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.waiting
	o.waiting, o.canceled = reusable(spare), 0
	return all
}

// maxReused bounds the length of a slice of messages that is kept for reuse. A burst of a hundred
// thousand messages makes slices of megabytes.
const maxReused = 4096

// reusable returns an empty slice with the memory of s, or nil if the memory is large.
func reusable[T any](s []T) []T {
	if cap(s) > maxReused {
		return nil
	}
	return s[:0]
}

// TakeMatching removes and returns the matching messages. The rest keep their order.
func (o *Outbox) TakeMatching(match func(Outbound) bool) (out []Outbound) {
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

// NoteCanceled counts a waiting message as canceled. Without a connection no publisher drains
// the outbox, so NoteCanceled removes all canceled messages when they number at least
// sweepThreshold and half of the waiting messages.
func (o *Outbox) NoteCanceled() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.canceled++
	if o.canceled < sweepThreshold || o.canceled < len(o.waiting)/2 {
		return
	}
	live := o.waiting[:0]
	for _, out := range o.waiting {
		if !out.Canceled() {
			live = append(live, out)
		}
	}
	clear(o.waiting[len(live):])
	o.waiting, o.canceled = live, 0
}

// Len returns the number of waiting messages.
func (o *Outbox) Len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.waiting)
}
