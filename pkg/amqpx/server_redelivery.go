package amqpx

import (
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

// A request that the broker hands out again was in the hands of a server that died,
// or lost its link. It may be what killed that server, so such a request is moved,
// with a count of its lost deliveries: the first time to the end of its queue, as
// most losses have nothing to do with it; then to a queue of which every server takes
// one at a time, so that a killer runs alone and what died beside it does not count;
// at the limit to the dead letters. Classic queues count no deliveries, so the count
// travels with the message and works alike on every type of queue.

const (
	batchSuffix = ".batch"
	retrySuffix = ".retry"
	deadSuffix  = ".dead"
	// maxDead bounds the dead letters; beyond it the oldest are dropped.
	maxDead = 10_000
)

// retryQueue holds the requests that run one at a time.
func (q Queue) retryQueue() Queue {
	return Queue{Name: q.Name + retrySuffix, Type: q.Type, Durable: q.Durable}
}

// deadQueue holds the requests that nobody may run again. It outlives everything.
func (q Queue) deadQueue() Queue {
	return Queue{Name: q.Name + deadSuffix, Type: q.Type, Durable: true, MaxLength: maxDead, dropHead: true}
}

// waitRepublished holds back a request that some server has lost, which may be what killed
// it, while originals of this server's own moves are not acknowledged: killed now, it
// would leave original and copy, and so two killers of each. A drain ends the wait. False
// means that the request must not run here, because the broker hands it out again.
func (s *Server) waitRepublished(j *job) bool {
	select {
	case <-s.moves.whenIdle():
	case <-s.draining:
	case <-j.from.done:
	}
	return !j.willBeRedelivered()
}

// handleRedelivered settles a request that may have run before, if it must not just run,
// and reports whether it did.
func (s *Server) handleRedelivered(j *job, m *serverMethod) bool {
	again := j.delivery.Redelivered || m.atMostOnce && j.wasDeliveredBefore()
	switch {
	case !again, s.dedup.has(j):
		return false
	case m.atMostOnce:
		s.refuse(j, deliveredOnceError(m.name))
		return true
	case s.cfg.deliveryLimit == 0, s.deferred.take(j):
		return s.resetDeliveryCount(j)
	}
	lost := j.in.lostDeliveries + 1
	if lost >= s.cfg.deliveryLimit {
		s.deadLetter(j, lost)
		return true
	}
	queue := s.cfg.queue.Name
	if lost > 1 && s.retryUp.Load() { // else it runs among the others, counted all the same
		queue = s.cfg.queue.retryQueue().Name
	}
	if msg, ok := s.cloneOrRefuse(j, lost); ok {
		s.counts.moved.Add(1)
		s.republish(j, queue, msg, j.ack)
	}
	return true
}

// wasDeliveredBefore reports whether an earlier run of a request may have happened.
func (j *job) wasDeliveredBefore() bool { return j.delivery.Redelivered || j.in.Redelivered }

// deliveredOnceError is the error of a request that may have run, and must not run again.
func deliveredOnceError(method string) *Error {
	e := Errorf(CodeUnavailable, "handed out before, and method %q runs at most once", method)
	e.outcome = MayHaveRun
	return e
}

// brokerCountMax is the count of deliveries by the broker at which a server without a
// delivery limit puts a request into its queue anew. It is below the limit of 20 that
// quorum queues of RabbitMQ 4 have of themselves, at which they drop a message.
const brokerCountMax = 10

// resetDeliveryCount puts a request into its queue as a new message when the broker has
// counted many deliveries of it, so that the broker's own limit does not drop it. It
// reports whether it did.
func (s *Server) resetDeliveryCount(j *job) bool {
	if !j.isNearBrokerLimit() {
		return false
	}
	if msg, ok := s.cloneOrRefuse(j, j.in.lostDeliveries+1); ok {
		s.counts.moved.Add(1)
		s.republish(j, s.cfg.queue.Name, msg, j.ack)
	}
	return true
}

// isNearBrokerLimit reports whether the broker has counted so many deliveries of a request
// that it may soon drop it.
func (j *job) isNearBrokerLimit() bool {
	n, ok := wholeNumber(j.delivery.Headers["x-delivery-count"])
	return ok && n >= brokerCountMax
}

// cloneOrRefuse returns the copy with its count. A request with headers that this
// process can read and not write is refused: it could not be counted.
func (s *Server) cloneOrRefuse(j *job, lost int) (amqp.Publishing, bool) {
	msg, err := clonePublishing(j)
	if err != nil {
		s.refuseUncounted(j, err)
		return msg, false
	}
	setHeader(&msg, headerDeliveries, int64(lost))
	return msg, s.fitsOrRefuse(j, &msg)
}

// fitsOrRefuse refuses a request whose copy does not fit a frame of the connection with
// the headers that it was given.
func (s *Server) fitsOrRefuse(j *job, msg *amqp.Publishing) bool {
	err := fitFrame(msg, j.from.sess.pub.frameSize())
	if err != nil {
		s.refuseUncounted(j, err)
	}
	return err == nil
}

func (s *Server) refuseUncounted(j *job, err error) {
	e := Errorf(CodeInvalidArgument, "handed out before, and cannot be counted: %v", err)
	e.outcome = MayHaveRun
	s.refuse(j, e)
}

// deadLetter moves a request to the dead letters and tells its caller.
func (s *Server) deadLetter(j *job, lost int) {
	dead := s.cfg.queue.deadQueue().Name
	reason := fmt.Sprintf("handed out %d times and never answered", lost)
	msg, ok := s.cloneOrRefuse(j, lost)
	if !ok {
		return
	}
	// A dead letter has no expiration: a person moves it back after the call's deadline.
	msg.Expiration, msg.DeliveryMode = "", amqp.Persistent
	delete(msg.Headers, headerTimeout)
	msg.Headers[headerDeadReason] = reason
	msg.Headers[headerDeadQueue] = s.cfg.queue.Name
	msg.Headers[headerDeadTime] = time.Now().UTC()
	if !s.fitsOrRefuse(j, &msg) {
		return
	}
	s.republish(j, dead, msg, func() {
		s.counts.dead.Add(1)
		s.cfg.logger.Error("request moved to the dead letters", zap.String("queue", dead),
			zap.String("method", j.in.Method), zap.String("correlation_id", j.in.CorrelationID), zap.Int("deliveries", lost))
		e := Errorf(CodeInternal, "%s: moved to queue %q", reason, dead)
		e.outcome = MayHaveRun
		s.reply(j, s.refusalOf(j, e))
	})
}

// republished is a copy of a request on its way to another queue, or to the end of its
// own. The original is acknowledged when the broker has the copy, so the request is
// never nowhere; a crash between the two leaves it twice.
type republished struct {
	server *Server
	job    *job
	key    string
	msg    amqp.Publishing
	done   func() // what follows the confirm
	tries  int    // how often the broker has nacked it

	counted bool // with a count of deliveries; see job.moving
}

// republish publishes msg, a copy of the job's request, to queue and calls done, which settles
// the job, when the broker has it.
func (s *Server) republish(j *job, queue string, msg amqp.Publishing, done func()) {
	s.sign(&msg, j.in.User)
	_, counted := msg.Headers[headerDeliveries]
	(&republished{server: s, job: j, key: queue, msg: msg, done: done, counted: counted}).send()
}

// send publishes the copy: alone if it may have ended a connection, and also after a nack.
// RabbitMQ 3.10 and 3.11 nack all that is published to a quorum queue on a channel that first
// published to it while it elected its leader, until the node of the leader before is back;
// the connection for single messages is a newer one.
func (m *republished) send() {
	if m.counted {
		m.job.beginRepublish()
	}
	if m.tries > 0 || m.server.suspects.isSuspect(m.job.in) {
		m.server.isolate(m)
		return
	}
	m.server.outbox.put(m)
	m.server.cancelRepublishing()
}

// canceled implements outgoing.
func (m *republished) canceled() bool { return false }

// beginSend implements outgoing. Without its session the original comes again by itself,
// and a copy would be one too many. A server that drains leaves the counting of a request to
// the next one.
func (m *republished) beginSend(uint64) bool {
	if m.job.from.isOver() {
		m.job.finish()
		return false
	}
	if m.counted && m.server.isDraining() {
		m.cancelRepublish()
		return false
	}
	return true
}

// cancelRepublish gives the original of a copy that was not published back to the broker.
func (m *republished) cancelRepublish() {
	m.notTaken()
	m.job.requeue()
}

// cancelRepublishing gives the requests back whose copies wait until the broker takes messages
// again, if this server drains: the drain need not wait for that. The broker takes the
// originals back, which go over the connection that it does not block.
func (s *Server) cancelRepublishing() {
	if !s.isDraining() {
		return
	}
	sess := s.sup.current()
	if sess == nil || sess.sub == sess.pub || sess.flow.unblocked() == nil {
		return
	}
	for _, out := range s.outbox.takeMatching(func(out outbound) bool {
		m, ok := out.(*republished)
		return ok && m.job.from.sess == sess
	}) {
		m, _ := out.(*republished)
		m.cancelRepublish()
	}
}

// publishing implements outgoing. A copy must not vanish with a missing queue.
func (m *republished) publishing() (key string, mandatory bool, msg amqp.Publishing) {
	return m.key, true, m.msg
}

// onResult implements outgoing.
func (m *republished) onResult(f publishResult) {
	if f == resultConfirmed && m.server.returned.take(m.key, m.msg.CorrelationId, m.msg.MessageId) {
		f = resultReturned
	}
	switch {
	case f == resultConfirmed && !m.job.from.isOver():
		m.done()
	case (f == resultNacked || f == resultReturned) && !m.job.from.isOver():
		m.nacked()
	case f == resultSuspect && !m.job.from.sess.ended():
		m.server.isolate(m) // it may be what ended the channel
	case f == resultUnsent && !m.job.from.sess.ended():
		m.notTaken()
		m.again()
	default:
		if f == resultLost || f == resultSuspect {
			m.server.suspects.noteUnconfirmed(m.job.in)
		}
		m.job.finish() // the broker hands the original out again
	}
}

const (
	// movePauseMin and movePauseMax bound the pauses before a request that the broker would
	// not take in another queue is moved again.
	movePauseMin = 100 * time.Millisecond
	movePauseMax = 5 * time.Second
)

// nacked holds the original back, unacknowledged, and moves the request again after a pause.
// A server that drains gives it back instead.
func (m *republished) nacked() {
	s := m.server
	s.logs.nackedMove.of(s.cfg.logger).Warn("the broker refused to move a request", zap.String("to", m.key),
		zap.String("correlation_id", m.msg.CorrelationId), zap.Int("tries", m.tries+1))
	m.notTaken()
	if s.isDraining() {
		m.job.requeue()
		return
	}
	pause := growingPause(movePauseMin, movePauseMax, m.tries)
	m.tries++
	s.delayed.after(pause, m.again)
	if s.isDraining() { // it began after the look above
		s.delayed.flush()
	}
}

// again moves the request again, unless it is delivered again by itself, or a server that
// drains gives it back.
func (m *republished) again() {
	switch {
	case m.job.from.isOver():
		m.job.finish()
	case m.server.isDraining():
		m.job.requeue()
	default:
		if m.key == m.server.cfg.queue.retryQueue().Name {
			m.key = m.server.cfg.queue.Name // it runs among the others, counted all the same
		}
		m.send()
	}
}

// limitError notes that the broker did not take the copy.
func (m *republished) notTaken() {
	if m.counted {
		m.job.endRepublish()
	}
}

// reject implements rejectable.
func (m *republished) reject(cause error) { m.undeliverable(cause) }

// undeliverable implements isolable: the request is refused, as one that cannot be moved.
func (m *republished) undeliverable(cause error) {
	m.server.counts.undeliverable.Add(1)
	m.server.logs.undeliverable.of(m.server.cfg.logger).Warn("refused a request of which a copy ends the connection",
		zap.String("to", m.key), zap.String("correlation_id", m.msg.CorrelationId), zap.Error(cause))
	m.notTaken()
	if m.job.from.isOver() {
		m.job.finish()
		return
	}
	e := Errorf(CodeInvalidArgument, "handed out before, and the broker does not take a copy: %v", cause)
	e.outcome = MayHaveRun
	m.server.refuse(m.job, e)
}

// brokerHeaders are what the broker itself writes, or would act on.
func brokerHeaders() []string {
	return []string{headerCC, headerBCC, "x-delivery-count", "x-acquired-count"}
}

// clonePublishing returns the message of a request with less time left, for another queue of
// the same broker, or why it cannot be copied. What the broker itself wrote into it,
// or would act on, is left out: the user, whom it compares with the connection's (move puts
// this server's own in its place); the routing of CC and BCC (https://www.rabbitmq.com/docs/sender-selected); the counts of
// a quorum queue.
func clonePublishing(j *job) (amqp.Publishing, error) {
	if j.parcel != nil {
		return clonePublishingOfBatched(j), nil
	}
	d := j.delivery
	if err := checkTable(d.Headers); err != nil {
		return amqp.Publishing{}, err
	}
	headers := maps.Clone(d.Headers)
	if headers == nil {
		headers = amqp.Table{}
	}
	for _, name := range brokerHeaders() {
		delete(headers, name)
	}
	held := time.Since(j.arrived)
	if _, has := headers[headerTimeout]; has && j.in.budget != noBudget {
		headers[headerTimeout] = max(milliseconds(j.in.budget-held), 1)
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

// clonePublishingOfBatched returns the message of a request that came in a batch, to travel alone.
func clonePublishingOfBatched(j *job) amqp.Publishing {
	left := max(j.in.budget-time.Since(j.arrived), time.Millisecond)
	msg := encodeRequest(&j.in.Request, j.in.replyTo, left, j.delivery.DeliveryMode == amqp.Persistent)
	if j.in.budget == noBudget {
		msg.Expiration = ""
	}
	markAgain(&msg, j.in.resent, j.in.retry)
	for _, name := range brokerHeaders() {
		delete(msg.Headers, name)
	}
	return msg
}

// remainingTTL shortens an expiration by the time that a server held the message. How long
// it was in the queue before, the broker does not say.
func remainingTTL(expiration string, held time.Duration) string {
	ms, err := strconv.ParseInt(expiration, 10, 64)
	if err != nil {
		return ""
	}
	return strconv.FormatInt(max(ms-held.Milliseconds(), 1), 10)
}

// returnedCopies are the copies that the broker returned and has not confirmed yet. Its zero
// value is ready to use. Safe for concurrent use.
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

// take reports whether a copy was returned.
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
