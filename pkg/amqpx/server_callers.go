package amqpx

import (
	"container/heap"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// Limits of callers, and turns between callers. Without [WithCallerLimits] a server has no
// callers, and its requests go straight into the queue of the workers. Otherwise each request
// has an admission, which counts the request for its caller until the request is finished. With
// fair queueing a request waits here until it may have a worker; only then does it enter the
// queue of the workers, which therefore holds no more requests than there are free workers.

// CallerLimits bound the share of one caller in one server, so that a caller with many or slow
// calls leaves room for other callers. A caller is the user of the broker ([Request.User]) or,
// for a request without a user, its reply_to. 0 means no limit.
//
// A request beyond MaxCalls or MaxBytes is refused with [CodeResourceExhausted] and [DidNotRun],
// and with a hint when to send it again; a one-way request is dropped, or left to a dead-letter
// policy of the queue. A redelivered request, and a repetition of a call that runs in this
// server, are never refused for these limits. A request beyond MaxRunning waits.
//
// The server sees only the requests that the broker has delivered to it ([WithPrefetch]), and the
// broker delivers in the order of arrival or, in a queue with priorities, those with a high priority
// first ([WithPriority]). MaxCalls must therefore be smaller than the prefetch count, or one caller's
// requests can fill the prefetch; then the requests of other callers wait in the broker's queue.
// Callers without a user can choose any reply_to: a server tells at most
// 1,024 such callers apart, and all further callers share the limits of one. Use [Authorize] to
// refuse callers without a user.
type CallerLimits struct {
	// MaxCalls bounds the calls of one caller in the server, from arrival until the broker has
	// confirmed the response.
	MaxCalls int
	// MaxBytes is the size of the bodies of these calls, in bytes. A caller with nothing in
	// the server may send one request of any size.
	MaxBytes int
	// MaxRunning is how many handlers may run at once for one caller. A MaxRunning above 0 turns
	// on Fair.
	MaxRunning int
	// Fair lets callers take turns: while requests wait for a worker, each caller with waiting
	// requests gets the same share of the workers' time, and no caller waits without end, however
	// many other callers come and go. Without Fair requests run in the order of their priorities and
	// of their arrival.
	Fair bool
}

// WithCallerLimits sets the limits of each caller; the default is no limit, and no turns. Limits
// cost each request an allocation and, while hundreds of callers have requests waiting, about
// a microsecond.
func WithCallerLimits(l CallerLimits) ServerOption {
	return serverOption(func(c *serverConfig) { c.callerLimits = l })
}

// fault returns an error for invalid limits, or nil.
func (l CallerLimits) fault() error {
	if l.MaxCalls < 0 || l.MaxBytes < 0 || l.MaxRunning < 0 {
		return fmt.Errorf("limits of each caller of %d calls, %d bytes and %d running: want 0 or more", l.MaxCalls, l.MaxBytes, l.MaxRunning)
	}
	return nil
}

// maxAnonymousCallers bounds how many callers without a user are told apart.
const maxAnonymousCallers = 1024

// minShare is the least worker time for which a caller is charged.
const minShare = int64(time.Microsecond)

// The retry hint of a refusal is between these bounds.
const (
	callerRetryMin = 10 * time.Millisecond
	callerRetryMax = time.Second
)

// callerID identifies a caller.
type callerID struct {
	user    string
	replyTo string // "" for a caller with a user
}

// newCallerID returns the id of a request's caller.
func newCallerID(user, replyTo string) callerID {
	if user != "" {
		return callerID{user: user}
	}
	return callerID{replyTo: replyTo}
}

// sharedCaller is the id of all callers without a user beyond maxAnonymousCallers.
func sharedCaller() callerID { return callerID{replyTo: "\x00shared"} }

// caller is the part of a server's work that belongs to one caller. The lock of callers guards
// it. A caller without work is forgotten, so the work in hand bounds the number of callers.
type caller struct {
	id          callerID
	calls       int   // in hand
	bytes       int64 // of the bodies in hand
	running     int   // requests that have a worker, or are in the queue of the workers
	first, last *admission
	waiting     int   // admissions from first to last
	runnable    int   // of these, how many may run now as far as MaxRunning is concerned
	finish      int64 // the virtual time at which the caller's next request is due
	place       int   // in callers.ready; -1: not in it
	turn        uint64
}

// admission is the entry of one request among the work of its caller. The lock of callers
// guards it.
type admission struct {
	request  *inboundRequest
	caller   *caller
	bytes    int64
	next     *admission
	share    int64 // the charged worker time, in ns, an estimate until the request has run
	occupies bool  // the request has a worker, or is in the queue of the workers
}

// callers holds the callers of a server. The turns follow start-time fair queueing: the next
// request to start is the request that was due first, in virtual time, and each request makes its
// caller due later, by the worker time of the request. The virtual time, in ns, is never before
// the time at which a started request was due, and it passes with every start (see pass). A caller
// that arrives without work in hand is due now, because absence earns no credit, or later if the
// caller left a debt. Safe for concurrent use.
type callers struct {
	limits  CallerLimits
	workers int
	queue   *xsync.Queue[task] // of the workers
	load    *load
	// room receives a token when fewer runnable requests wait than queueRoom, after more did.
	room chan struct{}

	mu        sync.Mutex
	all       map[callerID]*caller
	anonymous int       // callers without a user in all
	ready     readyHeap // the callers whose next request may run
	backlog   int       // waiting requests of all callers
	runnable  int       // of these, how many wait only for a worker
	occupied  int       // requests that occupy a worker
	now       int64     // virtual time
	debts     debts
	turns     uint64
	open      bool // the server drains: nothing waits here any more
	released  []task
}

// newCallers returns the callers of a server, or nil if its limits are zero.
func newCallers(limits CallerLimits, workers int, queue *xsync.Queue[task], load *load) *callers {
	if limits == (CallerLimits{}) {
		return nil
	}
	limits.Fair = limits.Fair || limits.MaxRunning > 0
	return &callers{
		limits: limits, workers: workers, queue: queue, load: load, room: make(chan struct{}, 1), all: make(map[callerID]*caller),
	}
}

// errCallerLimit is the reason for which admit refuses a request.
var errCallerLimit = errors.New("the caller has as much in hand as it may")

// admit counts a request for its caller. Unless always is true, it refuses a request beyond the
// limits. calls and bytes count the requests that the caller has in hand.
func (c *callers) admit(req *inboundRequest, id callerID, size int, always bool) (calls int, bytes int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.all[id]
	if k == nil && id.user == "" && c.anonymous >= maxAnonymousCallers {
		id = sharedCaller()
		k = c.all[id]
	}
	if k == nil {
		k = &caller{id: id, place: -1, finish: c.debts.take(id)}
		c.all[id] = k
		if id.user == "" {
			c.anonymous++
		}
	}
	l := &c.limits
	tooMany := l.MaxCalls > 0 && k.calls >= l.MaxCalls || l.MaxBytes > 0 && k.calls > 0 && k.bytes+int64(size) > int64(l.MaxBytes)
	if tooMany && !always {
		return k.calls, k.bytes, errCallerLimit
	}
	k.calls++
	k.bytes += int64(size)
	req.admission = &admission{request: req, caller: k, bytes: int64(size)}
	return k.calls, k.bytes, nil
}

// leave ends an admission: the request is finished.
func (c *callers) leave(a *admission) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.caller.calls--
	a.caller.bytes -= a.bytes
	c.forget(a.caller)
}

