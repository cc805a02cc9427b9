package amqpx

import (
	"maps"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

// moved is a copy of a request on its way to another queue, or to the end of its
// own. The original is acknowledged when the broker has the copy, so the request is
// never nowhere; a crash between the two leaves it twice.
type moved struct {
	server *Server
	job    *job
	key    string
	msg    amqp.Publishing
	done   func() // what follows the confirm
	tries  int    // how often the broker has nacked it

	counted bool // with a count of deliveries; see job.moving
}

// move publishes msg, a copy of the job's request, to queue and calls done, which settles
// the job, when the broker has it.
func (s *Server) move(j *job, queue string, msg amqp.Publishing, done func()) {
	s.sign(&msg, j.in.User)
	_, counted := msg.Headers[headerDeliveries]
	(&moved{server: s, job: j, key: queue, msg: msg, done: done, counted: counted}).send()
}

// send publishes the copy: alone if it may have ended a connection, and also after a nack.
// RabbitMQ 3.10 and 3.11 nack all that is published to a quorum queue on a channel that first
// published to it while it elected its leader, until the node of the leader before is back;
// the connection for single messages is a newer one.
func (m *moved) send() {
	if m.counted {
		m.job.moving()
	}
	if m.tries > 0 || m.server.suspects.isSuspect(m.job.in) {
		m.server.isolate(m)
		return
	}
	m.server.outbox.put(m)
	m.server.takeBackMoves()
}

// withdrawn implements outgoing.
func (m *moved) withdrawn() bool { return false }

// claim implements outgoing. Without its session the original comes again by itself,
// and a copy would be one too many. A server that drains leaves the counting of a request to
// the next one.
func (m *moved) claim(uint64) bool {
	if m.job.from.isOver() {
		m.job.over()
		return false
	}
	if m.counted && m.server.isDraining() {
		m.takeBack()
		return false
	}
	return true
}

// takeBack gives the original of a copy that was not published back to the broker.
func (m *moved) takeBack() {
	m.notTaken()
	m.job.requeue()
}

// takeBackMoves gives the requests back whose copies wait until the broker takes messages
// again, if this server drains: the drain need not wait for that. The broker takes the
// originals back, which go over the connection that it does not block.
func (s *Server) takeBackMoves() {
	if !s.isDraining() {
		return
	}
	sess := s.sup.current()
	if sess == nil || sess.sub == sess.pub || sess.gate.opening() == nil {
		return
	}
	for _, out := range s.outbox.takeOut(func(out outgoing) bool {
		m, ok := out.(*moved)
		return ok && m.job.from.sess == sess
	}) {
		m, _ := out.(*moved)
		m.takeBack()
	}
}

// envelope implements outgoing. A copy must not vanish with a missing queue.
func (m *moved) envelope() (key string, mandatory bool, msg amqp.Publishing) {
	return m.key, true, m.msg
}

// settle implements outgoing.
func (m *moved) settle(f fate) {
	if f == fateConfirmed && m.server.returned.take(m.key, m.msg.CorrelationId, m.msg.MessageId) {
		f = fateUnroutable
	}
	switch {
	case f == fateConfirmed && !m.job.from.isOver():
		m.done()
	case (f == fateRefused || f == fateUnroutable) && !m.job.from.isOver():
		m.nacked()
	case f == fateSuspect && !m.job.from.sess.ended():
		m.server.isolate(m) // it may be what ended the channel
	case f == fateUnsent && !m.job.from.sess.ended():
		m.notTaken()
		m.again()
	default:
		if f == fateLost || f == fateSuspect {
			m.server.suspects.noteUnconfirmed(m.job.in)
		}
		m.job.over() // the broker hands the original out again
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
func (m *moved) nacked() {
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
func (m *moved) again() {
	switch {
	case m.job.from.isOver():
		m.job.over()
	case m.server.isDraining():
		m.job.requeue()
	default:
		if m.key == m.server.cfg.queue.retryQueue().Name {
			m.key = m.server.cfg.queue.Name // it runs among the others, counted all the same
		}
		m.send()
	}
}

// notTaken notes that the broker did not take the copy.
func (m *moved) notTaken() {
	if m.counted {
		m.job.notMoving()
	}
}

// reject implements rejectable.
func (m *moved) reject(cause error) { m.undeliverable(cause) }

// undeliverable implements isolable: the request is refused, as one that cannot be moved.
func (m *moved) undeliverable(cause error) {
	m.server.counts.undeliverable.Add(1)
	m.server.logs.undeliverable.of(m.server.cfg.logger).Warn("refused a request of which a copy ends the connection",
		zap.String("to", m.key), zap.String("correlation_id", m.msg.CorrelationId), zap.Error(cause))
	m.notTaken()
	if m.job.from.isOver() {
		m.job.over()
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

// copyOf returns the message of a request with less time left, for another queue of
// the same broker, or why it cannot be copied. What the broker itself wrote into it,
// or would act on, is left out: the user, whom it compares with the connection's (move puts
// this server's own in its place); the routing of CC and BCC (https://www.rabbitmq.com/docs/sender-selected); the counts of
// a quorum queue.
func copyOf(j *job) (amqp.Publishing, error) {
	if j.parcel != nil {
		return copyOfBatched(j), nil
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
		Expiration:      restOf(d.Expiration, held),
		MessageId:       d.MessageId,
		Timestamp:       d.Timestamp,
		Type:            d.Type,
		AppId:           d.AppId,
		Body:            d.Body,
	}, nil
}

// copyOfBatched returns the message of a request that came in a batch, to travel alone.
func copyOfBatched(j *job) amqp.Publishing {
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

// restOf shortens an expiration by the time that a server held the message. How long
// it was in the queue before, the broker does not say.
func restOf(expiration string, held time.Duration) string {
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
