package publish

import (
	"maps"
	"slices"
	"sync/atomic"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// Batching. A broker's throughput is limited by messages per second, so waiting requests, and
// waiting responses, travel together in one message. The broker's confirms set the pace: at
// most BatchWindow messages of a batcher are unconfirmed. The first message leaves at once;
// messages arriving while the window is full leave together when a confirm frees a place.
// There is no timer, and a slow handler delays nothing, because confirms do not wait for
// handlers.

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

// batcher collects the messages to one queue that wait for a place in the window.
type batcher struct {
	key         string
	waiting     []Batchable
	unconfirmed atomic.Int32 // messages
	last        int          // the size of the last batch, in messages
}

// hasRoom reports whether the window has a place now, with this number of consumers. The last
// place is for a batch that is at least as large as the batch before it: a smaller batch grows
// until a confirm frees another place, so that a broker has fewer messages to handle.
func (l *batcher) hasRoom(takers int) bool {
	unconfirmed, last := int(l.unconfirmed.Load()), BatchWindow+takers-2
	return unconfirmed < last || unconfirmed == last && len(l.waiting) >= l.last
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
		if l.hasRoom(l.waiting[0].Consumers()) { // the place became free before windowFull was set
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
	if l.waiting[0].MustTravelAlone() {
		for _, m := range l.waiting {
			p.publishAlone(m) // if the session has ended, the message's result is Unsent
		}
		clear(l.waiting)
		l.waiting = l.waiting[:0]
		return
	}
	takers := l.waiting[0].Consumers()
	share := max((len(l.waiting)+takers-1)/takers, MinShare)
	for len(l.waiting) > 0 && l.hasRoom(takers) && !p.s.Ended() {
		p.publishBatch(l, min(share, MaxBatchMessages))
	}
}

// publishBatch publishes the next batch of a batcher: the first message and at most most-1
// fitting later messages. A batch of one message is published as a single message.
func (p *publisher) publishBatch(l *batcher, most int) {
	limit := MaxBatchBytes
	if accepted := int(p.s.SizeLimit.Load()); accepted > 0 {
		limit = min(limit, accepted)
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
	l.waiting = left
	p.batchers.body, l.last = b.Buffer(), b.Size()
	switch b.Size() {
	case 0:
	case 1:
		p.publish(first, l, false)
	default:
		b.Sent()
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

// mayExceedFrame reports whether the headers of a message that fits in a batch may exceed a
// frame of the connection.
func mayExceedFrame(frameSize int) bool { return frameSize > 0 && frameSize < 2*MaxRecordBytes }

// BatchLimit returns the bound of the batches of a client or server that sends and accepts
// messages of at most maxMessage bytes.
func BatchLimit(maxMessage int) int {
	return min(max(maxMessage, transport.MinBatchBody), MaxBatchBytes)
}
