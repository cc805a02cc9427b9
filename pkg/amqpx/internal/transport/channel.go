package transport

import (
	"errors"
	"maps"
	"sync"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"
)

// netChannel implements Channel. amqp091-go opens and closes the channel, runs the methods that
// wait for the broker's response, and receives exceptions, cancellations and returns. Messages,
// acknowledgements, deliveries and confirms do not pass through that library: netChannel writes
// their frames and the frame reader takes them (docs/adr/0019).
type netChannel struct {
	*amqp.Channel

	id       uint16
	conn     *netLink
	lease    *netLease // nil: the channel belongs to the connection itself
	watched  sync.Once
	over     chan struct{} // closed after the end of a watched channel, and by Abandon
	overOnce sync.Once
	closing  atomic.Bool // Close has been called

	ends       <-chan *amqp.Error // receives the reason for the end of the channel, and is closed then
	ended      sync.Once          // for awaitEnd
	abandoned  atomic.Bool        // Abandon has been called
	reason     *amqp.Error        // received from ends; nil if there is none
	confirming atomic.Bool        // the broker confirms messages
	confirms   confirmations
	// turn is held by a method that waits for the broker's response: amqp091-go would mix up
	// the responses to two concurrent methods.
	turn chan struct{}

	// writing is held while the frames of a message are written, and during an
	// acknowledgement: no other frame of the channel may come between the frames of a message,
	// or the broker ends the connection. For the frames of amqp091-go see socket.append.
	writing sync.Mutex

	mu        sync.Mutex
	consumers map[string]*deliveryQueue // by tag
	returns   []chan amqp.Return        // the receivers of returns

	last recentStrings // used only by the frame reader
}

// Channel implements Conn. amqp091-go does not tell the number of a channel, so channels are
// opened one at a time and the frame reader notes the number in channel.open-ok.
func (l *netLink) Channel() (Channel, error) { return l.openChannel(nil) }

// openChannel opens a channel for a lease, or for the connection itself.
func (l *netLink) openChannel(lease *netLease) (Channel, error) {
	l.opening.Lock()
	defer l.opening.Unlock()
	ch, err := l.conn.Channel()
	if err != nil {
		return nil, err
	}
	open := &l.socket.frames.channels
	c := &netChannel{
		Channel:   ch,
		id:        uint16(open.opened.Load()), //nolint:gosec // the frame reader stored 16 bits.
		conn:      l,
		lease:     lease,
		over:      make(chan struct{}),
		turn:      make(chan struct{}, 1),
		consumers: make(map[string]*deliveryQueue),
	}
	c.ends = ch.NotifyClose(make(chan *amqp.Error, 1))
	open.add(c)
	return c, nil
}

// reasonFor returns the broker's reason for the end of the channel, if err only says that the
// channel has ended.
func (c *netChannel) reasonFor(err error) error {
	if !errors.Is(err, amqp.ErrClosed) || c.closing.Load() {
		return err
	}
	if reason := c.awaitEnd(); reason != nil { // amqp091-go marks a channel as closed just before it tells the reason
		return reason
	}
	return err
}

// awaitEnd waits until the channel or the connection has ended, and returns the reason; nil if there
// is none.
func (c *netChannel) awaitEnd() *amqp.Error {
	c.ended.Do(func() {
		for reason := range c.ends {
			c.reason = reason
		}
	})
	return c.reason
}

// watch starts a goroutine for the end of the channel. A channel without confirms and consumers
// needs no such goroutine: after an exception the channel stays in the table of channels until
// another channel gets its number.
func (c *netChannel) watch() {
	c.watched.Do(func() {
		go func() { // ends with the channel or the connection
			c.awaitEnd() //nolint:errcheck // whatever the reason is.
			c.conn.socket.frames.channels.remove(c)
			c.end()
		}()
	})
}

// end completes the confirms and ends the consumers.
func (c *netChannel) end() {
	c.overOnce.Do(func() { close(c.over) })
	c.confirms.end()
}

// Abandon implements Channel. Frames that the broker still sends are dropped until the end of
// the channel: deliveries by deliveryQueue, returns by the goroutine.
func (c *netChannel) Abandon() {
	c.closing.Store(true)
	c.abandoned.Store(true)
	c.end()
	for _, returns := range c.takeReturns() {
		go func() {
			for range returns { // amqp091-go closes returns when the channel or the connection has ended.
			}
		}()
	}
}

