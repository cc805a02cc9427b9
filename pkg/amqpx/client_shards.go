package amqpx

import (
	"sync"
	"sync/atomic"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// shardCondition is a client's view of a shard. Calls without a key use the shards in the best
// condition that any shard has.
type shardCondition int32

const (
	shardOpen     shardCondition = iota // has consumers, or is not known yet
	shardUnserved                       // has no consumers
	shardShut                           // nacks requests, or does not answer
	shardMissing                        // does not exist
)

// clientShard is one of several request queues of a client. Safe for concurrent use.
type clientShard struct {
	queue string
	batch *batchTarget // nil without batches
	// batchKey and singleKey are the keys of the batchers of the calls with a key.
	batchKey, singleKey string
	condition           atomic.Int32 // a shardCondition
	nackedFrom          atomic.Int64 // time of the first nack since the last confirm, in ns; 0: none

	mu        sync.Mutex
	state     queueState // of the last check
	notBefore time.Time  // the shard stays shut until then, because it nacked a request
	nacks     *xsync.Backoff
}

const (
	// batchGroup and singleGroup are the keys of the batchers of the calls without a key.
	batchGroup  = "\x01"
	singleGroup = publish.SinglePrefix
	// shardWindow bounds the unconfirmed messages to a shard, except batches. RabbitMQ stops reading
	// from a channel when one of its queues is 400 messages behind, so one queue in trouble would
	// stop the others.
	shardWindow = 256
	// shardLead is how many more unconfirmed messages a shard may have than another one before calls
	// without a key avoid it.
	shardLead = 16
	// shardPatience is how long a check waits for the answer for one shard before it asks for the
	// next; shardsPatience bounds the check of all shards before the connection is ready.
	shardPatience  = 100 * time.Millisecond
	shardsPatience = 500 * time.Millisecond
)

// openShards makes the shards of a client with more than one.
func (c *Client) openShards() {
	for i := range c.cfg.shards {
		if c.cfg.shards == 1 {
			return
		}
		q := c.cfg.queue.shard(i)
		s := &clientShard{
			queue: q.Name, batch: c.route.batch, nacks: xsync.NewBackoff(checkEvery, checkMissingMax),
			batchKey: batchGroup + q.Name, singleKey: singleGroup + q.Name,
		}
		if i > 0 && c.route.batch != nil {
			s.batch = newBatchTarget(q.batchQueue().Name, c.route.batch.limit, c.recordBatchSent, c.route.outbox.Notify)
		}
		c.route.shards = append(c.route.shards, s)
	}
}

// at returns the condition.
func (s *clientShard) at() shardCondition { return shardCondition(s.condition.Load()) }

// isMissing records that the broker returned a request to the shard.
func (s *clientShard) isMissing() { s.condition.Store(int32(shardMissing)) }

// published records a publish result of a request to the shard.
func (s *clientShard) published(f publish.Result) {
	switch f {
	case publish.Confirmed:
		if s.nackedFrom.Load() != 0 {
			s.nackedFrom.Store(0)
		}
		if s.at() == shardMissing { // exists again
			s.condition.CompareAndSwap(int32(shardMissing), int32(shardOpen))
		}
	case publish.Nacked:
		s.nackedFrom.CompareAndSwap(0, time.Now().UnixNano())
		s.mu.Lock()
		s.notBefore = time.Now().Add(max(s.nacks.NextBackOff(), checkEvery))
		s.mu.Unlock()
		s.condition.Store(int32(shardShut))
	default:
	}
}

// last returns the result of the last check.
func (s *clientShard) last() queueState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// forget drops what is known, for a new session.
func (s *clientShard) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = queueState{}
	s.condition.Store(int32(shardOpen))
}

// found sets the condition after a check, and returns the results of the previous check and of this
// one.
func (s *clientShard) found(st queueState) (before, now queueState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before = s.state
	st.filled = st.messages > 0 && (!before.known || before.messages > 0)
	s.state = st
	condition := shardOpen
	switch {
	case st.missing:
		condition = shardMissing
	case st.away, time.Now().Before(s.notBefore):
		condition = shardShut
	case st.known && st.consumers == 0:
		condition = shardUnserved
	default:
		s.nacks.Reset()
	}
	s.condition.Store(int32(condition))
	return before, st
}

