package amqpx

import (
	"bytes"
	"context"
	"errors"
	"hash/maphash"
	"slices"
	"sync"
	"time"
)

// Deduplication. The innermost layer of a server, between its middleware and the handler
// of a method, recognises a request that repeats another one: it waits for the execution
// of that one, or gets its stored response, and the handler does not run again. Middleware
// runs for every request, duplicates included. docs/adr/0010-deduplication.md has the
// reasons.

// reply is a response: the body of a result, or an error.
type reply struct {
	body   []byte
	failed *Error // nil for a result
	timing timing
	props  *properties // nil when there are none
}

// dedupStore decides which requests repeat others. The one in memory, executions, is the
// only one so far: it knows the requests of this process, so two servers run a request
// that reaches both. A store that several servers share would implement the same.
type dedupStore interface {
	// begin decides about a request under its id. With dedupRun the caller runs the
	// handler and calls end with the execution; with dedupWait it waits until done of the
	// execution is closed, or calls leave.
	begin(r *invocation, id identity, now time.Time) (dedupDecision, *execution)
	// end ends an execution with the response for the requests that wait for it, and
	// stores the response if final is true. With shared every request that waits takes
	// the response, else only those of the call that ran. It reports whether another
	// request of the same call responds to the caller.
	end(x *execution, r response, final, shared bool, now time.Time) (silent bool)
	// leave takes a request that does not wait any more from its execution, and returns
	// the request that runs if nobody waits for that any more.
	leave(r *invocation, x *execution) (unwanted *invocation)
	// knows reports whether a request runs, or has a stored response.
	has(j *job) bool
	// cancel marks the requests of a call that its caller canceled and returns those whose
	// contexts are to end.
	cancel(m *serverMethod, in *incoming, now time.Time) []*invocation
}

// dedupDecision is what becomes of a request in the deduplication layer.
type dedupDecision uint8

const (
	dedupRun      dedupDecision = iota // run the handler, and call end
	dedupReplay                        // respond with the response of the execution
	dedupWait                          // wait for the execution
	dedupConflict                      // the id was used for another body
	dedupCanceled                      // its caller canceled it before it came
	dedupMayRan                        // it may have run, and its method runs at most once
	dedupTooMany                       // too many duplicates wait already
)

// maxWaitingDuplicates bounds how many duplicates wait for executions at once, each with
// a goroutine of its own.
const maxWaitingDuplicates = 1024

// dedupCache is the dedupStore in memory: which requests run, and for a while the
// responses of the last ones. What runs is bounded by the prefetch, what is stored by
// bytes and age. Safe for concurrent use.
type dedupCache struct {
	maxBytes int // 0: duplicates are run like other requests
	maxAge   time.Duration
	seed     maphash.Seed

	mu      sync.Mutex // also of every method's known
	oldest  *execution // of the stored ones, which are linked by next
	newest  *execution
	bytes   int
	waiting int // duplicates that wait, of all executions
	// calls knows executions by the calls of their requests. It is nil unless the
	// application tells the scopes, which are known only inside the middleware.
	calls map[callKey]*execution
	canceledCalls
}

// execution is one run of a handler, and for a while its response.
type execution struct {
	method   *serverMethod
	id       identity
	call     *callKey // of the request that runs; nil unless executions.calls is used
	replyTo  string   // of the request that runs
	hash     uint64   // of its body
	hashSlot uint64   // where method.known has it
	known    bool     // method.known has it: duplicates find it

	runner   *invocation // the request that runs; nil afterwards
	waiters  []*invocation
	done     chan struct{} // closed at the end; nil while nobody has waited
	canceled bool          // its context has ended because nobody waits for it any more

	stored   bool
	response response
	ended    time.Time
	next     *execution
}

// response is what a handler returned.
type response struct {
	body  []byte
	err   *Error
	props *properties // nil when there are none
}

// entryOverhead estimates what a stored response takes beside its ids and its body.
const entryOverhead = 256

func newDedupCache(maxBytes int, maxAge time.Duration, applicationScopes bool) *dedupCache {
	e := &dedupCache{maxBytes: maxBytes, maxAge: maxAge, seed: maphash.MakeSeed()}
	if applicationScopes {
		e.calls = make(map[callKey]*execution)
	}
	return e
}

// hashOf returns the hash by which two bodies are told apart. Its seed is this process's
// own, so nobody can make two bodies of one hash.
func (e *dedupCache) hashOf(body []byte) uint64 { return maphash.Bytes(e.seed, body) }

