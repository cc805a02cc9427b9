package transport

import (
	"sync"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"
)

// netChannel implements Channel. amqp091-go opens and closes the channel and runs the methods
// that wait for the broker's answer, which take turns: the library would mix up the responses
// to two concurrent methods. Messages, deliveries, acknowledgements and confirms do not pass
// through the library: netChannel writes and reads their frames itself (docs/adr/0019).
type netChannel struct {
	*amqp.Channel

	id       uint16
	conn     *netLink
	turn     chan struct{}
	confirms confirmations

	mu        sync.Mutex
	consumers map[string]*deliveryQueue // by tag

	// Owned by the frame reader.
	last recentStrings
}

// openChannels are the channels of a connection by their numbers. The frame reader looks a
// channel up for each frame, so the table is copied for each change.
type openChannels struct {
	mu   sync.Mutex
	byID atomic.Pointer[map[uint16]*netChannel]
	// opened is the number of the channel that the broker opened last.
	opened atomic.Uint32
}

func (o *openChannels) get(id uint16) *netChannel {
	if all := o.byID.Load(); all != nil {
		return (*all)[id]
	}
	return nil
}

// set registers ch; remove, if ch is registered, removes it.
func (o *openChannels) change(ch *netChannel, remove bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make(map[uint16]*netChannel)
	if old := o.byID.Load(); old != nil {
		for id, other := range *old {
			all[id] = other
		}
	}
	switch {
	case !remove:
		all[ch.id] = ch
	case all[ch.id] == ch:
		delete(all, ch.id)
	}
	o.byID.Store(&all)
}

// Channel opens a channel.
func (l *netLink) Channel() (Channel, error) {
	l.opening.Lock()
	defer l.opening.Unlock()
	ch, err := l.conn.Channel()
	if err != nil {
		return nil, err
	}
	open := &l.socket.frames.channels
	c := &netChannel{
		Channel:   ch,
		id:        uint16(open.opened.Load()), //nolint:gosec // 16 bits were stored.
		conn:      l,
		turn:      make(chan struct{}, 1),
		consumers: make(map[string]*deliveryQueue),
	}
	ends := ch.NotifyClose(make(chan *amqp.Error, 1))
	open.change(c, false)
	go func() {
		for range ends { //nolint:revive // until the library closes it.
		}
		open.change(c, true)
		c.confirms.end()
	}()
	return c, nil
}

// Barrier implements channel with a method that changes nothing: basic.qos sets the prefetch
// of later consumers on the channel, and there are none. The broker answers the methods of a
// channel in order.
func (c *netChannel) Barrier() error {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	return c.Channel.Qos(1, 0, false)
}

// Cancel implements channel.
func (c *netChannel) Cancel(consumer string, noWait bool) error {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	return c.Channel.Cancel(consumer, noWait)
}

// PublishTo implements Channel.
func (c *netChannel) PublishTo(key string, mandatory bool, msg amqp.Publishing) (Confirmation, error) {
	word, err := c.confirms.add(func() error { return c.publish("", key, mandatory, &msg) })
	if err != nil {
		return nil, err
	}
	return word, nil
}

// PublishFanout implements Channel.
func (c *netChannel) PublishFanout(exchange string, msg amqp.Publishing) error {
	return c.publish(exchange, "", true, &msg)
}

func (c *netChannel) publish(exchange, key string, mandatory bool, msg *amqp.Publishing) (err error) {
	if c.IsClosed() {
		return amqp.ErrClosed
	}
	failed := c.conn.socket.append(func(b []byte) []byte {
		b, err = appendPublish(b, c.id, exchange, key, mandatory, msg, c.conn.FrameSize())
		return b
	})
	if err == nil {
		err = failed
	}
	return err
}

// Ack implements Channel.
func (c *netChannel) Ack(tag uint64, multiple bool) error {
	if c.IsClosed() {
		return amqp.ErrClosed
	}
	return c.conn.socket.append(func(b []byte) []byte { return appendAck(b, c.id, tag, multiple) })
}

// Nack implements amqp.Acknowledger.
func (c *netChannel) Nack(tag uint64, multiple, requeue bool) error {
	if c.IsClosed() {
		return amqp.ErrClosed
	}
	return c.conn.socket.append(func(b []byte) []byte { return appendNack(b, c.id, tag, multiple, requeue) })
}

// Reject implements amqp.Acknowledger.
func (c *netChannel) Reject(tag uint64, requeue bool) error { return c.Nack(tag, false, requeue) }

