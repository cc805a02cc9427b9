package scaling

// Bounds of the library that the simulation repeats (pkg/amqpx/internal/publish).
const (
	batchWindow = 2
	maxBatch    = 512
	minShare    = 16
	minExpected = 8
	maxHeld     = 128
	holdBase    = 100.
	holdEach    = 10.
	holdMost    = 500.
)

// outbox has the calls, or responses, that wait for a place in a window, of one batcher.
type outbox struct {
	waiting     int
	due         float64 // sum over the waiting calls
	unconfirmed int
	last        int
	takers      int
	hold        *hold
	client      *simClient
	server      *simServer
	publish     *actor
	asked       bool
}

// hold is the state of a publisher that waits for messages, as in publish.Outbox. All outboxes of
// a publisher share it.
type hold struct {
	missing int
	waiting int       // messages that have come since
	asking  []*outbox // outboxes that wait for the end of the hold
	holds   int
	skip    int
	skipped int
}

// put adds calls or responses to an outbox and wakes its publisher, unless it waits for more.
func (s *simulation) put(o *outbox, i item) {
	o.waiting += i.calls
	o.due += i.due * float64(i.calls)
	h := o.hold
	if h.missing == 0 {
		o.ask()
		return
	}
	h.asking = append(h.asking, o)
	h.waiting += i.calls
	if h.missing = max(h.missing-i.calls, 0); h.missing == 0 || h.waiting >= maxHeld {
		h.skipped = 0
		h.end()
	}
}

// end ends a hold, and wakes the publisher.
func (h *hold) end() {
	h.missing, h.waiting = 0, 0
	h.holds++
	asking := h.asking
	h.asking = nil
	for _, o := range asking {
		o.ask()
	}
}

// expect makes the publisher wait for n messages, as publish.Outbox does.
func (s *simulation) expect(h *hold, n int) {
	switch {
	case !s.system.Batch || n < minExpected:
		return
	case h.skip > 0:
		h.skip--
		return
	case h.missing > 0:
		h.missing += n
		return
	}
	h.missing = n
	holds := h.holds
	s.after(min(holdBase+holdEach*float64(n), holdMost), func() {
		if h.missing == 0 || h.holds != holds {
			return
		}
		h.skipped = min(max(2*h.skipped, 1), 256)
		h.skip = h.skipped
		h.end()
	})
}

// ask wakes the publisher.
func (o *outbox) ask() {
	if !o.asked && o.waiting > 0 && o.hold.missing == 0 {
		o.asked = true
		o.publish.post(item{client: o.client, server: o.server})
	}
}

// take returns the next message, or false if the window is full.
func (o *outbox) take(batch bool) (item, bool) {
	n := 1
	if batch {
		last := batchWindow + o.takers - 2
		if o.unconfirmed > last || o.unconfirmed == last && o.waiting < o.last {
			return item{}, false
		}
		n = min(max((o.waiting+o.takers-1)/o.takers, minShare), maxBatch, o.waiting)
	}
	if o.waiting == 0 {
		return item{}, false
	}
	i := item{calls: n, due: o.due / float64(o.waiting), client: o.client, server: o.server}
	o.due -= i.due * float64(n)
	o.waiting -= n
	o.unconfirmed++
	o.last = n
	return i, true
}
