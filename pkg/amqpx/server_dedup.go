package amqpx

import (
	"bytes"
	"context"
	"errors"
	"hash/maphash"
	"math"
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

// toWire returns the response of a server with an id as it travels.
func (r *reply) toWire(server []byte) wire.Response {
	w := wire.Response{Body: r.body, Properties: r.props, Times: r.times, Server: server}
	if r.failed != nil {
		w.Failure = failureOf(r.failed)
	}
	return w
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

// dedupCache decides which requests are duplicates, among the requests of this process; see
// WithDedupStore for those of other servers. It knows the running requests, whose number is
// bounded by the prefetch, and the last responses, which are bounded by bytes and age. Safe
// for concurrent use.
type dedupCache struct {
	maxBytes int // 0: duplicates run like other requests
	maxAge   time.Duration
	start    time.Time // from which the ring counts time
	seed     maphash.Seed
	hashMask uint64 // of the hashes of ids: all ones, except in tests of equal hashes
	// leaves reports whether a request that may have run is left to the store of WithDedupStore; may
	// be nil.
	leaves func(*inboundRequest) bool

	mu      sync.Mutex
	running executionTable
	stored  responseRing
	origins origins // of the stored responses
	waiting int     // duplicates that wait, for all executions
	// calls maps the calls of requests to executions. It is nil unless the application sets
	// the scopes (WithDedupScope), which are known only inside the middleware.
	calls    map[callKey]callEntry
	canceled xsync.Recent[callKey] // canceled calls without a request in progress here
}

// executedRequest is the request of an execution, or of a stored response.
type executedRequest struct {
	method   *serverMethod
	id       identity
	call     *callKey // nil unless dedupCache.calls is used
	replyTo  string
	bodyHash uint64
	idHash   uint64
}

// execution is one run of a handler.
type execution struct {
	executedRequest

	known    bool       // duplicates find the execution in dedupCache.running
	sameHash *execution // the next execution in dedupCache.running with the same idHash

	runner   *invocation // the running request; nil afterwards
	waiters  []*invocation
	done     chan struct{} // closed at the end; nil until a request waits
	canceled bool          // the context has ended because all callers have canceled

	response response // set at the end
	stored   uint64   // the number of the stored response; 0 if the response is not stored
}

// callEntry is the execution in which a call takes part, or the number of its stored response.
type callEntry struct {
	running *execution
	stored  uint64
}

// response is the result of a handler.
type response struct {
	body  []byte
	err   *Error
	props *wire.Properties // nil if there are none
}

func newDedupCache(maxBytes int, maxAge time.Duration, applicationScopes bool) *dedupCache {
	e := &dedupCache{
		maxBytes: maxBytes, maxAge: maxAge, start: time.Now(), seed: maphash.MakeSeed(), hashMask: math.MaxUint64,
		running: make(executionTable),
	}
	if applicationScopes {
		e.calls = make(map[callKey]callEntry)
	}
	return e
}

// describe returns the description of a request, by which its duplicates are found. The seed of
// the hashes is random in each process, so no client can create two bodies with the same hash.
func (e *dedupCache) describe(req *inboundRequest, id identity) executedRequest {
	return executedRequest{
		method: req.method, id: id, replyTo: req.in.ReplyTo,
		bodyHash: maphash.Bytes(e.seed, req.in.Body), idHash: e.hashOf(&id.requestID),
	}
}

// hashOf returns the hash of an id for the tables.
func (e *dedupCache) hashOf(id *requestID) uint64 {
	hash := maphash.String(e.seed, id.id) + uint64(id.kind)
	for _, part := range [...]string{id.scope, id.replyTo} {
		hash *= 31 // for different hashes when two parts are exchanged
		if part != "" {
			hash += maphash.String(e.seed, part)
		}
	}
	return hash & e.hashMask
}

// find returns the running execution, or else the stored response and its number, of the
// requests with an id. The caller holds mu.
func (e *dedupCache) find(m *serverMethod, id *requestID, hash uint64) (x *execution, number uint64, stored *storedResponse) {
	if x = e.running.find(m, id, hash); x == nil {
		number, stored = e.stored.find(m, id, hash)
	}
	return x, number, stored
}

// requestOf returns the request of an execution or of a stored response; nil if both are nil.
func requestOf(x *execution, stored *storedResponse) *executedRequest {
	switch {
	case x != nil:
		return &x.executedRequest
	case stored != nil:
		return stored.request()
	default:
		return nil
	}
}

// has reports whether a duplicate of the request runs or has a stored response.
func (e *dedupCache) has(req *inboundRequest) bool {
	id, ok := req.in.identity()
	if !ok || req.method == nil || e.maxBytes == 0 {
		return false
	}
	d := e.describe(req, id)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.evict(time.Now())
	var known *executedRequest
	if e.calls == nil {
		x, _, stored := e.find(d.method, &d.id.requestID, d.idHash)
		known = requestOf(x, stored)
	} else {
		entry := e.calls[req.in.callKey()]
		known = requestOf(entry.running, e.stored.get(entry.stored))
	}
	return known != nil && known.bodyHash == d.bodyHash && known.isRepeatedBy(&d, req.in.Resent)
}

// isRepeatedBy reports whether a request with the same id is a duplicate of q, and not the
// request of another caller with the same id. The hash of the body matters only if the request
// was sent again from another address.
func (q *executedRequest) isRepeatedBy(d *executedRequest, resent bool) bool {
	switch {
	case q.replyTo == d.replyTo, d.id.shared && q.id.shared:
		return true
	default: // a caller whose address has changed with a reconnect
		return resent && q.bodyHash == d.bodyHash
	}
}

// begin decides how to handle a request with the given id. After dedupRun the caller runs the
// handler and calls end with the execution. After dedupWait the caller waits until the
// execution's done channel is closed, or calls leave.
func (e *dedupCache) begin(r *invocation, id identity, now time.Time) (dedupDecision, *execution) {
	req := r.request
	d := e.describe(req, id)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.canceled.Len(now) > 0 && e.canceled.Remove(r.call(), now) {
		return dedupCanceled, nil
	}
	e.evict(now)
	x, number, stored := e.find(d.method, &d.id.requestID, d.idHash)
	if stored != nil && r.ran != nil && number == r.ran.stored { // middleware runs the handler again
		e.remove(number, stored)
		stored = nil
	}
	known := requestOf(x, stored)
	switch {
	case known == nil, e.maxBytes == 0, x != nil && x.runner == r, !known.isRepeatedBy(&d, req.in.Resent):
	case known.bodyHash != d.bodyHash:
		return dedupConflict, nil
	case stored != nil:
		return dedupReplay, &execution{response: stored.response()}
	case e.waiting == maxWaitingDuplicates:
		return dedupTooMany, nil
	default:
		e.wait(r, x)
		return dedupWait, x
	}
	if r.ran == nil && req.method.atMostOnce && req.wasDeliveredBefore() && (e.leaves == nil || !e.leaves(req)) {
		return dedupMayRan, nil
	}
	x = &r.first
	if r.ran != nil { // by middleware, and may still be in use
		x = new(execution)
	}
	x.executedRequest, x.runner, x.known = d, r, known == nil
	if x.known {
		e.running.add(x)
		if e.calls != nil {
			call := r.call()
			x.call = &call
			e.calls[call] = callEntry{running: x}
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
	if call := r.call(); e.calls[call] == (callEntry{}) {
		e.calls[call] = callEntry{running: x}
	}
}

// leave removes request r from the requests that wait for x. If no caller waits for x any more, it
// returns the request that runs, for the caller of leave to cancel.
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
	if call := r.call(); (x.call == nil || call != *x.call) && e.calls[call].running == x {
		delete(e.calls, call)
	}
}

// end ends an execution and hands its response to the waiting requests. It stores the response if
// final is true. If shared is true, every waiting request takes the response, otherwise only
// requests of the call that ran. It reports whether another request of the same call responds to
// the caller.
func (e *dedupCache) end(x *execution, r response, final, shared bool, now time.Time) (silent bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	runner, waiters := x.runner, x.waiters
	x.runner, x.waiters = nil, nil
	x.response = r
	if len(waiters) > 0 {
		silent = x.handOver(runner, waiters, shared)
		for _, w := range waiters {
			e.unwait(w, x)
		}
		close(x.done)
	}
	if x.known {
		e.running.remove(x)
		x.known = false
		e.keep(x, final, now)
	}
	return silent
}

// responseAddress is where a response to a call goes.
type responseAddress struct {
	call    callKey
	replyTo string // differs from that of call for direct reply-to
}

// responseAddress returns the address of the response to the request.
func (r *invocation) responseAddress() responseAddress {
	return responseAddress{r.call(), r.request.in.ReplyTo}
}

// handOver decides which waiting requests take the response of an execution, and which of
// these respond to their callers. If several requests belong to one call, as after the loss of
// a connection or a re-send, only the newest at each address responds: its session is the most
// likely to be alive. A client with direct reply-to has a new address after a reconnect, and only
// one of its addresses is alive. The order of the requests does not tell which: a server that has
// lost its connection too publishes the earlier request again, behind the later one. handOver
// reports whether a waiting request responds for the request that ran.
func (x *execution) handOver(runner *invocation, waiters []*invocation, shared bool) (silent bool) {
	responds, ran := make(map[responseAddress]bool, len(waiters)), runner.call()
	for _, w := range slices.Backward(waiters) {
		to := w.responseAddress()
		w.takes = shared || to.call == ran
		if w.takes {
			w.silent.Store(responds[to])
			responds[to] = true
		}
	}
	return responds[runner.responseAddress()]
}

// keep stores the response of an ended execution if it is final and not too large. The caller
// holds mu.
func (e *dedupCache) keep(x *execution, final bool, now time.Time) {
	origin := e.origins.of(&x.executedRequest, x.response.props, maphash.String(e.seed, x.replyTo))
	stored := newStoredResponse(x, origin, now.Sub(e.start))
	ofCall := x.call != nil && e.calls[*x.call].running == x
	if !final || stored.size() > e.maxBytes {
		if ofCall {
			delete(e.calls, *x.call)
		}
		return
	}
	x.stored = e.stored.add(&stored)
	if ofCall {
		e.calls[*x.call] = callEntry{stored: x.stored}
	}
	e.evict(now)
}

// evict removes stored responses beyond maxAge or maxBytes, oldest first. The caller holds mu.
func (e *dedupCache) evict(now time.Time) {
	age := now.Sub(e.start) - e.maxAge
	for {
		oldest := e.stored.get(e.stored.first)
		if oldest == nil && e.stored.isEmpty() || oldest != nil && e.stored.bytes <= e.maxBytes && oldest.ended >= age {
			return
		}
		if oldest != nil {
			e.forget(e.stored.first, oldest)
		}
		e.stored.removeFirst()
	}
}

// remove removes a stored response. The caller holds mu.
func (e *dedupCache) remove(number uint64, stored *storedResponse) {
	e.forget(number, stored)
	e.stored.remove(number)
}

// forget removes a stored response from the calls. The caller holds mu.
func (e *dedupCache) forget(number uint64, stored *storedResponse) {
	if call := stored.call(); call != nil && e.calls[*call].stored == number {
		delete(e.calls, *call)
	}
}

// deduplicate returns h with deduplication, the innermost layer of a method's handler.
func (s *Server) deduplicate(h Handler) Handler {
	return func(ctx context.Context, req *Request) ([]byte, error) {
		r, _ := ctx.Value(invocationKey{}).(*invocation)
		if r == nil { // middleware has passed another context
			return req.runHandler(ctx, h)
		}
		id, ok := r.id, r.identified
		if s.cfg.dedupScope != nil && r.request.in.Key != "" {
			if scope := s.cfg.dedupScope(ctx, req); scope != "" {
				id, ok = identity{requestID{kind: scopeApplication, scope: scope, id: r.id.id}, true}, true
			}
		}
		if !ok {
			return req.runHandler(ctx, h)
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
			return nil, r.refuse(s.duplicateRefusal(r, decision))
		}
	}
}

// duplicateRefusal returns the error for a request that is neither run nor replayed.
func (s *Server) duplicateRefusal(r *invocation, decision dedupDecision) *Error {
	switch decision {
	case dedupConflict:
		return refusal(CodeFailedPrecondition, "the idempotency key %q was used for a request with another body", r.id.id)
	case dedupCanceled:
		s.counts.canceled.Add(1)
		return refusal(CodeCanceled, "its caller canceled it before it ran")
	case dedupMayRan:
		return deliveredOnceError(r.request.method.name)
	default:
		e := Errorf(CodeResourceExhausted, "%d duplicates of requests wait already", maxWaitingDuplicates)
		e.outcome = MayHaveRun
		return e
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
	defer s.waits(r)() //nolint:contextcheck // the other worker outlives this request.
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
	return r.refuse(endedWhileWaiting(ctx))
}

// endedWhileWaiting returns the error for a request whose context ended while it waited.
func endedWhileWaiting(ctx context.Context) *Error {
	code := CodeDeadlineExceeded
	if errors.Is(ctx.Err(), context.Canceled) {
		code = CodeCanceled
	}
	e := Errorf(code, "ended while it waited for the execution of the same request")
	e.outcome = MayHaveRun
	return e
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
	if s.sharesKey(r.request) {
		return s.runShared(ctx, r, x, h, req)
	}
	return req.runHandler(ctx, h)
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
	kept.causes, kept.hidden, kept.leftOut = nil, nil, nil // causes belong to the request that ran and must not stay in memory
	inTime := ctx.Err() == nil
	if kept.refused { // nothing was executed
		return response{err: &kept}, false, false
	}
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
