package amqpx

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// invocation is one run of the server's middleware for a request, and the context of this run,
// from the moment a worker takes the request.
type invocation struct {
	xsync.LazyContext

	request    *inboundRequest
	id         identity
	identified bool // a duplicate can be found by id

	begun time.Time    // when a worker took the request
	works atomic.Int64 // when the invocation got its current worker, see load

	mu       sync.Mutex
	place    int           // of its worker
	answered bool          // the watchdog has responded: the handler is stuck
	lent     bool          // another worker took the place of its worker
	over     bool          // the middleware has returned
	refusal  *Error        // of the deduplication layer: the handler was not run
	replayed bool          // the request got the response of another execution
	waited   time.Duration // for executions of the same request
	claims   uint64        // the number of the request in the owner of its claims; 0: none yet

	// running counts the runs of the handler that are in progress, or have returned anything but a
	// refusal: 0 if no handler did anything.
	running atomic.Int32

	response atomic.Pointer[wire.Properties] // the properties set by the handler; nil: none
	silent   atomic.Bool                     // another request of the same call responds

	// The lock of the dedupCache guards these fields; takes may be read after the execution's
	// done channel is closed.
	ran      *execution // the last execution of this request
	first    execution  // the first execution of this request
	takes    bool       // the request takes the response of the execution for which it waited
	canceled bool       // the caller has canceled the call
}

// newInvocation returns the invocation of a request, whose middleware runs once.
func newInvocation(req *inboundRequest) *invocation {
	r := &req.run
	r.request = req
	r.id, r.identified = req.in.identity()
	return r
}

// call returns the key of the request's call.
func (r *invocation) call() callKey {
	return newCallKey(r.id.scope, r.request.in.ReplyTo, r.request.in.ID)
}

// maxMessageSize returns the limit of the server, or the default of the test kit, which has no server.
func (r *invocation) maxMessageSize() int {
	if r.request.delivery == nil {
		return DefaultMaxMessageSize
	}
	return r.request.delivery.consumer.server.cfg.maxMessageSize
}

// invocationKey is the key under which a context stores its invocation.
type invocationKey struct{}

// Value implements context.Context.
func (r *invocation) Value(key any) any {
	if key == (invocationKey{}) {
		return r
	}
	return r.LazyContext.Value(key)
}

// RequestFromContext returns the request of the server's handler with context ctx, as the server
// received it: middleware may have passed another one on. ok is false if ctx is not derived from
// the context of a handler. The request must not be changed.
func RequestFromContext(ctx context.Context) (req *Request, ok bool) {
	if ctx == nil {
		return nil, false
	}
	r, ok := ctx.Value(invocationKey{}).(*invocation)
	if !ok {
		return nil, false
	}
	return &r.request.in.handed, true
}

// runHandler runs the handler of a request, and keeps count for [Refuse].
func (req *Request) runHandler(ctx context.Context, h Handler) ([]byte, error) {
	r := req.run
	if r == nil { // middleware has made another request
		return h(ctx, req)
	}
	r.running.Add(1)
	body, err := h(ctx, req)
	if err != nil {
		if e := ownError(err); e != nil && e.refused {
			r.running.Add(-1)
		}
	}
	return body, err
}

// startOf returns the start of the server's request req, without reading the clock, if ctx is the
// context of this request. For other requests it returns the current time, for example for a call
// that a handler makes with its own context.
func startOf(ctx context.Context, req *Request) time.Time {
	if r, ok := ctx.(*invocation); ok && req == &r.request.in.handed {
		return r.begun
	}
	return time.Now()
}

// refuse records why the request was not run, and returns e.
func (r *invocation) refuse(e *Error) *Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusal = e
	return e
}

// refusedWith returns the error passed to refuse if err wraps this error, or nil.
func (r *invocation) refusedWith(err error) *Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refusal == nil || ownError(err) != r.refusal {
		return nil
	}
	return r.refusal
}

// isReplayed reports whether the request got the response of another execution.
func (r *invocation) isReplayed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.replayed
}

// retire records that the middleware has returned. It reports whether the goroutine is still a
// worker.
func (r *invocation) retire() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	return !r.lent
}

// lendWorker starts another worker in the place of a request's worker while the request waits.
func (s *Server) lendWorker(r *invocation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lent || r.over {
		return
	}
	r.lent = true
	s.load.places[r.place].Store(nil)
	s.load.busy.Add(-1)
	s.leaveWorker(r.request, time.Since(r.begun))
	s.startWorker(r.Parent(), r.place)
}

// waits lends the worker of a request that waits from now on for an execution of the same request.
// The result ends the wait.
func (s *Server) waits(r *invocation) (end func()) {
	s.lendWorker(r)
	begun := time.Now()
	return func() {
		r.mu.Lock()
		r.waited += time.Since(begun)
		r.mu.Unlock()
	}
}

// turn is an entry in the queue of the workers: a request waits for the place of a worker.
type turn struct {
	of        *invocation
	taken     chan struct{} // closed when the request has a worker
	withdrawn bool          // the request needs no worker any more; guarded by the invocation's mu
	granted   bool          // the worker that took the turn ends; only this worker uses it
}

// regainWorker waits, after lendWorker, until a worker ends in favor of the request: at most
// as many handlers run as there are workers. It returns false if ctx ends first.
func (s *Server) regainWorker(ctx context.Context, r *invocation) bool {
	r.mu.Lock()
	lent, answered := r.lent, r.answered
	r.mu.Unlock()
	if !lent || answered {
		return !lent
	}
	t := &turn{of: r, taken: make(chan struct{})}
	s.waiting.Put(s.queuePriority(r.request), t)
	select {
	case <-t.taken:
		return true
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t.withdrawn = true
	return !r.lent // the request may have got a worker at the same time
}

// take gives the request the place of the calling worker, which then ends, unless the request
// needs no worker.
func (t *turn) take(l *load, place int) {
	r := t.of
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || !r.lent || t.withdrawn || r.answered {
		return
	}
	r.lent, r.place, t.granted = false, place, true
	l.busy.Add(1)
	l.take(r, time.Now())
	if req := r.request; req.admission != nil {
		req.delivery.consumer.server.callers.regainWorker(req.admission)
	}
	close(t.taken)
}

// leaves implements task.
func (t *turn) leaves(place int) (last, counted bool, next int) { return t.granted, true, place }

// unknownMethods logs, once each, the names of requested methods that the server does not
// have. Safe for concurrent use.
type unknownMethods struct {
	mu     sync.Mutex
	logged loggedNames
}

// unimplemented returns the refusal of a request for an unknown method. The refusal names the
// server, so the caller knows which servers refused.
func (s *Server) unimplemented(method string) *Error {
	s.unknown.mu.Lock()
	first := s.unknown.logged.add(method)
	s.unknown.mu.Unlock()
	if first {
		s.cfg.logger.Warn("request for a method that this server does not have",
			zap.String("method", wire.Truncate(method, wire.MaxShortString)), zap.String("queue", s.cfg.queue.Name))
	}
	e := refusal(CodeUnimplemented, "method %q is unknown to this server", method)
	e.server = s.self.id
	return e
}