// Consume implements Channel.
func (c *netChannel) Consume(queue, consumer string, autoAck, exclusive, noLocal, noWait bool, args amqp.Table) (<-chan amqp.Delivery, error) {
	q := newDeliveryQueue(consumer)
	c.mu.Lock()
	c.consumers[consumer] = q
	c.mu.Unlock()
	over, err := c.Channel.Consume(queue, consumer, autoAck, exclusive, noLocal, noWait, args)
	if err != nil {
		c.forget(consumer, q)
		return nil, err
	}
	go func() {
		for range over { //nolint:revive // the library closes it when the consumer has ended.
		}
		c.forget(consumer, q)
		q.close()
	}()
	return q.out, nil
}

func (c *netChannel) forget(consumer string, q *deliveryQueue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.consumers[consumer] == q {
		delete(c.consumers, consumer)
	}
}

// consumerOf returns the queue of the consumer with this tag, or nil.
func (c *netChannel) consumerOf(tag []byte) *deliveryQueue {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.consumers[string(tag)]
}

// deliveryQueue hands the deliveries of a consumer from the frame reader, which must not wait,
// to the receiver. It has no bound of its own: the prefetch bounds a server, the calls in flight
// bound a client.
type deliveryQueue struct {
	tag  string
	out  chan amqp.Delivery
	over chan struct{} // closed by close

	mu      sync.Mutex
	rest    []amqp.Delivery // for which out has no room
	pumping bool            // a goroutine passes rest on
	closed  bool
}

// deliveryBuffer is the number of deliveries that wait without a further goroutine.
const deliveryBuffer = 64

func newDeliveryQueue(tag string) *deliveryQueue {
	return &deliveryQueue{tag: tag, out: make(chan amqp.Delivery, deliveryBuffer), over: make(chan struct{})}
}

// put adds a delivery.
func (q *deliveryQueue) put(d *amqp.Delivery) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	if !q.pumping {
		select {
		case q.out <- *d:
			return
		default:
		}
	}
	q.rest = append(q.rest, *d)
	if !q.pumping {
		q.pumping = true
		go q.pump()
	}
}

// pump passes the rest on.
func (q *deliveryQueue) pump() {
	for {
		q.mu.Lock()
		rest := q.rest
		q.rest = nil
		if len(rest) == 0 {
			q.pumping = false
			if q.closed {
				close(q.out)
			}
			q.mu.Unlock()
			return
		}
		q.mu.Unlock()
		for i := range rest {
			select {
			case q.out <- rest[i]:
			case <-q.over:
			}
		}
	}
}

// close ends the queue.
func (q *deliveryQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.closed = true
	close(q.over)
	if !q.pumping {
		close(q.out)
	}
}

// confirmations are the unconfirmed messages of a channel.
type confirmations struct {
	writing sync.Mutex // held from the number of a message until it is written

	mu      sync.Mutex
	first   uint64          // the number of the message at open[0]; 0: no message was published
	open    []*confirmation // nil: confirmed
	ended   bool
}

// confirmation implements Confirmation.
type confirmation struct {
	done  chan struct{}
	acked bool
}

func (c *confirmation) Done() <-chan struct{} { return c.done }
func (c *confirmation) Acked() bool           { return c.acked }

// add publishes a message by write, and returns its pending confirm.
func (c *confirmations) add(write func() error) (*confirmation, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	word := &confirmation{done: make(chan struct{})}
	c.mu.Lock()
	if c.first == 0 {
		c.first = 1
	}
	ended := c.ended
	c.open = append(c.open, word)
	c.mu.Unlock()
	err := amqp.ErrClosed
	_ = ended
	if ended {
		return nil, err
	}
	if err := write(); err != nil {
		c.mu.Lock()
		if n := len(c.open); n > 0 && c.open[n-1] == word {
			c.open = c.open[:n-1]
		}
		c.mu.Unlock()
		return nil, err
	}
	return word, nil
}

// settle is called with the broker's basic.ack or basic.nack.
func (c *confirmations) settle(tag uint64, multiple, acked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == 0 || tag < c.first && tag != 0 {
		return
	}
	last := int(min(tag-c.first, uint64(len(c.open)-1)))
	if tag == 0 {
		last = len(c.open) - 1
	}
	from := last
	if multiple {
		from = 0
	}
	for i := from; i <= last; i++ {
		if word := c.open[i]; word != nil {
			word.acked = acked
			close(word.done)
			c.open[i] = nil
		}
	}
	n := 0
	for n < len(c.open) && c.open[n] == nil {
		n++
	}
	c.open = c.open[n:]
	c.first += uint64(n)
}

// end settles all messages without a confirm.
func (c *confirmations) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	for _, word := range c.open {
		if word != nil {
			close(word.done)
		}
	}
	c.open = nil
}
