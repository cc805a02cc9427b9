package amqpx

import (
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// batchTarget is a client's knowledge of the batch queue: whether servers unpack batches at
// the moment, and which batches were returned. Only servers that unpack batches declare and
// consume the queue, so the client asks the broker for the number of consumers: once before the
// connection is ready, and then only while it makes calls. Safe for concurrent use.
type batchTarget struct {
	queue     string
	limit     int             // of a batch's body in bytes
	servers   atomic.Int32    // servers that unpack batches; 0: batching is disabled
	messages  atomic.Int64    // messages in the queue at the last check
	seq       atomic.Uint64   // number of batches
	onSent    func(calls int) // called for each batch
	onShut    func()          // called when batching is disabled
	aloneOwed int32           // for servers that do not unpack batches, see goesAlone

	mu          sync.Mutex
	returnedIDs map[string]bool // returned batches, until their confirms
	notBefore   time.Time       // batching stays disabled until then, because a batch was nacked
	refusals    *xsync.Backoff
}

func newBatchTarget(queue string, limit int, onSent func(calls int), onShut func()) *batchTarget {
	return &batchTarget{
		queue: queue, limit: limit, onSent: onSent, onShut: onShut,
		returnedIDs: make(map[string]bool), refusals: xsync.NewBackoff(checkEvery, checkMissingMax),
	}
}

// queueName returns the batch queue's name, or "" while no server unpacks batches.
func (l *batchTarget) queueName() string {
	if l.servers.Load() == 0 {
		return ""
	}
	return l.queue
}

// disable makes calls travel alone until the next check of the queue, including the calls that
// wait for a place in a batch.
func (l *batchTarget) disable() {
	if l.servers.Swap(0) > 0 {
		l.onShut()
	}
}

// nextID returns an id by which this client recognizes a batch.
func (l *batchTarget) nextID() string { return strconv.FormatUint(l.seq.Add(1), 36) }

// returned records a batch returned by the broker: no server unpacks batches any more.
func (l *batchTarget) returned(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.returnedIDs[id] = true
	l.disable()
}

// takeReturned reports whether a batch was returned, and removes the record.
func (l *batchTarget) takeReturned(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	came := l.returnedIDs[id]
	delete(l.returnedIDs, id)
	return came
}

// found enables or disables batching after a check of the queue.
func (l *batchTarget) found(st queueState) {
	l.mu.Lock()
	open := !time.Now().Before(l.notBefore)
	if open && st.consumers > 0 {
		l.refusals.Reset()
	}
	l.mu.Unlock()
	l.messages.Store(int64(st.messages))
	if !open || st.consumers == 0 {
		l.disable()
		return
	}
	l.servers.Store(int32(min(st.consumers, math.MaxInt32))) //nolint:gosec // bounded.
}

// refused disables batching for a growing pause, after a nack of a batch.
func (l *batchTarget) refused() {
	l.mu.Lock()
	l.notBefore = time.Now().Add(max(l.refusals.NextBackOff(), checkEvery))
	l.mu.Unlock()
	l.disable()
}

// resendBatched re-sends the idempotent calls in batches when the batch queue of a shard has no
// consumer: there may be servers that do not unpack batches. Other calls keep waiting.
func (c *Client) resendBatched(shard int) {
	for _, a := range c.pending.attempts() {
		if a.call.req.idempotent && a.isBatched() && a.shard() == shard {
			a.loseConfirmed(publish.Lost)
		}
	}
}

// BatchKey implements publish.Batchable.
func (a *attempt) BatchKey() string {
	switch {
	case a.suspected > 0:
		return ""
	case len(a.call.route.shards) > 0:
		return a.shardKey(a.mayJoinBatch())
	case a.mayJoinBatch():
		return a.batchKeyOf(a.call.route.batch.queueName())
	default:
		return ""
	}
}

// oneWayGroup begins the keys of the batchers of one-way requests: the requests of a batch share
// their reply_to and their delivery mode.
const oneWayGroup = "\x02"

// batchKeyOf returns the key of the attempt's batcher, given that of calls.
func (a *attempt) batchKeyOf(calls string) string {
	if calls != "" && a.call.req.isOneWay() {
		return oneWayGroup + calls
	}
	return calls
}

// mayJoinBatch reports whether the request may travel in a batch.
func (a *attempt) mayJoinBatch() bool {
	k := a.call
	l := k.route.batch
	if l == nil || a.alone {
		return false
	}
	if req := k.req.measured(); !req.FitsBatch() || req.BatchSize() > publish.MaxRecordBytes {
		return false
	}
	others := k.route.watch.others.Load()
	return others == 0 || !l.goesAlone(others)
}

// goesAlone selects the calls that travel alone, for the servers that do not unpack batches.
// All servers take these calls in turn, so twice the share of these servers travels alone, and
// at most three calls of four: batching must remain useful. Only the publisher's writer calls
// goesAlone.
func (l *batchTarget) goesAlone(others int32) bool {
	const most, of = 3, 4
	all := others + l.servers.Load()
	if l.aloneOwed += min(2*of*others, most*all); l.aloneOwed < of*all {
		return false
	}
	l.aloneOwed -= of * all
	return true
}

// deadlineShare is the largest share of its remaining time by which a call may expire early
// because of the batch: an eighth.
const deadlineShare = 8

// MustTravelAlone implements publish.Batchable.
func (a *attempt) MustTravelAlone() bool {
	if len(a.call.route.shards) > 0 {
		return !a.hasBatchQueue()
	}
	return a.call.route.batch.servers.Load() == 0
}

// Consumers implements publish.Batchable.
func (a *attempt) Consumers() int {
	if len(a.call.route.shards) > 0 {
		return a.batchConsumers()
	}
	return max(int(a.call.route.batch.servers.Load()), 1)
}

// NewBatch implements publish.Batchable.
func (a *attempt) NewBatch(_ string, limit int, buffer []byte) publish.Batch {
	route, target, shard := a.call.route, a.call.route.batch, 0
	if len(route.shards) > 0 {
		shard = a.shard()
		target = route.shards[shard].batch
	}
	return &callBatch{
		shard: shard, limit: min(limit, target.limit), body: buffer, begun: time.Now(),
		target: target, replyTo: a.call.replyTo(), persistent: a.call.isPersistent(),
	}
}

// callBatch is a batch of calls, or of one-way requests. It has one expiration, the shortest
// remaining time of its calls, so that no call runs after its caller has gone.
type callBatch struct {
	attempts    []*attempt
	shard       int
	target      *batchTarget
	id          string
	replyTo     string
	user        string        // the broker's user, of all the calls
	begun       time.Time     // when the batch was made
	least, most time.Duration // the shortest and the longest remaining time of the calls
	persistent  bool
	limit       int    // of the body in bytes
	body        []byte // valid until the batch is published
}

// Fits implements publish.Batch. Only calls with about the same remaining time travel together.
func (b *callBatch) Fits(m publish.Batchable) bool {
	a, ok := m.(*attempt)
	if !ok {
		return false
	}
	left, req := a.call.budget(b.begun), a.call.req.measured()
	least, most := min(b.least, left), max(b.most, left)
	if least == wire.NoBudget && most != wire.NoBudget {
		return false
	}
	return len(b.body)+req.BatchSize() <= b.limit && most <= least+least/deadlineShare
}

// Add implements publish.Batch.
func (b *callBatch) Add(m publish.Batchable) {
	a, ok := m.(*attempt)
	if !ok {
		return
	}
	left := a.call.budget(b.begun)
	if len(b.attempts) == 0 {
		b.id, b.least, b.most, b.user = b.target.nextID(), left, left, a.call.route.user.get()
	}
	a.marks.Or(markBatched)
	a.SetQueue(b.shard)
	b.attempts = append(b.attempts, a)
	b.least, b.most = min(b.least, left), max(b.most, left)
	b.body = a.appendTo(b.body, left)
}

// Size implements publish.Batch.
func (b *callBatch) Size() int { return len(b.attempts) }

// Sent implements publish.Batch.
func (b *callBatch) Sent() { b.target.onSent(len(b.attempts)) }

// Buffer implements publish.Batch.
func (b *callBatch) Buffer() []byte { return b.body }

// BeginSend implements publish.Outbound; BeginSend of each call was called before Add.
func (b *callBatch) BeginSend(uint64) bool { return true }

// Canceled implements publish.Outbound.
func (b *callBatch) Canceled() bool { return false }

// Publishing implements publish.Outbound.
func (b *callBatch) Publishing() (key string, mandatory bool, msg amqp.Publishing) {
	return b.target.queue, true, amqp.Publishing{
		ContentType: wire.ContentTypeRequests, DeliveryMode: wire.DeliveryMode(b.persistent), CorrelationId: b.id, ReplyTo: b.replyTo,
		UserId: b.user, Expiration: wire.Expiration(b.least), Body: b.body,
	}
}

// Reject implements publish.Rejectable: the broker accepted no part of the batch, and its
// calls are sent again in smaller batches, or alone.
func (b *callBatch) Reject(error) { b.notifyAll(publish.Unsent) }

// OnResult implements publish.Outbound. The calls of a returned batch reached no queue, and
// are sent again alone.
func (b *callBatch) OnResult(f publish.Result) {
	if b.target.takeReturned(b.id) {
		f = publish.Unsent
	} else if f == publish.Nacked {
		b.target.refused()
	}
	b.notifyAll(f)
}

func (b *callBatch) notifyAll(f publish.Result) {
	for _, a := range b.attempts {
		a.OnResult(f)
	}
}

// queueGate holds calls back while the request queue does not take messages. A broker in
// trouble then gets a single request at a time from a client instead of a request from every
// waiting call. While the gate is shut, one parked call at a time has the turn: its request is
// published as the probe. A confirm opens the gate for all calls. Safe for concurrent use.
type queueGate struct {
	isShut atomic.Bool
	turn   chan struct{} // has a token when the next parked call may publish

	mu          sync.Mutex
	opened      chan struct{} // closed when the gate opens; nil while the gate is open
	epoch       uint64        // number of times the gate was shut
	refusedFrom time.Time     // start of the broker's nacks; zero: requests were returned, or nothing is known
	fullUntil   time.Time     // until then a nack means a queue at its bound
	renewals    int           // connections replaced since the gate was open
	wait        *xsync.Backoff
	timer       *time.Timer // grants the next turn; nil while no turn is due
}

const (
	// probeMin and probeMax bound the wait before the next probe of a shut gate.
	probeMin = 20 * time.Millisecond
	probeMax = 500 * time.Millisecond
	// fullFor is how long a queue counts as full after a nack proved the queue to be full.
	fullFor = 5 * time.Second
)

func newQueueGate() *queueGate {
	return &queueGate{turn: make(chan struct{}, 1), wait: xsync.NewBackoff(probeMin, probeMax)}
}

// shut shuts the gate because a request was nacked or returned, and reports whether the gate
// was open. The first probe is due after a wait.
func (g *queueGate) shut(nacked bool) (was bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if nacked && g.refusedFrom.IsZero() {
		g.refusedFrom = time.Now()
	} else if !nacked {
		g.refusedFrom = time.Time{}
	}
	if g.opened != nil {
		return false
	}
	g.opened = make(chan struct{})
	g.epoch++
	g.isShut.Store(true)
	g.wait.Reset()
	g.schedule()
	return true
}

// schedule grants the turn to a parked call after a wait. The caller holds mu.
func (g *queueGate) schedule() {
	if g.timer == nil {
		g.timer = time.AfterFunc(max(g.wait.NextBackOff(), time.Millisecond), g.grant)
	}
}

// grant gives the turn to a parked call.
func (g *queueGate) grant() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.timer = nil
	if g.opened == nil {
		return
	}
	offerToken(g.turn)
}

