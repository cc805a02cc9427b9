package amqpx

import (
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

const (
	// maxCanceledIDs and givenUpAge bound the number of canceled calls in a dedupCache, and the
	// time for which they are kept: their requests may still be on their way to this server.
	maxCanceledIDs = 4096
	givenUpAge     = 5 * time.Minute
)

// cancel marks the requests of a canceled call and returns the requests whose contexts must be
// canceled. in holds the fields of the cancellation: the sender, the id, and the idempotency key if
// there is one. A running request continues while requests of other calls wait for its result.
func (e *dedupCache) cancel(m *serverMethod, in *incoming, now time.Time) (end []*invocation) {
	call := in.callKey()
	if call.replyTo == "" { // of a client with direct reply-to
		if len(call.id) < wire.UniqueID {
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
		e.canceled.Add(call, now, givenUpAge, maxCanceledIDs)
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
	if len(id.id) < wire.UniqueID {
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