// shardNamed returns the shard with this queue or batch queue; nil if there is a single shard.
func (r *route) shardNamed(queue string) *clientShard {
	for _, s := range r.shards {
		if s.queue == queue || s.batch != nil && s.batch.queue == queue {
			return s
		}
	}
	return nil
}

// best returns the best condition of any shard.
func (r *route) best() shardCondition {
	best := shardMissing
	for _, s := range r.shards {
		best = min(best, s.at())
	}
	return best
}

// anotherIsServed reports whether a shard beyond 0 has consumers, or is not known yet.
func (r *route) anotherIsServed() bool {
	for i, s := range r.shards {
		if i > 0 && s.at() == shardOpen {
			return true
		}
	}
	return false
}

// shard returns the shard of the attempt; 0 until the shard is chosen.
func (a *attempt) shard() int {
	return max(int(a.marks.Load()&shardMarks>>markShard)-1, 0)
}

// SetQueue implements publish.Spread.
func (a *attempt) SetQueue(queue int) {
	r := a.call.route
	if len(r.shards) == 0 {
		return
	}
	a.marks.And(^uint32(shardMarks))
	a.marks.Or(uint32(queue+1) << markShard) //nolint:gosec // below MaxShards.
	if !a.call.req.traits.has(traitKeyed) {
		r.turn.Store(uint32((queue + 1) % len(r.shards))) //nolint:gosec // below MaxShards.
	}
}

// routingKey returns the queue of a request that travels alone.
func (a *attempt) routingKey() string {
	r := a.call.route
	if len(r.shards) == 0 {
		return r.queue
	}
	if a.marks.Load()&shardMarks == 0 { // outside of the batchers
		i, keyed := a.call.req.shard()
		if !keyed {
			i = max(r.nextShard(true, noWindows{}), 0)
		}
		a.SetQueue(i)
	}
	return r.shards[a.shard()].queue
}

// noWindows is the publish.Room of a message outside of the batchers.
type noWindows struct{}

func (noWindows) HasRoom(int, int) bool { return true }
func (noWindows) Unconfirmed(int) int   { return 0 }

// shardKey returns the key of the attempt's batcher.
func (a *attempt) shardKey(batch bool) string {
	i, keyed := a.call.req.shard()
	batch = batch && a.hasBatchQueue()
	switch s := a.call.route.shards[i]; {
	case keyed && batch:
		return a.batchKeyOf(s.batchKey)
	case keyed:
		return s.singleKey
	case batch:
		return a.batchKeyOf(batchGroup)
	default:
		return singleGroup
	}
}

// hasBatchQueue reports whether servers unpack batches of a shard that the call may use.
func (a *attempt) hasBatchQueue() bool {
	r := a.call.route
	if i, keyed := a.call.req.shard(); keyed {
		return r.shards[i].batch.servers.Load() > 0
	}
	for _, s := range r.shards {
		if s.batch.servers.Load() > 0 {
			return true
		}
	}
	return false
}

// batchConsumers returns the number of servers that unpack the batches which the call may join.
func (a *attempt) batchConsumers() int {
	r := a.call.route
	if i, keyed := a.call.req.shard(); keyed {
		return r.shards[i].consumers()
	}
	most := 1
	for _, s := range r.shards {
		most = max(most, s.consumers())
	}
	return most
}

// consumers returns the number of servers that unpack batches of the shard, at least 1.
func (s *clientShard) consumers() int { return max(int(s.batch.servers.Load()), 1) }

// window returns the size of the shard's window.
func (s *clientShard) window(single bool) int {
	if single {
		return shardWindow
	}
	return publish.BatchWindow + s.consumers() - 1
}

// NextQueue implements publish.Spread.
func (a *attempt) NextQueue(key string, room publish.Room) (queue int, spread bool) {
	r := a.call.route
	if len(r.shards) == 0 {
		return 0, false
	}
	single := key[:1] == publish.SinglePrefix
	i, keyed := a.call.req.shard()
	switch {
	case !keyed:
		return r.nextShard(single, room), true
	case room.HasRoom(i, r.shards[i].window(single)):
		return i, true
	default:
		return -1, true
	}
}

