package amqpx

import (
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// Redelivered requests. A server that got such a request before has died or lost its
// connection. The request may be the cause, so the next server republishes it with the count
// of its lost deliveries: the first time to the end of its queue, because most losses have
// another cause; then to the retry queue, from which every server takes one request at a time,
// so a request that kills servers runs alone and no other request is counted with it; at the
// delivery limit to the dead letters. Classic queues do not count deliveries, so the count is
// a header of the message, which works on every type of queue.

const (
	batchSuffix = ".batch"
	retrySuffix = ".retry"
	deadSuffix  = ".dead"
	// maxDead is the maximum length of the queue of dead letters; beyond, the oldest are
	// dropped.
	maxDead = 10_000
)

// retryQueue returns the queue of the requests that run one at a time, with the bounds of the
// request queue.
func (q Queue) retryQueue() Queue {
	q.Name, q.MaxPriority = q.Name+retrySuffix, 0
	return q
}

// deadQueue returns the queue of dead letters, which no server consumes. It is always durable.
func (q Queue) deadQueue() Queue {
	return Queue{Name: q.Name + deadSuffix, Type: q.Type, MaxLength: maxDead, dropHead: true}
}

// redelivery is what the redelivery policy knows about a request.
type redelivery struct {
	marked     bool // the broker marked the message as redelivered
	sentBefore bool // an earlier delivery or sending of the request is known
	atMostOnce bool // the method of the request runs at most once
	known      bool // a duplicate of the request runs here, or has a stored response, or the store of WithDedupStore decides
	lost       int  // the earlier deliveries that servers have lost
	limit      int  // of lost deliveries; 0: they are not counted
	// deferred is true if this server requeued the message because it had no room for the body:
	// no server has lost the message.
	deferred        bool
	nearBrokerLimit bool // the broker may soon drop the message because of its deliveries
	retryUp         bool // the retry queue is usable
}

// redeliveryAction is the decision of the redelivery policy about a request.
type redeliveryAction uint8

const (
	redeliveryRun        redeliveryAction = iota // run the request
	redeliveryPark                               // run the request when no copy is in progress, see park
	redeliveryRefuse                             // refuse the request: it may have run
	redeliveryRepublish                          // count the delivery; the copy goes to the end of the request queue
	redeliveryRetry                              // count the delivery; the copy goes to the retry queue
	redeliveryDeadLetter                         // count the delivery; the copy goes to the dead letters
)

// mayHaveRun reports whether the request may have run, as far as its method is concerned.
func (r *redelivery) mayHaveRun() bool { return r.marked || r.atMostOnce && r.sentBefore }

// action is the redelivery policy. A request which servers have lost before may have killed
// them, so it runs only when no copy is in progress.
func (r *redelivery) action() redeliveryAction {
	judged := r.mayHaveRun() && !r.known
	counted := judged && r.limit > 0 && !r.deferred
	switch {
	case judged && r.atMostOnce:
		return redeliveryRefuse
	case counted && r.lost+1 >= r.limit:
		return redeliveryDeadLetter
	case counted && r.lost > 0 && r.retryUp:
		return redeliveryRetry
	case counted, judged && r.nearBrokerLimit:
		return redeliveryRepublish
	case r.lost > 0:
		return redeliveryPark
	default:
		return redeliveryRun
	}
}

// redeliveryOf returns what is known about a request. It looks up only what the decision
// needs, because nearly every request is delivered for the first time.
func (s *Server) redeliveryOf(req *inboundRequest, m *serverMethod) redelivery {
	r := redelivery{
		marked: req.delivery.message.Redelivered, sentBefore: req.wasDeliveredBefore(), atMostOnce: m.atMostOnce,
		lost: req.in.LostDeliveries, limit: s.cfg.deliveryLimit,
	}
	if !r.mayHaveRun() {
		return r
	}
	if r.known = s.dedup.has(req) || r.atMostOnce && s.storeAnswers(req); r.known || r.atMostOnce {
		return r
	}
	r.deferred = r.limit > 0 && s.deferred.take(req)
	r.nearBrokerLimit, r.retryUp = req.isNearBrokerLimit(), s.retryUp.Load()
	return r
}

// handleRedelivered applies the redelivery policy to a request, once. The result is true if
// the request was refused, republished, dead-lettered or parked, and false if it runs now.
func (s *Server) handleRedelivered(req *inboundRequest, m *serverMethod) bool {
	if req.parked {
		return false
	}
	r := s.redeliveryOf(req, m)
	lost := r.lost + 1
	switch r.action() {
	case redeliveryRun:
		return false
	case redeliveryPark:
		return s.park(req)
	case redeliveryRefuse:
		s.refuse(req, deliveredOnceError(m.name))
	case redeliveryRepublish: // the request runs among all others, and is still counted
		s.republishCounted(req, req.delivery.consumer.home, lost)
	case redeliveryRetry:
		s.republishCounted(req, s.cfg.queue.retryQueue().Name, lost)
	case redeliveryDeadLetter:
		s.deadLetter(req, lost)
	}
	return true
}

// republishCounted republishes a request to a queue, with the number of its lost deliveries.
func (s *Server) republishCounted(req *inboundRequest, queue string, lost int) {
	if msg, ok := s.cloneOrRefuse(req, lost); ok {
		s.counts.republished.Add(1)
		s.republish(req, queue, msg, req.ack)
	}
}

// park delays a request which a server has lost, and which may have killed the server, until
// the originals of this server's republished requests are acknowledged. If the request killed
// this server earlier, each republished request would exist twice, as original and copy, and
// requests that kill servers would multiply. The request waits without a worker, and then for its
// caller's turn as after its arrival; a drain and the end of its session end the wait too. park
// returns false if the request runs now, because no copy is in progress. Otherwise another worker
// may run the request already, and the calling worker must not use the request any more.
func (s *Server) park(req *inboundRequest) bool {
	req.parked = true
	s.leaveWorker(req, 0) // before another goroutine can put the request
	s.parked.add(req)
	waits := s.moves.CallWhenIdle(func() {
		if s.parked.take(req) {
			s.putWaiting(req.priority(), req)
		}
	})
	switch {
	case !waits:
		if !s.parked.take(req) {
			return true
		}
		if s.takesTurns() && req.admission != nil {
			s.callers.regainWorker(req.admission)
		}
		return false
	case s.isDraining(), req.delivery.consumer.isOver(): // perhaps after the call of unpark
		if s.parked.take(req) {
			s.waiting.Put(s.queuePriority(req), req)
		}
	}
	return true
}

// unpark puts the parked requests of a consumer, or all if c is nil, back into the queue of the
// workers, because their session has ended or the server drains.
func (s *Server) unpark(c *consumer) { s.waiting.Put(0, s.parked.takeOf(c)...) }

// parkedRequests holds the requests that wait without a worker, see Server.park. The zero value
// is ready to use. Safe for concurrent use.
type parkedRequests struct {
	mu       sync.Mutex
	requests map[*inboundRequest]bool
}

// add adds a request.
func (p *parkedRequests) add(req *inboundRequest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.requests == nil {
		p.requests = make(map[*inboundRequest]bool)
	}
	p.requests[req] = true
}

// take removes a request and reports whether it was parked.
func (p *parkedRequests) take(req *inboundRequest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	parked := p.requests[req]
	delete(p.requests, req)
	return parked
}

// takeOf removes and returns the requests of a consumer, or all requests if c is nil.
func (p *parkedRequests) takeOf(c *consumer) (taken []task) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for req := range p.requests {
		if c == nil || req.delivery.consumer == c {
			taken = append(taken, req)
			delete(p.requests, req)
		}
	}
	return taken
}

