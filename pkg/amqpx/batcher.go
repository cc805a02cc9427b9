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
// laneWindow messages of a lane are unconfirmed; the first leaves at once, and what
// comes while the window is full leaves together when a confirm frees a place. There is
// no timer, and a slow handler delays nothing, because a confirm does not wait for it.

const (
	// laneWindow bounds the unconfirmed messages of one lane; each taker more than one
	// adds one.
	laneWindow = 2
	// batchCalls and batchBytes bound a batch. With its records a batch of that size
	// fits one frame of a broker's default, and a server holds at most a prefetch of
	// them.
	batchCalls = 512
	batchBytes = 64 << 10
	// misfits bounds how many messages are passed over in the search for mates.
	misfits = 64
)

// mate is an outgoing message that can travel with others of its kind.
type mate interface {
	outgoing
	// lane returns the queue to which it may travel with others; "" means that it must
	// travel alone, and not wait for anything.
	lane() string
	// fits reports whether it may join the batch.
	fits(b *batch) bool
	// board adds the message, which was claimed, to a batch.
	board(b *batch)
	// takers returns how many take what is sent in the lane, in turn.
	takers() int
	// mustLeave reports whether the lane is shut, so that what waits in it travels alone.
	mustLeave() bool
}

// lane is the messages to one queue that wait for each other.
type lane struct {
	key     string
	waiting []mate
	out     atomic.Int32 // unconfirmed messages
}

// hasRoom reports whether the lane may send now, to so many takers.
func (l *lane) hasRoom(takers int) bool { return int(l.out.Load()) < laneWindow+takers-1 }

// lanes are those of one publisher. Its writer owns them, but for the windows.
type lanes struct {
	byKey map[string]*lane
	busy  []*lane       // those in which messages wait
	stuck atomic.Bool   // messages wait for a place in a window
	freed chan struct{} // has a token when a place has come free for them
	body  []byte        // of the last batch, for reuse
}

// idleLanes is how many lanes are kept before those without messages are dropped.
const idleLanes = 1024

func newLanes() lanes {
	return lanes{byKey: make(map[string]*lane), freed: make(chan struct{}, 1)}
}

// add has m wait in the lane of key.
func (s *lanes) add(key string, m mate) {
	l := s.byKey[key]
	if l == nil {
		if len(s.byKey) >= idleLanes {
			maps.DeleteFunc(s.byKey, func(_ string, l *lane) bool { return len(l.waiting) == 0 && l.out.Load() == 0 })
		}
		l = &lane{key: key}
		s.byKey[key] = l
	}
	if len(l.waiting) == 0 {
		s.busy = append(s.busy, l)
	}
	l.waiting = append(l.waiting, m)
}

// rest empties the lanes, for the next session.
func (s *lanes) rest() []outgoing {
	var all []outgoing
	for _, l := range s.busy {
		for _, m := range l.waiting {
			all = append(all, m)
		}
	}
	return all
}

// joinLane has a message wait in its lane, if it has one. A message that does not fit a frame
// of the connection has none: whether it can be sent does not depend on others.
func (p *publisher) joinLane(out outgoing) bool {
	m, ok := out.(mate)
	if !ok {
		return false
	}
	key := m.lane()
	if key == "" {
		return false
	}
	if size := p.s.pub.frameSize(); mayExceedFrame(size) {
		if _, _, msg := m.envelope(); checkFrame(&msg, size) != nil {
			return false
		}
	}
	p.lanes.add(key, m)
	return true
}

// writeLanes publishes what the windows allow.
func (p *publisher) writeLanes() {
	busy := p.lanes.busy
	p.inBursts(len(busy), func(i int) {
		p.writeLane(busy[i])
	})
	p.lanes.busy = slices.DeleteFunc(busy, func(l *lane) bool { return len(l.waiting) == 0 })
	p.lanes.stuck.Store(len(p.lanes.busy) > 0)
	for _, l := range p.lanes.busy {
		if l.hasRoom(l.waiting[0].takers()) { // it came free before stuck was known
			p.lanes.signal()
		}
	}
}