// forget removes a caller without work. While other callers wait, it keeps the caller's debt: a
// caller that makes one call at a time would otherwise be due now with every call, however long
// its calls run.
func (c *callers) forget(k *caller) {
	if k.calls > 0 || k.running > 0 || c.all[k.id] != k {
		return
	}
	delete(c.all, k.id)
	if k.finish > c.now && !c.isIdle() {
		c.debts.add(k.id, k.finish)
	}
	if k.id.user == "" {
		c.anonymous--
	}
}

// isIdle reports whether a worker is free and no request waits only for a worker. The caller of
// isIdle holds mu.
func (c *callers) isIdle() bool { return len(c.ready) == 0 && c.occupied < c.workers }

// put passes requests to the workers, or lets them wait for their callers' turns.
func (c *callers) put(tasks []task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range tasks {
		req, ok := t.(*inboundRequest)
		if !ok || req.admission == nil || c.open {
			c.released = append(c.released, t)
			continue
		}
		k := req.admission.caller
		if k.first == nil {
			k.finish = max(k.finish, c.now)
		}
		c.insert(k, req.admission)
		c.rank(k)
	}
	c.release()
}

// insert lets an admission wait behind those of its caller that have at least its priority. The
// caller of insert holds mu.
func (c *callers) insert(k *caller, a *admission) {
	k.waiting++
	c.backlog++
	priority := a.request.priority()
	if k.first == nil || priority <= k.last.request.priority() {
		if k.first == nil {
			k.first = a
		} else {
			k.last.next = a
		}
		k.last = a
		return
	}
	at := &k.first
	for (*at).request.priority() >= priority {
		at = &(*at).next
	}
	a.next, *at = *at, a
}

