package brokertest

import (
	"bytes"
	"maps"
	"slices"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Channel is one channel of a Conn, and the Acknowledger of its deliveries.
// Fields are guarded by the broker's lock.
type Channel struct {
	link       *Conn
	lease      *lease // nil: the channel belongs to the connection itself
	id         int
	confirming bool
	prefetch   int // of consumers that start after Qos
	closed     bool
	silent     bool // shutdown has run, and no listener receives more
	abandoned  bool // Abandon has run

	tag       uint64
	consumers map[string]*Consumer
	unacked   map[uint64]*unackedDelivery
	confirms  map[*confirmation]bool

	ends    []chan *amqp.Error
	returns []chan amqp.Return
	cancels []chan string
}

// Consumer is a consumer of a queue, or of direct reply-to.
type Consumer struct {
	ch       *Channel
	tag      string
	queue    *Queue // nil for direct reply-to
	autoAck  bool
	prefetch int
	priority int32 // x-priority
	unacked  int
	out      chan amqp.Delivery // written by the connection's reader only
}

func (c *Consumer) hasRoom() bool {
	return c.autoAck || c.prefetch == 0 || c.unacked < c.prefetch
}

type unackedDelivery struct {
	consumer *Consumer
	message  *Message
}

// confirmation is the broker's confirm or nack of one message.
type confirmation struct {
	done  chan struct{}
	acked atomic.Bool
}

func (f *confirmation) Done() <-chan struct{} { return f.done }
func (f *confirmation) Acked() bool           { return f.acked.Load() }

// PublishTo implements channel.
func (c *Channel) PublishTo(exchange, key string, mandatory bool, msg amqp.Publishing) (transport.Confirmation, error) {
	b := c.link.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.over() {
		return nil, amqp.ErrClosed
	}
	msg.Body, msg.Headers = bytes.Clone(msg.Body), maps.Clone(msg.Headers)
	if msg.ReplyTo == wire.DirectReplyTo {
		msg.ReplyTo = c.replyAddress()
	}
	refused := b.checkUser(msg.UserId)
	if exchange != "" && b.Directs[exchange] == nil { // a broker checks the exchange first
		refused = noExchange(exchange)
	}
	if refused != nil {
		c.Except(refused)
		lost := &confirmation{done: make(chan struct{})}
		close(lost.done)
		return lost, nil
	}
	m := &arrival{ch: c, exchange: exchange, key: key, mandatory: mandatory, msg: msg}
	b.planFault(m)
	if err := m.fault.before(c.link); err != nil {
		return nil, err
	}
	m.confirm = &confirmation{done: make(chan struct{})}
	c.confirms[m.confirm] = true
	c.link.Published = true
	if b.OnPublish != nil {
		if refused := b.OnPublish(key, msg); refused != nil {
			c.Except(refused)
			return m.confirm, nil
		}
	}
	if b.alarm != "" {
		c.link.postBlocking(amqp.Blocking{Active: true, Reason: b.alarm})
		c.link.backlog = append(c.link.backlog, m)
		return m.confirm, nil
	}
	b.arrive(m)
	if m.fault == FaultCutWritten {
		return nil, ErrCut
	}
	return m.confirm, nil
}

// postConfirm sends a confirm or a nack, at once or in ReleaseConfirms. The caller holds the
// broker's lock.
func (c *Channel) postConfirm(word *confirmation, acked bool) {
	send := func() {
		c.link.post(func() {
			word.acked.Store(acked)
			c.resolve(word)
		})
	}
	if b := c.link.broker; b.Holding {
		b.Held = append(b.Held, send)
		return
	}
	send()
}

func (c *Channel) resolve(word *confirmation) {
	c.link.broker.mu.Lock()
	defer c.link.broker.mu.Unlock()
	if c.confirms[word] {
		delete(c.confirms, word)
		close(word.done)
	}
}

// postReturn returns a mandatory message. The caller holds the broker's lock.
func (c *Channel) postReturn(key string, msg amqp.Publishing) {
	r := amqp.Return{
		ReplyCode: amqp.NoRoute, ReplyText: "NO_ROUTE", RoutingKey: key, Headers: msg.Headers,
		CorrelationId: msg.CorrelationId, ReplyTo: msg.ReplyTo, MessageId: msg.MessageId, Timestamp: msg.Timestamp,
		AppId: msg.AppId, Expiration: msg.Expiration, ContentType: msg.ContentType, Body: msg.Body,
	}
	c.link.post(func() {
		if c.link.broker.isAbandoned(c) {
			return
		}
		for _, n := range c.returns {
			n <- r
		}
	})
}

// deliver sends a message to a consumer. The caller holds the broker's lock.
func (c *Channel) deliver(to *Consumer, m *Message) {
	c.tag++
	if !to.autoAck {
		c.unacked[c.tag] = &unackedDelivery{consumer: to, message: m}
		to.unacked++
	}
	d := amqp.Delivery{
		Acknowledger: c, Exchange: m.exchange, RoutingKey: m.key, ConsumerTag: to.tag, DeliveryTag: c.tag, Redelivered: m.Redelivered,
		Headers: m.Msg.Headers, DeliveryMode: m.Msg.DeliveryMode, CorrelationId: m.Msg.CorrelationId, Timestamp: m.Msg.Timestamp,
		ReplyTo: m.Msg.ReplyTo, Expiration: m.Msg.Expiration, MessageId: m.Msg.MessageId,
		ContentType: m.Msg.ContentType, ContentEncoding: m.Msg.ContentEncoding, Priority: m.Msg.Priority, Type: m.Msg.Type,
		AppId: m.Msg.AppId, UserId: m.Msg.UserId, Body: m.Msg.Body,
	}
	c.link.post(func() {
		select {
		case to.out <- c.bound(d):
		case <-c.link.gone:
		}
	})
}

// disposition is what becomes of the message of a settled delivery.
type disposition uint8

const (
	acknowledged disposition = iota
	requeued
	rejected
)

// Ack implements channel and amqp.Acknowledger.
func (c *Channel) Ack(tag uint64, multiple bool) error { return c.settle(tag, multiple, acknowledged) }

// Nack implements amqp.Acknowledger.
func (c *Channel) Nack(tag uint64, multiple, requeue bool) error {
	if requeue {
		return c.settle(tag, multiple, requeued)
	}
	c.link.broker.With(func(b *Broker) { b.Rejected++ })
	return c.settle(tag, multiple, rejected)
}

// Reject implements amqp.Acknowledger.
func (c *Channel) Reject(tag uint64, requeue bool) error { return c.Nack(tag, false, requeue) }

func (c *Channel) settle(tag uint64, multiple bool, how disposition) error {
	b := c.link.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.over() {
		return amqp.ErrClosed
	}
	tags := []uint64{tag}
	if multiple {
		tags = slices.DeleteFunc(c.openTags(), func(t uint64) bool { return t > tag })
	}
	if how == requeued {
		slices.Reverse(tags) // requeued messages keep their order
	}
	touched := map[*Queue]bool{}
	for _, t := range tags {
		u := c.unacked[t]
		if u == nil {
			c.Except(&amqp.Error{Code: amqp.PreconditionFailed, Server: true, Reason: "PRECONDITION_FAILED - unknown delivery tag"})
			return nil
		}
		delete(c.unacked, t)
		u.consumer.unacked--
		switch q := u.consumer.queue; how {
		case requeued:
			b.Requeue(q, u.message)
		case rejected:
			b.deadLetter(q, u.message, deathRejected)
		case acknowledged:
		}
		touched[u.consumer.queue] = true
	}
	for q := range touched {
		b.Dispatch(q)
	}
	return nil
}

func (c *Channel) openTags() []uint64 { return slices.Sorted(maps.Keys(c.unacked)) }

// Except ends the channel with an exception. The caller holds the broker's lock.
func (c *Channel) Except(reason *amqp.Error) {
	if c.closed {
		return
	}
	c.detach()
	c.link.post(func() { c.shutdown(reason) })
}

// Except ends the channel of the consumer with an exception. The caller holds the broker's lock.
func (c *Consumer) Except(reason *amqp.Error) { c.ch.Except(reason) }

// detach is the broker's half of a channel's end. The caller holds the broker's lock.
func (c *Channel) detach() {
	if c.closed {
		return
	}
	c.closed = true
	b := c.link.broker
	for _, consumer := range c.consumers {
		b.removeConsumer(consumer)
	}
	touched := map[*Queue]bool{}
	for _, t := range slices.Backward(c.openTags()) {
		u := c.unacked[t]
		b.Requeue(u.consumer.queue, u.message)
		touched[u.consumer.queue] = true
	}
	clear(c.unacked)
	for q := range touched {
		b.Dispatch(q)
	}
}

// shutdown is the client's half of a channel's end: every listener is notified and closed.
// Only the connection's reader calls shutdown.
func (c *Channel) shutdown(reason *amqp.Error) {
	c.link.broker.mu.Lock()
	defer c.link.broker.mu.Unlock()
	if c.silent {
		return
	}
	c.silent = true
	for _, n := range c.ends {
		if reason != nil {
			n <- reason
		}
		close(n)
	}
	for _, consumer := range c.consumers {
		close(consumer.out)
	}
	for _, n := range c.returns {
		close(n)
	}
	for _, n := range c.cancels {
		close(n)
	}
	for word := range c.confirms {
		close(word.done)
	}
	clear(c.confirms)
}

// NotifyClose implements channel.
func (c *Channel) NotifyClose(n chan *amqp.Error) chan *amqp.Error {
	return listen(c, &c.ends, n)
}

// NotifyReturn implements channel.
func (c *Channel) NotifyReturn(n chan amqp.Return) chan amqp.Return {
	return listen(c, &c.returns, n)
}

// NotifyCancel implements channel.
func (c *Channel) NotifyCancel(n chan string) chan string { return listen(c, &c.cancels, n) }

// listen registers n, or closes n at once if the channel has ended.
func listen[T any](c *Channel, to *[]chan T, n chan T) chan T {
	c.link.broker.mu.Lock()
	defer c.link.broker.mu.Unlock()
	if c.silent {
		close(n)
	} else {
		*to = append(*to, n)
	}
	return n
}

// IsClosed implements channel.
func (c *Channel) IsClosed() bool {
	c.link.broker.mu.Lock()
	defer c.link.broker.mu.Unlock()
	return c.over()
}

// over reports whether the channel or its connection has ended. The caller holds the broker's
// lock.
func (c *Channel) over() bool { return c.closed || c.abandoned || c.link.dead }

// isAbandoned reports whether nobody reads what the broker sends on the channel.
func (b *Broker) isAbandoned(c *Channel) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return c.abandoned
}

// Abandon implements channel.
func (c *Channel) Abandon() {
	c.link.broker.mu.Lock()
	defer c.link.broker.mu.Unlock()
	c.abandoned = true
	for word := range c.confirms {
		close(word.done)
	}
	clear(c.confirms)
}

// Close implements channel.
func (c *Channel) Close() error {
	if err := c.link.call("close", ""); err != nil {
		return err
	}
	c.link.broker.mu.Lock()
	defer c.link.broker.mu.Unlock()
	if c.closed || c.link.dead {
		return amqp.ErrClosed
	}
	c.detach()
	c.link.post(func() { c.shutdown(nil) })
	return nil
}