// nextShard returns the shard for the next message without a key. It takes turns over the shards in
// the best condition, leaves out shards with over shardLead more unconfirmed messages than the shard
// with the fewest, and returns -1 if no shard has room.
func (r *route) nextShard(single bool, room publish.Room) int {
	best, turn, least := r.best(), int(r.turn.Load()), -1
	usable := func(s *clientShard) bool {
		if single {
			return s.at() == best
		}
		return s.batch.servers.Load() > 0
	}
	for i, s := range r.shards {
		if n := room.Unconfirmed(i); usable(s) && (least < 0 || n < least) {
			least = n
		}
	}
	for n := range r.shards {
		i := (turn + n) % len(r.shards)
		if s := r.shards[i]; usable(s) && room.Unconfirmed(i) <= least+shardLead && room.HasRoom(i, s.window(single)) {
			return i
		}
	}
	return -1
}

// queue returns the name of the queue for an error: that of the call's key, or shard 0.
func (k *call) queue() string {
	if i, keyed := k.req.shard(); keyed {
		return k.route.shards[i].queue
	}
	return k.route.queue
}

// queueState returns the result of the last check of this queue.
func (c *Client) queueState(k *call) queueState {
	if i, keyed := k.req.shard(); keyed {
		return c.route.shards[i].last()
	}
	return c.watch.last()
}

// afterShard decides the next step after an attempt that a shard returned or nacked, if there are
// several shards. ok is false if the result is handled as with a single queue.
func (c *Client) afterShard(k *call, gone <-chan struct{}, a *attempt, outcome Outcome) (next event, ok bool, err error) {
	if len(c.route.shards) == 0 {
		return event{}, false, nil
	}
	switch keyed := k.req.traits.has(traitKeyed); a.publishResult() {
	case publish.Returned:
		switch {
		case !keyed && !c.route.requests.Load().missing && c.route.best() < shardMissing: // the request has not been in any queue
			return event{kind: eventAttempt}, true, nil
		case !keyed:
			return event{}, false, nil
		case k.mayPark():
			return k.pause(gone, k.nextWait()), true, nil
		}
		if over, ended := k.awaitCheck(gone); ended {
			return over, true, nil
		}
		detail, sentinel := c.noQueue(k)
		return event{}, true, localError(CodeUnavailable, outcome, sentinel, detail)
	case publish.Nacked:
		next, err = c.afterShardNack(k, gone, a)
		return next, true, err
	default:
		return event{}, false, nil
	}
}

// afterShardNack decides the next step after a nack by one of several shards. A call without a key
// uses the next shard, once round; then it waits, as a call with a key does at once.
func (c *Client) afterShardNack(k *call, gone <-chan struct{}, a *attempt) (event, error) {
	s, safe := c.route.shards[a.shard()], k.req.idempotent || !k.uncertain
	if safe && !a.isBatched() && !k.req.traits.has(traitKeyed) && c.route.best() < shardShut {
		return event{kind: eventAttempt}, nil
	}
	if ev, over := k.awaitCheck(gone); over {
		return ev, nil
	}
	st := s.last()
	full := st.full() || a.isBatched() && s.batch.messages.Load() > 0
	switch {
	case !safe:
		return event{}, c.nackError(k, full, k.nextWait())
	case full && !a.isBatched():
		return c.afterFull(k, gone)
	case !st.away && !a.isBatched():
		c.replaceNackedConnection(s)
	}
	return k.pause(gone, k.nextWait()), nil
}

// replaceNackedConnection ends a session in which a shard that answers has nacked every request for a
// while, see nackedConnectionAfter.
func (c *Client) replaceNackedConnection(s *clientShard) {
	from := s.nackedFrom.Load()
	sess := c.sup.Current()
	if from == 0 || sess == nil || time.Since(time.Unix(0, from)) < nackedConnectionAfter || time.Since(sess.Start) < nackedConnectionAfter {
		return
	}
	s.nackedFrom.Store(0)
	sess.Fail(errConnectionNacked)
}

