package amqpx

import (
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// callLane is what a client knows of the batch lane: whether servers unpack batches at
// the moment, and which batches came back. Only servers that unpack declare its queue,
// and consume it, so the broker is asked for its consumers; while no call is made or under
// way, it is not asked. Safe for concurrent use.
type callLane struct {
	queue    string
	servers  atomic.Int32    // that unpack; 0: the lane is shut
	messages atomic.Int64    // that waited in the queue at the last look
	seq      atomic.Uint64   // of batches
	onSent   func(calls int) // is told of each batch
	onShut   func()          // is told when the lane shuts
	owed     int32           // to servers that do not unpack, see goesAlone

	mu        sync.Mutex
	back      map[string]bool // batches that the broker gave back and that are not settled yet
	notBefore time.Time       // until then the lane stays shut, because a batch was nacked
	refusals  *backoff.ExponentialBackOff
}

func newCallLane(queue string, onSent func(calls int), onShut func()) *callLane {
	return &callLane{
		queue: queue, onSent: onSent, onShut: onShut,
		back: make(map[string]bool), refusals: newBackoff(lookEvery, lookMissingMax),
	}
}

// use returns the lane's queue, or "" while no server unpacks.
func (l *callLane) use() string {
	if l.servers.Load() == 0 {
		return ""
	}
	return l.queue
}

// shut has calls travel alone until the next look at the queue, those too that wait for a
// place in the lane.
func (l *callLane) shut() {
	if l.servers.Swap(0) > 0 {
		l.onShut()
	}
}

// nextID returns an id for a batch, which is only for this client to know it again.
func (l *callLane) nextID() string { return strconv.FormatUint(l.seq.Add(1), 36) }

// returned notes a batch that the broker gave back: no server unpacks any more.
func (l *callLane) returned(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.back[id] = true
	l.shut()
}

// cameBack reports whether a batch was given back. It is asked once for each.
func (l *callLane) cameBack(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	came := l.back[id]
	delete(l.back, id)
	return came
}

// found opens or shuts the lane after a look at its queue.
func (l *callLane) found(st queueState) {
	l.mu.Lock()
	open := !time.Now().Before(l.notBefore)
	if open && st.consumers > 0 {
		l.refusals.Reset()
	}
	l.mu.Unlock()
	l.messages.Store(int64(st.messages))
	if !open || st.consumers == 0 {
		l.shut()
		return
	}
	l.servers.Store(int32(min(st.consumers, math.MaxInt32))) //nolint:gosec // bounded.
}

// refused shuts the lane for a while that grows: the broker nacked a batch.
func (l *callLane) refused() {
	l.mu.Lock()
	l.notBefore = time.Now().Add(max(l.refusals.NextBackOff(), lookEvery))
	l.mu.Unlock()
	l.shut()
}

// leaveLane has the calls that are in batches, of which nobody takes any, sent again,
// if that is safe: servers that do not unpack may be there. The others keep waiting.
func (c *Client) leaveLane() {
	for _, k := range c.pending.snapshot() {
		if k.req.Idempotent && k.batched.Load() && k.move(stageConfirmed, stageLost) {
			k.tell(event{fate: fateLost})
		}
	}
}

// lane implements mate.
func (k *call) lane() string {
	l := k.route.lane
	if l == nil || k.alone || k.suspected > 0 || !batchable(k.req) || callSize(k.req) > batchBytes {
		return ""
	}
	if others := k.route.watch.others.Load(); others > 0 && l.goesAlone(others) {
		return ""
	}
	return l.use()
}

// goesAlone picks the calls that stay out of the lane for the servers that do not unpack.
// All servers take those calls in turn, so they are twice as many as the share of these
// servers, and at most three of four: what the lane is for must go on. It is for the
// publisher's writer only.
func (l *callLane) goesAlone(others int32) bool {
	const most, of = 3, 4
	all := others + l.servers.Load()
	if l.owed += min(2*of*others, most*all); l.owed < of*all {
		return false
	}
	l.owed -= of * all
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

// mustLeave implements mate.
func (k *call) mustLeave() bool { return k.route.lane.servers.Load() == 0 }

// takers implements mate.
func (k *call) takers() int { return max(int(k.route.lane.servers.Load()), 1) }

// board implements mate.
func (k *call) board(b *batch) {
	left := k.budget(b.now)
	if len(b.mates) == 0 {
		b.calls, b.replyTo, b.persistent = k.route.lane, k.route.replyTo, k.route.persistent
		b.id, b.least, b.user = b.calls.nextID(), left, k.route.user.get()
	}
	k.batched.Store(true)
	b.least, b.most = min(b.least, left), max(b.most, left)
	b.body = appendCall(b.body, k.req, left, k.resent, k.round)
}