// IsClosed implements Channel.
func (c *netChannel) IsClosed() bool { return c.abandoned.Load() || c.Channel.IsClosed() }

// NotifyReturn implements Channel.
func (c *netChannel) NotifyReturn(returns chan amqp.Return) chan amqp.Return {
	c.mu.Lock()
	c.returns = append(c.returns, returns)
	c.mu.Unlock()
	return c.Channel.NotifyReturn(returns)
}

// takeReturns removes and returns the receivers of returns.
func (c *netChannel) takeReturns() []chan amqp.Return {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.returns
	c.returns = nil
	return all
}

// openChannels are the channels of a connection by their numbers. Every change makes a copy of
// the table, because the frame reader looks a channel up for every frame.
type openChannels struct {
	opened atomic.Uint32 // the number of the channel opened last

	mu   sync.Mutex
	byID atomic.Pointer[map[uint16]*netChannel] // nil: empty
}

// get returns the channel with this number, or nil.
func (o *openChannels) get(id uint16) *netChannel {
	if open := o.byID.Load(); open != nil {
		return (*open)[id]
	}
	return nil
}

func (o *openChannels) add(c *netChannel) {
	o.change(func(open map[uint16]*netChannel) { open[c.id] = c })
}

// remove removes c, unless another channel has got its number.
func (o *openChannels) remove(c *netChannel) {
	o.change(func(open map[uint16]*netChannel) {
		if open[c.id] == c {
			delete(open, c.id)
		}
	})
}

func (o *openChannels) change(by func(map[uint16]*netChannel)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	open := make(map[uint16]*netChannel)
	if old := o.byID.Load(); old != nil {
		maps.Copy(open, *old)
	}
	by(open)
	o.byID.Store(&open)
}

// Barrier implements Channel with a method that changes nothing: basic.qos sets the prefetch
// of later consumers on the channel, and there are none. The broker responds to the
// methods of a channel in order.
func (c *netChannel) Barrier() error {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	return c.reasonFor(c.Channel.Qos(1, 0, false))
}

// Cancel implements Channel.
func (c *netChannel) Cancel(consumer string, noWait bool) error {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	return c.Channel.Cancel(consumer, noWait)
}

// Confirm implements Channel.
func (c *netChannel) Confirm(noWait bool) error {
	c.watch()
	err := c.Channel.Confirm(noWait)
	c.confirming.Store(err == nil)
	return err
}

// Close implements Channel. The broker ends the connection if it receives a frame of a closed
// channel, so nothing more is written after Close has begun.
func (c *netChannel) Close() error {
	c.closing.Store(true)
	defer c.conn.socket.frames.channels.remove(c)
	return c.Channel.Close()
}

// PublishTo implements Channel.
func (c *netChannel) PublishTo(exchange, key string, mandatory bool, msg amqp.Publishing) (Confirmation, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	pending, ok := c.confirms.add()
	if !ok {
		return nil, amqp.ErrClosed
	}
	if err := c.write(exchange, key, mandatory, &msg); err != nil {
		c.confirms.takeBack(pending)
		return nil, err
	}
	return pending, nil
}

// PublishFanout implements Channel.
func (c *netChannel) PublishFanout(exchange string, msg amqp.Publishing) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if !c.confirming.Load() {
		return c.reasonFor(c.write(exchange, "", true, &msg))
	}
	pending, ok := c.confirms.add() // the broker counts the message
	if !ok {
		return amqp.ErrClosed
	}
	err := c.write(exchange, "", true, &msg)
	if err != nil {
		c.confirms.takeBack(pending)
	}
	return err
}