// deliveredOnceError returns the error for a request which may have run and must not run
// again.
func deliveredOnceError(method string) *Error {
	e := Errorf(CodeUnavailable, "handed out before, and method %q runs at most once", method)
	e.outcome = MayHaveRun
	return e
}

// brokerCountMax is the broker's delivery count from which a request is republished as a new
// message, below the default limit of 20 in quorum queues of RabbitMQ 4, at which the broker
// drops a message.
const brokerCountMax = 10

// isNearBrokerLimit reports whether the broker may soon drop a request because of the number
// of its deliveries.
func (req *inboundRequest) isNearBrokerLimit() bool {
	n, ok := wire.WholeNumber(req.delivery.message.Headers["x-delivery-count"])
	return ok && n >= brokerCountMax
}

// cloneOrRefuse returns a copy of the request with the count of lost deliveries, which counts even
// if the request is a dead letter that was moved back. It refuses a request whose headers this
// process can read but not write: the count could not be set.
func (s *Server) cloneOrRefuse(req *inboundRequest, lost int) (amqp.Publishing, bool) {
	msg, err := clonePublishing(req)
	if err != nil {
		s.refuseUncounted(req, err)
		return msg, false
	}
	wire.SetHeader(&msg, wire.HeaderDeliveries, int64(lost))
	delete(msg.Headers, wire.HeaderDeadTime)
	return msg, s.fitsOrRefuse(req, &msg)
}