// executionTable finds executions by hashes of the ids of their requests: a map with an id
// as its key hashes and compares all of its parts again at each lookup. An id whose hash
// another one has is not entered, so that duplicates of its request run; with 64 bits and a
// seed of this process's own that does not happen in practice.
type executionTable map[uint64]*execution

// slotOf returns the key of an id in an executionTable.
func (e *dedupCache) slotOf(id *requestID) uint64 {
	slot := maphash.String(e.seed, id.id) + uint64(id.kind)
	for _, part := range [...]string{id.scope, id.replyTo} {
		slot *= 31 // so that parts that change places make another hash
		if part != "" {
			slot += maphash.String(e.seed, part)
		}
	}
	return slot
}

// find returns the execution of an id, or nil.
func (t executionTable) find(id *requestID, slot uint64) *execution {
	if x := t[slot]; x != nil && x.id.requestID == *id {
		return x
	}
	return nil
}

// has implements dedupStore.
func (e *dedupCache) has(j *job) bool {
	id, ok := j.in.identity()
	if !ok || j.method == nil || e.maxBytes == 0 {
		return false
	}
	hash, slot := e.hashOf(j.in.Body), e.slotOf(&id.requestID)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.evict(time.Now())
	x := j.method.known.find(&id.requestID, slot)
	if e.calls != nil {
		x = e.calls[j.in.callKey()]
	}
	return x != nil && x.hash == hash && x.isSameRequest(j.in, id.shared, hash)
}

// isSameRequest reports whether a request with the same id repeats the execution's, or
// is that of another caller that uses the same id. Which body it has matters only to the
// last rule.
func (x *execution) isSameRequest(in *incoming, shared bool, hash uint64) bool {
	switch {
	case x.replyTo == in.replyTo, shared && x.id.shared:
		return true
	default: // a caller that has another address after a reconnect
		return in.resent && x.hash == hash
	}
}

// begin implements dedupStore.
func (e *dedupCache) begin(r *invocation, id identity, now time.Time) (dedupDecision, *execution) {
	j := r.job
	hash, slot := e.hashOf(r.body), e.slotOf(&id.requestID)
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.ids) > 0 && e.takeCanceled(r.call(), now) {
		return dedupCanceled, nil
	}
	e.evict(now)
	known := j.method.known.find(&id.requestID, slot)
	if known != nil && known == r.ran && known.stored { // middleware runs the handler again
		e.remove(known)
		known = nil
	}
	switch {
	case known == nil, e.maxBytes == 0, known.runner == r, !known.isSameRequest(j.in, id.shared, hash):
	case known.hash != hash:
		return dedupConflict, nil
	case known.stored:
		return dedupReplay, known
	case e.waiting == maxWaitingDuplicates:
		return dedupTooMany, nil
	default:
		e.wait(r, known)
		return dedupWait, known
	}
	if r.ran == nil && j.method.atMostOnce && r.handedOut {
		return dedupMayRan, nil
	}
	x := &execution{method: j.method, id: id, replyTo: j.in.replyTo, hash: hash, hashSlot: slot, runner: r}
	if x.known = j.method.known[slot] == nil; x.known {
		j.method.known[slot] = x
		if e.calls != nil {
			call := r.call()
			x.call = &call
			e.calls[call] = x
		}
	}
	r.ran = x
	return dedupRun, x
}

// wait adds a request to those that wait. The caller holds mu.
func (e *dedupCache) wait(r *invocation, x *execution) {
	if x.done == nil {
		x.done = make(chan struct{})
	}
	x.waiters = append(x.waiters, r)
	e.waiting++
	if e.calls == nil {
		return
	}
	if call := r.call(); e.calls[call] == nil {
		e.calls[call] = x
	}
}

// leave implements dedupStore.
func (e *dedupCache) leave(r *invocation, x *execution) (unwanted *invocation) {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := slices.Index(x.waiters, r)
	if i < 0 {
		return nil // it has ended
	}
	x.waiters = slices.Delete(x.waiters, i, i+1)
	e.unwait(r, x)
	return x.abandon()
}

// unwait notes that a request does not wait any more. The caller holds mu.
func (e *dedupCache) unwait(r *invocation, x *execution) {
	e.waiting--
	if e.calls == nil {
		return
	}
	if call := r.call(); (x.call == nil || call != *x.call) && e.calls[call] == x {
		delete(e.calls, call)
	}
}