// pass ends the turn of the call that had it in an epoch: the probe failed, or the call ended.
// Another parked call gets the turn after a wait.
func (g *queueGate) pass(epoch uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened != nil && g.epoch == epoch {
		g.schedule()
	}
}

// open opens the gate because the broker has confirmed a request.
func (g *queueGate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refusedFrom, g.renewals = time.Time{}, 0
	g.release()
}

// full opens the gate because a probe was nacked by a queue at its bound.
func (g *queueGate) full() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fullUntil = time.Now().Add(fullFor)
	g.release()
}

// release opens the gate. The caller holds mu.
func (g *queueGate) release() {
	if g.opened == nil {
		return
	}
	close(g.opened)
	g.opened = nil
	g.isShut.Store(false)
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	select {
	case <-g.turn: // the probe is not needed any more
	default:
	}
}

// isFull reports whether the queue was at its bound a moment ago.
func (g *queueGate) isFull() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Now().Before(g.fullUntil)
}

// refusing returns how long the broker has nacked every request of the client.
func (g *queueGate) refusing() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refusedFrom.IsZero() {
		return 0
	}
	return time.Since(g.refusedFrom)
}

// mayRenew reports whether a connection of the given age is to be replaced, because the broker
// has nacked every request for a while. The required age grows with each replaced connection.
func (g *queueGate) mayRenew(age time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refusedFrom.IsZero() || time.Since(g.refusedFrom) < nackedConnectionAfter || age < nackedConnectionAfter<<min(g.renewals, 4) {
		return false
	}
	g.renewals++
	return true
}

