package amqpx

import (
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// callLane is what a client knows of the batch lane: whether servers unpack batches at
// the moment, and which batches came back. Only servers that unpack declare its queue,
// and consume it, so the broker is asked for its consumers; while no call is made or under
// way, it is not asked. Safe for concurrent use.
type callLane struct {
	queue   string
	servers atomic.Int32    // that unpack; 0: the lane is shut
	wanted  chan struct{}   // has a token when somebody wants to know
	seq     atomic.Uint64   // of batches
	onSent  func(calls int) // is told of each batch

	mu   sync.Mutex
	back map[string]bool // batches that the broker gave back and that are not settled yet
}

const (
	// laneCheck is how often a client asks whether the lane's queue has consumers, and
	// at first whether it exists.
	laneCheck = time.Second
	// laneCheckMax is how long it waits while there is no such queue: the broker logs
	// a line each time.
	laneCheckMax = 30 * time.Second
)

func newCallLane(queue string, onSent func(calls int)) *callLane {
	return &callLane{queue: queue, onSent: onSent, wanted: make(chan struct{}, 1), back: make(map[string]bool)}
}

// use returns the lane's queue, or "" while no server unpacks.
func (l *callLane) use() string {
	l.want()
	if l.servers.Load() == 0 {
		return ""
	}
	return l.queue
}

// want has the client look at the queue.
func (l *callLane) want() {
	if len(l.wanted) == 0 {
		select {
		case l.wanted <- struct{}{}:
		default:
		}
	}
}

// shut has calls travel alone until the next look at the queue.
func (l *callLane) shut() { l.servers.Store(0) }

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

// watchLane opens and shuts the lane while a session lasts.
func (c *Client) watchLane(s *session) {
	l := c.route.lane
	missing := newBackoff(laneCheck, laneCheckMax)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-l.wanted:
		case <-s.done:
			return
		}
		select { // not sooner than a while after the last time
		case <-timer.C:
		case <-s.done:
			return
		}
		consumers, exists := l.look(s)
		l.servers.Store(int32(min(consumers, math.MaxInt32))) //nolint:gosec // bounded.
		if consumers == 0 {
			c.leaveLane()
		}
		if c.pending.len() > 0 { // one in a batch must hear when nobody is left to take it
			l.want()
		}
		if exists {
			missing.Reset()
			timer.Reset(laneCheck)
		} else {
			timer.Reset(max(missing.NextBackOff(), laneCheck))
		}
	}
}

// look asks the broker for the lane's queue. One that it does not tell of, because it
// is another's, or not ours to see, is as good as none.
func (l *callLane) look(s *session) (consumers int, exists bool) {
	err := onOwnChannel(s.sub, func(ch channel) error {
		q, err := ch.QueueDeclarePassive(l.queue, true, false, false, false, nil)
		consumers = q.Consumers
		return err
	})
	if err != nil {
		return 0, false
	}
	return consumers, true
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
	if l == nil || !batchable(k.req) || callSize(k.req) > batchBytes {
		return ""
	}
	return l.use()
}

// fits implements mate. The broker drops a batch when the first call in it expires, so
// that none runs whose caller has gone, and knows of no other time; so only calls with
// about the same time left travel together.
func (k *call) fits(b *batch) bool {
	left := k.budget(b.now)
	least, most := min(b.least, left), max(b.most, left)
	return len(b.body)+callSize(k.req) <= batchBytes && most <= least+least/deadlineShare
}

// deadlineShare is the share of its time by which a call may expire too early because of
// those that it travels with: an eighth.
const deadlineShare = 8

// takers implements mate.
func (k *call) takers() int { return max(int(k.route.lane.servers.Load()), 1) }

// board implements mate.
func (k *call) board(b *batch) {
	left := k.budget(b.now)
	if len(b.mates) == 0 {
		b.calls, b.replyTo, b.persistent = k.route.lane, k.route.replyTo, k.route.persistent
		b.id, b.least = b.calls.nextID(), left
	}
	k.batched.Store(true)
	b.least, b.most = min(b.least, left), max(b.most, left)
	b.body = appendCall(b.body, k.req, left, k.resent, k.round)
}