// end implements dedupStore.
func (e *dedupCache) end(x *execution, r response, final, shared bool, now time.Time) (silent bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	runner, waiters := x.runner, x.waiters
	x.runner, x.waiters = nil, nil
	x.response, x.ended = r, now
	if len(waiters) > 0 {
		silent = x.handOver(runner, waiters, shared)
		for _, w := range waiters {
			e.unwait(w, x)
		}
		close(x.done)
	}
	switch {
	case !x.known:
	case !final || x.size() > e.maxBytes:
		e.forget(x)
	default:
		e.store(x)
		e.evict(now)
	}
	return silent
}

// handOver decides which of the requests that wait take the response of an execution, and
// which of those respond: of several requests of one call, as after a loss of the link or
// a re-send, only the newest, whose session is more likely to live. It reports whether one
// of them responds for the request that ran.
func (x *execution) handOver(runner *invocation, waiters []*invocation, shared bool) (silent bool) {
	responds, ran := make(map[callKey]bool, len(waiters)), runner.call()
	for _, w := range slices.Backward(waiters) {
		call := w.call()
		w.takes = shared || call == ran
		if w.takes {
			w.silent.Store(responds[call])
			responds[call] = true
		}
	}
	return responds[ran]
}

// store keeps an execution that has ended. The caller holds mu.
func (e *dedupCache) store(x *execution) {
	x.stored = true
	if e.newest == nil {
		e.oldest = x
	} else {
		e.newest.next = x
	}
	e.newest = x
	e.bytes += x.size()
}

// evict forgets what is too old or too much. The caller holds mu.
func (e *dedupCache) evict(now time.Time) {
	for x := e.oldest; x != nil && (e.bytes > e.maxBytes || now.Sub(x.ended) > e.maxAge); x = e.oldest {
		e.bytes -= x.size()
		e.forget(x)
		if e.oldest = x.next; e.oldest == nil {
			e.newest = nil
		}
	}
}

// remove forgets one stored execution. The caller holds mu.
func (e *dedupCache) remove(x *execution) {
	e.forget(x)
	e.bytes -= x.size()
	var before *execution
	for o := e.oldest; o != x; o = o.next {
		before = o
	}
	if before == nil {
		e.oldest = x.next
	} else {
		before.next = x.next
	}
	if e.newest == x {
		e.newest = before
	}
}

// forget lets nobody find an execution any more. The caller holds mu.
func (e *dedupCache) forget(x *execution) {
	if !x.known {
		return
	}
	x.known = false
	delete(x.method.known, x.hashSlot)
	if x.call != nil && e.calls[*x.call] == x {
		delete(e.calls, *x.call)
	}
}

func (x *execution) size() int {
	n := entryOverhead + len(x.id.scope) + len(x.id.id) + len(x.replyTo) + len(x.response.body)
	if x.response.err != nil {
		n += len(x.response.err.message)
	}
	n += x.response.props.size()
	return n
}

// deduplicate returns the innermost layer of a method's handler.
func (s *Server) deduplicate(h Handler) Handler {
	return func(ctx context.Context, req *Request) ([]byte, error) {
		r, _ := ctx.Value(invocationKey{}).(*invocation)
		if r == nil { // middleware that passes a context of its own
			return h(ctx, req)
		}
		id, ok := r.id, r.identified
		if s.cfg.dedupScope != nil && r.keyed {
			if scope := s.cfg.dedupScope(ctx, req); scope != "" {
				id, ok = identity{requestID{kind: scopeApplication, scope: scope, id: r.id.id}, true}, true
			}
		}
		if !ok {
			return h(ctx, req)
		}
		return s.runOnce(ctx, r, id, h, req)
	}
}

// runOnce runs the handler of a request, or gives the response of the request that it
// repeats.
func (s *Server) runOnce(ctx context.Context, r *invocation, id identity, h Handler, req *Request) ([]byte, error) {
	for {
		decision, x := s.dedup.begin(r, id, time.Now())
		switch decision {
		case dedupRun:
			return s.runExecution(ctx, r, x, h, req)
		case dedupReplay:
			return s.replay(r, x)
		case dedupWait:
			if err := s.awaitExecution(ctx, r, x); err != nil {
				return nil, err
			}
			if r.takes {
				return s.replay(r, x)
			}
		default:
			return nil, s.refuseDuplicate(r, decision)
		}
	}
}