// passage returns the channel that is closed when the gate opens, and the gate's epoch; the
// channel is nil while the gate is open.
func (g *queueGate) passage() (opened <-chan struct{}, epoch uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened, g.epoch
}

// park holds a call back until the gate opens or the call gets the turn to probe.
func (k *call) park(gone <-chan struct{}) event {
	g := k.route.queueGate
	opened, _ := g.passage()
	if opened == nil {
		return event{kind: eventAttempt}
	}
	for {
		if ev, ok := k.next(); ok {
			return ev
		}
		select {
		case <-k.wake:
		case <-gone:
			return event{kind: eventCanceled}
		case <-opened:
			if k.lastResult == publish.Nacked && g.isFull() {
				return event{kind: eventFull}
			}
			return event{kind: eventAttempt}
		case <-g.turn:
			_, k.probes = g.passage()
			return event{kind: eventAttempt}
		}
	}
}

// endProbe ends the call's turn, if any.
func (k *call) endProbe() {
	if k.probes != 0 {
		k.route.queueGate.pass(k.probes)
		k.probes = 0
	}
}

// mayPark reports whether the call waits while the request queue does not take messages. A
// call waits if it was made with WaitForServer, if it is idempotent and an earlier attempt may
// have arrived, or if it was nacked and certainly did not run.
func (k *call) mayPark() bool {
	return k.req.traits.has(traitWaitForServer) || k.uncertain && k.req.idempotent || !k.uncertain && k.lastResult == publish.Nacked
}

// retryBudget is a token bucket that limits retries to a share of the calls, so that retries
// cannot multiply an outage: the "per-client retry budget" of
// https://sre.google/sre-book/handling-overload/. The bucket starts full. Safe for concurrent
// use.
type retryBudget struct {
	most, deposit int64 // in millionths of a retry
	tokens        atomic.Int64
}

// retryCost is the cost of a retry in the bucket's unit.
const retryCost = 1_000_000

func newRetryBudget(ratio float64, burst int) *retryBudget {
	b := &retryBudget{most: int64(burst) * retryCost, deposit: int64(ratio * retryCost)}
	b.tokens.Store(b.most)
	return b
}

// earn deposits a call's share. While the bucket is full it writes nothing.
func (b *retryBudget) earn() {
	for {
		have := b.tokens.Load()
		sum := min(have+b.deposit, b.most)
		if sum == have || b.tokens.CompareAndSwap(have, sum) {
			return
		}
	}
}

// spend takes a retry out of the bucket; false means that the bucket holds too little.
func (b *retryBudget) spend() bool {
	for {
		have := b.tokens.Load()
		if have < retryCost {
			return false
		}
		if b.tokens.CompareAndSwap(have, have-retryCost) {
			return true
		}
	}
}
