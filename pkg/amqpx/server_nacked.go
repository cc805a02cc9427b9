package amqpx

import (
	"time"

	"go.uber.org/zap"
)

// nackedResponse is a response that the broker nacked until its caller's deadline.
type nackedResponse struct {
	replyTo, correlationID string
	tries                  int
}

// noteNacked has it logged that a caller gets no response. Why the broker nacks it does not
// say, so the reply queue is looked at first, by a goroutine of the session that is ready.
func (s *Server) noteNacked(r nackedResponse) {
	log := s.logs.nackedResponse.of(s.cfg.logger)
	if !log.Core().Enabled(zap.WarnLevel) {
		return // said a moment ago
	}
	if s.sup.current() != nil && !isDirectAddress(r.replyTo) {
		select {
		case s.nacked <- nackedToLog{r, log}:
			return
		default:
		}
	}
	r.log(log, "", nil)
}

// nackedToLog is a nacked response with the logger that counts the ones before.
type nackedToLog struct {
	nackedResponse

	logger *zap.Logger
}

// explainNacked logs nacked responses while the session lasts.
func (s *Server) explainNacked(sess *session) {
	for {
		select {
		case r := <-s.nacked:
			kind, err := sess.lookAtReplyQueue(r.replyTo)
			r.log(r.logger, kind, err)
		case <-sess.done:
			return
		}
	}
}

// lookAtReplyQueue says what is wrong with a queue that nacks; nothing if it is there.
func (s *session) lookAtReplyQueue(name string) (FaultKind, error) {
	found := s.inGoroutine(func() error {
		return onOwnChannel(s.sub, func(ch channel) error {
			_, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
			return err
		})
	})
	limit := time.NewTimer(lookTimeout)
	defer limit.Stop()
	var err error
	select {
	case err = <-found:
	case <-limit.C:
		err = errNoAnswer
	case <-s.done:
		err = s.cause
	}
	if err == nil {
		return "", nil
	}
	fault := classify(s.target, atStep(stepPublishTo, name, err))
	return fault.kind, fault
}

// log writes the line.
func (r nackedResponse) log(logger *zap.Logger, kind FaultKind, err error) {
	logger.Warn("the broker refused an answer, its caller gets none",
		zap.String("reply_to", r.replyTo), zap.String("correlation_id", r.correlationID), zap.Int("tries", r.tries),
		zap.String("fault", string(kind)), zap.Error(err))
}
