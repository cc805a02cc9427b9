package amqpx

import (
	"bytes"
	"context"
	"errors"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// Deduplication. The innermost layer of a server, between the middleware and the handler of a
// method, recognises duplicates of a request. A duplicate waits for the execution of the first
// request, or gets the stored response; the handler does not run again. Middleware runs for
// every request, including duplicates. docs/adr/0010-deduplication.md has the reasons.

// reply is the content of a response: the body of a result, or an error.
type reply struct {
	body   []byte
	failed *Error // nil for a result
	times  wire.Times
	props  *wire.Properties // nil if there are none
}

// toWire returns the response as it travels.
func (r *reply) toWire() wire.Response {
	w := wire.Response{Body: r.body, Properties: r.props, Times: r.times}
	if r.failed != nil {
		w.Failure = failureOf(r.failed)
	}
	return w
}

// dedupStore decides which requests are duplicates. The only implementation is dedupCache, in
// memory: it knows the requests of this process, so two servers both run a request that
// reaches both. A store which several servers share would implement the same interface.
type dedupStore interface {
	// begin decides how to handle a request with the given id. After dedupRun the caller runs
	// the handler and calls end with the execution. After dedupWait the caller waits until the
	// execution's done channel is closed, or calls leave.
	begin(r *invocation, id identity, now time.Time) (dedupDecision, *execution)
	// end ends an execution and hands its response to the waiting requests. It stores the
	// response if final is true. If shared is true, every waiting request takes the response,
	// otherwise only requests of the call that ran. It reports whether another request of the
	// same call responds to the caller.
	end(x *execution, r response, final, shared bool, now time.Time) (silent bool)
	// leave removes request r from the requests that wait for x. If no caller waits for x any
	// more, it returns the request that runs, for the caller of leave to cancel.
	leave(r *invocation, x *execution) (unwanted *invocation)
	// has reports whether a duplicate of the request runs or has a stored response.
	has(req *inboundRequest) bool
	// cancel marks the requests of a canceled call and returns the requests whose contexts
	// must be canceled.
	cancel(m *serverMethod, in *incoming, now time.Time) []*invocation
}

// dedupDecision is the decision of the deduplication layer about a request.
type dedupDecision uint8

const (
	dedupRun      dedupDecision = iota // run the handler, and call end
	dedupReplay                        // respond with the response of the execution
	dedupWait                          // wait for the execution
	dedupConflict                      // the id was used with another body
	dedupCanceled                      // the caller canceled the call before the request arrived
	dedupMayRan                        // the request may have run, and its method runs at most once
	dedupTooMany                       // too many duplicates are waiting
)

// maxWaitingDuplicates bounds how many duplicates wait for executions at a time, each with its
// own goroutine.
const maxWaitingDuplicates = 1024

// dedupCache is the dedupStore in memory. It knows the running requests, whose number is
// bounded by the prefetch, and the last responses, which are bounded by bytes and age. Safe
// for concurrent use.
type dedupCache struct {
	maxBytes int // 0: duplicates run like other requests
	maxAge   time.Duration
	seed     maphash.Seed

	mu      sync.Mutex // also guards the known table of every method
	oldest  *execution // of the stored executions, which are linked by next
	newest  *execution
	bytes   int
	waiting int // duplicates that wait, for all executions
	// calls maps the calls of requests to executions. It is nil unless the application sets
	// the scopes (WithDedupScope), which are known only inside the middleware.
	calls    map[callKey]*execution
	canceled xsync.Recent[callKey] // canceled calls without a request in progress here
}

// execution is one run of a handler, and later its stored response.
type execution struct {
	method   *serverMethod
	id       identity
	call     *callKey // of the request that runs or ran; nil unless dedupCache.calls is used
	replyTo  string   // of the request that runs or ran
	hash     uint64   // of the body
	hashSlot uint64   // the key in method.known
	known    bool     // the execution is in method.known: duplicates find it

	runner   *invocation // the running request; nil afterwards
	waiters  []*invocation
	done     chan struct{} // closed at the end; nil until a request waits
	canceled bool          // the context has ended because all callers have canceled

	stored   bool
	response response
	ended    time.Time
	next     *execution
}

// response is the result of a handler.
type response struct {
	body  []byte
	err   *Error
	props *wire.Properties // nil if there are none
}

// entryOverhead estimates the memory of a stored response without its ids and body, in bytes.
const entryOverhead = 256

func newDedupCache(maxBytes int, maxAge time.Duration, applicationScopes bool) *dedupCache {
	e := &dedupCache{maxBytes: maxBytes, maxAge: maxAge, seed: maphash.MakeSeed()}
	if applicationScopes {
		e.calls = make(map[callKey]*execution)
	}
	return e
}

// hashOf returns the hash by which bodies are compared. The seed is random in each process, so
// no client can create two bodies with the same hash.
func (e *dedupCache) hashOf(body []byte) uint64 { return maphash.Bytes(e.seed, body) }

// executionTable finds executions by the hash of a request's id: a map with the id as its key
// would hash and compare all parts of the id at each lookup. If two ids have the same hash,
// the second is not entered, and duplicates of its request run. With 64 bits and a random seed
// this does not happen in practice.
type executionTable map[uint64]*execution

// slotOf returns the key of an id in an executionTable.
func (e *dedupCache) slotOf(id *requestID) uint64 {
	slot := maphash.String(e.seed, id.id) + uint64(id.kind)
	for _, part := range [...]string{id.scope, id.replyTo} {
		slot *= 31 // for different hashes when two parts are exchanged
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
func (e *dedupCache) has(req *inboundRequest) bool {
	id, ok := req.in.identity()
	if !ok || req.method == nil || e.maxBytes == 0 {
		return false
	}
	hash, slot := e.hashOf(req.in.Body), e.slotOf(&id.requestID)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.evict(time.Now())
	x := req.method.known.find(&id.requestID, slot)
	if e.calls != nil {
		x = e.calls[req.in.callKey()]
	}
	return x != nil && x.hash == hash && x.isSameRequest(req.in, id.shared, hash)
}

// isSameRequest reports whether a request with the same id is a duplicate of the execution's
// request, and not the request of another caller with the same id. The hash of the body
// matters only in the last case.
func (x *execution) isSameRequest(in *incoming, shared bool, hash uint64) bool {
	switch {
	case x.replyTo == in.ReplyTo, shared && x.id.shared:
		return true
	default: // a caller whose address has changed with a reconnect
		return in.Resent && x.hash == hash
	}
}

// begin implements dedupStore.
func (e *dedupCache) begin(r *invocation, id identity, now time.Time) (dedupDecision, *execution) {
	req := r.request
	hash, slot := e.hashOf(req.in.Body), e.slotOf(&id.requestID)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.canceled.Len(now) > 0 && e.canceled.Remove(r.call(), now) {
		return dedupCanceled, nil
	}
	e.evict(now)
	known := req.method.known.find(&id.requestID, slot)
	if known != nil && known == r.ran && known.stored { // middleware runs the handler again
		e.remove(known)
		known = nil
	}
	switch {
	case known == nil, e.maxBytes == 0, known.runner == r, !known.isSameRequest(req.in, id.shared, hash):
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
	if r.ran == nil && req.method.atMostOnce && req.wasDeliveredBefore() {
		return dedupMayRan, nil
	}
	x := &execution{method: req.method, id: id, replyTo: req.in.ReplyTo, hash: hash, hashSlot: slot, runner: r}
	if x.known = req.method.known[slot] == nil; x.known {
		req.method.known[slot] = x
		if e.calls != nil {
			call := r.call()
			x.call = &call
			e.calls[call] = x
		}
	}
	r.ran = x
	return dedupRun, x
}

// wait adds a request to the waiting requests of x. The caller holds mu.
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
		return nil // the execution has ended
	}
	x.waiters = slices.Delete(x.waiters, i, i+1)
	e.unwait(r, x)
	return x.abandon()
}

// unwait removes the records of a request that waited for x. The caller holds mu.
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

// handOver decides which waiting requests take the response of an execution, and which of
// these respond to their callers. If several requests belong to one call, as after the loss of
// a connection or a re-send, only the newest responds: its session is the most likely to be
// alive. handOver reports whether a waiting request responds for the request that ran.
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

// store adds an ended execution to the stored executions. The caller holds mu.
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

// evict removes stored executions beyond maxAge or maxBytes, oldest first. The caller holds
// mu.
func (e *dedupCache) evict(now time.Time) {
	for x := e.oldest; x != nil && (e.bytes > e.maxBytes || now.Sub(x.ended) > e.maxAge); x = e.oldest {
		e.bytes -= x.size()
		e.forget(x)
		if e.oldest = x.next; e.oldest == nil {
			e.newest = nil
		}
	}
}

// remove removes a stored execution. The caller holds mu.
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

// forget removes an execution from the tables, so no request finds it. The caller holds mu.
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
	n += x.response.props.Size()
	return n
}

// deduplicate returns h with deduplication, the innermost layer of a method's handler.
func (s *Server) deduplicate(h Handler) Handler {
	return func(ctx context.Context, req *Request) ([]byte, error) {
		r, _ := ctx.Value(invocationKey{}).(*invocation)
		if r == nil { // middleware has passed another context
			return h(ctx, req)
		}
		id, ok := r.id, r.identified
		if s.cfg.dedupScope != nil && r.request.in.Key != "" {
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

// runOnce runs the handler of a request, or returns the response of an execution of the same
// request.
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

// refuseDuplicate returns the error for a request that is neither run nor replayed.
func (s *Server) refuseDuplicate(r *invocation, decision dedupDecision) error {
	switch decision {
	case dedupConflict:
		return r.refuse(refusal(CodeFailedPrecondition, "the idempotency key %q was used for a request with another body", r.id.id))
	case dedupCanceled:
		s.counts.canceled.Add(1)
		return r.refuse(refusal(CodeCanceled, "its caller canceled it before it ran"))
	case dedupMayRan:
		return r.refuse(deliveredOnceError(r.request.method.name))
	default:
		e := Errorf(CodeResourceExhausted, "%d duplicates of requests wait already", maxWaitingDuplicates)
		e.outcome = MayHaveRun
		return r.refuse(e)
	}
}

// replay returns the stored response of execution x for the duplicate request r. The response
// is a copy, because middleware may change the slice that replay returns.
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

// awaitExecution waits until an execution has ended. Meanwhile another worker takes the place
// of the request's worker. awaitExecution returns an error if ctx ends first.
func (s *Server) awaitExecution(ctx context.Context, r *invocation, x *execution) error {
	s.lendWorker(r) //nolint:contextcheck // the other worker outlives this request.
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
		unwanted.Cancel()
	}
	select {
	case <-x.done: // the execution ended at the same time
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

// runExecution runs the handler and ends the execution, however the handler ends.
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

// responseOf returns the response of an execution. If final is true, the response is stored:
// an error is not final if it may not occur on another attempt, or if the handler's context
// has ended. If shared is true, the waiting requests take the response: they share an error of
// the operation, but no error about the request that ran, such as its deadline or credentials.
func responseOf(ctx context.Context, body []byte, err error) (r response, final, shared bool) {
	if err == nil {
		return response{body: body}, true, true
	}
	coded := ownError(err)
	if coded == nil {
		coded = internalError()
	}
	kept := *coded
	kept.causes = nil // causes belong to the request that ran and must not stay in memory
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

// ownError returns the part of a handler's error which a response keeps: the coded error, an
// error for the end of the context, or nil. Methods of err, which may panic, are called.
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
