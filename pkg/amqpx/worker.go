package amqpx

import (
	"context"
	"errors"
	"time"
)

// work runs jobs until the server quits. A handler that ends its goroutine
// (runtime.Goexit) takes the worker with it, so another one takes its place.
func (s *Server) work(handlers context.Context) {
	normal := false
	defer func() {
		if !normal {
			go s.work(handlers) // ends when quit is closed, as the one it replaces
		}
	}()
	for {
		select {
		case j := <-s.jobs:
			s.process(handlers, j)
		case <-s.quit:
			normal = true
			return
		}
	}
}

// process settles one job in one of four ways: skipped, given back, refused, run.
func (s *Server) process(handlers context.Context, j *job) {
	switch {
	case j.from.sess.ended():
		s.track.done() // the broker hands it out again
		return
	case s.isDraining():
		j.giveBack()
		return
	}
	in, failed := decodeRequest(&j.delivery)
	h, known := s.methods[in.Method]
	queued := time.Since(j.arrived)
	switch {
	case failed != nil:
	case !known:
		failed = refusal(CodeUnimplemented, "method %q is unknown to this server", in.Method)
	case in.budget != noBudget && queued >= in.budget:
		s.counts.expired.Add(1)
		failed = refusal(CodeDeadlineExceeded, "expired after %v in the server, before a worker was free", queued)
	}
	if failed != nil {
		s.counts.refused.Add(1)
		s.answer(j, in, encodeError(in, failed, timing{queue: queued}, s.cfg.persistent))
		return
	}
	s.invoke(handlers, j, in, h, queued)
}

// invoke runs the handler and answers, whichever way the handler ends.
func (s *Server) invoke(ctx context.Context, j *job, in *incoming, h Handler, queued time.Duration) {
	if in.budget != noBudget {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, j.arrived.Add(in.budget))
		defer cancel()
	}
	begun := time.Now()
	body, err := []byte(nil), errors.New("the handler ended its goroutine")
	defer func() {
		s.finish(ctx, j, in, body, err, timing{queue: queued, handler: time.Since(begun)})
	}()
	body, err = h(ctx, &in.Request)
}

// finish answers a job whose handler ended. After a hard stop it stays silent: the
// request was not acknowledged and goes to another server.
func (s *Server) finish(ctx context.Context, j *job, in *incoming, body []byte, err error, t timing) {
	if errors.Is(context.Cause(ctx), errServerStopped) && err != nil {
		s.track.done()
		return
	}
	if err == nil && len(body) > s.cfg.maxMessageSize {
		err = Errorf(CodeResourceExhausted, "%w: answer of %d bytes, limit %d", ErrTooLarge, len(body), s.cfg.maxMessageSize)
	}
	if err == nil {
		s.counts.ok.Add(1)
		s.answer(j, in, encodeResult(in, body, t, s.cfg.persistent))
		return
	}
	s.counts.failed.Add(1)
	failed := *s.forCaller(in, err)
	failed.message = truncate(failed.message, s.cfg.maxMessageSize)
	s.answer(j, in, encodeError(in, &failed, t, s.cfg.persistent))
}