// refuseDuplicate makes the error of a request that is neither run nor replayed.
func (s *Server) refuseDuplicate(r *invocation, decision dedupDecision) error {
	switch decision {
	case dedupConflict:
		return r.refuse(refusal(CodeFailedPrecondition, "the idempotency key %q was used for a request with another body", r.id.id))
	case dedupCanceled:
		s.counts.canceled.Add(1)
		return r.refuse(refusal(CodeCanceled, "its caller canceled it before it ran"))
	case dedupMayRan:
		return r.refuse(deliveredOnceError(r.job.method.name))
	default:
		e := Errorf(CodeResourceExhausted, "%d duplicates of requests wait already", maxWaitingDuplicates)
		e.outcome = MayHaveRun
		return r.refuse(e)
	}
}

// replay returns the stored response of execution x for the duplicate request r. The
// response is a copy, because middleware may change the slice that replay returns.
func (s *Server) replay(r *invocation, x *execution) ([]byte, error) {
	s.counts.replayed.Add(1)
	r.mu.Lock()
	r.replayed = true
	r.mu.Unlock()
	if props := x.response.props; props != nil {
		r.response.Store(props)
	}
	if failed := x.response.err; failed != nil {
		again := *failed
		return nil, &again
	}
	return bytes.Clone(x.response.body), nil
}

// awaitExecution waits until an execution has ended. Meanwhile another worker takes the
// place of the request's. The error is that of a request whose context ended first.
func (s *Server) awaitExecution(ctx context.Context, r *invocation, x *execution) error {
	s.lendWorker(r)
	begun := time.Now()
	defer func() {
		r.mu.Lock()
		r.waited += time.Since(begun)
		r.mu.Unlock()
	}()
	select {
	case <-x.done:
		return nil
	case <-ctx.Done():
	}
	if unwanted := s.dedup.leave(r, x); unwanted != nil {
		s.counts.canceled.Add(1)
		unwanted.cancel()
	}
	select {
	case <-x.done: // at the same time
		return nil
	default:
	}
	code := CodeDeadlineExceeded
	if errors.Is(ctx.Err(), context.Canceled) {
		code = CodeCanceled
	}
	e := Errorf(code, "ended while it waited for the execution of the same request")
	e.outcome = MayHaveRun
	return r.refuse(e)
}

// runExecution runs the handler and ends the execution, whichever way the handler ends.
func (s *Server) runExecution(ctx context.Context, r *invocation, x *execution, h Handler, req *Request) (body []byte, err error) {
	err = errGoexit
	defer func() {
		res, final, shared := responseOf(ctx, body, err)
		res.props = r.response.Load()
		if s.dedup.end(x, res, final, shared, time.Now()) {
			r.silent.Store(true)
		}
	}()
	if !s.regainWorker(ctx, r) {
		err = ctx.Err()
		return nil, err
	}
	return h(ctx, req)
}

// responseOf decides what the requests that wait for an execution get, and whether its
// response is final: only such a response is stored. An error that another try may not
// meet is none, nor is what a handler says whose time is over. Those that wait already
// share an error of the operation, but none that is about the request that ran: its time,
// or its credentials.
func responseOf(ctx context.Context, body []byte, err error) (r response, final, shared bool) {
	if err == nil {
		return response{body: body}, true, true
	}
	coded := ownError(err)
	if coded == nil {
		coded = internalError()
	}
	kept := *coded
	kept.causes = nil // they stay with the request that ran, and must not stay in memory
	inTime := ctx.Err() == nil
	switch kept.code {
	case CodeDeadlineExceeded, CodeCanceled, CodeUnauthenticated, CodePermissionDenied:
		return response{err: &kept}, false, false
	case CodeUnavailable, CodeResourceExhausted, CodeAborted, CodeInternal:
		return response{err: &kept}, false, inTime
	default:
		return response{err: &kept}, inTime, inTime
	}
}

// ownError returns what a response keeps of a handler's error: the coded error in it, the
// end of its context, or nil. What it calls is the application's, and may panic.
func ownError(err error) (e *Error) {
	defer func() {
		if recover() != nil {
			e = nil
		}
	}()
	switch coded := codedError(err); {
	case coded != nil:
		return coded
	case errors.Is(err, context.DeadlineExceeded):
		return Errorf(CodeDeadlineExceeded, "the call's time ran out in the handler")
	case errors.Is(err, context.Canceled):
		return Errorf(CodeCanceled, "the handler was cancelled")
	}
	return nil
}
