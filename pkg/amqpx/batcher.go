package amqpx

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
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
	// fits reports whether the message may join batch b.
	fits(b *batch) bool
	// appendTo appends the message, whose beginSend returned true, to batch b.
	appendTo(b *batch)
	// consumers returns the number of consumers among which the broker distributes the
	// batches.
	consumers() int
	// mustTravelAlone reports whether batching is disabled, so that waiting messages travel
	// alone.
	mustTravelAlone() bool
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
	b := &batch{key: l.key, now: time.Now(), limit: batchBytes, body: p.batchers.body[:0]}
	if limit := int(p.s.SizeLimit.Load()); limit > 0 {
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
		} else if m.beginSend(p.s.Generation) {
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

// releaseSlot frees a place in the window of a batcher. It runs on the goroutine of confirm.
func (p *publisher) releaseSlot(l *batcher) {
	l.unconfirmed.Add(-1)
	if p.batchers.windowFull.Load() {
		p.batchers.wake()
	}
}

// batch is one message with several batchable messages in it. It implements outbound.
type batch struct {
	messages []batchable
	key      string
	now      time.Time // the time of its creation
	limit    int       // of the body in bytes
	// The next fields are set by appendTo of the messages.
	calls      *batchTarget // of a batch of requests, else nil
	id         string       // of a batch of requests
	replyTo    string
	user       string        // the broker's user, of all the requests
	least      time.Duration // the shortest remaining time of the requests
	most       time.Duration // the longest remaining time of the requests
	persistent bool
	mandatory  bool   // of a batch of responses
	body       []byte // valid until the batch is published
}

// beginSend implements outbound; beginSend of each message was called before its appendTo.
func (b *batch) beginSend(uint64) bool { return true }

// canceled implements outbound.
func (b *batch) canceled() bool { return false }

// publishing implements outbound.
func (b *batch) publishing() (key string, mandatory bool, msg amqp.Publishing) {
	msg = amqp.Publishing{ContentType: wire.ContentTypeResponses, DeliveryMode: wire.DeliveryMode(b.persistent), Body: b.body}
	if b.calls == nil {
		return b.key, b.mandatory, msg
	}
	msg.ContentType, msg.CorrelationId, msg.ReplyTo, msg.UserId = wire.ContentTypeRequests, b.id, b.replyTo, b.user
	msg.Expiration = wire.Expiration(b.least)
	return b.key, true, msg
}

// reject implements rejectable: the broker accepted no part of the batch, and its messages are
// sent again in smaller batches, or alone.
func (b *batch) reject(error) {
	for _, m := range b.messages {
		m.onResult(resultUnsent)
	}
}

// onResult implements outbound: every message gets the result of the batch. The requests of a
// returned batch reached no queue, and are sent again alone.
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

// mayExceedFrame reports whether headers within a batch's bound may exceed a frame of the
// connection.
func mayExceedFrame(frameSize int) bool { return frameSize > 0 && frameSize < 2*batchBytes }
