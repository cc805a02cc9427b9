package publish

import (
	"sync"
	"time"
)

// Outbox is the queue of messages for a publisher. It belongs to the client or the server and
// outlives sessions: the next session sends the unwritten messages of the last. The outbox has
// no bound of its own: the pending table bounds calls, the prefetch bounds responses. Safe for
// concurrent use.
type Outbox struct {
	// Wake has a token while there may be messages unknown to the publisher.
	Wake chan struct{}
	// Spaced allows Space to keep batches apart. It is set before the outbox is used.
	Spaced bool

	mu       sync.Mutex
	waiting  []Outbound
	canceled int // the number of canceled messages among the waiting
	hold     hold
}

// sweepThreshold is the number of canceled messages before a sweep.
const sweepThreshold = 64

// NewOutbox returns an empty outbox.
func NewOutbox() *Outbox { return &Outbox{Wake: make(chan struct{}, 1)} }

// Put adds a message without blocking.
func (o *Outbox) Put(out Outbound) {
	o.mu.Lock()
	o.waiting = append(o.waiting, out)
	wake := len(o.waiting) == 1
	if o.hold.missing > 0 {
		wake = o.hold.arrived(len(o.waiting))
	}
	o.mu.Unlock()
	if wake {
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

// The hold. In a closed loop the responses of a batch wake their callers, and each caller soon
// sends its next call; the handlers of a batch likewise end soon after each other. If the
// publisher sent the first of these messages at once, the others would travel in further
// batches, and each batch costs the broker and both processes the same whatever its size. So
// the publisher waits for the messages that are expected to follow, for a short time. It
// sleeps meanwhile: the last of these messages wakes it.

const (
	// minExpected is the least number of messages for which the publisher waits.
	minExpected = 8
	// maxHeld is the number of waiting messages that ends a hold: a larger batch saves little.
	maxHeld = 128
	// holdBase and holdEach are the length of a hold: holdBase, and holdEach for each expected
	// message, at most holdMost. The runtime's timers may be late by a millisecond if the process
	// is idle.
	holdBase = 100 * time.Microsecond
	holdEach = 10 * time.Microsecond
	holdMost = 500 * time.Microsecond
	// maxHoldsSkipped bounds the holds that are left out after a hold that was in vain.
	maxHoldsSkipped = 256
	// After spacedFrom holds left out, messages are taken to arrive one by one, as in an open
	// loop. A batch of at least minSpaced messages is then followed by the next batch after
	// spacing: smaller and more batches would keep the processors of both processes and of the
	// broker busy at any rate of calls, and a busy processor makes the longest waits.
	spacedFrom = 8
	minSpaced  = 4
	spacing    = 700 * time.Microsecond
)

// hold is the state of the outbox while the publisher waits for expected messages. The lock of
// the outbox guards it.
type hold struct {
	missing int  // the expected messages that are not in the outbox yet; 0: there is no hold
	spaces  bool // the hold expects no messages, but keeps two batches apart
	end     time.Time
	timer   *time.Timer // calls Outbox.endHold; nil before the first hold
	skip    int         // the next holds that are left out
	skipped int         // the holds that the last hold in vain left out; 0 after a hold that was complete
}

// Expect makes the publisher wait until n messages have arrived, because they are likely to
// follow soon. The publisher does not wait if n is small, and waits at most holdMost. If the
// messages do not arrive in time, the next calls of Expect, up to maxHoldsSkipped, have no effect.
func (o *Outbox) Expect(n int) {
	if n < minExpected {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	h := &o.hold
	switch {
	case h.skip > 0:
		h.skip--
		return
	case h.missing > 0 && !h.spaces: // the end of the hold stays
		h.missing += n
		return
	}
	o.beginHold(n, min(holdBase+time.Duration(n)*holdEach, holdMost))
}

// Space makes the publisher wait for spacing, or until maxHeld messages wait, after a batch of n
// messages, if messages arrive one by one and not in groups.
func (o *Outbox) Space(n int) {
	if !o.Spaced || n < minSpaced {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.hold.skipped >= spacedFrom && o.hold.missing == 0 {
		o.beginHold(maxHeld, spacing)
		o.hold.spaces = true
	}
}

// beginHold begins a hold, or replaces a hold that keeps batches apart. The caller holds mu.
func (o *Outbox) beginHold(n int, length time.Duration) {
	h := &o.hold
	h.missing, h.spaces, h.end = n, false, time.Now().Add(length)
	if h.timer == nil {
		h.timer = time.AfterFunc(length, o.endHold)
	} else {
		h.timer.Reset(length)
	}
}

// arrived counts an expected message, and reports whether the hold ends with this message.
// waiting is the number of waiting messages.
func (h *hold) arrived(waiting int) (ended bool) {
	h.missing--
	if h.missing > 0 && waiting < maxHeld {
		return false
	}
	if h.missing = 0; !h.spaces {
		h.skipped = 0
	}
	h.timer.Stop()
	return true
}

// endHold ends a hold at its time.
func (o *Outbox) endHold() {
	o.mu.Lock()
	h := &o.hold
	if h.missing == 0 || time.Now().Before(h.end) { // the hold of the timer was complete
		o.mu.Unlock()
		return
	}
	if h.missing = 0; !h.spaces {
		h.skipped = min(max(2*h.skipped, 1), maxHoldsSkipped)
		h.skip = h.skipped
	}
	o.mu.Unlock()
	o.Notify()
}

// IsHeld reports whether the publisher must wait for expected messages. The outbox calls
// Notify at the end of the hold.
func (o *Outbox) IsHeld() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.hold.missing > 0
}
