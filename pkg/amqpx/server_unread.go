package amqpx

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// Deliveries whose bodies were dropped on arrival (frame_content.go). A request with a body
// beyond the limit is refused. A request whose body had no room is delivered again later:
// until there is room, the server keeps the delivery, without its body, unacknowledged.

const (
	// unreadPause is the time between two checks of the room for unread requests. While
	// requeued requests still find no room on arrival, the time doubles up to unreadPauseMax,
	// which bounds how often bodies are transferred in vain.
	unreadPause    = 10 * time.Millisecond
	unreadPauseMax = 320 * time.Millisecond
	// unreadRetryAfter is the pause before a retry in the refusal of a request without room.
	unreadRetryAfter = time.Second
)

// tooLarge records that a request is beyond the size limit. A one-way request has no
// caller for an error and is rejected, so a dead-letter policy of the broker can keep the
// request.
func (req *inboundRequest) tooLarge() {
	s := req.delivery.consumer.server
	s.counts.tooLarge.Add(1)
	if !req.in.OneWay {
		return
	}
	req.delivery.disposition = disposeReject
	s.logs.tooLarge.of(s.cfg.logger).Warn("rejected a one-way request that is too large", zap.String("queue", req.delivery.queue),
		zap.String("method", req.in.Method), zap.String("reason", req.failed.message))
}

// takeUnread handles a request without its body, for which there was no room on arrival. The
// result is false for any other request, and for a request which is refused with any body.
func (c *consumer) takeUnread(req *inboundRequest) bool {
	drop, ok := wire.DroppedBodyOf(req.delivery.message.Headers)
	if !ok || !drop.NoRoom {
		return false
	}
	s := c.server
	s.counts.deferred.Add(1)
	in, failed := req.decode()
	m := req.method
	switch {
	case failed != nil, m == nil:
		return false
	case c.server.isDraining():
		req.requeue()
	case m.atMostOnce, !in.OneWay && s.endsWhenRedelivered(req):
		e := refusal(CodeResourceExhausted, "the server has %d bytes of requests in hand and no room for %d more",
			s.cfg.inHand.Held.Load(), drop.Size)
		e.retryAfter = unreadRetryAfter
		s.refuse(req, e)
	default:
		s.deferred.add(req)
		c.keepUnread(req.delivery, drop)
	}
	return true
}

// endsWhenRedelivered reports whether another server would dead-letter the request if this
// server requeued it now, because the broker marks the request as redelivered, like a lost
// request. The result is also true if the broker would soon drop the request.
func (s *Server) endsWhenRedelivered(req *inboundRequest) bool {
	limit := s.cfg.deliveryLimit
	return limit > 0 && !req.delivery.message.Redelivered && req.in.LostDeliveries+1 >= limit || req.isNearBrokerLimit()
}

// maxDeferred bounds the number of requests in deferredRequests; at the bound all records are
// dropped.
const maxDeferred = 4096

// deferredRequests counts the requests which this server has requeued because there was no
// room, and which no server had lost before. The broker delivers them again, marked as
// redelivered although no server has lost them, so they need not go through the retry queue. A
// request which kills servers is counted nevertheless, because the next server has no such
// record. The zero value is ready to use. Safe for concurrent use.
type deferredRequests struct {
	mu       sync.Mutex
	requests map[deferredRequest]int
}

// deferredRequest identifies a request.
type deferredRequest struct{ method, correlationID, messageID, replyTo string }

func deferredRequestOf(req *inboundRequest) deferredRequest {
	d := &req.delivery.message
	return deferredRequest{req.in.Method, d.CorrelationId, d.MessageId, d.ReplyTo}
}

