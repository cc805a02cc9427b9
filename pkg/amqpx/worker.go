package amqpx

import (
	"context"
	"errors"
	"time"
)

// startWorker starts a worker, which ends when quit is closed.
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
	for {
		select {
		case j := <-s.jobs:
			s.process(handlers, j)
		case j := <-s.batched:
			s.process(handlers, j)
		case <-s.quit:
			normal = true
			return
		}
	}
}

// process settles one job in one of these ways: skipped, refused, given back, moved,
// joined to another of the same request, answered from the store, or run.
func (s *Server) process(handlers context.Context, j *job) {
	if j.comesAgain() {
		j.over()
		return
	}
	in, failed := j.decode()
	m := s.methods[in.Method]
	queued := time.Since(j.arrived)
	switch {
	case failed != nil:
	case m == nil:
		failed = refusal(CodeUnimplemented, "method %q is unknown to this server", in.Method)
	case in.budget != noBudget && queued >= in.budget:
		s.counts.expired.Add(1)
		failed = refusal(CodeDeadlineExceeded, "expired after %v in the server, before a worker was free", queued)
	}
	switch {
	case failed != nil:
		s.refuse(j, failed)
	case s.isDraining():
		s.giveBack(j)
	case s.handedOutBefore(j, m):
	case s.awaitMoves(j):
		s.execute(handlers, j, m, queued)
	default:
		j.over()
	}
}

// execute runs the handler, unless the same request runs already or has run.
func (s *Server) execute(handlers context.Context, j *job, m *serverMethod, queued time.Duration) {
	x, again := s.executions.begin(j)
	switch {
	case x != nil:
		s.invoke(handlers, j, m, x, queued)
	case again != nil:
		s.counts.replayed.Add(1)
		s.reply(j, *again)
	default: // joined
		s.counts.replayed.Add(1)
	}
}

// invoke runs the handler and answers, whichever way the handler ends.
func (s *Server) invoke(ctx context.Context, j *job, m *serverMethod, x *execution, queued time.Duration) {
	if j.in.budget != noBudget {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, j.arrived.Add(j.in.budget))
		defer cancel()
	}
	begun := time.Now()
	s.load.started()
	body, err := []byte(nil), errors.New("the handler ended its goroutine")
	defer func() {
		took := time.Since(begun)
		s.load.ended(took)
		s.finish(ctx, j.in, x, body, err, timing{queue: queued, handler: took})
	}()
	body, err = m.handler(ctx, &j.in.Request)
}

// finish answers every job of an execution that ended. After a hard stop it stays
// silent: the requests were not acknowledged and go to another server.
func (s *Server) finish(ctx context.Context, in *incoming, x *execution, body []byte, err error, t timing) {
	if errors.Is(context.Cause(ctx), errServerStopped) && err != nil {
		for _, j := range s.executions.end(x, reply{}, false) {
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
	// What a handler says whose time is over is no answer for good.
	keep := err == nil || ctx.Err() == nil
	s.replyAll(s.executions.end(x, r, keep), r)
}
