package amqpx

import (
	"sync"
	"time"

	"go.uber.org/zap"
)

// Deliveries whose bodies were dropped when they arrived (frame_content.go). A body beyond
// the limit is refused. A body that found no room is delivered again when there is room:
// until then the server keeps the delivery, without its body, unacknowledged.

const (
	// unreadPause is the time between two looks at the room for unread requests. While what
	// was given back finds no room when it arrives, the time doubles up to unreadPauseMax,
	// which bounds how often bodies travel in vain.
	unreadPause    = 10 * time.Millisecond
	unreadPauseMax = 320 * time.Millisecond
	// unreadRetryAfter is what the caller is told of a request that is refused for want of
	// room.
	unreadRetryAfter = time.Second
)

// tooLarge notes that the request of a job is beyond the limit. A one-way request has no
// caller to tell: it is rejected, so that a dead-letter policy of the broker keeps it.
func (j *job) tooLarge() {
	s := j.from.server
	s.counts.tooLarge.Add(1)
	if !j.in.OneWay {
		return
	}
	j.disposition = disposeReject
	s.logs.tooLarge.of(s.cfg.logger).Warn("rejected a one-way request that is too large", zap.String("queue", j.queue),
		zap.String("method", j.in.Method), zap.String("reason", j.failed.message))
}

// takeUnread takes a request that arrived without its body, and reports whether it did: any
// other request, and one that is refused whatever its body is, is handled as usual.
func (c *consumer) takeUnread(j *job) bool {
	drop, ok := droppedBodyOf(j.delivery.Headers)
	if !ok || !drop.noRoom {
		return false
	}
	s := c.server
	s.counts.deferred.Add(1)
	in, failed := j.decode()
	m := j.method
	switch {
	case failed != nil, m == nil:
		return false
	case c.server.isDraining():
		j.requeue()
	case m.atMostOnce, !in.OneWay && s.endsWhenRedelivered(j):
		e := refusal(CodeResourceExhausted, "the server has %d bytes of requests in hand and no room for %d more",
			s.cfg.inHand.held.Load(), drop.size)
		e.retryAfter = unreadRetryAfter
		s.refuse(j, e)
	default:
		s.deferred.add(j)
		c.keepUnread(j, drop)
	}
	return true
}

// endsWhenRedelivered reports whether a request would go to the dead letters if it were
// given back now, to be taken by another server: the broker marks it as redelivered, like one
// that a server lost. Or the broker itself would soon drop it.
func (s *Server) endsWhenRedelivered(j *job) bool {
	limit := s.cfg.deliveryLimit
	return limit > 0 && !j.delivery.Redelivered && j.in.lostDeliveries+1 >= limit || j.isNearBrokerLimit()
}

// maxDeferred bounds how many deferred requests a server remembers.
const maxDeferred = 4096

// deferredRequests are the requests that this server has given back for want of room, and
// that no server had lost before. They come again marked as redelivered: then no server has
// lost them either, and they need not go through the retry queue. One that kills servers is
// counted all the same, as the next server remembers nothing of it. Its zero value is ready
// to use. Safe for concurrent use.
type deferredRequests struct {
	mu       sync.Mutex
	requests map[deferredRequest]int
}

// deferredRequest is what tells one request from others.
type deferredRequest struct{ method, correlationID, messageID, replyTo string }

func deferredRequestOf(j *job) deferredRequest {
	d := j.delivery
	return deferredRequest{j.in.Method, d.CorrelationId, d.MessageId, d.ReplyTo}
}

// add remembers a request that is to be given back.
func (r *deferredRequests) add(j *job) {
	if j.delivery.Redelivered {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.requests == nil || len(r.requests) >= maxDeferred {
		r.requests = make(map[deferredRequest]int)
	}
	r.requests[deferredRequestOf(j)]++
}

// take reports whether a redelivered request was given back by this server, and forgets it.
func (r *deferredRequests) take(j *job) bool {
	if j.parcel != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := deferredRequestOf(j)
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

// takeUnreadBatch takes a batch that arrived without its body, and reports whether it did.
func (c *consumer) takeUnreadBatch(message *job) bool {
	drop, ok := droppedBodyOf(message.delivery.Headers)
	if !ok {
		return false
	}
	s := c.server
	s.parcels.Add(1)
	s.track.add(1)
	if drop.noRoom {
		s.counts.deferred.Add(1)
		c.keepUnread(message, drop)
		return true
	}
	s.counts.tooLarge.Add(1)
	s.logs.tooLarge.of(s.cfg.logger).Warn("rejected a batch that is too large", zap.String("queue", c.sub.queue),
		zap.String("reply_to", message.delivery.ReplyTo), zap.String("reason", drop.tooLarge()))
	message.disposition = disposeReject
	message.ack()
	return true
}

// keepUnread keeps a delivery until there is room for its body.
func (c *consumer) keepUnread(j *job, drop droppedBody) {
	s := c.server
	j.unread = int64(drop.size) //nolint:gosec // at most the limit.
	s.logs.deferred.of(s.cfg.logger).Warn("no room for a request: it is delivered again when there is", zap.Uint64("bytes", drop.size),
		zap.Int64("bytes_in_hand", s.cfg.inHand.held.Load()), zap.Int64("max_bytes_in_hand", s.cfg.inHand.limit))
	select {
	case c.unread <- j:
	case <-c.done:
		j.finish()
	}
}

// returnUnread gives unread requests back to their queues, each time as many as there is
// room for: all at once would only have most of them arrive in vain again. When the server
// drains it gives back all of them. It runs until nothing can be acknowledged any more.
func (c *consumer) returnUnread() {
	var waiting []*job
	wait, deferred := unreadPause, c.server.counts.deferred.Load()
	pause := time.NewTimer(0)
	defer pause.Stop()
	<-pause.C
	draining := c.server.draining
	for {
		select {
		case j := <-c.unread:
			if waiting = append(waiting, j); len(waiting) == 1 {
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

// returnFitting gives back the first of the unread requests that there is room for and
// returns the rest.
func (c *consumer) returnFitting(waiting []*job) []*job {
	inHand := c.server.cfg.inHand
	room, idle := inHand.room(), inHand.held.Load() == 0
	n := 0
	for _, j := range waiting {
		if room -= j.unread; room < 0 && !(idle && n == 0) {
			break
		}
		j.requeue()
		n++
	}
	rest := copy(waiting, waiting[n:])
	clear(waiting[rest:])
	return waiting[:rest]
}

func (c *consumer) returnAll(waiting []*job) []*job {
	for _, j := range waiting {
		j.requeue()
	}
	clear(waiting)
	return waiting[:0]
}

// forgetUnread ends the jobs of unread requests when nothing can be acknowledged any more: the broker
// delivers them again by itself.
func (c *consumer) forgetUnread(waiting []*job) {
	for _, j := range waiting {
		j.finish()
	}
	for {
		select {
		case j := <-c.unread:
			j.finish()
		default:
			return
		}
	}
}
