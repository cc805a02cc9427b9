package amqpx

import (
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// batchTarget is what a client knows of the batch lane: whether servers unpack batches at
// the moment, and which batches came back. Only servers that unpack declare its queue,
// and consume it, so the broker is asked for its consumers; while no call is made or under
// way, it is not asked. Safe for concurrent use.
type batchTarget struct {
	queue     string
	servers   atomic.Int32    // that unpack; 0: the lane is shut
	messages  atomic.Int64    // that waited in the queue at the last look
	seq       atomic.Uint64   // of batches
	onSent    func(calls int) // is told of each batch
	onShut    func()          // is told when the lane shuts
	aloneOwed int32           // to servers that do not unpack, see goesAlone

	mu          sync.Mutex
	returnedIDs map[string]bool // batches that the broker gave back and that are not settled yet
	notBefore   time.Time       // until then the lane stays shut, because a batch was nacked
	refusals    *backoff.ExponentialBackOff
}

func newBatchTarget(queue string, onSent func(calls int), onShut func()) *batchTarget {
	return &batchTarget{
		queue: queue, onSent: onSent, onShut: onShut,
		returnedIDs: make(map[string]bool), refusals: newBackoff(lookEvery, lookMissingMax),
	}
}

// queueName returns the lane's queue, or "" while no server unpacks.
func (l *batchTarget) queueName() string {
	if l.servers.Load() == 0 {
		return ""
	}
	return l.queue
}

// disable has calls travel alone until the next look at the queue, those too that wait for a
// place in the lane.
func (l *batchTarget) disable() {
	if l.servers.Swap(0) > 0 {
		l.onShut()
	}
}

// nextID returns an id for a batch, which is only for this client to know it again.
func (l *batchTarget) nextID() string { return strconv.FormatUint(l.seq.Add(1), 36) }

// returned notes a batch that the broker gave back: no server unpacks any more.
func (l *batchTarget) returned(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.returnedIDs[id] = true
	l.disable()
}

// takeReturned reports whether a batch was given back. It is asked once for each.
func (l *batchTarget) takeReturned(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	came := l.returnedIDs[id]
	delete(l.returnedIDs, id)
	return came
}

// found opens or shuts the lane after a look at its queue.
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

// refused shuts the lane for a while that grows: the broker nacked a batch.
func (l *batchTarget) refused() {
	l.mu.Lock()
	l.notBefore = time.Now().Add(max(l.refusals.NextBackOff(), lookEvery))
	l.mu.Unlock()
	l.disable()
}

// resendBatched has the calls that are in batches, of which nobody takes any, sent again,
// if that is safe: servers that do not unpack may be there. The others keep waiting.
func (c *Client) resendBatched() {
	for _, k := range c.pending.snapshot() {
		if k.req.Idempotent && k.batched.Load() && k.transition(stageConfirmed, stageLost) {
			k.notify(event{result: resultLost})
		}
	}
}

// batchKey implements mate.
func (k *call) batchKey() string {
	l := k.route.batch
	if l == nil || k.alone || k.suspected > 0 || !fitsBatch(k.req) || callSize(k.req) > batchBytes {
		return ""
	}
	if others := k.route.watch.others.Load(); others > 0 && l.goesAlone(others) {
		return ""
	}
	return l.queueName()
}

// goesAlone picks the calls that stay out of the lane for the servers that do not unpack.
// All servers take those calls in turn, so they are twice as many as the share of these
// servers, and at most three of four: what the lane is for must go on. It is for the
// publisher's writer only.
func (l *batchTarget) goesAlone(others int32) bool {
	const most, of = 3, 4
	all := others + l.servers.Load()
	if l.aloneOwed += min(2*of*others, most*all); l.aloneOwed < of*all {
		return false
	}
	l.aloneOwed -= of * all
	return true
}

// fits implements mate. The broker drops a batch when the first call in it expires, so
// that none runs whose caller has gone, and knows of no other time; so only calls with
// about the same time left travel together.
func (k *call) fits(b *batch) bool {
	left := k.budget(b.now)
	least, most := min(b.least, left), max(b.most, left)
	return len(b.body)+callSize(k.req) <= b.limit && most <= least+least/deadlineShare
}

// deadlineShare is the share of its time by which a call may expire too early because of
// those that it travels with: an eighth.
const deadlineShare = 8

// mustTravelAlone implements mate.
func (k *call) mustTravelAlone() bool { return k.route.batch.servers.Load() == 0 }

// consumers implements mate.
func (k *call) consumers() int { return max(int(k.route.batch.servers.Load()), 1) }

// appendTo implements mate.
func (k *call) appendTo(b *batch) {
	left := k.budget(b.now)
	if len(b.messages) == 0 {
		b.calls, b.replyTo, b.persistent = k.route.batch, k.route.replyTo, k.route.persistent
		b.id, b.least, b.user = b.calls.nextID(), left, k.route.user.get()
	}
	k.batched.Store(true)
	b.least, b.most = min(b.least, left), max(b.most, left)
	b.body = appendCall(b.body, k.req, left, k.resent, k.round)
}
