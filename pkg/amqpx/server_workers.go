package amqpx

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

// A handler has a time limit ([WithMaxHandlerTime]), at which its context ends. One that
// runs on regardless is stuck: after stuckGrace the watchdog answers its request, which is
// acknowledged then, and starts another worker in its place, up to as many as the server has
// workers. The handler itself cannot be ended; what it returns at last is dropped.

// stuckGrace is how long a handler has to return once its time limit has passed.
const stuckGrace = time.Second

// watchPauseMax bounds the pause between two looks at the handlers that run.
const watchPauseMax = time.Second

// begin notes that the middleware and the handler of a request begin.
func (s *Server) begin(r *invocation, begun time.Time) {
	r.begun = begun
	r.place = r.job.place
	s.load.started()
	s.load.take(r, begun)
}

// release notes that the middleware of a request has ended after so long, and counts its
// worker out, less what the request waited for an execution of the same request. It reports
// whether the request is still to be answered.
func (s *Server) release(r *invocation, took time.Duration) (open bool) {
	worker := r.retire()
	r.mu.Lock()
	answered, waited := r.answered, r.waited
	r.mu.Unlock()
	if worker {
		s.load.places[r.place].Store(nil)
	}
	switch {
	case !answered && worker:
		s.load.ended(took - waited)
	case !answered:
	case worker:
		s.load.busy.Add(-1)
		s.workers.add(1) // it works on
		fallthrough
	default:
		s.stuck.remove(r, !worker)
		s.cfg.logger.Info("stuck handler ended", zap.String("method", r.job.method.name), zap.Duration("took", took))
	}
	return !answered
}

// stuckHandlers are the requests whose handlers run on though they were answered. Safe for
// concurrent use.
type stuckHandlers struct {
	mu       sync.Mutex
	requests map[*invocation]bool
	replaced int // of them
}

func (h *stuckHandlers) add(r *invocation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.requests == nil {
		h.requests = make(map[*invocation]bool)
	}
	h.requests[r] = true
}

func (h *stuckHandlers) remove(r *invocation, replaced bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.requests, r)
	if replaced {
		h.replaced--
	}
}

// mayReplace reports whether one more worker may be started beside the stuck ones, of which
// at most limit are replaced at a time, and counts it.
func (h *stuckHandlers) mayReplace(limit int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.replaced >= limit {
		return false
	}
	h.replaced++
	return true
}

// count returns how many there are, and when the first of them began.
func (h *stuckHandlers) count() (n int, oldest time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := range h.requests {
		if oldest.IsZero() || r.begun.Before(oldest) {
			oldest = r.begun
		}
	}
	return len(h.requests), oldest
}

// startWorker starts the worker of a place. It ends when the queue of jobs is closed, or
// when another one has its place; one whose handler is stuck is not waited for.
func (s *Server) startWorker(handlers context.Context, place int) {
	s.workers.add(1)
	go s.work(handlers, place)
}

// work runs jobs until the server quits, or until another worker has taken its place. A
// handler that ends its goroutine (runtime.Goexit) takes the worker with it, so another
// one takes its place.
func (s *Server) work(handlers context.Context, place int) {
	last := false   // no other worker is to take its place
	counted := true // in workers
	var j *job
	defer func() {
		if !last {
			last, counted, place = j.leaves(place)
		}
		if !last {
			s.startWorker(handlers, place)
		}
		if counted {
			s.workers.done()
		}
	}()
	next := func() *job {
		j = nil // a worker that waits must not keep the last request, and its body, in memory
		return s.jobs.take()
	}
	for j = next(); j != nil; j = next() {
		j.place = place
		if j.turn != nil {
			if last = j.turn.take(&s.load, place); last {
				return
			}
			continue
		}
		s.process(handlers, j)
		if last, counted, place = j.leaves(place); last {
			return
		}
	}
	last = true
}

// leaves tells the worker that has processed a job how it goes on: whether it ends, because
// another worker has its place, whether it is counted, and which place it has.
func (j *job) leaves(place int) (last, counted bool, next int) {
	if j == nil || j.invoked == nil {
		return false, true, place
	}
	r := j.invoked
	r.retire()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lent, !r.lent || !r.answered, r.place
}

