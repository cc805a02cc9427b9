package brokertest

import (
	"fmt"
	"maps"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Conn is one connection to a Broker. The broker's lock guards the fields, except
// where a comment says otherwise.
type Conn struct {
	broker *Broker
	Name   string
	id     int

	channels  []*Channel
	Published bool
	told      bool       // the client knows of the alarm
	backlog   []*arrival // publishes that a blocked broker has not read
	Holds     int        // calls of cork
	dead      bool
	Reason    *amqp.Error // why the connection ended; nil for close and Kick(nil)
	closes    int         // calls of close and cut

	events []func()      // Sent by the broker, not yet read by the client
	wake   chan struct{} // one slot: there are events, or the connection is dead
	gone   chan struct{} // closed when the connection is dead

	unclaimed transport.UnclaimedBodies
	leases    int // calls of Lease

	ended  chan *amqp.Error   // written by read only
	blocks chan amqp.Blocking // written by read only
}

func newConn(b *Broker, name string, id int) *Conn {
	return &Conn{
		broker: b, Name: name, id: id,
		wake:   make(chan struct{}, 1),
		gone:   make(chan struct{}),
		ended:  make(chan *amqp.Error, 1),
		blocks: make(chan amqp.Blocking, 16),
	}
}

// post queues an event for the client's reader. The caller holds the broker's lock.
func (l *Conn) post(event func()) {
	if l.dead {
		return
	}
	l.events = append(l.events, event)
	l.poke()
}

func (l *Conn) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// postBlocking notifies the client of an alarm's start or end, once each. The caller holds the
// broker's lock.
func (l *Conn) postBlocking(b amqp.Blocking) {
	if l.told == b.Active {
		return
	}
	l.told = b.Active
	l.post(func() { l.blocks <- b })
}

// read handles events in order, and shuts every channel down when the connection is dead,
// like the reader goroutine of amqp091-go.
func (l *Conn) read() {
	for range l.wake {
		for {
			event, dead := l.next()
			if dead {
				l.shutdown()
				return
			}
			if event == nil {
				break
			}
			event()
		}
	}
}

func (l *Conn) next() (event func(), dead bool) {
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	if l.dead {
		return nil, true
	}
	if len(l.events) == 0 {
		return nil, false
	}
	event, l.events[0] = l.events[0], nil // an event refers to messages
	l.events = l.events[1:]
	return event, false
}

// End ends the connection: unread events are lost, and unacknowledged deliveries return to
// their queues. The caller holds the broker's lock.
func (l *Conn) End(reason *amqp.Error) {
	if l.dead {
		return
	}
	l.dead, l.Reason = true, reason
	l.events, l.backlog = nil, nil
	l.broker.Links = slices.DeleteFunc(l.broker.Links, func(o *Conn) bool { return o == l })
	for _, c := range l.channels {
		c.detach()
	}
	for name, q := range l.broker.Queues {
		if q.owner == l {
			delete(l.broker.Queues, name)
		}
	}
	close(l.gone)
	l.poke()
}

// Strand ends only the client's half of the connection, as in a network that drops every
// packet: the broker keeps the consumers and continues to send to them. The caller holds the
// broker's lock.
func (l *Conn) Strand() {
	l.dead, l.Reason = true, BrokenSocket()
	l.events, l.backlog = nil, nil
	close(l.gone)
	l.poke()
}

func (l *Conn) shutdown() {
	if l.Reason != nil {
		l.ended <- l.Reason
	}
	close(l.ended)
	for _, c := range l.channels {
		c.shutdown(l.Reason)
	}
	close(l.blocks)
}

// Channel implements transport.Conn.
func (l *Conn) Channel() (transport.Channel, error) { return l.open(nil) }

// open opens a channel for a lease, or for the connection itself.
func (l *Conn) open(of *lease) (transport.Channel, error) {
	if err := l.call("channel", l.Name); err != nil {
		return nil, err
	}
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	if l.dead {
		return nil, amqp.ErrClosed
	}
	c := &Channel{
		link:      l,
		lease:     of,
		id:        len(l.channels) + 1,
		consumers: make(map[string]*Consumer),
		unacked:   make(map[uint64]*unackedDelivery),
		confirms:  make(map[*confirmation]bool),
	}
	l.channels = append(l.channels, c)
	return c, nil
}

// call runs the hook for synchronous calls. ErrHang waits for the end of the connection.
func (l *Conn) call(op, name string) error {
	l.broker.mu.Lock()
	hook := l.broker.OnCall
	l.broker.mu.Unlock()
	if hook == nil {
		return nil
	}
	err := hook(op, name)
	if err == ErrHang { //nolint:errorlint // the hook returns this very value.
		<-l.gone
		return amqp.ErrClosed
	}
	return err
}

// Certificates implements transport.Conn.
func (l *Conn) Certificates() (broker, own time.Time) {
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	return l.broker.BrokerCertificateEnd, l.broker.OwnCertificateEnd
}

// Node implements transport.Conn.
func (l *Conn) Node() string { return l.broker.Node }

// UpdateSecret implements transport.Conn. The broker records the password.
func (l *Conn) UpdateSecret(password string) error {
	if err := l.call("update-secret", l.Name); err != nil {
		return err
	}
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	if l.dead {
		return amqp.ErrClosed
	}
	l.broker.Secrets = append(l.broker.Secrets, Secret{Conn: l.Name, Password: password, At: time.Now()})
	return nil
}

// Closed implements transport.Conn.
func (l *Conn) Closed() <-chan *amqp.Error { return l.ended }

// Blockings implements transport.Conn.
func (l *Conn) Blockings() <-chan amqp.Blocking { return l.blocks }

// FrameSize implements transport.Conn.
func (l *Conn) FrameSize() int { return l.broker.FrameSize }

// Uncork implements transport.Conn. Nothing is buffered.
func (l *Conn) Uncork() {}

// contentLimits returns the limits of what the connection receives.
func (l *Conn) contentLimits() transport.ContentLimits {
	if limits := l.broker.Limits; limits != nil {
		return limits(l.Name)
	}
	return transport.ContentLimits{}
}

// Received implements transport.Conn: heartbeats arrive unless the broker is mute.
func (l *Conn) Received() uint64 {
	if l.broker.Mute.Load() {
		return l.broker.heartbeats.Load()
	}
	return l.broker.heartbeats.Add(1)
}

// Claim implements transport.Conn.
func (l *Conn) Claim(n int) int64 {
	if l.contentLimits().InHand == nil {
		return 0
	}
	return l.unclaimed.Claim(int64(n))
}

// Abandon implements transport.Conn.
func (l *Conn) Abandon() {
	if inHand := l.contentLimits().InHand; inHand != nil {
		l.unclaimed.Close(inHand)
	}
}

// OpenChannels counts the channels that have not ended. The caller holds the broker's lock.
func (l *Conn) OpenChannels() (n int) {
	for _, c := range l.channels {
		if !c.closed {
			n++
		}
	}
	return n
}

// lease implements transport.Conn for one of the users of a connection.
type lease struct {
	*Conn

	limits    transport.ContentLimits
	unclaimed transport.UnclaimedBodies
}

// Lease implements transport.Conn.
func (l *Conn) Lease(limits transport.ContentLimits) transport.Conn {
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	l.leases++
	return &lease{Conn: l, limits: limits}
}

// Channel implements transport.Conn.
func (l *lease) Channel() (transport.Channel, error) { return l.open(l) }

// Closed implements transport.Conn.
func (l *lease) Closed() <-chan *amqp.Error { return nil }

// Blockings implements transport.Conn.
func (l *lease) Blockings() <-chan amqp.Blocking { return nil }

// Close implements transport.Conn.
func (l *lease) Close() {}

// Cut implements transport.Conn.
func (l *lease) Cut() {}

// Claim implements transport.Conn.
func (l *lease) Claim(n int) int64 {
	if l.limits.InHand == nil {
		return 0
	}
	return l.unclaimed.Claim(int64(n))
}

// Abandon implements transport.Conn.
func (l *lease) Abandon() {
	if l.limits.InHand != nil {
		l.unclaimed.Close(l.limits.InHand)
	}
}

// IsClosed implements transport.Conn.
func (l *Conn) IsClosed() bool {
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	return l.dead
}

// bound drops the body of a delivery beyond the limits, like the frame reader of a real
// connection.
func (c *Channel) bound(d amqp.Delivery) amqp.Delivery {
	limits, unclaimed, size := c.link.contentLimits(), &c.link.unclaimed, uint64(len(d.Body))
	if c.lease != nil {
		limits, unclaimed = c.lease.limits, &c.lease.unclaimed
	}
	drop := wire.DroppedBody{Size: size, Limit: limits.MaxBody}
	switch {
	case limits.MaxBody > 0 && len(d.Body) > limits.MaxBody && (size > transport.LargestBatch || d.ContentType != wire.ContentTypeRequests):
	case limits.InHand == nil || size == 0 || transport.KindOfConsumer([]byte(d.ConsumerTag)) != transport.ContentRequest:
		return d
	case limits.InHand.Take(size):
		unclaimed.Add(limits.InHand, size)
		return d
	default:
		drop.NoRoom = true
	}
	headers := maps.Clone(d.Headers)
	if headers == nil {
		headers = amqp.Table{}
	}
	headers[wire.HeaderDropped] = drop.HeaderValue()
	d.Headers, d.Body = headers, nil
	return d
}

// Cork implements transport.Conn. It counts its calls.
func (l *Conn) Cork() {
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	l.Holds++
}

// Close implements transport.Conn. The connection ends without a reason.
func (l *Conn) Close() {
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	l.closes++
	l.End(nil)
}

// Cut implements transport.Conn.
func (l *Conn) Cut() {
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	l.closes++
	l.End(BrokenSocket())
}

// BrokenSocket returns the error of amqp091-go for a broken socket.
func BrokenSocket() *amqp.Error {
	return &amqp.Error{Code: amqp.FrameError, Reason: "read tcp 127.0.0.1:5672: connection reset by peer"}
}

// replyAddress returns the direct reply-to address of the channel.
func (c *Channel) replyAddress() string {
	const process = "g1h3AWEAAAABAAAAAgAAAAM=" // an Erlang process id in RabbitMQ's form
	return fmt.Sprintf("%s.%s.%d-%d", wire.DirectReplyTo, process, c.link.id, c.id)
}