// signal has the writer look at the lanes again.
func (s *lanes) signal() {
	select {
	case s.freed <- struct{}{}:
	default:
	}
}

// fairShare is how many messages may travel together however many take them.
const fairShare = 16

// writeLane publishes what a lane's window allows. A broker hands batches to its consumers
// in turn, so the waiting messages are divided by the number of consumers: one large batch
// would keep one consumer busy and leave the others idle.
func (p *publisher) writeLane(l *lane) {
	if l.waiting[0].mustLeave() {
		for _, m := range l.waiting {
			p.publishAlone(m) // when the session has ended the message is told that it was not sent
		}
		clear(l.waiting)
		l.waiting = l.waiting[:0]
		return
	}
	takers := l.waiting[0].takers()
	share := max((len(l.waiting)+takers-1)/takers, fairShare)
	for len(l.waiting) > 0 && l.hasRoom(takers) && !p.s.ended() {
		p.publishFrom(l, min(share, batchCalls))
	}
}

// publishFrom publishes the next batch of a lane: the first message and at most most-1 later
// messages that fit the same batch. A batch of one message is published as a single message.
func (p *publisher) publishFrom(l *lane, most int) {
	b := &batch{key: l.key, now: time.Now(), limit: batchBytes, body: p.lanes.body[:0]}
	if limit := int(p.s.sizeLimit.Load()); limit > 0 {
		b.limit = min(b.limit, limit)
	}
	left := l.waiting[:0]
	for i, m := range l.waiting {
		if len(b.mates) == most || len(left) == misfits {
			left = append(left, l.waiting[i:]...)
			break
		}
		if len(b.mates) > 0 && !m.fits(b) {
			left = append(left, m)
		} else if m.claim(p.s.generation) {
			m.board(b)
			b.mates = append(b.mates, m)
		}
	}
	clear(l.waiting[len(left):])
	l.waiting = left
	p.lanes.body = b.body
	switch len(b.mates) {
	case 0:
	case 1:
		p.publish(b.mates[0], l, false)
	default:
		if b.calls != nil {
			b.calls.onSent(len(b.mates))
		}
		p.publish(b, l, false)
	}
}

// free gives a lane a place in its window back. It runs on the goroutine of confirms.
func (p *publisher) free(l *lane) {
	l.out.Add(-1)
	if p.lanes.stuck.Load() {
		p.lanes.signal()
	}
}

// batch is several messages in one. It implements outgoing.
type batch struct {
	mates []mate
	key   string
	now   time.Time // when it was made up
	limit int       // of its body in bytes
	// What the mates set when they board.
	calls      *callLane // of a batch of calls, else nil
	id         string    // of a batch of calls
	replyTo    string
	user       string        // of the broker, of all the calls
	least      time.Duration // that a call in it has left
	most       time.Duration // and the most
	persistent bool
	mandatory  bool   // of a batch of responses
	body       []byte // valid until it is published
}

// claim implements outgoing; the mates were claimed one by one when they boarded.
func (b *batch) claim(uint64) bool { return true }

// withdrawn implements outgoing.
func (b *batch) withdrawn() bool { return false }

// envelope implements outgoing.
func (b *batch) envelope() (key string, mandatory bool, msg amqp.Publishing) {
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
	for _, m := range b.mates {
		m.settle(fateUnsent)
	}
}

// settle implements outgoing: every mate has the fate of the batch. Calls in a batch
// that came back have not been anywhere, and leave again, alone.
func (b *batch) settle(f fate) {
	if b.calls != nil && b.calls.cameBack(b.id) {
		f = fateUnsent
	} else if b.calls != nil && f == fateRefused {
		b.calls.refused()
	}
	for _, m := range b.mates {
		m.settle(f)
	}
}
