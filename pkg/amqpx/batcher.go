package amqpx

import (
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The batch lane. A broker's limit is messages for each second, so calls, and answers,
// that wait anyway travel in one message. The clock is the broker's confirm: at most
// batchWindow messages of a lane are unconfirmed; the first leaves at once, and what
// comes while the window is full leaves together when a confirm frees a place. There is
// no timer, and a slow handler delays nothing, because a confirm does not wait for it.

const (
	// batchWindow bounds the unconfirmed messages of one lane; each taker more than one
	// adds one.
	batchWindow = 2
	// batchCalls and batchBytes bound a batch. With its records a batch of that size
	// fits one frame of a broker's default, and a server holds at most a prefetch of
	// them.
	batchCalls = 512
	batchBytes = 64 << 10
	// maxSkipped bounds how many messages are passed over in the search for mates.
	maxSkipped = 64
)

// batchable is an outgoing message that can travel with others of its kind.
type batchable interface {
	outbound
	// batchKey returns the queue to which it may travel with others; "" means that it must
	// travel alone, and not wait for anything.
	batchKey() string
	// fits reports whether it may join the batch.
	fits(b *batch) bool
	// appendTo adds the message, which was claimed, to a batch.
	appendTo(b *batch)
	// consumers returns how many take what is sent in the lane, in turn.
	consumers() int
	// mustTravelAlone reports whether the lane is shut, so that what waits in it travels alone.
	mustTravelAlone() bool
}

// batcher is the messages to one queue that wait for each other.
type batcher struct {
	key         string
	waiting     []batchable
	unconfirmed atomic.Int32 // unconfirmed messages
}

// hasRoom reports whether the lane may send now, to so many takers.
func (l *batcher) hasRoom(takers int) bool { return int(l.unconfirmed.Load()) < batchWindow+takers-1 }

// batchers are those of one publisher. Its writer owns them, but for the windows.
type batchers struct {
	byKey      map[string]*batcher
	busy       []*batcher    // those in which messages wait
	windowFull atomic.Bool   // messages wait for a place in a window
	slotFreed  chan struct{} // has a token when a place has come free for them
	body       []byte        // of the last batch, for reuse
}

// maxIdleBatchers is how many lanes are kept before those without messages are dropped.
const maxIdleBatchers = 1024

func newBatchers() batchers {
	return batchers{byKey: make(map[string]*batcher), slotFreed: make(chan struct{}, 1)}
}

// add has m wait in the lane of key.
func (s *batchers) add(key string, m batchable) {
	l := s.byKey[key]
	if l == nil {
		if len(s.byKey) >= maxIdleBatchers {
			maps.DeleteFunc(s.byKey, func(_ string, l *batcher) bool { return len(l.waiting) == 0 && l.unconfirmed.Load() == 0 })
		}
		l = &batcher{key: key}
		s.byKey[key] = l
	}
	if len(l.waiting) == 0 {
		s.busy = append(s.busy, l)
	}
	l.waiting = append(l.waiting, m)
}

// takeWaiting empties the lanes, for the next session.
func (s *batchers) takeWaiting() []outbound {
	var all []outbound
	for _, l := range s.busy {
		for _, m := range l.waiting {
			all = append(all, m)
		}
	}
	return all
}

// joinBatch has a message wait in its lane, if it has one. A message that does not fit a frame
// of the connection has none: whether it can be sent does not depend on others.
func (p *publisher) joinBatch(out outbound) bool {
	m, ok := out.(batchable)
	if !ok {
		return false
	}
	key := m.batchKey()
	if key == "" {
		return false
	}
	if size := p.s.pub.frameSize(); mayExceedFrame(size) {
		if _, _, msg := m.publishing(); checkFrame(&msg, size) != nil {
			return false
		}
	}
	p.batchers.add(key, m)
	return true
}

// writeBatches publishes what the windows allow.
func (p *publisher) writeBatches() {
	busy := p.batchers.busy
	p.writeCorked(len(busy), func(i int) {
		p.writeBatcher(busy[i])
	})
	p.batchers.busy = slices.DeleteFunc(busy, func(l *batcher) bool { return len(l.waiting) == 0 })
	p.batchers.windowFull.Store(len(p.batchers.busy) > 0)
	for _, l := range p.batchers.busy {
		if l.hasRoom(l.waiting[0].consumers()) { // it came free before stuck was known
			p.batchers.wake()
		}
	}
}

// wake has the writer look at the lanes again.
func (s *batchers) wake() {
	select {
	case s.slotFreed <- struct{}{}:
	default:
	}
}

// minShare is how many messages may travel together however many take them.
const minShare = 16

// writeBatcher publishes what a lane's window allows. A broker hands batches to its consumers
// in turn, so the waiting messages are divided by the number of consumers: one large batch
// would keep one consumer busy and leave the others idle.
func (p *publisher) writeBatcher(l *batcher) {
	if l.waiting[0].mustTravelAlone() {
		for _, m := range l.waiting {
			p.publishAlone(m) // when the session has ended the message is told that it was not sent
		}
		clear(l.waiting)
		l.waiting = l.waiting[:0]
		return
	}
	takers := l.waiting[0].consumers()
	share := max((len(l.waiting)+takers-1)/takers, minShare)
	for len(l.waiting) > 0 && l.hasRoom(takers) && !p.s.ended() {
		p.publishBatch(l, min(share, batchCalls))
	}
}

// publishBatch publishes the next batch of a lane: the first message and at most most-1 later
// messages that fit the same batch. A batch of one message is published as a single message.
func (p *publisher) publishBatch(l *batcher, most int) {
	b := &batch{key: l.key, now: time.Now(), limit: batchBytes, body: p.batchers.body[:0]}
	if limit := int(p.s.sizeLimit.Load()); limit > 0 {
		b.limit = min(b.limit, limit)
	}
	left := l.waiting[:0]
	for i, m := range l.waiting {
		if len(b.messages) == most || len(left) == maxSkipped {
			left = append(left, l.waiting[i:]...)
			break
		}
		if len(b.messages) > 0 && !m.fits(b) {
			left = append(left, m)
		} else if m.beginSend(p.s.generation) {
			m.appendTo(b)
			b.messages = append(b.messages, m)
		}
	}
	clear(l.waiting[len(left):])
	l.waiting = left
	p.batchers.body = b.body
	switch len(b.messages) {
	case 0:
	case 1:
		p.publish(b.messages[0], l, false)
	default:
		if b.calls != nil {
			b.calls.onSent(len(b.messages))
		}
		p.publish(b, l, false)
	}
}

// releaseSlot gives a lane a place in its window back. It runs on the goroutine of confirms.
func (p *publisher) releaseSlot(l *batcher) {
	l.unconfirmed.Add(-1)
	if p.batchers.windowFull.Load() {
		p.batchers.wake()
	}
}

// batch is several messages in one. It implements outgoing.
type batch struct {
	messages []batchable
	key      string
	now      time.Time // when it was made up
	limit    int       // of its body in bytes
	// What the mates set when they board.
	calls      *batchTarget // of a batch of calls, else nil
	id         string       // of a batch of calls
	replyTo    string
	user       string        // of the broker, of all the calls
	least      time.Duration // that a call in it has left
	most       time.Duration // and the most
	persistent bool
	mandatory  bool   // of a batch of responses
	body       []byte // valid until it is published
}

// beginSend implements outgoing; the mates were claimed one by one when they boarded.
func (b *batch) beginSend(uint64) bool { return true }

// canceled implements outgoing.
func (b *batch) canceled() bool { return false }

// publishing implements outgoing.
func (b *batch) publishing() (key string, mandatory bool, msg amqp.Publishing) {
	msg = amqp.Publishing{ContentType: contentTypeAnswers, DeliveryMode: deliveryMode(b.persistent), Body: b.body}
	if b.calls == nil {
		return b.key, b.mandatory, msg
	}
	msg.ContentType, msg.CorrelationId, msg.ReplyTo, msg.UserId = contentTypeCalls, b.id, b.replyTo, b.user
	msg.Expiration = strconv.FormatInt(milliseconds(min(b.least, maxBudget)), 10)
	return b.key, true, msg
}

// reject implements rejectable: the broker took none of it, and its mates leave again in
// smaller batches, or alone.
func (b *batch) reject(error) {
	for _, m := range b.messages {
		m.onResult(resultUnsent)
	}
}

// onResult implements outgoing: every mate has the fate of the batch. Calls in a batch
// that came back have not been anywhere, and leave again, alone.
func (b *batch) onResult(f publishResult) {
	if b.calls != nil && b.calls.takeReturned(b.id) {
		f = resultUnsent
	} else if b.calls != nil && f == resultNacked {
		b.calls.refused()
	}
	for _, m := range b.messages {
		m.onResult(f)
	}
}
