package amqpx

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// invocation is one request on its way through the middleware of a server, and the
// context of that. It begins when a worker takes the request.
type invocation struct {
	lazyContext

	job *job
	// The fields id to handedOut hold the values of the request on arrival, because
	// middleware may change the Request that it passes on.
	id            identity
	identified    bool // the request can be matched with a duplicate by id
	keyed         bool // its id is an idempotency key
	handedOut     bool // an earlier run may have happened
	correlationID string
	body          []byte

	begun time.Time    // when its worker took it
	works atomic.Int64 // since when it has its worker, see load

	mu       sync.Mutex
	place    int           // of its worker
	answered bool          // the watchdog has answered it: its handler is stuck
	lent     bool          // another worker took the place of its worker
	over     bool          // the middleware has returned
	refusal  *Error        // of the deduplication layer: the handler was not run
	replayed bool          // it got the response of the request that it repeats
	waited   time.Duration // for executions of the same request

	response atomic.Pointer[properties] // that the handler has set; nil: none
	silent   atomic.Bool                // another request of the same call responds

	// The lock of the dedupStore guards these; takes may be read after the execution's
	// done is closed.
	ran      *execution // the last one of this request
	takes    bool       // the response of the execution that it waited for
	canceled bool       // its caller has canceled the call
}

func newInvocation(j *job) *invocation {
	r := &invocation{job: j, correlationID: j.in.CorrelationID, body: j.in.Body, keyed: j.in.IdempotencyKey != "", handedOut: j.wasDeliveredBefore()}
	r.id, r.identified = j.in.identity()
	return r
}

// call identifies the call that the request belongs to.
func (r *invocation) call() callKey {
	return newCallKey(r.id.scope, r.job.in.replyTo, r.correlationID)
}

// invocationKey is the key under which a context has its invocation.
type invocationKey struct{}

// Value implements context.Context.
func (r *invocation) Value(key any) any {
	if key == (invocationKey{}) {
		return r
	}
	return r.lazyContext.Value(key)
}

// refuse notes that the request was not run, for the given reason.
func (r *invocation) refuse(e *Error) *Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusal = e
	return e
}

// refusedWith returns the error of refuse if it is in err, also if middleware has wrapped
// it, or nil.
func (r *invocation) refusedWith(err error) *Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refusal == nil || ownError(err) != r.refusal {
		return nil
	}
	return r.refusal
}

// isReplayed reports whether the request got the response of the one that it repeats.
func (r *invocation) isReplayed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.replayed
}

// retire ends an invocation whose middleware has returned. It reports whether its
// goroutine still is a worker.
func (r *invocation) retire() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	return !r.lent
}

// lendWorker has another worker take the place of a request that only waits.
func (s *Server) lendWorker(r *invocation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lent || r.over {
		return
	}
	r.lent = true
	s.load.places[r.place].Store(nil)
	s.load.busy.Add(-1)
	s.startWorker(r.parent, r.place)
}

// turn is a request in the queue of jobs that waits for a worker to go home for it.
type turn struct {
	of        *invocation
	taken     chan struct{} // closed when it has its worker
	withdrawn bool          // it needs none any more; guarded by the invocation's mu
}

// regainWorker waits, after lendWorker, until a worker goes home for the request, so that
// no more handlers run than there are workers. It reports false if ctx ended first.
func (s *Server) regainWorker(ctx context.Context, r *invocation) bool {
	r.mu.Lock()
	lent, answered := r.lent, r.answered
	r.mu.Unlock()
	if !lent || answered {
		return !lent
	}
	t := &turn{of: r, taken: make(chan struct{})}
	s.jobs.put(&job{turn: t})
	select {
	case <-t.taken:
		return true
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t.withdrawn = true
	return !r.lent // it may have got its worker at the same time
}

// take gives a request the place of the worker that calls it, which then ends. A request
// whose time is over needs none.
func (t *turn) take(l *load, place int) bool {
	r := t.of
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || !r.lent || t.withdrawn || r.answered {
		return false
	}
	r.lent, r.place = false, place
	l.busy.Add(1)
	l.take(r, time.Now())
	close(t.taken)
	return true
}

// unknownMethods logs each method name that requests ask for and the server does not have.
// Safe for concurrent use.
type unknownMethods struct {
	mu     sync.Mutex
	logged loggedNames
}

// unimplemented makes the refusal of a request for a method that the server does not have.
// It names the server, so that the caller knows which ones refused.
func (s *Server) unimplemented(method string) *Error {
	s.unknown.mu.Lock()
	first := s.unknown.logged.add(method)
	s.unknown.mu.Unlock()
	if first {
		s.cfg.logger.Warn("request for a method that this server does not have",
			zap.String("method", truncate(method, maxShortString)), zap.String("queue", s.cfg.queue.Name))
	}
	e := refusal(CodeUnimplemented, "method %q is unknown to this server", method)
	e.server = s.self.id
	return e
}