// shardCheck is the check of a shard beyond 0.
type shardCheck struct {
	number         int
	shard          *clientShard
	queue, batches checkedQueue
}

// startShards checks the shards beyond 0 before the connection is ready.
func (l *queueChecker) startShards() {
	limit := time.Now().Add(shardsPatience)
	for i, s := range l.client.route.shards {
		s.forget()
		if i == 0 {
			if st := l.client.watch.last(); st.known {
				s.found(st)
			}
			continue
		}
		k := &shardCheck{number: i, shard: s, queue: checkedQueue{name: s.queue, missing: xsync.NewBackoff(checkEvery, checkMissingMax)}}
		l.shards = append(l.shards, k)
		if s.batch != nil {
			k.batches = checkedQueue{name: s.batch.queue, missing: xsync.NewBackoff(checkEvery, checkMissingMax)}
			s.batch.disable()
		}
		if time.Now().Before(limit) {
			k.first(l)
		}
	}
}

// first is the first check of a shard. If it finds no server, the first call checks again.
func (k *shardCheck) first(l *queueChecker) {
	st, ok := l.askShard(&k.queue)
	if !ok {
		return
	}
	if k.shard.found(st); k.shard.at() != shardOpen || k.shard.batch == nil {
		return
	}
	if st, ok = l.askShard(&k.batches); ok && (st.consumers > 0 || !st.known) {
		k.batches.plan(st)
		k.shard.batch.found(st)
	}
}

// checkShards asks the broker for the shards beyond 0 and acts on the results. If urgent, calls wait
// for the result.
func (l *queueChecker) checkShards(urgent bool) {
	for _, k := range l.shards {
		if now := time.Now(); now.Before(k.queue.due) && (!urgent || k.shard.at() == shardMissing) {
			continue
		}
		st, ok := l.askShard(&k.queue)
		if !ok {
			continue
		}
		k.queue.plan(st)
		l.client.markAtRisk(k.number, st)
		before, now := k.shard.found(st)
		l.client.shardChanged(k, before, now)
		k.checkBatches(l)
	}
}

// checkBatches asks the broker for the batch queue of a shard, while the shard is open.
func (k *shardCheck) checkBatches(l *queueChecker) {
	batch := k.shard.batch
	switch {
	case batch == nil:
		return
	case k.shard.at() != shardOpen:
		batch.disable()
		return
	case time.Now().Before(k.batches.due):
		return
	}
	st, ok := l.askShard(&k.batches)
	if !ok {
		return
	}
	k.batches.plan(st)
	if batch.found(st); st.consumers == 0 {
		l.client.resendBatched(k.number)
	}
}

// shardChanged acts on a change of a shard since the previous check, like queueChanged. Calls without
// a key leave a shard that does not answer.
func (c *Client) shardChanged(k *shardCheck, before, now queueState) {
	switch {
	case now.missing && !before.missing:
		c.resendConfirmed(k.number)
	case now.recovered(before):
		c.resendAtRisk(k.number)
	case now.away && !before.away:
		for _, a := range c.pending.attempts() {
			if a.call.req.idempotent && a.shard() == k.number && !a.call.req.traits.has(traitKeyed) {
				a.loseConfirmed(publish.Lost)
			}
		}
	}
}

// askShard asks for a queue and waits a short time for the answer, which may come later: the next
// check reads it. ok is false until there is an answer, or checkTimeout is over.
func (l *queueChecker) askShard(q *checkedQueue) (st queueState, ok bool) {
	if q.barred {
		return st, false
	}
	patience := shardPatience
	if q.open != nil {
		patience = 0
		if len(q.open) > 0 {
			patience = shardPatience
		}
	}
	found, err := l.ask(q, patience)
	if err == errNotChecked && time.Since(q.asked) < checkTimeout { //nolint:errorlint // it is this very value.
		return st, false
	}
	return stateOf(found, err), true
}

var _ publish.Spread = (*attempt)(nil)
