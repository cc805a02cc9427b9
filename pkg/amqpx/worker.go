package amqpx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// process settles one job in one of these ways: skipped, refused, given back, moved, or run
// through the middleware. A server that drains only refuses what every server would:
// requests that are malformed or whose time is over. All else that it has not started it
// leaves to other servers, which may have other methods.
func (s *Server) process(handlers context.Context, j *job) {
	if j.comesAgain() {
		j.over()
		return
	}
	in, failed := j.decode()
	m := j.method
	now := time.Now()
	if queued := now.Sub(j.arrived); failed == nil && in.budget != noBudget && queued >= in.budget {
		s.counts.expired.Add(1)
		failed = expiredRefusal(in.budget, queued)
	}
	if failed == nil && in.expired {
		s.counts.expired.Add(1)
		failed = refusal(CodeDeadlineExceeded, "expired in another queue, which dead-lettered it")
	}
	switch {
	case failed != nil:
		s.refuse(j, failed)
	case s.isDraining():
		s.giveBack(j)
	case m == nil:
		s.refuse(j, s.unimplemented(in.Method))
	case s.handedOutBefore(j, m):
	case in.lostDeliveries == 0:
		s.invoke(handlers, j, m, now)
	default:
		s.invokeAfterMoves(handlers, j, m)
	}
}

// invokeAfterMoves runs a request that servers have lost once the copies of others are
// settled, unless the server began to drain meanwhile.
func (s *Server) invokeAfterMoves(handlers context.Context, j *job, m *serverMethod) {
	switch {
	case !s.awaitMoves(j):
		j.over()
	case s.isDraining():
		s.giveBack(j)
	default:
		s.invoke(handlers, j, m, time.Now())
	}
}

// invoke runs the middleware and the handler, and answers, whichever way they end, unless
// the watchdog has answered for them.
func (s *Server) invoke(ctx context.Context, j *job, m *serverMethod, begun time.Time) {
	r := newInvocation(j)
	r.begin(ctx, s.limitOf(j.in, j.arrived, begun))
	defer r.end()
	j.invoked = r
	queued := begun.Sub(j.arrived)
	j.in.Queued = queued
	asArrived := j.in.Request
	s.begin(r, begun)
	body, err := []byte(nil), errGoexit
	defer func() { //nolint:contextcheck // r is the context.
		if v := recover(); v != nil { // of middleware, or the logger, outside Recover
			body, err = nil, &panicError{panicText(v)}
		}
		took := time.Since(begun)
		if !s.release(r, took) {
			return
		}
		j.in.restore(&asArrived)
		s.finish(r, body, err, timing{queue: queued, handler: took})
	}()
	body, err = m.handler(r, &j.in.Request) //nolint:contextcheck // r is ctx's child.
}

// restore undoes what a handler changed, against its documentation, in the parts of a
// request that the response depends on.
func (in *incoming) restore(asArrived *Request) {
	if in.Method != asArrived.Method || in.CorrelationID != asArrived.CorrelationID ||
		in.IdempotencyKey != asArrived.IdempotencyKey || in.Idempotent != asArrived.Idempotent ||
		in.Redelivered != asArrived.Redelivered || in.OneWay != asArrived.OneWay {
		in.Request = *asArrived
	}
}

// errGoexit is what a handler came to that neither returned nor panicked.
var errGoexit = errors.New("the handler ended its goroutine")

// ending is what becomes of a request whose middleware has ended.
type ending uint8

const (
	endsAnswered ending = iota
	endsRefused         // the deduplication layer refused it
	endsReplayed        // with the response of another execution
	endsStopped         // a hard stop interrupted it: it goes to another server
)

// finish answers a request whose middleware has ended. After a hard stop it stays silent:
// the request is not acknowledged and goes to another server. The error and the observer
// are other people's code: whatever they do, the request is answered.
func (s *Server) finish(r *invocation, body []byte, err error, t timing) {
	j, res, how := r.job, reply{body: body, timing: t}, endsAnswered
	var refusal *Error
	defer func() {
		switch how {
		case endsStopped:
			j.over()
			return
		case endsRefused:
			s.refuse(j, refusal)
			return
		case endsReplayed:
		case endsAnswered:
			if res.failed == nil {
				s.counts.ok.Add(1)
			} else {
				s.counts.failed.Add(1)
			}
			j.method.times.ended(res.failed == nil, t.handler)
		}
		if r.silent.Load() { // another request of the same call is answered
			j.settled()
			return
		}
		s.reply(j, res)
	}()
	if r.isReplayed() {
		how = endsReplayed
	}
	if err == nil && len(body) > s.cfg.maxMessageSize {
		err = Errorf(CodeResourceExhausted, "%w: answer of %d bytes, limit %d", ErrTooLarge, len(body), s.cfg.maxMessageSize)
	}
	if res.props = r.response.Load(); res.props != nil {
		if tooLarge := r.checkResponse(res.props); tooLarge != nil {
			res.props = nil // an error that has them would not fit either
			err = cmp.Or(err, tooLarge)
		}
	}
	code := Code("")
	if err != nil {
		res.body, res.failed = nil, internalError() // also if err's own methods end this goroutine
		switch {
		case errors.Is(context.Cause(r), errServerStopped):
			how = endsStopped
		default:
			if refusal = r.refusedWith(err); refusal != nil {
				how = endsRefused
			} else {
				s.judge(j.in, err, &res)
			}
		}
		code = res.failed.code
	}
	if s.cfg.observer != nil && how == endsAnswered {
		s.cfg.observer.HandlerEnded(j.method.name, code, t.queue, t.handler)
	}
}

// judge makes the response of a handler that returned err. When a method of err panics, the
// response stays as it is.
func (s *Server) judge(in *incoming, err error, r *reply) {
	defer func() {
		if v := recover(); v != nil {
			s.cfg.logger.Error("handler failed", zap.String("method", in.Method), zap.String("correlation_id", in.CorrelationID),
				zap.String("error", fmt.Sprintf("its error, of type %T, panicked: %s", err, panicText(v))))
		}
	}()
	failed := *s.forCaller(in, err)
	failed.outcome = Ran // even if it is the error of a call that the handler made
	failed.message = truncate(failed.message, s.cfg.maxMessageSize)
	failed.causes = nil // they stay here, and must not stay in memory
	r.failed = &failed
}
