package amqpx

import (
	"fmt"
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

// awaitMoves holds back a request that some server has lost, which may be what killed
// it, while originals of this server's own moves are not acknowledged: killed now, it
// would leave original and copy, and so two killers of each. A drain ends the wait. False
// means that the request must not run here, because the broker hands it out again.
func (s *Server) awaitMoves(j *job) bool {
	select {
	case <-s.moves.whenIdle():
	case <-s.draining:
	case <-j.from.done:
	}
	return !j.comesAgain()
}

// handedOutBefore settles a request that may have run before, if it must not just run,
// and reports whether it did.
func (s *Server) handedOutBefore(j *job, m *serverMethod) bool {
	again := j.delivery.Redelivered || m.atMostOnce && j.wasHandedOut()
	switch {
	case !again, s.dedup.knows(j):
		return false
	case m.atMostOnce:
		s.refuse(j, handedOutOnce(m.name))
		return true
	case s.cfg.deliveryLimit == 0, s.deferred.take(j):
		return s.resetDeliveryCount(j)
	}
	lost := j.in.lostDeliveries + 1
	if lost >= s.cfg.deliveryLimit {
		s.bury(j, lost)
		return true
	}
	queue := s.cfg.queue.Name
	if lost > 1 && s.retryUp.Load() { // else it runs among the others, counted all the same
		queue = s.cfg.queue.retryQueue().Name
	}
	if msg, ok := s.copyOrRefuse(j, lost); ok {
		s.counts.moved.Add(1)
		s.move(j, queue, msg, j.settled)
	}
	return true
}

// wasHandedOut reports whether an earlier run of a request may have happened.
func (j *job) wasHandedOut() bool { return j.delivery.Redelivered || j.in.Redelivered }

// handedOutOnce is the error of a request that may have run, and must not run again.
func handedOutOnce(method string) *Error {
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
	if msg, ok := s.copyOrRefuse(j, j.in.lostDeliveries+1); ok {
		s.counts.moved.Add(1)
		s.move(j, s.cfg.queue.Name, msg, j.settled)
	}
	return true
}

// isNearBrokerLimit reports whether the broker has counted so many deliveries of a request
// that it may soon drop it.
func (j *job) isNearBrokerLimit() bool {
	n, ok := wholeNumber(j.delivery.Headers["x-delivery-count"])
	return ok && n >= brokerCountMax
}

// copyOrRefuse returns the copy with its count. A request with headers that this
// process can read and not write is refused: it could not be counted.
func (s *Server) copyOrRefuse(j *job, lost int) (amqp.Publishing, bool) {
	msg, err := copyOf(j)
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

// bury moves a request to the dead letters and tells its caller.
func (s *Server) bury(j *job, lost int) {
	dead := s.cfg.queue.deadQueue().Name
	reason := fmt.Sprintf("handed out %d times and never answered", lost)
	msg, ok := s.copyOrRefuse(j, lost)
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
	s.move(j, dead, msg, func() {
		s.counts.dead.Add(1)
		s.cfg.logger.Error("request moved to the dead letters", zap.String("queue", dead),
			zap.String("method", j.in.Method), zap.String("correlation_id", j.in.CorrelationID), zap.Int("deliveries", lost))
		e := Errorf(CodeInternal, "%s: moved to queue %q", reason, dead)
		e.outcome = MayHaveRun
		s.reply(j, s.refusalOf(j, e))
	})
}
