package amqpx

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
)

// startWorker starts a worker, which ends when the queue of jobs is closed.
func (s *Server) startWorker(handlers context.Context) {
	s.workers.Go(func() { s.work(handlers) })
}

// work runs jobs until the server quits. A handler that ends its goroutine
// (runtime.Goexit) takes the worker with it, so another one takes its place.
func (s *Server) work(handlers context.Context) {
	normal := false
	defer func() {
		if !normal {
			s.startWorker(handlers)
		}
	}()
	for j := s.jobs.take(); j != nil; j = s.jobs.take() {
		s.process(handlers, j)
	}
	normal = true
}

// process settles one job in one of these ways: skipped, refused, given back, moved,
// joined to another of the same request, answered from the store, or run. A server that
// drains only refuses what every server would: requests that are malformed or whose time
// is over. All else that it has not started it leaves to other servers, which may have
// other methods.
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
	switch {
	case failed != nil:
		s.refuse(j, failed)
	case s.isDraining():
		s.giveBack(j)
	case m == nil:
		s.refuse(j, refusal(CodeUnimplemented, "method %q is unknown to this server", in.Method))
	case s.handedOutBefore(j, m):
	case in.lostDeliveries == 0:
		s.execute(handlers, j, m, now)
	case s.awaitMoves(j):
		s.execute(handlers, j, m, time.Now())
	default:
		j.over()
	}
}

// execute runs the handler, unless the same request runs already or has run.
func (s *Server) execute(handlers context.Context, j *job, m *serverMethod, now time.Time) {
	x, again, canceled := s.executions.begin(j, now)
	switch {
	case canceled:
		s.counts.canceled.Add(1)
		j.settled()
	case x != nil:
		s.invoke(handlers, j, m, x, now)
	case again != nil:
		s.counts.replayed.Add(1)
		s.reply(j, *again)
	default: // joined
		s.counts.replayed.Add(1)
	}
}

// invoke runs the handler and answers, whichever way the handler ends.
func (s *Server) invoke(ctx context.Context, j *job, m *serverMethod, x *execution, begun time.Time) {
	var deadline time.Time
	if j.in.budget != noBudget {
		deadline = j.arrived.Add(j.in.budget)
	}
	x.ctx.begin(ctx, deadline)
	ctx = &x.ctx //nolint:contextcheck // it is ctx's child.
	defer x.ctx.end()
	queued := begun.Sub(j.arrived)
	s.load.started()
	body, err := []byte(nil), errGoexit
	asArrived := j.in.Request
	defer func() {
		if v := recover(); v != nil { // of middleware, or the logger, outside Recover
			body, err = nil, &panicError{panicText(v)}
		}
		ended := time.Now()
		took := ended.Sub(begun)
		x.ended = ended
		s.load.ended(took)
		j.in.restore(&asArrived)
		s.finish(ctx, j.in, x, body, err, timing{queue: queued, handler: took})
	}()
	j.in.Queued = queued
	body, err = m.handler(ctx, &j.in.Request)
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

// finish answers every job of an execution that ended. After a hard stop it stays
// silent: the requests were not acknowledged and go to another server. The error and the
// observer are other people's code: whatever they do, every job is answered.
func (s *Server) finish(ctx context.Context, in *incoming, x *execution, body []byte, err error, t timing) {
	r := reply{body: body, timing: t}
	silent := false
	defer func() {
		if silent {
			s.leaveToOthers(x)
			return
		}
		if r.failed == nil {
			s.counts.ok.Add(1)
		} else {
			s.counts.failed.Add(1)
		}
		x.method.times.ended(r.failed == nil, t.handler)
		// What a handler says whose time is over is no answer for good.
		keep := err == nil || ctx.Err() == nil
		ran, others := s.executions.end(x, r, keep)
		if x.canceled && !keep {
			others = s.runOthers(ran, others)
		}
		s.replyAll(ran, others, r)
	}()
	if err == nil && len(body) > s.cfg.maxMessageSize {
		err = Errorf(CodeResourceExhausted, "%w: answer of %d bytes, limit %d", ErrTooLarge, len(body), s.cfg.maxMessageSize)
	}
	code := Code("")
	if err != nil {
		r.body, r.failed = nil, internalError() // also if err's own methods end this goroutine
		if silent = s.judge(ctx, in, err, &r); silent {
			return
		}
		code = r.failed.code
	}
	if s.cfg.observer != nil {
		s.cfg.observer.HandlerEnded(x.method.name, code, t.queue, t.handler)
	}
}

// judge makes the response of a handler that returned err. It reports true if err means
// only that the server was stopped. When a method of err panics, the response stays as it is.
func (s *Server) judge(ctx context.Context, in *incoming, err error, r *reply) (stopped bool) {
	defer func() {
		if v := recover(); v != nil {
			s.cfg.logger.Error("handler failed", zap.String("method", in.Method), zap.String("correlation_id", in.CorrelationID),
				zap.String("error", fmt.Sprintf("its error, of type %T, panicked: %s", err, panicText(v))))
		}
	}()
	if errors.Is(context.Cause(ctx), errServerStopped) {
		return true
	}
	failed := *s.forCaller(in, err)
	failed.outcome = Ran // even if it is the error of a call that the handler made
	failed.message = truncate(failed.message, s.cfg.maxMessageSize)
	failed.causes = nil // they stay here, and must not stay in memory
	r.failed = &failed
	return false
}

// leaveToOthers ends the jobs of an execution that a hard stop interrupted: their requests
// are not acknowledged.
func (s *Server) leaveToOthers(x *execution) {
	ran, others := s.executions.end(x, reply{}, false)
	ran.over()
	for _, j := range others {
		j.over()
	}
}

// runOthers has the request of an execution that was cancelled run again for those that
// joined it since, and returns the rest: nobody waits for those.
func (s *Server) runOthers(ran *job, others []*job) (rest []*job) {
	for _, j := range others {
		sameCall := func(o *job) bool { return o.canceled && o.in.CorrelationID == j.in.CorrelationID }
		if sameCall(ran) || slices.ContainsFunc(others, sameCall) {
			rest = append(rest, j)
		} else {
			s.jobs.put(j)
		}
	}
	return rest
}