// startWatchdog starts the watchdog, which ends when over is closed. An observer that ends
// its goroutine has another one started.
func (s *Server) startWatchdog(watchdog *sync.WaitGroup, over <-chan struct{}) {
	watchdog.Go(func() {
		returned := false
		defer func() {
			if !returned {
				s.startWatchdog(watchdog, over)
			}
		}()
		s.watchHandlers(over)
		returned = true
	})
}

// watchHandlers looks for stuck handlers until over is closed. It looks now and then: a
// timer for each request would cost each request more.
func (s *Server) watchHandlers(over <-chan struct{}) {
	limit := s.cfg.maxHandlerTime
	pause := time.NewTicker(min(max(limit/4, 10*time.Millisecond), watchPauseMax))
	defer pause.Stop()
	for {
		select {
		case <-over:
			return
		case <-pause.C:
		}
		now := time.Now()
		for i := range s.load.places {
			if r := s.load.places[i].Load(); r != nil && s.load.age(r, now) >= limit+stuckGrace {
				s.giveUpOn(r, limit)
			}
		}
	}
}

// giveUpOn answers a request whose handler is stuck, and starts another worker if one more
// may be started. After a hard stop it leaves the request to another server.
func (s *Server) giveUpOn(r *invocation, limit time.Duration) {
	if errors.Is(context.Cause(r), errServerStopped) {
		return
	}
	r.mu.Lock()
	if r.over || r.lent { // it has returned, or waits for another request
		r.mu.Unlock()
		return
	}
	fresh := !r.answered
	if fresh {
		r.answered = true
		s.stuck.add(r)
		s.workers.done()
	}
	replace := s.stuck.mayReplace(s.cfg.workers)
	if replace {
		r.lent = true
		s.load.places[r.place].Store(nil)
	}
	r.mu.Unlock()
	if replace { // once the request is answered, also when the observer ends this goroutine
		defer func() {
			s.load.busy.Add(-1)
			s.startWorker(r.parent, r.place)
		}()
	}
	if fresh {
		s.answerFor(r, limit, replace)
	}
}

// answerFor answers a request whose handler is stuck.
func (s *Server) answerFor(r *invocation, limit time.Duration, replaced bool) {
	j, took := r.job, time.Since(r.begun)
	s.cfg.logger.Warn("handler is stuck: its time limit has passed and it runs on", zap.String("method", j.method.name),
		zap.String("correlation_id", r.correlationID), zap.Duration("took", took), zap.Bool("replaced", replaced))
	e := Errorf(CodeDeadlineExceeded, "the handler did not end within %v", limit)
	e.outcome = MayHaveRun
	t := timing{queue: r.begun.Sub(j.arrived), handler: took}
	s.counts.failed.Add(1)
	j.method.times.ended(false, took)
	if r.silent.Load() { // another request of the same call is answered
		j.settled()
	} else {
		s.reply(j, reply{failed: e, timing: t})
	}
	if s.cfg.observer != nil {
		s.cfg.observer.HandlerEnded(j.method.name, e.code, t.queue, took)
	}
}

// limitOf returns when a handler's context ends: at the deadline of its caller, or at the
// server's own time limit if that is earlier. The zero time means never.
func (s *Server) limitOf(in *incoming, arrived, begun time.Time) (deadline time.Time) {
	if in.budget != noBudget {
		deadline = arrived.Add(in.budget)
	}
	if limit := s.cfg.maxHandlerTime; limit > 0 {
		if own := begun.Add(limit); deadline.IsZero() || own.Before(deadline) {
			deadline = own
		}
	}
	return deadline
}

// oldestHandler returns how long the handler that began first has run; 0 without one.
func (s *Server) oldestHandler() time.Duration {
	now := time.Now()
	_, first := s.stuck.count()
	var oldest time.Duration
	if !first.IsZero() {
		oldest = now.Sub(first)
	}
	for i := range s.load.places {
		if r := s.load.places[i].Load(); r != nil {
			oldest = max(oldest, s.load.age(r, now))
		}
	}
	return oldest
}

// handlerTimeFault reports a time limit that makes no sense.
func handlerTimeFault(d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("max handler time %v: want more than 0, or 0 for no limit", d)
	}
	return nil
}