// write writes a message, one frame of the body at a time, because the socket's time limit is for
// one write. If the channel has ended before, the error is amqp.ErrClosed and nothing is written.
// If the channel ends meanwhile, write still writes the rest, because RabbitMQ ends the connection
// if the channel's close-ok comes between the frames of a message; the end of the channel is then
// the result of the confirm. If the connection ends meanwhile, the error is amqp.ErrClosed and the
// message is incomplete. The caller holds writing.
func (c *netChannel) write(exchange, key string, mandatory bool, msg *amqp.Publishing) error {
	chunk := len(msg.Body)
	if size := c.conn.FrameSize(); size > 0 {
		chunk = min(chunk, size-frameOverhead)
	}
	first, rest := msg.Body[:chunk], msg.Body[chunk:]
	if c.IsClosed() {
		return amqp.ErrClosed // not the error of the socket: amqp091-go knows a better reason
	}
	err := c.conn.socket.append(c, len(rest) > 0, func(b []byte) ([]byte, error) {
		start := len(b)
		b, err := appendMessage(b, c.id, exchange, key, mandatory, msg)
		if err != nil {
			return b[:start], err
		}
		return appendBody(b, c.id, first), nil
	})
	for err == nil && len(rest) > 0 {
		if c.conn.conn.IsClosed() {
			return amqp.ErrClosed
		}
		part := rest[:min(chunk, len(rest))]
		rest = rest[len(part):]
		err = c.conn.socket.append(c, len(rest) > 0, func(b []byte) ([]byte, error) { return appendBody(b, c.id, part), nil })
	}
	return err
}

// respond writes an acknowledgement.
func (c *netChannel) respond(encode func(b []byte) ([]byte, error)) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.IsClosed() {
		return amqp.ErrClosed
	}
	return c.conn.socket.append(c, false, encode)
}

// Ack implements Channel.
func (c *netChannel) Ack(tag uint64, multiple bool) error {
	return c.respond(func(b []byte) ([]byte, error) { return appendAck(b, c.id, tag, multiple), nil })
}

// Nack implements amqp.Acknowledger.
func (c *netChannel) Nack(tag uint64, multiple, requeue bool) error {
	return c.respond(func(b []byte) ([]byte, error) { return appendNack(b, c.id, tag, multiple, requeue), nil })
}

// Reject implements amqp.Acknowledger.
func (c *netChannel) Reject(tag uint64, requeue bool) error { return c.Nack(tag, false, requeue) }

// Consume implements Channel. Deliveries may come before the broker's consume-ok was handled,
// so the frame reader knows the consumer before basic.consume is written. A consumer without a
// tag gets its tag from amqp091-go, which then also receives its deliveries.
func (c *netChannel) Consume(queue, consumer string, autoAck, exclusive, noLocal, noWait bool, args amqp.Table) (<-chan amqp.Delivery, error) {
	if consumer == "" {
		return c.Channel.Consume(queue, consumer, autoAck, exclusive, noLocal, noWait, args)
	}
	c.watch()
	q := newDeliveryQueue(consumer, c.over, c.releaseUnread)
	c.setConsumer(consumer, q)
	ended, err := c.Channel.Consume(queue, consumer, autoAck, exclusive, noLocal, noWait, args)
	if err != nil {
		c.removeConsumer(consumer, q)
		return nil, err
	}
	go func() {
		for range ended { // amqp091-go closes ended when the consumer has ended.
		}
		c.removeConsumer(consumer, q)
		q.end()
	}()
	return q.out, nil
}

func (c *netChannel) setConsumer(tag string, q *deliveryQueue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.consumers[tag] = q
}

// removeConsumer removes a consumer, unless another has got its tag.
func (c *netChannel) removeConsumer(tag string, q *deliveryQueue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.consumers[tag] == q {
		delete(c.consumers, tag)
	}
}

// consumerOf returns the queue of the consumer with this tag, or nil.
func (c *netChannel) consumerOf(tag []byte) *deliveryQueue {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.consumers[string(tag)]
}

// releaseUnread releases the count of a delivery that no consumer will receive.
func (c *netChannel) releaseUnread(d *amqp.Delivery) {
	of := &c.conn.socket.frames.bodyLimits
	if c.lease != nil {
		of = &c.lease.bodies
	}
	of.releaseUnread(d.ConsumerTag, int64(len(d.Body)))
}

