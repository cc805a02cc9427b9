package amqpx

import (
	"maps"
	"slices"
	"sync/atomic"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// Batching. A broker's throughput is limited by messages per second, so waiting requests, and
// waiting responses, travel together in one message. The broker's confirms set the pace: at
// most batchWindow messages of a batcher are unconfirmed. The first message leaves at once;
// messages arriving while the window is full leave together when a confirm frees a place.
// There is no timer, and a slow handler delays nothing, because confirms do not wait for
// handlers.

const (
	// batchWindow bounds the unconfirmed messages of a batcher. Each consumer beyond the first
	// raises the bound by 1.
	batchWindow = 2
	// batchCalls and batchBytes bound a batch, in messages and in bytes. A batch of this size
	// with its records' overhead fits in a frame of a broker's default size, and a server
	// holds at most a prefetch of batches.
	batchCalls = 512
	batchBytes = transport.MaxBatchBody
	// maxSkipped bounds the messages skipped because they do not fit into a batch.
	maxSkipped = 64
)

// batchable is an outbound message that can travel in a batch with others of its kind.
type batchable interface {
	outbound
	// batchKey returns the queue of the batch. "" means that the message must travel alone and
	// without waiting.
	batchKey() string
	// newBatch returns an empty batch of messages with this key. Its body is at most limit
	// bytes long and uses the memory of buffer.
	newBatch(key string, limit int, buffer []byte) batch
	// consumers returns the number of consumers among which the broker distributes the
	// batches.
	consumers() int
	// mustTravelAlone reports whether batching is disabled, so that waiting messages travel
	// alone.
	mustTravelAlone() bool
}

// batch is one message with several batchable messages in it. Every message gets the result of
// the batch.
type batch interface {
	outbound
	rejectable
	// add appends a message, whose beginSend returned true.
	add(m batchable)
	// fits reports whether another message may be added.
	fits(m batchable) bool
	// size returns the number of messages.
	size() int
	// sent is called before a batch of two or more messages is published.
	sent()
	// buffer returns the memory of the body. It is used again after the batch was published.
	buffer() []byte
}

// batcher collects the messages to one queue that wait for a place in the window.
type batcher struct {
	key         string
	waiting     []batchable
	unconfirmed atomic.Int32 // messages
}

// hasRoom reports whether the window has a place now, with this number of consumers.
func (l *batcher) hasRoom(takers int) bool { return int(l.unconfirmed.Load()) < batchWindow+takers-1 }

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

// takeWaiting returns all waiting messages, for the next session.
func (s *batchers) takeWaiting() []outbound {
	var all []outbound
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
func (p *publisher) joinBatch(out outbound) bool {
	m, ok := out.(batchable)
	if !ok {
		return false
	}
	key := m.batchKey()
	if key == "" {
		return false
	}
	if size := p.s.Pub.FrameSize(); mayExceedFrame(size) {
		if _, _, msg := m.publishing(); transport.CheckFrame(&msg, size) != nil {
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
		if l.hasRoom(l.waiting[0].consumers()) { // the place became free before windowFull was set
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

// minShare is the least share of the waiting messages in a batch, for any number of consumers.
const minShare = 16

// writeBatcher publishes as many messages of a batcher as its window allows. A broker
// distributes batches among the consumers in turn, so the waiting messages are divided by the
// number of consumers: a single large batch would leave all consumers but the first idle.
func (p *publisher) writeBatcher(l *batcher) {
	if l.waiting[0].mustTravelAlone() {
		for _, m := range l.waiting {
			p.publishAlone(m) // if the session has ended, the message's result is resultUnsent
		}
		clear(l.waiting)
		l.waiting = l.waiting[:0]
		return
	}
	takers := l.waiting[0].consumers()
	share := max((len(l.waiting)+takers-1)/takers, minShare)
	for len(l.waiting) > 0 && l.hasRoom(takers) && !p.s.Ended() {
		p.publishBatch(l, min(share, batchCalls))
	}
}

// publishBatch publishes the next batch of a batcher: the first message and at most most-1
// fitting later messages. A batch of one message is published as a single message.
func (p *publisher) publishBatch(l *batcher, most int) {
	limit := batchBytes
	if accepted := int(p.s.SizeLimit.Load()); accepted > 0 {
		limit = min(limit, accepted)
	}
	b := l.waiting[0].newBatch(l.key, limit, p.batchers.body[:0])
	var first batchable
	left := l.waiting[:0]
	for i, m := range l.waiting {
		if b.size() == most || len(left) == maxSkipped {
			left = append(left, l.waiting[i:]...)
			break
		}
		if b.size() > 0 && !b.fits(m) {
			left = append(left, m)
		} else if m.beginSend(p.s.Generation) {
			if b.size() == 0 {
				first = m
			}
			b.add(m)
		}
	}
	clear(l.waiting[len(left):])
	l.waiting = left
	p.batchers.body = b.buffer()
	switch b.size() {
	case 0:
	case 1:
		p.publish(first, l, false)
	default:
		b.sent()
		p.publish(b, l, false)
	}
}

// releaseSlot frees a place in the window of a batcher. It runs on the goroutine of confirm.
func (p *publisher) releaseSlot(l *batcher) {
	l.unconfirmed.Add(-1)
	if p.batchers.windowFull.Load() {
		p.batchers.wake()
	}
}

// mayExceedFrame reports whether headers within a batch's bound may exceed a frame of the
// connection.
func mayExceedFrame(frameSize int) bool { return frameSize > 0 && frameSize < 2*batchBytes }
