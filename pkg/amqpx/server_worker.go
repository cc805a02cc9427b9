package amqpx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
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
		return s.jobs.pop()
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
		s.respondFor(r, limit, replace)
	}
}

// respondFor answers a request whose handler is stuck.
func (s *Server) respondFor(r *invocation, limit time.Duration, replaced bool) {
	j, took := r.job, time.Since(r.begun)
	s.cfg.logger.Warn("handler is stuck: its time limit has passed and it runs on", zap.String("method", j.method.name),
		zap.String("correlation_id", r.correlationID), zap.Duration("took", took), zap.Bool("replaced", replaced))
	e := Errorf(CodeDeadlineExceeded, "the handler did not end within %v", limit)
	e.outcome = MayHaveRun
	t := timing{queue: r.begun.Sub(j.arrived), handler: took}
	s.counts.failed.Add(1)
	j.method.times.ended(false, took)
	if r.silent.Load() { // another request of the same call is answered
		j.ack()
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

// process settles one job in one of these ways: skipped, refused, given back, moved, or run
// through the middleware. A server that drains only refuses what every server would:
// requests that are malformed or whose time is over. All else that it has not started it
// leaves to other servers, which may have other methods.
func (s *Server) process(handlers context.Context, j *job) {
	if j.willBeRedelivered() {
		j.finish()
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
		s.requeueCopy(j)
	case m == nil:
		s.refuse(j, s.unimplemented(in.Method))
	case s.handleRedelivered(j, m):
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
	case !s.waitRepublished(j):
		j.finish()
	case s.isDraining():
		s.requeueCopy(j)
	default:
		s.invoke(handlers, j, m, time.Now())
	}
}

// invoke runs the middleware and the handler, and answers, whichever way they end, unless
// the watchdog has answered for them.
func (s *Server) invoke(ctx context.Context, j *job, m *serverMethod, begun time.Time) {
	r := newInvocation(j)
	r.init(ctx, s.limitOf(j.in, j.arrived, begun))
	defer r.cancel()
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
			j.finish()
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
			j.ack()
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

// load estimates how long a request that arrives now waits for a worker. Safe for
// concurrent use.
type load struct {
	workers int64
	start   time.Time
	places  []atomic.Pointer[invocation] // what the workers run
	busy    atomic.Int64
	average atomic.Int64 // of the time a worker spends on one request, in ns
}

// newLoad returns the load of an idle server. Its last place is of a worker that comes when
// the server drains.
func newLoad(workers int) load {
	return load{workers: int64(workers), start: time.Now(), places: make([]atomic.Pointer[invocation], workers+1)}
}

// loadWeight is the share of the newest time in the average: one eighth.
const loadWeight = 8

// started and ended enclose the work on one request.
func (l *load) started() { l.busy.Add(1) }

func (l *load) ended(took time.Duration) {
	l.busy.Add(-1)
	// An update that is lost to another at the same time does no harm to an estimate.
	average := l.average.Load()
	l.average.Store(average + (int64(took)-average)/loadWeight)
}

// take notes that a request has the worker of its place from now on.
func (l *load) take(r *invocation, now time.Time) {
	r.works.Store(int64(now.Sub(l.start)))
	l.places[r.place].Store(r)
}

// age returns how long a request has had its worker.
func (l *load) age(r *invocation, now time.Time) time.Duration {
	return max(now.Sub(l.start)-time.Duration(r.works.Load()), 0)
}

// wait estimates the wait of a request with waiting others before it: none while a worker is
// free, else until as many have come free as it takes. A handler is expected to take the
// average time, and one that runs longer as long again as it has run. While every handler
// has exceeded the average, the first to end is expected after as long as it has done so:
// handlers that never end let nobody wait.
func (l *load) wait(waiting int, now time.Time) time.Duration {
	if l.busy.Load() < l.workers {
		return 0
	}
	average := time.Duration(l.average.Load())
	first, rate := time.Duration(math.MaxInt64), 0.0
	for i := range l.workers {
		age := time.Duration(0) // of one that only begins
		if r := l.places[i].Load(); r != nil {
			age = l.age(r, now)
		}
		first = min(first, max(age-average, 0))
		rate += 1 / float64(max(average, age, 1))
	}
	return max(time.Duration(float64(waiting+1)/rate), first+time.Duration(float64(waiting)/rate))
}

// shed refuses a request at once when it would expire before a worker is free, unless
// the same request runs here, or has run; it reports whether the job is dealt with. To an idempotent call, which may be sent again whatever became of it, it
// does not say "did not run": so its request need not be acknowledged before.
func (s *Server) shed(j *job) bool {
	wait := s.load.wait(s.jobs.len(), j.arrived)
	if wait == 0 || s.isDraining() { // a server that drains leaves it to another
		return false
	}
	in, failed := j.decode()
	if failed != nil || in.budget == noBudget || in.budget > wait || in.OneWay || s.dedup.has(j) {
		return false
	}
	e := refusal(CodeResourceExhausted, "every worker is busy for about %v more, the call's time is %v", wait, in.budget)
	e.retryAfter = wait
	if in.Idempotent || in.Redelivered {
		e.outcome = MayHaveRun
	}
	s.refuse(j, e)
	s.counts.shed.Add(1)
	return true
}
