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

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// A handler has a time limit ([WithMaxHandlerTime]), at which its context ends. A handler
// which still runs stuckGrace later is stuck: the watchdog responds to the request,
// acknowledges the request, and starts another worker in the place of the handler's worker. At
// any time at most as many workers are replaced as the server has. A stuck handler cannot be
// stopped; its late result is dropped.

// stuckGrace is how long a handler has to return after its time limit.
const stuckGrace = time.Second

// watchPauseMax is the longest pause between two checks of the running handlers.
const watchPauseMax = time.Second

// begin records the start of a request's middleware and handler.
func (s *Server) begin(r *invocation, begun time.Time) {
	r.begun = begun
	r.place = r.request.place
	s.load.started()
	s.load.take(r, begun)
}

// release records that the middleware of a request ended after took. It updates the load,
// without the time for which the request waited for an execution of the same request. It
// reports whether the request still needs a response.
func (s *Server) release(r *invocation, took time.Duration) (open bool) {
	worker := r.retire()
	r.mu.Lock()
	answered, waited := r.answered, r.waited
	r.mu.Unlock()
	if worker {
		s.load.places[r.place].Store(nil)
		s.leaveWorker(r.request, took-waited)
	}
	switch {
	case !answered && worker:
		s.load.ended(took - waited)
	case !answered:
	case worker:
		s.load.busy.Add(-1)
		s.workers.Add(1) // the worker continues
		fallthrough
	default:
		s.stuck.remove(r, !worker)
		s.cfg.logger.Info("stuck handler ended", zap.String("method", r.request.method.name), zap.Duration("took", took))
	}
	return !answered
}