// rank puts a caller into its place in ready, or removes the caller. The caller of rank holds
// mu.
func (c *callers) rank(k *caller) {
	mayRun := k.first != nil && (c.limits.MaxRunning == 0 || k.running < c.limits.MaxRunning)
	switch {
	case mayRun && k.place < 0:
		c.turns++
		k.turn = c.turns
		heap.Push(&c.ready, k)
	case mayRun:
		heap.Fix(&c.ready, k.place)
	case k.place >= 0:
		heap.Remove(&c.ready, k.place)
	}
	c.runnable -= k.runnable
	switch k.runnable = 0; {
	case mayRun && c.limits.MaxRunning > 0:
		k.runnable = min(k.waiting, c.limits.MaxRunning-k.running)
	case mayRun:
		k.runnable = k.waiting
	}
	c.runnable += k.runnable
}

// release passes the requests whose turn it is to the workers, as many as there are free
// workers. The caller of release holds mu.
func (c *callers) release() {
	for len(c.ready) > 0 && c.occupied < c.workers {
		k := c.ready[0]
		a := c.take(k)
		c.now = max(c.now, k.finish)
		c.occupy(a)
		c.turns++
		k.turn = c.turns
		c.rank(k)
		c.pass(a.share)
		c.released = append(c.released, a.request)
	}
	if c.isIdle() {
		c.debts.clear()
	}
	if len(c.released) > 0 {
		c.queue.Put(0, c.released...)
		clear(c.released)
		c.released = c.released[:0]
	}
	c.offerRoom()
}

// pass lets the virtual time pass with a start, by the share of the started request that each
// competing caller has missed. Without pass the virtual time would stand still while new callers
// with one call each wait: all of them would be due before a caller with more calls. The virtual
// time is at most one share ahead of the caller that is due first, so estimates that are too high
// do not make new callers wait for longer. The caller of pass holds mu.
func (c *callers) pass(share int64) {
	next := c.now + share/int64(len(c.ready)+1)
	if len(c.ready) > 0 {
		next = min(next, c.ready[0].finish+share)
	}
	c.now = max(c.now, next)
}

// offerRoom sends the token of room if few runnable requests wait. The caller of offerRoom holds
// mu.
func (c *callers) offerRoom() {
	if c.runnable >= queueRoom || len(c.room) > 0 {
		return
	}
	select {
	case c.room <- struct{}{}:
	default:
	}
}

// hasRoom reports whether few requests wait only for a worker. Requests that wait because their
// caller has MaxRunning handlers do not count: they would keep all batches out while workers are
// free.
func (c *callers) hasRoom() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.runnable < queueRoom
}

// take removes the first waiting request of a caller. The caller of take holds mu.
func (c *callers) take(k *caller) *admission {
	a := k.first
	if k.first = a.next; k.first == nil {
		k.last = nil
	}
	a.next = nil
	k.waiting--
	c.backlog--
	return a
}

// occupy records that a request has a worker, and charges its caller for the average time of a
// request. The caller of occupy holds mu.
func (c *callers) occupy(a *admission) {
	a.occupies = true
	a.share = max(c.load.average.Load(), minShare)
	a.caller.finish += a.share
	a.caller.running++
	c.occupied++
}

// leaveWorker records that a request has no worker any more, after took, and charges its caller
// for the time which the request took instead of the estimate.
func (c *callers) leaveWorker(a *admission, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !a.occupies {
		return
	}
	a.occupies = false
	k := a.caller
	k.running--
	c.occupied--
	k.finish += max(int64(took), minShare) - a.share
	c.rank(k)
	c.forget(k)
	c.release()
}

// regainWorker records that a request has a worker again, out of turn, see Server.regainWorker and
// Server.park.
func (c *callers) regainWorker(a *admission) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.occupies {
		return
	}
	c.occupy(a)
	c.rank(a.caller)
	c.offerRoom()
}

// openAll passes all waiting requests to the workers, now and from now on: a draining server
// puts requests back into their queue, for which no caller needs to wait.
func (c *callers) openAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = true
	c.releaseIf(func(*admission) bool { return true })
}

// releaseOf passes the waiting requests of an ended consumer to the workers, which drop them.
func (c *callers) releaseOf(ended *consumer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.releaseIf(func(a *admission) bool { return a.request.delivery.consumer == ended })
}

// releaseIf passes some of the waiting requests to the workers, out of turn. The caller of
// releaseIf holds mu.
func (c *callers) releaseIf(matches func(*admission) bool) {
	for _, k := range c.all {
		next := k.first
		c.backlog -= k.waiting
		k.first, k.last, k.waiting = nil, nil, 0
		for next != nil {
			a := next
			next, a.next = a.next, nil
			if matches(a) {
				c.released = append(c.released, a.request)
			} else {
				c.insert(k, a)
			}
		}
		c.rank(k)
	}
	c.release()
}

