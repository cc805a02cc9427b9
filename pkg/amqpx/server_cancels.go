package amqpx

import (
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

const (
	// maxCanceledIDs and givenUpAge bound the number of canceled calls in a canceledCalls, and
	// the time for which they are kept: their requests may still be on their way to this
	// server.
	maxCanceledIDs = 4096
	givenUpAge     = 5 * time.Minute
)

// canceledCalls records canceled calls without a request in progress here. The zero value is
// empty. The lock of dedupCache guards all fields.
type canceledCalls struct {
	ids    map[callKey]bool
	recent []callKey // the same calls, oldest first from next on
	next   int
	since  time.Time // when the last call was added
}

// remember records a call; beyond maxCanceledIDs the new call replaces the oldest.
func (g *canceledCalls) remember(id callKey, now time.Time) {
	if g.ids[id] {
		return
	}
	if g.ids == nil {
		g.ids = make(map[callKey]bool)
	}
	g.ids[id], g.since = true, now
	if len(g.recent) < maxCanceledIDs {
		g.recent = append(g.recent, id)
		return
	}
	delete(g.ids, g.recent[g.next])
	g.recent[g.next] = id
	g.next = (g.next + 1) % maxCanceledIDs
}

// takeCanceled reports whether a call is recorded, and removes the record.
func (g *canceledCalls) takeCanceled(id callKey, now time.Time) bool {
	if len(g.ids) == 0 {
		return false
	}
	if now.Sub(g.since) > givenUpAge {
		*g = canceledCalls{}
		return false
	}
	gone := g.ids[id]
	delete(g.ids, id)
	return gone
}

// cancel implements dedupStore. in holds the fields of the cancellation: the sender, the id,
// and the idempotency key if there is one. A running request continues while requests of other
// calls wait for its result.
func (e *dedupCache) cancel(m *serverMethod, in *incoming, now time.Time) (end []*invocation) {
	call := in.callKey()
	if call.replyTo == "" { // of a client with direct reply-to
		if len(call.id) < uniqueID {
			return nil // anybody could guess the id by counting
		}
		call.replyTo = wire.DirectReplyTo
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	x, ended := e.findCall(m, in, call)
	if ended {
		return nil
	}
	found := false
	if x != nil {
		for _, r := range append([]*invocation{x.runner}, x.waiters...) {
			if r.call() != call {
				continue
			}
			found = true
			if !r.canceled && r != x.runner {
				end = append(end, r)
			}
			r.canceled = true
		}
	}
	if !found { // the request may still arrive
		e.remember(call, now)
		return nil
	}
	if unwanted := x.abandon(); unwanted != nil {
		end = append(end, unwanted)
	}
	return end
}

// findCall returns the execution in which a call takes part, or nil. If ended is true, the
// execution has ended and its response is stored. The caller holds mu.
func (e *dedupCache) findCall(m *serverMethod, in *incoming, call callKey) (x *execution, ended bool) {
	if e.calls != nil {
		entry := e.calls[call]
		return entry.running, entry.stored != 0
	}
	id := requestID{scope: in.user, id: in.key()}
	if len(id.id) < uniqueID {
		id.replyTo = in.ReplyTo
	}
	x, _, stored := e.find(m, &id, e.hashOf(&id))
	if x == nil && stored == nil && id.replyTo != "" {
		id.replyTo = ""
		x, _, stored = e.find(m, &id, e.hashOf(&id))
	}
	return x, stored != nil
}

// abandon returns the running request when all callers of the execution have canceled, but
// only once.
func (x *execution) abandon() *invocation {
	if x.canceled || x.runner == nil || !x.runner.canceled {
		return nil
	}
	for _, w := range x.waiters {
		if !w.canceled {
			return nil
		}
	}
	x.canceled = true
	return x.runner
}
