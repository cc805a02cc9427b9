package amqpx

import (
	"context"
	"errors"
	"slices"
	"time"
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
// joined to another of the same request, answered from the store, or run.
func (s *Server) process(handlers context.Context, j *job) {
	if j.comesAgain() {
		j.over()
		return
	}
	in, failed := j.decode()
	m := j.method
	now := time.Now()
	queued := now.Sub(j.arrived)
	switch {
	case failed != nil:
	case m == nil:
		failed = refusal(CodeUnimplemented, "method %q is unknown to this server", in.Method)
	case in.budget != noBudget && queued >= in.budget:
		s.counts.expired.Add(1)
		failed = expiredRefusal(in.budget, queued)
	}
	switch {
	case failed != nil:
		s.refuse(j, failed)
	case s.isDraining():
		s.giveBack(j)
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
	defer func() {
		ended := time.Now()
		took := ended.Sub(begun)
		x.ended = ended
		s.load.ended(took)
		s.finish(ctx, j.in, x, body, err, timing{queue: queued, handler: took})
	}()
	j.in.Queued = queued
	body, err = m.handler(ctx, &j.in.Request)
}

// errGoexit is what a handler came to that neither returned nor panicked.
var errGoexit = errors.New("the handler ended its goroutine")

// finish answers every job of an execution that ended. After a hard stop it stays
// silent: the requests were not acknowledged and go to another server.
func (s *Server) finish(ctx context.Context, in *incoming, x *execution, body []byte, err error, t timing) {
	if err != nil && errors.Is(context.Cause(ctx), errServerStopped) {
		ran, others := s.executions.end(x, reply{}, false)
		ran.over()
		for _, j := range others {
			j.over()
		}
		return
	}
	if err == nil && len(body) > s.cfg.maxMessageSize {
		err = Errorf(CodeResourceExhausted, "%w: answer of %d bytes, limit %d", ErrTooLarge, len(body), s.cfg.maxMessageSize)
	}
	r := reply{body: body, timing: t}
	if err == nil {
		s.counts.ok.Add(1)
	} else {
		s.counts.failed.Add(1)
		failed := *s.forCaller(in, err)
		failed.outcome = Ran // even if it is the error of a call that the handler made
		failed.message = truncate(failed.message, s.cfg.maxMessageSize)
		failed.causes = nil // they stay here, and must not stay in memory
		r.body, r.failed = nil, &failed
	}
	x.method.times.ended(err == nil, t.handler)
	if s.cfg.observer != nil {
		code := Code("")
		if r.failed != nil {
			code = r.failed.code
		}
		s.cfg.observer.HandlerEnded(x.method.name, code, t.queue, t.handler)
	}
	// What a handler says whose time is over is no answer for good.
	keep := err == nil || ctx.Err() == nil
	ran, others := s.executions.end(x, r, keep)
	if x.canceled && !keep {
		others = s.runOthers(ran, others)
	}
	s.replyAll(ran, others, r)
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