// waiting returns the number of waiting requests.
func (c *callers) waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.backlog
}

// before estimates how many waiting requests will start before a request that does not wait yet.
func (c *callers) before(a *admission) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, priority := a.caller, a.request.priority()
	others := len(c.ready)
	if k.place >= 0 {
		others--
	}
	own := k.waiting
	if priority > 0 {
		own = 0
		for w := k.first; w != nil && w.request.priority() >= priority; w = w.next {
			own++
		}
	}
	return min(own+(own+1)*others, c.backlog)
}

// admit counts an arrived request for its caller, or refuses the request because the caller has
// as much in hand as it may. It reports whether the request goes on.
func (s *Server) admit(req *inboundRequest, user string, size int) bool {
	if s.callers == nil || s.isDraining() { // a draining server leaves the request to another server
		return true
	}
	d := &req.delivery.message
	id := newCallerID(user, d.ReplyTo)
	calls, bytes, err := s.callers.admit(req, id, size, d.Redelivered || s.isOwnCopy(d))
	if err == nil {
		return true
	}
	in, failed := req.decode()
	if failed == nil && s.dedup.has(req) { // the call runs here already
		_, _, _ = s.callers.admit(req, id, size, true)
		return true
	}
	s.counts.callerLimited.Add(1)
	s.logs.callerLimit.of(s.cfg.logger).Warn("refused a call: its caller has as much in hand as it may", zap.String("user", user),
		zap.String("reply_to", d.ReplyTo), zap.String("method", wire.Truncate(in.Method, wire.MaxShortString)),
		zap.Int("calls", calls), zap.Int64("bytes", bytes))
	if failed == nil {
		failed = refusal(CodeResourceExhausted, "the caller has %d calls of %d bytes in this server, as much as it may", calls, bytes)
		failed.retryAfter = s.callerRetryAfter(calls)
	}
	if in.OneWay && !req.delivery.batched {
		req.delivery.disposition = disposeReject
	}
	s.refuse(req, failed)
	return false
}

// callerRetryAfter estimates the time after which a caller has fewer calls in hand.
func (s *Server) callerRetryAfter(calls int) time.Duration {
	workers := s.cfg.workers
	if most := s.cfg.callerLimits.MaxRunning; most > 0 {
		workers = min(workers, most)
	}
	all := time.Duration(s.load.average.Load()) * time.Duration(calls) / time.Duration(workers)
	return min(max(all, callerRetryMin), callerRetryMax)
}

// takesTurns reports whether requests wait for the turns of their callers.
func (s *Server) takesTurns() bool { return s.callers != nil && s.callers.limits.Fair }

// queuePriority returns the priority of a request in the queue of the workers. Where callers take
// turns it is 0, because requests reach the queue in their turns.
func (s *Server) queuePriority(req *inboundRequest) uint8 {
	if s.takesTurns() {
		return 0
	}
	return req.priority()
}

// putWaiting passes admitted requests of a priority to the workers, or lets them wait for their
// callers' turns.
func (s *Server) putWaiting(priority uint8, tasks ...task) {
	if s.takesTurns() {
		s.callers.put(tasks)
		return
	}
	s.waiting.Put(priority, tasks...)
}

// hasRoom reports whether few requests wait only for a worker. If not, room receives a token later.
func (s *Server) hasRoom() bool {
	if s.takesTurns() {
		return s.callers.hasRoom()
	}
	return s.waiting.HasRoom()
}

// room returns the channel which receives a token when few requests wait only for a worker.
func (s *Server) room() <-chan struct{} {
	if s.takesTurns() {
		return s.callers.room
	}
	return s.waiting.Room
}

// waitingTasks returns the number of requests that wait for a worker.
func (s *Server) waitingTasks() int {
	n := s.waiting.Len()
	if s.callers != nil {
		n += s.callers.waiting()
	}
	return n
}

// waitingBefore estimates how many waiting requests will start before a request.
func (s *Server) waitingBefore(req *inboundRequest) int {
	n := s.waiting.Before(s.queuePriority(req))
	if req.admission != nil {
		n += s.callers.before(req.admission)
	}
	return n
}

// leaveWorker records that a request has no worker any more, after took.
func (s *Server) leaveWorker(req *inboundRequest, took time.Duration) {
	if req.admission != nil {
		s.callers.leaveWorker(req.admission, took)
	}
}