// fitsOrRefuse refuses a request if its copy, with the added headers, does not fit a frame of
// the connection.
func (s *Server) fitsOrRefuse(req *inboundRequest, msg *amqp.Publishing) bool {
	err := transport.FitFrame(msg, req.delivery.consumer.sess.Pub.FrameSize())
	if err != nil {
		s.refuseUncounted(req, err)
	}
	return err == nil
}

func (s *Server) refuseUncounted(req *inboundRequest, err error) {
	e := Errorf(CodeInvalidArgument, "handed out before, and cannot be counted: %v", err)
	e.outcome = MayHaveRun
	s.refuse(req, e)
}

// deadLetter republishes a request to the queue of dead letters and responds to the caller.
func (s *Server) deadLetter(req *inboundRequest, lost int) {
	dead := s.cfg.queue.deadQueue().Name
	reason := fmt.Sprintf("delivered %d times and never acknowledged", lost)
	msg, ok := s.cloneOrRefuse(req, lost)
	if !ok {
		return
	}
	// A dead letter does not expire: a person moves it back after the call's deadline.
	msg.Expiration, msg.DeliveryMode = "", amqp.Persistent
	delete(msg.Headers, wire.HeaderTimeout)
	msg.Headers[wire.HeaderDeadReason] = reason
	msg.Headers[wire.HeaderDeadQueue] = req.delivery.consumer.home
	msg.Headers[wire.HeaderDeadTime] = time.Now().UTC()
	if !s.fitsOrRefuse(req, &msg) {
		return
	}
	s.republish(req, dead, msg, func() {
		s.counts.dead.Add(1)
		s.cfg.logger.Error("request moved to the dead letters", zap.String("queue", dead),
			zap.String("method", req.in.Method), zap.String("correlation_id", req.in.ID), zap.Int("deliveries", lost))
		e := Errorf(CodeInternal, "%s: moved to queue %q", reason, dead)
		e.outcome = MayHaveRun
		s.reply(req, s.refusalOf(req, e))
	})
}

// republished is a copy of a request on its way to another queue, or to the end of the same
// queue. The original is acknowledged after the confirm of the copy, so the request is always
// in a queue. A crash between the two leaves the request there twice.
type republished struct {
	server  *Server
	request *inboundRequest
	key     string
	msg     amqp.Publishing
	done    func() // called after the confirm
	tries   int    // the number of nacks

	counted bool // the copy has a delivery count; see delivery.beginRepublish
}

// republish publishes msg, a copy of the request, to queue. After the confirm it calls
// done, which acknowledges the original or responds to the caller.
func (s *Server) republish(req *inboundRequest, queue string, msg amqp.Publishing, done func()) {
	s.sign(&msg, req.in.user, queue == s.cfg.queue.deadQueue().Name)
	_, counted := msg.Headers[wire.HeaderDeliveries]
	(&republished{server: s, request: req, key: queue, msg: msg, done: done, counted: counted}).send()
}

// send publishes the copy. A copy which may have ended a connection, or which the broker has
// nacked, is published alone on the isolated connection. RabbitMQ 3.10 and 3.11 nack all
// messages to a quorum queue on a channel that first published to the queue during the
// election of its leader, until the node of the previous leader is back; the isolated
// connection is newer.
func (m *republished) send() {
	if m.counted {
		m.request.delivery.beginRepublish()
	}
	if m.tries > 0 || m.server.suspects.isSuspect(m.request.in) {
		m.server.isolate(m)
		return
	}
	m.server.outbox.Put(m)
	m.server.cancelRepublishing()
}

// Canceled implements publish.Outbound.
func (m *republished) Canceled() bool { return false }

