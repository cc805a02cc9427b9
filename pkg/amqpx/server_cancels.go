package amqpx

import (
	"time"
)

const (
	// maxCanceledIDs and givenUpAge bound how many calls that were canceled are kept in
	// mind, and for how long: their requests may still be on their way here.
	maxCanceledIDs = 4096
	givenUpAge     = 5 * time.Minute
)

// canceledCalls remembers the calls whose callers canceled them and that do not run here. Its
// zero value is empty. The lock of executions guards it.
type canceledCalls struct {
	ids    map[callKey]bool
	recent []callKey // the same in the order they are forgotten
	next   int
	since  time.Time // the last one
}

// remember keeps a call in mind.
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

// takeCanceled reports whether a call is kept in mind, and forgets it.
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

// cancel implements dedupStore. in is the call as the cancellation names it: who sent that,
// the id, and the idempotency key if there is another. A request that others of the same
// id wait for goes on.
func (e *dedupCache) cancel(m *serverMethod, in *incoming, now time.Time) (end []*invocation) {
	call := in.callKey()
	if call.replyTo == "" { // of a client with direct reply-to
		if len(call.id) < uniqueID {
			return nil // anybody could count up to it
		}
		call.replyTo = directReplyTo
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.findCall(m, in, call)
	if x != nil && x.stored {
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
	if !found { // its request may still come
		e.remember(call, now)
		return nil
	}
	if unwanted := x.abandon(); unwanted != nil {
		end = append(end, unwanted)
	}
	return end
}

// findCall returns the execution that a call takes part in, if there is one. The caller
// holds mu.
func (e *dedupCache) findCall(m *serverMethod, in *incoming, call callKey) *execution {
	if e.calls != nil {
		return e.calls[call]
	}
	id := requestID{scope: in.User, id: in.key()}
	if len(id.id) < uniqueID {
		id.replyTo = in.replyTo
	}
	if x := m.known.find(&id, e.slotOf(&id)); x != nil {
		return x
	}
	id.replyTo = ""
	return m.known.find(&id, e.slotOf(&id))
}

// abandon returns the request that runs, the first time that nobody waits for it any more
// because all callers have canceled.
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
