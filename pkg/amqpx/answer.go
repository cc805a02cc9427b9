package amqpx

import (
	"context"
	"errors"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

const (
	// nackedPauseMin and nackedPauseMax bound the pauses before a response that the broker
	// nacked is published again, as when its queue's process restarts.
	nackedPauseMin = 20 * time.Millisecond
	nackedPauseMax = time.Second
	// nackedFor is how long a response is published again for a call without a deadline.
	nackedFor = 30 * time.Second
)

// answer is one answer on its way to its caller. Its confirm acknowledges the
// request: the broker always holds either the request or the answer. Only a refusal
// that says "did not run" is sent after its request was acknowledged, or the request
// could come again, and run.
type answer struct {
	server *Server
	job    *job
	reply  reply
	tries  int
	route  responseRoute
	acked  bool // its request is acknowledged
	// replaced says that the reply stands for one that the broker does not take.
	replaced bool
}

// responseRoute is the connection on which a response is published.
type responseRoute uint8

const (
	routeMain     responseRoute = iota // that of the server's session
	routeDirect                        // that for direct reply-to
	routeIsolated                      // that for suspects
)

// reply answers a job. A one-way call has no answer: it is acknowledged as it is.
// Without a link the answer waits in the outbox for the next one: the reply queue
// outlives the link.
func (s *Server) reply(j *job, r reply) {
	if j.in.OneWay {
		j.settled()
		return
	}
	j.answer = answer{server: s, job: j, reply: r}
	j.answer.send()
}

// send publishes the response on the connection that it belongs on.
func (a *answer) send() {
	s, in := a.server, a.job.in
	switch direct := isDirectAddress(in.replyTo); {
	case direct && s.suspects.isAvoided(in.replyTo):
		a.undeliverable(errAvoided)
	case a.route == routeIsolated || s.suspects.isSuspect(in):
		a.isolate()
	case direct:
		a.route = routeDirect
		s.direct.outbox.put(a)
	default:
		a.route = routeMain
		s.outbox.put(a)
	}
}

// isolate publishes the response alone.
func (a *answer) isolate() {
	a.route = routeIsolated
	a.server.isolate(a)
}

// undeliverable implements isolable: the request is acknowledged, so that it cannot end
// another connection.
func (a *answer) undeliverable(cause error) {
	a.server.noteUndeliverable(a.job.in.replyTo, a.job.in.CorrelationID, cause)
	a.done()
}

// refuse answers a job that no handler of this server ran. That a request did not run can
// be said when its message is acknowledged, which for a call in a batch is when all the
// others in it are settled; see parcel.bound.
func (s *Server) refuse(j *job, e *Error) {
	s.refused(j, e.code)
	r := s.refusalOf(j, e)
	if j.in.OneWay || r.failed.outcome != DidNotRun {
		s.reply(j, r)
		return
	}
	j.answer = answer{server: s, job: j, reply: r, acked: true}
	j.refuseLater(&j.answer)
}

// refusalOf is what a refused job comes to. That it did not run is only said of a
// request that was never in other hands.
func (s *Server) refusalOf(j *job, e *Error) reply {
	if j.in.Redelivered && e.outcome == DidNotRun {
		e.outcome = MayHaveRun
	}
	return reply{failed: e, timing: timing{queue: time.Since(j.arrived)}}
}

// claim implements outgoing: an answer is always worth sending.
func (a *answer) claim(uint64) bool { return true }

// withdrawn implements outgoing.
func (a *answer) withdrawn() bool { return false }

// envelope implements outgoing. The broker returns a mandatory response that no queue takes,
// which is only counted: a caller that is gone needs none.
func (a *answer) envelope() (key string, mandatory bool, msg amqp.Publishing) {
	in, r, persistent := a.job.in, a.reply, a.server.cfg.persistent
	if r.failed != nil {
		msg = encodeError(in, r.failed, r.timing, persistent)
	} else {
		msg = encodeResult(in, r.body, r.timing, persistent)
	}
	r.props.addTo(&msg, r.failed != nil)
	return in.replyTo, a.server.returnsCount(in.replyTo), msg
}

// lane implements mate. Who sends batches reads them.
func (a *answer) lane() string {
	if a.job.parcel == nil || !a.reply.props.batchable() || answerSize(a.job.in.CorrelationID, a.reply) > batchBytes {
		return ""
	}
	return a.job.in.replyTo
}

// fits implements mate.
func (a *answer) fits(b *batch) bool {
	return len(b.body)+answerSize(a.job.in.CorrelationID, a.reply) <= b.limit
}

// takers implements mate: one client takes them all.
func (a *answer) takers() int { return 1 }

// mustLeave implements mate.
func (a *answer) mustLeave() bool { return false }

// board implements mate.
func (a *answer) board(b *batch) {
	if len(b.mates) == 0 {
		b.persistent, b.mandatory = a.server.cfg.persistent, a.server.returnsCount(b.key)
	}
	b.body = appendAnswer(b.body, a.job.in, a.reply)
}

// settle implements outgoing.
func (a *answer) settle(f fate) {
	switch {
	case f == fateConfirmed, f == fateUnroutable:
		if f == fateUnroutable {
			a.server.counts.unroutable.Add(1)
		}
		if a.route == routeIsolated {
			a.server.suspects.clear(a.job.in)
		}
		a.done()
	case f == fateRefused:
		a.nacked()
	case f == fateUnsent && (a.acked || a.route != routeMain || !a.job.from.sess.ended()): // its request does not come again
		a.send()
	case f == fateSuspect:
		a.isolate() // it may be what ended the channel
	case a.acked || a.route != routeMain:
		a.isolate() // it may be what ended the connection
	default:
		a.server.suspects.noteUnconfirmed(a.job.in)
		a.job.over() // lost with its session: the request comes again
	}
}

// reject implements rejectable: the caller gets an error in place of a response that the
// broker does not take. When it does not take that either, the request is acknowledged.
func (a *answer) reject(cause error) {
	code, told := CodeInternal, errors.New("the broker does not take the response")
	if errors.Is(cause, ErrTooLarge) {
		code, told = CodeResourceExhausted, cause
	}
	if a.replaced {
		a.undeliverable(cause)
		return
	}
	a.replaced = true
	e := Errorf(code, "response: %w", told)
	e.causes = nil // they stay here, and must not stay in memory
	a.reply.body, a.reply.failed, a.reply.props = nil, e, nil
	a.send()
}

// nacked publishes a response again after a pause, while its caller waits.
func (a *answer) nacked() {
	s, j := a.server, a.job
	left := nackedFor - time.Since(j.arrived)
	if j.in.budget != noBudget {
		left = j.in.budget - time.Since(j.arrived)
	}
	if left <= 0 {
		s.noteNacked(nackedResponse{j.in.replyTo, j.in.CorrelationID, a.tries + 1})
		a.done()
		return
	}
	pause := min(growingPause(nackedPauseMin, nackedPauseMax, a.tries), left)
	a.tries++
	s.delayed.after(pause, a.send)
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
// CodeInternal without its text, which is logged here. A nil *Error has no code.
func (s *Server) forCaller(in *incoming, err error) *Error {
	coded := codedError(err)
	switch {
	case coded != nil && coded.code.Valid():
		return coded
	case coded != nil:
		return Errorf(CodeUnknown, "%s", coded.message)
	case errors.Is(err, context.DeadlineExceeded):
		return Errorf(CodeDeadlineExceeded, "the call's time ran out in the handler")
	case errors.Is(err, context.Canceled):
		return Errorf(CodeCanceled, "the handler was cancelled")
	}
	if _, panicked := errors.AsType[*panicError](err); panicked {
		s.counts.panics.Add(1)
	} else {
		if bare, ok := err.(*Error); ok && bare == nil { //nolint:errorlint // with nothing around it.
			err = errNilError
		}
		s.cfg.logger.Error("handler failed", zap.String("method", in.Method),
			zap.String("correlation_id", in.CorrelationID), zap.Error(err))
	}
	return internalError()
}

// errNilError is what is logged of a handler whose error is a nil *Error.
var errNilError = errors.New("the handler returned a nil *amqpx.Error as error, which is not nil: " +
	"declare the result of the function that made it as error")

// internalError is the response of a handler that failed in a way its caller is not told.
func internalError() *Error { return Errorf(CodeInternal, "internal error") }