// BeginSend implements publish.Outbound. If the session of the original has ended, the broker delivers
// the original again, and a copy would be one too many. A draining server leaves the counting
// of a request to the next server.
func (m *republished) BeginSend(uint64) bool {
	if m.request.delivery.consumer.isOver() {
		m.request.leaveUnacked()
		return false
	}
	if m.counted && m.server.isDraining() {
		m.cancelRepublish()
		return false
	}
	return true
}

// cancelRepublish requeues the original of an unpublished copy.
func (m *republished) cancelRepublish() {
	m.notTaken()
	m.request.requeue()
}

// cancelRepublishing requeues the originals of all copies, while the broker blocks publishing
// and this server drains. So the drain need not wait for the broker: the broker does not block
// the connection for consuming, on which originals are requeued.
func (s *Server) cancelRepublishing() {
	if !s.isDraining() {
		return
	}
	sess := s.sup.Current()
	if sess == nil || sess.Sub == sess.Pub || sess.Flow.Unblocked() == nil {
		return
	}
	for _, out := range s.outbox.TakeMatching(func(out publish.Outbound) bool {
		m, ok := out.(*republished)
		return ok && m.request.delivery.consumer.sess == sess
	}) {
		m, _ := out.(*republished)
		m.cancelRepublish()
	}
}

// Publishing implements publish.Outbound. The copy is mandatory, or it would be lost if its queue is
// missing.
func (m *republished) Publishing() (key string, mandatory bool, msg amqp.Publishing) {
	return m.key, true, m.msg
}

// OnResult implements publish.Outbound.
func (m *republished) OnResult(f publish.Result) {
	if f == publish.Confirmed && m.server.returned.take(m.key, m.msg.CorrelationId, m.msg.MessageId) {
		f = publish.Returned
	}
	switch {
	case f == publish.Confirmed && !m.request.delivery.consumer.isOver():
		m.done()
	case (f == publish.Nacked || f == publish.Returned) && !m.request.delivery.consumer.isOver():
		m.nacked()
	case f == publish.Suspect && !m.request.delivery.consumer.sess.Ended():
		m.server.isolate(m) // the copy may have ended the channel
	case f == publish.Unsent && !m.request.delivery.consumer.sess.Ended():
		m.notTaken()
		m.again()
	default:
		if f == publish.Lost || f == publish.Suspect {
			m.server.suspects.noteUnconfirmed(m.request.in)
		}
		m.request.leaveUnacked() // the broker delivers the original again
	}
}

const (
	// movePauseMin and movePauseMax bound the pauses before a nacked or returned copy is
	// published again.
	movePauseMin = 100 * time.Millisecond
	movePauseMax = 5 * time.Second
)

// nacked keeps the original unacknowledged and publishes the copy again after a pause. A
// draining server requeues the original instead.
func (m *republished) nacked() {
	s := m.server
	s.logs.nackedMove.of(s.cfg.logger).Warn("the broker refused to move a request", zap.String("to", m.key),
		zap.String("correlation_id", m.msg.CorrelationId), zap.Int("tries", m.tries+1))
	m.notTaken()
	if s.isDraining() {
		m.request.requeue()
		return
	}
	pause := xsync.GrowingPause(movePauseMin, movePauseMax, m.tries)
	m.tries++
	s.delayed.After(pause, m.again)
	if s.isDraining() { // the drain began after the check above
		s.delayed.Flush()
	}
}

// again publishes the copy again, unless the broker delivers the original again anyway, or the
// server drains and requeues the original.
func (m *republished) again() {
	switch {
	case m.request.delivery.consumer.isOver():
		m.request.leaveUnacked()
	case m.server.isDraining():
		m.request.requeue()
	default:
		if m.key == m.server.cfg.queue.retryQueue().Name {
			m.key = m.request.delivery.consumer.home // the request runs among all others, and is still counted
		}
		if c := m.request.delivery.consumer; m.key == c.home && m.server.isGone(c.shard) {
			m.key = m.server.cfg.queue.Name
		}
		m.send()
	}
}

// notTaken reverts beginRepublish, because the broker did not take the copy.
func (m *republished) notTaken() {
	if m.counted {
		m.request.delivery.endRepublish()
	}
}

// Reject implements publish.Rejectable.
func (m *republished) Reject(cause error) { m.undeliverable(cause) }