// add records a request which is about to be requeued.
func (r *deferredRequests) add(req *inboundRequest) {
	if req.delivery.message.Redelivered {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.requests == nil || len(r.requests) >= maxDeferred {
		r.requests = make(map[deferredRequest]int)
	}
	r.requests[deferredRequestOf(req)]++
}

// take reports whether this server requeued a redelivered request, and removes the record.
func (r *deferredRequests) take(req *inboundRequest) bool {
	if req.delivery.batched {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := deferredRequestOf(req)
	n := r.requests[key]
	switch {
	case n == 0:
		return false
	case n == 1:
		delete(r.requests, key)
	default:
		r.requests[key] = n - 1
	}
	return true
}

// takeUnreadBatch handles a batch without its body, and returns false for any other batch.
func (c *consumer) takeUnreadBatch(d *delivery) bool {
	drop, ok := wire.DroppedBodyOf(d.message.Headers)
	if !ok {
		return false
	}
	s := c.server
	d.begin(0)
	if drop.NoRoom {
		s.counts.deferred.Add(1)
		c.keepUnread(d, drop)
		return true
	}
	s.counts.tooLarge.Add(1)
	s.logs.tooLarge.of(s.cfg.logger).Warn("rejected a batch that is too large", zap.String("queue", c.sub.queue),
		zap.String("reply_to", d.message.ReplyTo), zap.String("reason", drop.TooLarge()))
	d.disposition = disposeReject
	d.dispose()
	return true
}

// keepUnread keeps a delivery, unacknowledged, until there is room for its body.
func (c *consumer) keepUnread(d *delivery, drop wire.DroppedBody) {
	s := c.server
	d.unread = int64(drop.Size) //nolint:gosec // at most the limit.
	s.logs.deferred.of(s.cfg.logger).Warn("no room for a request: it is delivered again when there is", zap.Uint64("bytes", drop.Size),
		zap.Int64("bytes_in_hand", s.cfg.inHand.Held.Load()), zap.Int64("max_bytes_in_hand", s.cfg.inHand.Limit))
	select {
	case c.unread <- d:
	case <-c.done:
		d.drop()
	}
}

// returnUnread requeues unread requests, at most as many at a time as there is room for: most
// of the rest would find no room again. During a drain it requeues all. The goroutine runs
// until acknowledgements are no longer possible.
func (c *consumer) returnUnread() {
	var waiting []*delivery
	wait, deferred := unreadPause, c.server.counts.deferred.Load()
	pause := xsync.StoppedTimer()
	defer pause.Stop()
	draining := c.server.draining
	for {
		select {
		case d := <-c.unread:
			if waiting = append(waiting, d); len(waiting) == 1 {
				pause.Reset(wait)
			}
			if draining == nil {
				waiting = c.returnAll(waiting)
			}
		case <-pause.C:
			before := len(waiting)
			if waiting = c.returnFitting(waiting); len(waiting) < before {
				now := c.server.counts.deferred.Load()
				if wait = min(2*wait, unreadPauseMax); now == deferred {
					wait = unreadPause
				}
				deferred = now
			}
			if len(waiting) > 0 {
				pause.Reset(wait)
			}
		case <-draining:
			draining = nil
			waiting = c.returnAll(waiting)
		case <-c.done:
			c.forgetUnread(waiting)
			return
		}
	}
}

// returnFitting requeues the first unread requests for which there is room, and returns the
// rest.
func (c *consumer) returnFitting(waiting []*delivery) []*delivery {
	inHand := c.server.cfg.inHand
	room, idle := inHand.Room(), inHand.Held.Load() == 0
	n := 0
	for _, d := range waiting {
		if room -= d.unread; room < 0 && !(idle && n == 0) {
			break
		}
		d.requeue()
		n++
	}
	rest := copy(waiting, waiting[n:])
	clear(waiting[rest:])
	return waiting[:rest]
}

func (c *consumer) returnAll(waiting []*delivery) []*delivery {
	for _, d := range waiting {
		d.requeue()
	}
	clear(waiting)
	return waiting[:0]
}

// forgetUnread ends the unread deliveries when acknowledgements are no longer possible:
// the broker delivers the requests again.
func (c *consumer) forgetUnread(waiting []*delivery) {
	for _, d := range waiting {
		d.drop()
	}
	for {
		select {
		case d := <-c.unread:
			d.drop()
		default:
			return
		}
	}
}