// deliveryQueue passes the deliveries of a consumer from the frame reader, which must not wait,
// to the receiver. The queue has no bound of its own: the prefetch bounds the deliveries of a
// server, the calls in flight bound those of a client. Safe for concurrent use.
type deliveryQueue struct {
	tag    string
	out    chan amqp.Delivery   // closed when the consumer has ended
	over   <-chan struct{}      // closed when the channel has ended: rest is not passed on then
	unread func(*amqp.Delivery) // called with each delivery that does not reach out

	mu      sync.Mutex
	rest    []amqp.Delivery // deliveries for which out had no room
	passing bool            // a goroutine passes rest on
	ended   bool
}

// deliveryBuffer is the number of deliveries that wait without a goroutine to pass them on.
const deliveryBuffer = 64

func newDeliveryQueue(tag string, over <-chan struct{}, unread func(*amqp.Delivery)) *deliveryQueue {
	return &deliveryQueue{tag: tag, out: make(chan amqp.Delivery, deliveryBuffer), over: over, unread: unread}
}

// put adds a delivery. It never blocks.
func (q *deliveryQueue) put(d *amqp.Delivery) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.ended:
		q.unread(d)
	case q.passing:
		q.rest = append(q.rest, *d)
	default:
		select {
		case q.out <- *d:
		default:
			q.rest = append(q.rest, *d)
			q.passing = true
			go q.pass()
		}
	}
}

// pass passes the rest on until there is none, or until the channel has ended.
func (q *deliveryQueue) pass() {
	for {
		q.mu.Lock()
		rest := q.rest
		q.rest = nil
		if q.passing = len(rest) > 0; !q.passing && q.ended {
			close(q.out)
		}
		q.mu.Unlock()
		if len(rest) == 0 {
			return
		}
		for i := range rest {
			q.passOne(&rest[i])
		}
	}
}

// passOne passes d on, unless the channel has ended, and frees its memory in rest.
func (q *deliveryQueue) passOne(d *amqp.Delivery) {
	select {
	case <-q.over: // no delivery may follow one that is lost
		q.unread(d)
	default:
		select {
		case q.out <- *d:
		case <-q.over:
			q.unread(d)
		}
	}
	*d = amqp.Delivery{}
}

// end ends the queue: no further deliveries come. The receiver still gets the earlier deliveries,
// unless the channel has ended.
func (q *deliveryQueue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	if !q.passing {
		close(q.out)
	}
}

// confirmations are the unconfirmed messages of a channel in the order of their numbers, which
// count from 1. The zero value is for a new channel. Safe for concurrent use.
type confirmations struct {
	mu      sync.Mutex
	settled uint64          // the number of the message before pending[0]
	pending []*confirmation // nil: confirmed
	ended   bool
}

// confirmation implements Confirmation.
type confirmation struct {
	done  chan struct{}
	acked bool // set before done is closed
}

func (c *confirmation) Done() <-chan struct{} { return c.done }
func (c *confirmation) Acked() bool           { return c.acked }

// add returns the pending confirm of the next message. ok is false if the channel has ended.
func (c *confirmations) add() (pending *confirmation, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil, false
	}
	pending = &confirmation{done: make(chan struct{})}
	c.pending = append(c.pending, pending)
	return pending, true
}

// takeBack removes the message added last, which was not written in full.
func (c *confirmations) takeBack(last *confirmation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.pending); n > 0 && c.pending[n-1] == last {
		c.pending = c.pending[:n-1]
	}
}

// confirm handles the broker's basic.ack or basic.nack; with multiple, for all messages up to tag.
// An unknown tag is ignored. So is 0, which in AMQP stands for all messages and which RabbitMQ
// does not send: a message in pending may not be written yet.
func (c *confirmations) confirm(tag uint64, multiple, acked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first, end := tag-c.settled-1, tag-c.settled // of the indexes; first wraps around for an old tag
	switch n := uint64(len(c.pending)); {
	case tag <= c.settled || end > n:
		return
	case multiple:
		first = 0
	}
	for i := first; i < end; i++ {
		if pending := c.pending[i]; pending != nil {
			c.pending[i] = nil
			pending.acked = acked
			close(pending.done)
		}
	}
	for len(c.pending) > 0 && c.pending[0] == nil {
		c.pending = c.pending[1:]
		c.settled++
	}
}

// end completes all pending confirms: the channel has ended, and nothing more is acked.
func (c *confirmations) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	for _, pending := range c.pending {
		if pending != nil {
			close(pending.done)
		}
	}
	c.pending = nil
}