// undeliverable implements isolable. The request is refused, because it cannot be republished.
func (m *republished) undeliverable(cause error) {
	m.server.counts.undeliverable.Add(1)
	m.server.logs.undeliverable.of(m.server.cfg.logger).Warn("refused a request of which a copy ends the connection",
		zap.String("to", m.key), zap.String("correlation_id", m.msg.CorrelationId), zap.Error(cause))
	m.notTaken()
	if m.request.delivery.consumer.isOver() {
		m.request.leaveUnacked()
		return
	}
	e := Errorf(CodeInvalidArgument, "handed out before, and the broker does not take a copy: %v", cause)
	e.outcome = MayHaveRun
	m.server.refuse(m.request, e)
}

// brokerHeaders returns the headers which the broker writes or acts on.
func brokerHeaders() []string {
	return []string{wire.HeaderCC, wire.HeaderBCC, "x-delivery-count", "x-acquired-count"}
}

// clonePublishing returns a copy of a request's message with the remaining time, for another
// queue of the same broker, or an error if the message cannot be copied. The copy omits the
// properties which the broker has written or would act on: the user, which the broker compares
// with the connection's user (republish sets this server's own); the routing headers CC and
// BCC (https://www.rabbitmq.com/docs/sender-selected); the delivery counts of a quorum queue.
func clonePublishing(req *inboundRequest) (amqp.Publishing, error) {
	if req.delivery.batched {
		return clonePublishingOfBatched(req), nil
	}
	d := &req.delivery.message
	if err := wire.CheckTable(d.Headers); err != nil {
		return amqp.Publishing{}, err
	}
	headers := maps.Clone(d.Headers)
	if headers == nil {
		headers = amqp.Table{}
	}
	for _, name := range brokerHeaders() {
		delete(headers, name)
	}
	held := time.Since(req.delivery.arrived)
	if _, has := headers[wire.HeaderTimeout]; has && req.in.Budget != wire.NoBudget {
		headers[wire.HeaderTimeout] = max(wire.Milliseconds(req.in.Budget-held), 1)
	}
	return amqp.Publishing{
		Headers:         headers,
		ContentType:     d.ContentType,
		ContentEncoding: d.ContentEncoding,
		DeliveryMode:    d.DeliveryMode,
		Priority:        d.Priority,
		CorrelationId:   d.CorrelationId,
		ReplyTo:         d.ReplyTo,
		Expiration:      remainingTTL(d.Expiration, held),
		MessageId:       d.MessageId,
		Timestamp:       d.Timestamp,
		Type:            d.Type,
		AppId:           d.AppId,
		Body:            d.Body,
	}, nil
}

// clonePublishingOfBatched returns a message with a single request from a batch.
func clonePublishingOfBatched(req *inboundRequest) amqp.Publishing {
	left := max(req.in.Budget-time.Since(req.delivery.arrived), time.Millisecond)
	msg := req.in.Publishing(req.in.ReplyTo, left, req.delivery.message.DeliveryMode == amqp.Persistent)
	if req.in.Budget == wire.NoBudget {
		msg.Expiration = ""
	}
	for _, name := range brokerHeaders() {
		delete(msg.Headers, name)
	}
	return msg
}

// remainingTTL shortens an expiration by the time for which a server held the message. The
// broker does not report the time in the queue before.
func remainingTTL(expiration string, held time.Duration) string {
	ms, err := strconv.ParseInt(expiration, 10, 64)
	if err != nil {
		return ""
	}
	return strconv.FormatInt(max(ms-held.Milliseconds(), 1), 10)
}

// returnedCopies counts returned copies until their confirms. The zero value is ready to use.
// Safe for concurrent use.
type returnedCopies struct {
	mu   sync.Mutex
	open map[returnedCopy]int
}

type returnedCopy struct{ queue, correlationID, messageID string }

func (r *returnedCopies) add(queue, correlationID, messageID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open == nil {
		r.open = make(map[returnedCopy]int)
	}
	r.open[returnedCopy{queue, correlationID, messageID}]++
}

// take reports whether a copy was returned, and removes the record.
func (r *returnedCopies) take(queue, correlationID, messageID string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := returnedCopy{queue, correlationID, messageID}
	n := r.open[key]
	if n <= 1 {
		delete(r.open, key)
	} else {
		r.open[key] = n - 1
	}
	return n > 0
}