// stuckHandlers holds the requests whose handlers still run after the watchdog has responded.
// Safe for concurrent use.
type stuckHandlers struct {
	mu       sync.Mutex
	requests map[*invocation]bool
	replaced int // requests whose worker was replaced
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

// mayReplace reports whether the worker of one more stuck handler may be replaced, and counts
// the replacement. At most limit workers are replaced at a time.
func (h *stuckHandlers) mayReplace(limit int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.replaced >= limit {
		return false
	}
	h.replaced++
	return true
}

// count returns the number of stuck handlers, and the start of the oldest.
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

// task is an entry in the queue of the workers: an [inboundRequest], or the [turn] of a
// request which already runs.
type task interface {
	// leaves returns how the worker of a place continues after the task: last if the worker
	// must end because its place is taken, counted if the server's workers tracker counts the
	// worker, and its next place.
	leaves(place int) (last, counted bool, next int)
}

// startWorker starts the worker of a place (its index). The worker ends when the queue of the
// workers is closed, or when another worker has its place. Serve does not wait for a worker
// whose handler is stuck.
func (s *Server) startWorker(handlers context.Context, place int) {
	s.workers.Add(1)
	go s.work(handlers, place)
}

// work runs tasks until the queue of the workers is closed, or until another worker has taken
// its place. If a handler ends its goroutine (runtime.Goexit), the worker ends too and a new
// worker starts in its place.
func (s *Server) work(handlers context.Context, place int) {
	last := false   // no new worker is needed in this place
	counted := true // the server's workers tracker counts this worker
	var t task
	defer func() {
		if !last && t != nil {
			last, counted, place = t.leaves(place)
		}
		if !last {
			s.startWorker(handlers, place) // counted before this worker leaves, so Serve waits for it
		}
		if counted {
			s.workers.Done()
		}
	}()
	next := func() (open bool) {
		t = nil // a waiting worker must not keep the last request, and its body, in memory
		t, open = s.waiting.Pop()
		return open
	}
	for next() {
		switch t := t.(type) {
		case *turn:
			t.take(&s.load, place)
		case *inboundRequest:
			t.place = place
			if s.process(handlers, t) {
				continue
			}
		}
		if last, counted, place = t.leaves(place); last {
			return
		}
	}
	last = true
}

// leaves implements task.
func (req *inboundRequest) leaves(place int) (last, counted bool, next int) {
	if req.invoked == nil {
		req.delivery.consumer.server.leaveWorker(req, 0)
		return false, true, place
	}
	r := req.invoked
	r.retire()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lent, !r.lent || !r.answered, r.place
}

// startWatchdog starts the watchdog, which ends when over is closed. If an observer ends the
// goroutine of the watchdog, a new watchdog starts.
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

// watchHandlers looks for stuck handlers periodically until over is closed. A timer for each
// request would make each request slower.
func (s *Server) watchHandlers(over <-chan struct{}) {
	pause := time.NewTicker(s.watchPause())
	defer pause.Stop()
	for {
		select {
		case <-over:
			return
		case <-pause.C:
		}
		now := time.Now()
		for i := range s.load.places {
			r := s.load.places[i].Load()
			if r == nil {
				continue
			}
			if limit := s.maxTimeOf(r.request.method); limit > 0 && s.load.age(r, now) >= limit+stuckGrace {
				s.giveUpOn(r, limit)
			}
		}
	}
}

// giveUpOn responds to a request whose handler is stuck, and starts another worker if
// mayReplace allows. After a hard stop it leaves the request to another server.
func (s *Server) giveUpOn(r *invocation, limit time.Duration) {
	if errors.Is(context.Cause(r), errServerStopped) {
		return
	}
	r.mu.Lock()
	if r.over || r.lent { // the middleware has returned, or another worker has the place
		r.mu.Unlock()
		return
	}
	fresh := !r.answered
	if fresh {
		r.answered = true
		s.stuck.add(r)
		s.workers.Done()
	}
	replace := s.stuck.mayReplace(s.cfg.workers)
	if replace {
		r.lent = true
		s.load.places[r.place].Store(nil)
	}
	r.mu.Unlock()
	if replace {
		s.leaveWorker(r.request, time.Since(r.begun))
	}
	if replace { // after the response, even if the observer ends this goroutine
		defer func() {
			s.load.busy.Add(-1)
			s.startWorker(r.Parent(), r.place)
		}()
	}
	if fresh {
		s.respondFor(r, limit, replace)
	}
}

// respondFor sends the response to a request whose handler is stuck.
func (s *Server) respondFor(r *invocation, limit time.Duration, replaced bool) {
	req, took := r.request, time.Since(r.begun)
	s.cfg.logger.Warn("handler is stuck: its time limit has passed and it runs on", zap.String("method", req.method.name),
		zap.String("correlation_id", req.in.ID), zap.Duration("took", took), zap.Bool("replaced", replaced))
	e := Errorf(CodeDeadlineExceeded, "the handler did not end within %v", limit)
	e.outcome = MayHaveRun
	t := wire.Times{Queue: r.begun.Sub(req.delivery.arrived), Handler: took}
	s.counts.failed.Add(1)
	req.method.times.ended(false, took)
	if r.silent.Load() { // another request of the same call responds
		req.ack()
	} else {
		s.reply(req, reply{failed: e, times: t})
	}
	if s.cfg.observer != nil {
		s.cfg.observer.HandlerEnded(req.method.name, e.code, t.Queue, took)
	}
}

// limitOf returns the deadline of a handler's context: the caller's deadline or the server's
// time limit for the method, whichever is earlier. The zero time means no deadline.
func (s *Server) limitOf(m *serverMethod, in *incoming, arrived, begun time.Time) (deadline time.Time) {
	if in.Budget != wire.NoBudget {
		deadline = arrived.Add(in.Budget)
	}
	if limit := s.maxTimeOf(m); limit > 0 {
		if own := begun.Add(limit); deadline.IsZero() || own.Before(deadline) {
			deadline = own
		}
	}
	return deadline
}

// oldestHandler returns how long the oldest running handler has run; 0 if no handler runs.
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

// process handles one request: the request is skipped, refused, requeued, republished, or run
// through the middleware. During a drain the server refuses only malformed and expired
// requests, which every server would refuse. It requeues all other requests for other servers,
// which may have other methods. process returns true if the request was parked: then the request
// may already have another worker.
func (s *Server) process(handlers context.Context, req *inboundRequest) (parked bool) {
	if req.delivery.willBeRedelivered() {
		req.leaveUnacked()
		return false
	}
	in, failed := req.decode()
	m := req.method
	now := time.Now()
	if queued := now.Sub(req.delivery.arrived); failed == nil && in.Budget != wire.NoBudget && queued >= in.Budget {
		s.counts.expired.Add(1)
		failed = expiredRefusal(in.Budget, queued)
	}
	if failed == nil && in.Expired {
		s.counts.expired.Add(1)
		failed = refusal(CodeDeadlineExceeded, "expired in another queue, which dead-lettered it")
	}
	if failed == nil {
		failed = req.refusesAll()
	}
	switch {
	case failed != nil:
		s.refuse(req, failed)
	case s.isDraining():
		s.requeueCopy(req)
	case m == nil:
		s.refuse(req, s.unimplemented(in.Method))
	case s.handleRedelivered(req, m):
		return req.parked // now: a request that was parked before runs
	default:
		s.invoke(handlers, req, m, now)
	}
	return false
}

// expiredRefusal refuses a request whose time had ended before a worker was free.
func expiredRefusal(budget, queued time.Duration) *Error {
	if budget == 0 {
		return refusal(CodeDeadlineExceeded, "the call's time is 0 ms")
	}
	return refusal(CodeDeadlineExceeded, "expired after %v in the server, before a worker was free", queued)
}

// invoke runs the middleware and the handler. It responds however they end, unless the
// watchdog has responded already.
func (s *Server) invoke(ctx context.Context, req *inboundRequest, m *serverMethod, begun time.Time) {
	r := newInvocation(req)
	r.Init(ctx, s.limitOf(m, req.in, req.delivery.arrived, begun))
	defer r.Cancel()
	req.invoked = r
	queued := begun.Sub(req.delivery.arrived)
	s.begin(r, begun)
	body, err := []byte(nil), errGoexit
	defer func() { //nolint:contextcheck // r is the context.
		if v := recover(); v != nil { // a panic of middleware or the logger, outside Recover
			body, err = nil, &panicError{panicText(v)}
		}
		took := time.Since(begun)
		if !s.release(r, took) {
			return
		}
		s.finish(r, body, err, wire.Times{Queue: queued, Handler: took})
	}()
	handed := req.in.hand(queued)
	handed.run = r
	body, err = m.handler(r, handed) //nolint:contextcheck // r is ctx's child.
}

// errGoexit is the error of a handler that neither returned nor panicked.
var errGoexit = errors.New("the handler ended its goroutine")

// ending is how the middleware of a request ended.
type ending uint8

const (
	endsAnswered ending = iota
	endsRefused         // the deduplication layer refused the request
	endsReplayed        // the request gets the response of another execution
	endsStopped         // a hard stop interrupted the request: another server will get it
)

// finish responds to a request after its middleware has ended. After a hard stop it sends no
// response and does not acknowledge the request, which another server will get. The error's
// methods and the observer are application code: finish responds even if they panic or end the
// goroutine.
func (s *Server) finish(r *invocation, body []byte, err error, t wire.Times) {
	req, res, how := r.request, reply{body: body, times: t}, endsAnswered
	var refusal *Error
	defer func() {
		switch how {
		case endsStopped:
			req.leaveUnacked()
			return
		case endsRefused:
			if r.silent.Load() { // another request of the same call responds
				req.ack()
				return
			}
			s.refuseWith(req, refusal, res.props)
			return
		case endsReplayed:
		case endsAnswered:
			if res.failed == nil {
				s.counts.ok.Add(1)
			} else {
				s.counts.failed.Add(1)
			}
			req.method.times.ended(res.failed == nil, t.Handler)
		}
		if r.silent.Load() { // another request of the same call responds
			req.ack()
			return
		}
		s.reply(req, res)
	}()
	if r.isReplayed() {
		how = endsReplayed
	}
	if err == nil && len(body) > s.cfg.maxMessageSize {
		err = s.responseTooLarge(len(body))
	}
	if res.props = r.response.Load(); res.props != nil {
		if tooLarge := r.checkResponse(res.props, nil); tooLarge != nil {
			res.props = nil // an error response with these properties would not fit either
			err = cmp.Or(err, tooLarge)
		}
	}
	code := Code("")
	if err != nil {
		res.body, res.failed = nil, internalError() // for the case that a method of err ends this goroutine
		switch {
		case errors.Is(context.Cause(r), errServerStopped):
			how = endsStopped
		default:
			if refusal = s.refusalBy(r, err, res.props); refusal != nil {
				how = endsRefused
			} else {
				s.judge(r, err, &res)
			}
		}
		code = res.failed.code
	}
	if s.cfg.observer != nil && how == endsAnswered {
		s.cfg.observer.HandlerEnded(req.method.name, code, t.Queue, t.Handler)
	}
}

// responseTooLarge returns the error for the caller of a handler whose result is beyond the limit.
func (s *Server) responseTooLarge(size int) *Error {
	return Errorf(CodeResourceExhausted, "%w: response of %d bytes, limit %d", ErrTooLarge, size, s.cfg.maxMessageSize)
}

// judge sets the response for a handler that returned err. If a method of err panics, the
// response is unchanged.
func (s *Server) judge(run *invocation, err error, r *reply) {
	in := run.request.in
	defer func() {
		if v := recover(); v != nil {
			s.cfg.logger.Error("handler failed", zap.String("method", in.Method), zap.String("correlation_id", in.ID),
				zap.String("error", fmt.Sprintf("its error, of type %T, panicked: %s", err, panicText(v))))
		}
	}()
	r.failed = s.sendable(run, s.forCaller(in, err), r.props)
	r.failed.outcome = Ran // even if err is the error of a call by the handler
}

// sendable returns a copy of an error as it is sent beside properties.
func (s *Server) sendable(run *invocation, e *Error, props *wire.Properties) *Error {
	failed := *e
	failed.message = wire.Truncate(failed.message, s.cfg.maxMessageSize)
	failed.forget()
	if len(failed.details) > 0 {
		if tooLarge := run.checkResponse(props, failed.details); tooLarge != nil {
			failed.details = nil
			s.warnDetails(run.request.in, tooLarge)
		}
	}
	return &failed
}

// refusalBy returns the refusal with which the middleware or the handler of a request, which
// returned err, has refused the request; nil if it has not. Methods of err may panic.
func (s *Server) refusalBy(r *invocation, err error, props *wire.Properties) (refusal *Error) {
	if refusal = r.refusedWith(err); refusal != nil {
		return refusal
	}
	e := ownError(err)
	if e == nil || !e.refused || r.running.Load() != 0 {
		return nil
	}
	s.logCoded(r.request.in, e)
	refusal = s.sendable(r, e, props)
	if !refusal.code.Valid() {
		refusal.code = CodeUnknown
	}
	refusal.outcome = DidNotRun
	return refusal
}

// load estimates how long an arriving request waits for a worker. Safe for concurrent use.
type load struct {
	workers int64
	start   time.Time
	places  []atomic.Pointer[invocation] // the request of each worker
	busy    atomic.Int64
	average atomic.Int64 // of a worker's time for one request, in ns
}

// newLoad returns the load of an idle server. The last place is for the worker that starts
// during a drain.
func newLoad(workers int) load {
	return load{workers: int64(workers), start: time.Now(), places: make([]atomic.Pointer[invocation], workers+1)}
}

// loadWeight is the inverse of the newest time's share in the average: one eighth.
const loadWeight = 8

// started and ended mark the start and the end of the work on one request.
func (l *load) started() { l.busy.Add(1) }

func (l *load) ended(took time.Duration) {
	l.busy.Add(-1)
	// Concurrent calls may lose an update, which does no harm to an estimate.
	average := l.average.Load()
	l.average.Store(average + (int64(took)-average)/loadWeight)
}

// take records that a request has the worker of its place from now on.
func (l *load) take(r *invocation, now time.Time) {
	r.works.Store(int64(now.Sub(l.start)))
	l.places[r.place].Store(r)
}

// age returns how long a request has had its worker.
func (l *load) age(r *invocation, now time.Time) time.Duration {
	return max(now.Sub(l.start)-time.Duration(r.works.Load()), 0)
}

// wait estimates the wait of a request with waiting requests before it: 0 while a worker is
// free, otherwise the time until waiting+1 workers become free. A handler is expected to take
// the average time. A handler that has exceeded the average is expected to run as long again
// as it has run. If every handler has exceeded the average, the first handler is expected to
// end after as long as its time exceeds the average. So no request waits for handlers that
// never end.
func (l *load) wait(waiting int, now time.Time) time.Duration {
	if l.busy.Load() < l.workers {
		return 0
	}
	average := time.Duration(l.average.Load())
	first, rate := time.Duration(math.MaxInt64), 0.0
	for i := range l.workers {
		age := time.Duration(0) // of a handler that starts now
		if r := l.places[i].Load(); r != nil {
			age = l.age(r, now)
		}
		first = min(first, max(age-average, 0))
		rate += 1 / float64(max(average, age, 1))
	}
	return max(time.Duration(float64(waiting+1)/rate), first+time.Duration(float64(waiting)/rate))
}

// shed refuses a request at once if it would expire before a worker is free, unless the same
// request runs here or has run here. It reports whether the request was refused. Idempotent
// and redelivered requests get the outcome [MayHaveRun] instead of [DidNotRun], so their
// refusal need not wait for the acknowledgement. An idempotent call may be sent again after
// either outcome.
func (s *Server) shed(req *inboundRequest) bool {
	wait := s.load.wait(s.waitingBefore(req), req.delivery.arrived)
	if wait == 0 || s.isDraining() { // a draining server leaves the request to another server
		return false
	}
	in, failed := req.decode()
	if failed != nil || in.Budget == wire.NoBudget || in.Budget > wait || in.OneWay || s.dedup.has(req) {
		return false
	}
	e := refusal(CodeResourceExhausted, "every worker is busy for about %v more, the call's time is %v", wait, in.Budget)
	e.retryAfter = wait
	if in.Idempotent || in.Redelivered {
		e.outcome = MayHaveRun
	}
	s.refuse(req, e)
	s.counts.shed.Add(1)
	return true
}
