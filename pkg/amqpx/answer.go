package amqpx

import (
	"context"
	"errors"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

// answerTries bounds how often an answer that the broker refuses is published.
const answerTries = 3

// answer is one answer on its way to its caller. Its confirm acknowledges the
// request: the broker always holds either the request or the answer. Only a refusal
// that says "did not run" is sent after its request was acknowledged, or the request
// could come again, and run.
type answer struct {
	server *Server
	job    *job
	key    string
	msg    amqp.Publishing
	tries  int
	acked  bool // its request is acknowledged
}

// reply answers a job. A one-way call has no answer: it is acknowledged as it is.
// Without a link the answer waits in the outbox for the next one: the reply queue
// outlives the link.
func (s *Server) reply(j *job, r reply) {
	if j.in.OneWay {
		j.settled()
		return
	}
	select {
	case s.outbox <- s.answerTo(j, r):
	case <-s.quit:
		j.over()
	}
}

// refuse answers a job that no handler of this server ran.
func (s *Server) refuse(j *job, e *Error) {
	s.counts.refused.Add(1)
	r := s.refusalOf(j, e)
	if j.in.OneWay || r.failed.outcome != DidNotRun {
		s.reply(j, r)
		return
	}
	j.refusal = s.answerTo(j, r)
	j.refusal.acked = true
	j.settled()
}

// refusalOf is what a refused job comes to. That it did not run is only said of a
// request that was never in other hands.
func (s *Server) refusalOf(j *job, e *Error) reply {
	if j.in.Redelivered && e.outcome == DidNotRun {
		e.outcome = MayHaveRun
	}
	return reply{failed: e, timing: timing{queue: time.Since(j.arrived)}}
}

// answerTo makes the answer of a job.
func (s *Server) answerTo(j *job, r reply) *answer {
	a := &answer{server: s, job: j, key: j.in.replyTo}
	if r.failed != nil {
		a.msg = encodeError(j.in, r.failed, r.timing, s.cfg.persistent)
	} else {
		a.msg = encodeResult(j.in, r.body, r.timing, s.cfg.persistent)
	}
	return a
}

// trySend puts an answer in the outbox if that does not have to wait.
func (s *Server) trySend(a *answer) bool {
	if a.job.in.OneWay {
		a.job.settled()
		return true
	}
	select {
	case s.outbox <- a:
		return true
	default:
		return false
	}
}

// claim implements outgoing: an answer is always worth sending.
func (a *answer) claim(uint64) bool { return true }

// envelope implements outgoing. An answer is not mandatory: a caller that is gone
// needs none.
func (a *answer) envelope() (key string, mandatory bool, msg amqp.Publishing) {
	return a.key, false, a.msg
}

// settle implements outgoing. It runs on the publisher's own goroutine, which must not
// wait for the publisher.
func (a *answer) settle(f fate) {
	switch {
	case f == fateConfirmed:
		a.done()
	case f == fateRefused:
		if a.tries++; a.tries < answerTries && a.server.trySend(a) {
			return
		}
		a.server.cfg.logger.Warn("the broker refused an answer, its caller gets none",
			zap.String("reply_to", a.key), zap.String("correlation_id", a.msg.CorrelationId))
		a.done()
	case a.acked && a.server.trySend(a): // for the next session: its request does not come again
	default:
		a.job.over() // lost with its session: the request comes again
	}
}

func (a *answer) done() {
	if a.acked {
		a.job.over()
	} else {
		a.job.settled()
	}
}

// forCaller turns a handler's error into what its caller may know: a coded error
// as it is, the end of the handler's context as its code, anything else as
// CodeInternal without its text, which is logged here.
func (s *Server) forCaller(in *incoming, err error) *Error {
	var coded *Error
	switch {
	case errors.As(err, &coded):
		return coded
	case errors.Is(err, context.DeadlineExceeded):
		return Errorf(CodeDeadlineExceeded, "the call's time ran out in the handler")
	case errors.Is(err, context.Canceled):
		return Errorf(CodeCanceled, "the handler was cancelled")
	}
	if _, panicked := errors.AsType[*panicError](err); panicked {
		s.counts.panics.Add(1)
	} else {
		s.cfg.logger.Error("handler failed", zap.String("method", in.Method),
			zap.String("correlation_id", in.CorrelationID), zap.Error(err))
	}
	return Errorf(CodeInternal, "internal error")
}
