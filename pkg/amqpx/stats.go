package amqpx

import (
	"sync/atomic"
	"time"
)

// ClientStats counts what a client did since it was made.
type ClientStats struct {
	// OK and Failed count the calls that returned; InFlight those that did not yet.
	OK, Failed, InFlight uint64
	// Resent counts the requests sent beyond each call's first; a call is counted when
	// it returns.
	Resent uint64
	// Retried counts the retries that the retry budget allowed.
	Retried uint64
	// Refused counts the calls that failed at once with [ErrTooManyCalls].
	Refused uint64
	// Late counts answers that came after their call was given up, Duplicates
	// second answers to one call, Unknown answers to no call of this client. All of
	// them were dropped.
	Late, Duplicates, Unknown uint64
	// Batched counts the requests that were sent in a batch.
	Batched uint64
	// Reconnects counts the links that became ready after the first.
	Reconnects uint64
	// Blocked is how long the broker has blocked publishing, all times together.
	Blocked time.Duration
}

type clientCounts struct {
	ok, failed, resent        atomic.Uint64
	retried, refused          atomic.Uint64
	late, duplicates, unknown atomic.Uint64
	batched                   atomic.Uint64
}

func (n *clientCounts) dropped(v verdict) {
	switch v {
	case verdictLate:
		n.late.Add(1)
	case verdictDuplicate:
		n.duplicates.Add(1)
	case verdictUnknown:
		n.unknown.Add(1)
	case verdictTaken, verdictRedelivered, verdictCanceled:
	}
}

// Stats returns the counters.
func (c *Client) Stats() ClientStats {
	if c == nil || c.cfg == nil {
		return ClientStats{}
	}
	return ClientStats{
		OK:         c.counts.ok.Load(),
		Failed:     c.counts.failed.Load(),
		InFlight:   uint64(c.pending.len()), //nolint:gosec // a length is never negative.
		Resent:     c.counts.resent.Load(),
		Retried:    c.counts.retried.Load(),
		Refused:    c.counts.refused.Load(),
		Late:       c.counts.late.Load(),
		Duplicates: c.counts.duplicates.Load(),
		Unknown:    c.counts.unknown.Load(),
		Batched:    c.counts.batched.Load(),
		Reconnects: reconnects(c.Status()),
		Blocked:    c.sup.board.blockedFor(),
	}
}

// ServerStats counts what a server did since it was made.
type ServerStats struct {
	// Requests counts the requests taken from the queue; InFlight those of them that
	// are not settled yet.
	Requests, InFlight uint64
	// OK and Failed count the handlers that returned a result or an error; Panics
	// counts those of the failed that panicked.
	OK, Failed, Panics uint64
	// Refused counts the requests that were answered without being run: malformed,
	// or for an unknown method. Expired counts those whose time was over.
	Refused, Expired uint64
	// Shed counts those of the refused that would have expired before a worker was free.
	Shed uint64
	// TooLarge counts the requests and batches whose bodies were beyond the limit of
	// [WithMaxMessageSize]: they were not read.
	TooLarge uint64
	// Deferred counts the deliveries for whose bodies there was no room (see
	// [WithMaxBytesInHand]): they are delivered again when there is.
	Deferred uint64
	// Replayed counts the duplicates that were not run: they got the answer of the
	// request they repeat.
	Replayed uint64
	// Canceled counts the requests that were given up because their callers had: those
	// whose handler's context was cancelled, and those that were not run any more.
	Canceled uint64
	// Returned counts the requests given back to the queue by a drain.
	Returned uint64
	// Moved counts the requests that were put into a queue again, because a server had
	// lost them, and Dead those that went to the dead letters.
	Moved, Dead uint64
	// Batched counts the requests that came in a batch.
	Batched uint64
	// Undeliverable counts the responses, and the copies of requests, that were dropped
	// because they ended the connection they were published on.
	Undeliverable uint64
	// Unroutable counts the responses that no queue took: their callers are gone, or named a
	// reply_to that is no queue. Responses to direct reply-to are not among them.
	Unroutable uint64
	// Reconnects counts the links that became ready after the first.
	Reconnects uint64
	// Blocked is how long the broker has blocked publishing, all times together.
	Blocked time.Duration
	// Workers is how many handlers may run at once, Busy how many do, Waiting how many
	// requests wait in this server for a worker.
	Workers, Busy, Waiting int
	// Stuck is how many handlers run on though their time limit has passed and their
	// requests were answered ([WithMaxHandlerTime]). While it is more than Workers, some of
	// them hold workers, and the server does less than it should.
	Stuck int
	// OldestHandler is how long the handler that began first has run; 0 while none runs.
	OldestHandler time.Duration
	// BytesInHand is the size of the bodies of the requests that this server has and has
	// not acknowledged, see [WithMaxBytesInHand].
	BytesInHand int64
}

type serverCounts struct {
	requests, ok, failed, panics, refused, expired, returned atomic.Uint64
	shed, replayed, moved, dead, batched, canceled           atomic.Uint64
	undeliverable, unroutable                                atomic.Uint64
	tooLarge, deferred                                       atomic.Uint64
}

// Stats returns the counters.
func (s *Server) Stats() ServerStats {
	if s == nil || s.cfg == nil {
		return ServerStats{}
	}
	stuck, _ := s.stuck.count()
	return ServerStats{
		Requests: s.counts.requests.Load(),
		InFlight: uint64(max(int64(s.track.count())-s.consumers.Load()-s.parcels.Load(), 0)),
		OK:       s.counts.ok.Load(),
		Failed:   s.counts.failed.Load(),
		Panics:   s.counts.panics.Load(),
		Refused:  s.counts.refused.Load(),
		Expired:  s.counts.expired.Load(),
		Shed:     s.counts.shed.Load(),
		Replayed: s.counts.replayed.Load(),
		Canceled: s.counts.canceled.Load(),
		Returned: s.counts.returned.Load(),
		Moved:    s.counts.moved.Load(),
		Dead:     s.counts.dead.Load(),
		Batched:  s.counts.batched.Load(),

		Undeliverable: s.counts.undeliverable.Load(),
		Unroutable:    s.counts.unroutable.Load(),

		Reconnects: reconnects(s.Status()),
		Blocked:    s.sup.board.blockedFor(),
		Workers:    s.cfg.workers,
		Busy:       int(s.load.busy.Load()),
		Waiting:    s.jobs.len(),

		TooLarge:    s.counts.tooLarge.Load(),
		Deferred:    s.counts.deferred.Load(),
		BytesInHand: s.cfg.inHand.held.Load(),

		Stuck:         stuck,
		OldestHandler: s.oldestHandler(),
	}
}

func reconnects(st Status) uint64 {
	if st.Generation == 0 {
		return 0
	}
	return st.Generation - 1
}
