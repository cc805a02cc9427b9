package publish

import (
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// Batching. A broker's throughput is limited by messages per second, so waiting requests, and
// waiting responses, travel together in one message. The broker's confirms set the pace: at
// most BatchWindow messages of a batcher are unconfirmed. The first message leaves at once;
// messages arriving while the window is full leave together when a confirm frees a place.
// A slow handler delays nothing, because confirms do not wait for handlers. Before the publisher
// takes messages, it may wait for the messages that follow a batch (Outbox.Expect), because
// confirms alone do not keep a group of calls together, or keep batches apart (Outbox.Space).

// Bounds of batches.
const (
	// BatchWindow bounds the unconfirmed messages of a batcher. Each consumer beyond the first
	// raises the bound by 1.
	BatchWindow = 2
	// MaxBatchMessages and MaxBatchBytes bound a batch, in messages and in bytes; a server holds
	// at most a prefetch of batches.
	MaxBatchMessages = 512
	MaxBatchBytes    = transport.MaxBatchBody
	// MaxRecordBytes bounds a message in a batch. With larger messages a batch takes longer to
	// copy than the messages take alone.
	MaxRecordBytes = 32 << 10
	// maxSkipped bounds the messages skipped because they do not fit into a batch.
	maxSkipped = 64
)

// Batchable is an outbound message that can travel in a batch with others of its kind.
type Batchable interface {
	Outbound
	// BatchKey returns the queue of the batch. "" means that the message must travel alone and
	// without waiting.
	BatchKey() string
	// NewBatch returns an empty batch of messages with this key. Its body is at most limit
	// bytes long and uses the memory of buffer.
	NewBatch(key string, limit int, buffer []byte) Batch
	// Consumers returns the number of consumers among which the broker distributes the
	// batches.
	Consumers() int
	// MustTravelAlone reports whether batching is disabled, so that waiting messages travel
	// alone.
	MustTravelAlone() bool
}

// SinglePrefix begins the key of a batcher whose messages are published one at a time. Its window
// bounds the unconfirmed messages to each queue.
const SinglePrefix = "\x00"

// Spread is a message to one of several queues. The queue is chosen when the message, or a batch
// that begins with it, is published.
type Spread interface {
	Batchable
	// NextQueue returns the number of the queue for the next message of the batcher with this
	// key, or -1 while no queue may take a message. spread is false if there is only one queue,
	// whose window is that of any batcher.
	NextQueue(key string, room Room) (queue int, spread bool)
	// SetQueue sets the queue. It is called before BeginSend and NewBatch.
	SetQueue(queue int)
}

// Room tells a Spread of the windows of its batcher.
type Room interface {
	// HasRoom reports whether a queue may take a message, if its window has this size.
	HasRoom(queue, size int) bool
	// Unconfirmed returns the number of unconfirmed messages to a queue.
	Unconfirmed(queue int) int
}

// Batch is one message with several batchable messages in it. Every message gets the result of
// the batch.
type Batch interface {
	Outbound
	Rejectable
	// Add appends a message, whose BeginSend returned true.
	Add(m Batchable)
	// Fits reports whether another message may be added.
	Fits(m Batchable) bool
	// Size returns the number of messages.
	Size() int
	// Sent is called before a batch of two or more messages is published.
	Sent()
	// Buffer returns the memory of the body. It is used again after the batch was published.
	Buffer() []byte
}

// batcher collects the messages of one key that wait for a place in a window.
type batcher struct {
	key     string
	single  bool // the messages are published one at a time
	waiting []Batchable
	first   window    // of queue 0, the only queue without a Spread
	more    []*window // of the further queues
	last    int       // the size of the last batch, in messages
	sweepAt int       // number of waiting messages at which canceled messages are dropped
}

// window counts the unconfirmed messages of a batcher to one queue.
type window struct {
	queue       int
	unconfirmed atomic.Int32
}

// window returns the window of a queue.
func (l *batcher) window(queue int) *window {
	if queue == 0 {
		return &l.first
	}
	for len(l.more) < queue {
		l.more = append(l.more, &window{queue: len(l.more) + 1})
	}
	return l.more[queue-1]
}

// Unconfirmed implements Room.
func (l *batcher) Unconfirmed(queue int) int { return int(l.window(queue).unconfirmed.Load()) }

// HasRoom implements Room. The last place is for a batch that is at least as large as the batch
// before it: a smaller batch grows until a confirm frees another place, so that a broker has fewer
// messages to handle.
func (l *batcher) HasRoom(queue, size int) bool {
	unconfirmed := l.Unconfirmed(queue)
	return unconfirmed < size-1 || unconfirmed == size-1 && len(l.waiting) >= l.last
}

// next returns the queue that may take a message now, for a batch that begins with m, or -1.
func (l *batcher) next(m Batchable) int {
	if s, ok := m.(Spread); ok {
		if queue, spread := s.NextQueue(l.key, l); spread {
			return queue
		}
	}
	if l.HasRoom(0, BatchWindow+m.Consumers()-1) {
		return 0
	}
	return -1
}

// isIdle reports whether no message waits or is unconfirmed.
func (l *batcher) isIdle() bool {
	return len(l.waiting) == 0 && l.first.unconfirmed.Load() == 0 &&
		!slices.ContainsFunc(l.more, func(w *window) bool { return w.unconfirmed.Load() > 0 })
}

// minSweep is the least number of waiting messages for a sweep.
const minSweep = 1024

// sweep drops the canceled messages of a batcher whose windows stay full, when the waiting messages
// have doubled since the last sweep.
func (l *batcher) sweep() {
	if len(l.waiting) < max(l.sweepAt, minSweep) {
		return
	}
	l.waiting = slices.DeleteFunc(l.waiting, func(m Batchable) bool { return m.Canceled() })
	l.sweepAt = 2 * len(l.waiting)
}

// batchers are the batchers of one publisher. Its writer owns all fields except the windows
// (batcher.unconfirmed), windowFull and slotFreed.
type batchers struct {
	byKey      map[string]*batcher
	busy       []*batcher    // the batchers with waiting messages
	windowFull atomic.Bool   // messages wait for a place in a window
	slotFreed  chan struct{} // has a token when a place has become free for them
	body       []byte        // the buffer of the last batch, for reuse
}

// maxIdleBatchers is the number of batchers at which those without messages are dropped.
const maxIdleBatchers = 1024

func newBatchers() batchers {
	return batchers{byKey: make(map[string]*batcher), slotFreed: make(chan struct{}, 1)}
}

// add appends m to the waiting messages of the batcher with this key.
func (s *batchers) add(key string, m Batchable) {
	l := s.byKey[key]
	if l == nil {
		if len(s.byKey) >= maxIdleBatchers {
			maps.DeleteFunc(s.byKey, func(_ string, l *batcher) bool { return l.isIdle() })
		}
		l = &batcher{key: key, single: strings.HasPrefix(key, SinglePrefix)}
		s.byKey[key] = l
	}
	if len(l.waiting) == 0 {
		s.busy = append(s.busy, l)
	}
	l.waiting = append(l.waiting, m)
	l.sweep()
}

// takeWaiting returns all waiting messages, for the next session.
func (s *batchers) takeWaiting() []Outbound {
	var all []Outbound
	for _, l := range s.busy {
		for _, m := range l.waiting {
			all = append(all, m)
		}
	}
	return all
}

// joinBatch adds out to its batcher, if there is a batcher, and reports whether there is. A
// message too large for a frame of the connection has no batcher: it must not fail, or
// succeed, because of other messages.
func (p *publisher) joinBatch(out Outbound) bool {
	m, ok := out.(Batchable)
	if !ok {
		return false
	}
	key := m.BatchKey()
	if key == "" {
		return false
	}
	if size := p.s.Pub.FrameSize(); mayExceedFrame(size) {
		if _, _, msg := m.Publishing(); transport.CheckFrame(&msg, size) != nil {
			return false
		}
	}
	p.batchers.add(key, m)
	return true
}

// writeBatches publishes as many messages as the windows allow.
func (p *publisher) writeBatches() {
	busy := p.batchers.busy
	p.writeCorked(len(busy), func(i int) {
		p.writeBatcher(busy[i])
	})
	p.batchers.busy = slices.DeleteFunc(busy, func(l *batcher) bool { return len(l.waiting) == 0 })
	p.batchers.windowFull.Store(len(p.batchers.busy) > 0)
	for _, l := range p.batchers.busy {
		if l.next(l.waiting[0]) >= 0 { // the place became free before windowFull was set
			p.batchers.wake()
		}
	}
}

// wake makes the writer look at the batchers again.
func (s *batchers) wake() {
	select {
	case s.slotFreed <- struct{}{}:
	default:
	}
}

// MinShare is the least share of the waiting messages in a batch, for any number of consumers.
const MinShare = 16

// writeBatcher publishes as many messages of a batcher as its window allows. A broker
// distributes batches among the consumers in turn, so the waiting messages are divided by the
// number of consumers: a single large batch would leave all consumers but the first idle.
func (p *publisher) writeBatcher(l *batcher) {
	switch {
	case len(l.waiting) == 0: // all were canceled
		return
	case l.single:
		p.writeSingles(l)
		return
	case l.waiting[0].MustTravelAlone():
		p.disband(l)
		return
	}
	takers := l.waiting[0].Consumers()
	share := max((len(l.waiting)+takers-1)/takers, MinShare)
	for len(l.waiting) > 0 && !p.s.Ended() {
		queue := l.next(l.waiting[0])
		if queue < 0 {
			return
		}
		p.publishBatch(l, queue, min(share, MaxBatchMessages))
	}
}

// disband makes the waiting messages of a batcher travel alone.
func (p *publisher) disband(l *batcher) {
	var back []Outbound // choose their batcher again
	for _, m := range l.waiting {
		if s, ok := m.(Spread); ok {
			if _, spread := s.NextQueue(l.key, l); spread {
				back = append(back, m)
				continue
			}
		}
		p.publishAlone(m) // if the session has ended, the message's result is Unsent
	}
	p.outbox.PushFront(back)
	clear(l.waiting)
	l.waiting = reusable(l.waiting)
}

// writeSingles publishes the messages of a batcher one at a time, as many as the windows allow.
func (p *publisher) writeSingles(l *batcher) {
	n := 0
	p.s.Pub.Cork()
	for ; n < len(l.waiting) && !p.s.Ended(); n++ {
		m := l.waiting[n]
		queue := l.next(m)
		if queue < 0 {
			break
		}
		if s, ok := m.(Spread); ok {
			s.SetQueue(queue)
		}
		if m.BeginSend(p.s.Generation) {
			p.publish(m, l.window(queue), false)
		}
		if n%maxBurst == maxBurst-1 {
			p.s.Pub.Uncork()
			p.s.Pub.Cork()
		}
	}
	p.s.Pub.Uncork()
	left := copy(l.waiting, l.waiting[n:])
	clear(l.waiting[left:])
	if l.waiting = l.waiting[:left]; left == 0 {
		l.waiting = reusable(l.waiting)
	}
}

// publishBatch publishes the next batch of a batcher to a queue: the first message and at most
// most-1 fitting later messages. A batch of one message is published as a single message.
func (p *publisher) publishBatch(l *batcher, queue, most int) {
	limit := MaxBatchBytes
	if accepted := int(p.s.SizeLimit.Load()); accepted > 0 {
		limit = min(limit, accepted)
	}
	if s, ok := l.waiting[0].(Spread); ok {
		s.SetQueue(queue)
	}
	b := l.waiting[0].NewBatch(l.key, limit, p.batchers.body[:0])
	var first Batchable
	left := l.waiting[:0]
	for i, m := range l.waiting {
		if b.Size() == most || len(left) == maxSkipped {
			left = append(left, l.waiting[i:]...)
			break
		}
		if b.Size() > 0 && !b.Fits(m) {
			left = append(left, m)
		} else if m.BeginSend(p.s.Generation) {
			if b.Size() == 0 {
				first = m
			}
			b.Add(m)
		}
	}
	clear(l.waiting[len(left):])
	if l.waiting = left; len(left) == 0 {
		l.waiting = reusable(left)
	}
	p.batchers.body, l.last = b.Buffer(), b.Size()
	switch b.Size() {
	case 0:
	case 1:
		p.publish(first, l.window(queue), false)
	default:
		b.Sent()
		p.publish(b, l.window(queue), false)
		p.outbox.Space(b.Size())
	}
}

// releaseSlot frees a place in a window. It runs on the goroutine of confirm.
func (p *publisher) releaseSlot(w *window) {
	w.unconfirmed.Add(-1)
	if p.batchers.windowFull.Load() {
		p.batchers.wake()
	}
}

// mayExceedFrame reports whether the headers of a message that fits in a batch may exceed a
// frame of the connection.
func mayExceedFrame(frameSize int) bool { return frameSize > 0 && frameSize < 2*MaxRecordBytes }

// BatchLimit returns the bound of the batches of a client or server that sends and accepts
// messages of at most maxMessage bytes.
func BatchLimit(maxMessage int) int {
	return min(max(maxMessage, transport.MinBatchBody), MaxBatchBytes)
}
