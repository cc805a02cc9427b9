package amqpx

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// fakeLink is one connection to a fakeBroker. The broker's lock guards the fields, except
// where a comment says otherwise.
type fakeLink struct {
	broker *fakeBroker
	name   string
	id     int

	channels  []*fakeChannel
	published bool
	told      bool     // the client knows of the alarm
	backlog   []func() // publishes that a blocked broker has not read
	holds     int      // calls of cork
	dead      bool
	reason    *amqp.Error // why the connection ended; nil for close and kick(nil)
	closes    int         // calls of close and cut

	events []func()      // sent by the broker, not yet read by the client
	wake   chan struct{} // one slot: there are events, or the connection is dead
	gone   chan struct{} // closed when the connection is dead

	unclaimed transport.UnclaimedBodies

	ended  chan *amqp.Error   // written by read only
	blocks chan amqp.Blocking // written by read only
}

func newFakeLink(b *fakeBroker, name string, id int) *fakeLink {
	return &fakeLink{
		broker: b, name: name, id: id,
		wake:   make(chan struct{}, 1),
		gone:   make(chan struct{}),
		ended:  make(chan *amqp.Error, 1),
		blocks: make(chan amqp.Blocking, 16),
	}
}

// post queues an event for the client's reader. The caller holds the broker's lock.
func (l *fakeLink) post(event func()) {
	if l.dead {
		return
	}
	l.events = append(l.events, event)
	l.poke()
}

func (l *fakeLink) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// postBlocking notifies the client of an alarm's start or end, once each. The caller holds the
// broker's lock.
func (l *fakeLink) postBlocking(b amqp.Blocking) {
	if l.told == b.Active {
		return
	}
	l.told = b.Active
	l.post(func() { l.blocks <- b })
}

// read handles events in order, and shuts every channel down when the connection is dead,
// like the reader goroutine of amqp091-go.
func (l *fakeLink) read() {
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

func (l *fakeLink) next() (event func(), dead bool) {
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	if l.dead {
		return nil, true
	}
	if len(l.events) == 0 {
		return nil, false
	}
	event = l.events[0]
	l.events = l.events[1:]
	return event, false
}

// end ends the connection: unread events are lost, and unacknowledged deliveries return to
// their queues. The caller holds the broker's lock.
func (l *fakeLink) end(reason *amqp.Error) {
	if l.dead {
		return
	}
	l.dead, l.reason = true, reason
	l.events, l.backlog = nil, nil
	l.broker.links = slices.DeleteFunc(l.broker.links, func(o *fakeLink) bool { return o == l })
	for _, c := range l.channels {
		c.detach()
	}
	for name, q := range l.broker.queues {
		if q.owner == l {
			delete(l.broker.queues, name)
		}
	}
	close(l.gone)
	l.poke()
}

// strand ends only the client's half of the connection, as in a network that drops every
// packet: the broker keeps the consumers and continues to send to them. The caller holds the
// broker's lock.
func (l *fakeLink) strand() {
	l.dead, l.reason = true, brokenSocket()
	l.events, l.backlog = nil, nil
	close(l.gone)
	l.poke()
}

func (l *fakeLink) shutdown() {
	if l.reason != nil {
		l.ended <- l.reason
	}
	close(l.ended)
	for _, c := range l.channels {
		c.shutdown(l.reason)
	}
	close(l.blocks)
}

// Channel implements transport.Conn.
func (l *fakeLink) Channel() (transport.Channel, error) {
	if err := l.call("channel", ""); err != nil {
		return nil, err
	}
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	if l.dead {
		return nil, amqp.ErrClosed
	}
	c := &fakeChannel{
		link:      l,
		id:        len(l.channels) + 1,
		consumers: make(map[string]*fakeConsumer),
		unacked:   make(map[uint64]*unackedDelivery),
		confirms:  make(map[*fakeConfirm]bool),
	}
	l.channels = append(l.channels, c)
	return c, nil
}

// call runs the hook for synchronous calls. errHang waits for the end of the connection.
func (l *fakeLink) call(op, name string) error {
	l.broker.mu.Lock()
	hook := l.broker.onCall
	l.broker.mu.Unlock()
	if hook == nil {
		return nil
	}
	err := hook(op, name)
	if err == errHang { //nolint:errorlint // the hook returns this very value.
		<-l.gone
		return amqp.ErrClosed
	}
	return err
}

func (l *fakeLink) Closed() <-chan *amqp.Error      { return l.ended }
func (l *fakeLink) Blockings() <-chan amqp.Blocking { return l.blocks }
func (l *fakeLink) FrameSize() int                  { return l.broker.frameSize }
func (l *fakeLink) Uncork()                         {}

// limits returns the limits of a server of startBounded for the server's own connections, and
// no limits for others.
func (l *fakeLink) limits() transport.ContentLimits {
	if c := l.broker.bounded; c != nil && strings.Contains(l.name, " server") {
		return transport.ContentLimits{MaxBody: c.maxMessageSize, InHand: c.inHand}
	}
	return transport.ContentLimits{}
}

// Received implements transport.Conn: heartbeats arrive unless the broker is mute.
func (l *fakeLink) Received() uint64 {
	if l.broker.mute.Load() {
		return l.broker.heartbeats.Load()
	}
	return l.broker.heartbeats.Add(1)
}

func (l *fakeLink) Claim(n int) int64 {
	if l.limits().InHand == nil {
		return 0
	}
	l.unclaimed.Bytes.Add(-int64(n))
	return int64(n)
}

func (l *fakeLink) Abandon() {
	if inHand := l.limits().InHand; inHand != nil {
		l.unclaimed.Close(inHand)
	}
}

// bound drops the body of a delivery beyond the limits, like the frame reader of a real
// connection.
func (l *fakeLink) bound(d amqp.Delivery) amqp.Delivery {
	limits, size := l.limits(), uint64(len(d.Body))
	drop := wire.DroppedBody{Size: size, Limit: limits.MaxBody}
	switch {
	case limits.MaxBody > 0 && len(d.Body) > limits.MaxBody && (size > transport.SmallBody || d.ContentType != wire.ContentTypeRequests):
	case limits.InHand == nil || size == 0 || transport.KindOfConsumer([]byte(d.ConsumerTag)) != transport.ContentRequest:
		return d
	case limits.InHand.Take(size):
		l.unclaimed.Add(limits.InHand, size)
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

func (l *fakeLink) Cork() {
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	l.holds++
}

// Close implements transport.Conn. The connection ends without a reason.
func (l *fakeLink) Close() {
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	l.closes++
	l.end(nil)
}

// Cut implements transport.Conn.
func (l *fakeLink) Cut() {
	l.broker.mu.Lock()
	defer l.broker.mu.Unlock()
	l.closes++
	l.end(brokenSocket())
}

// brokenSocket returns the error of amqp091-go for a broken socket.
func brokenSocket() *amqp.Error {
	return &amqp.Error{Code: amqp.FrameError, Reason: "read tcp 127.0.0.1:5672: connection reset by peer"}
}

// replyAddress returns the direct reply-to address of the channel.
func (c *fakeChannel) replyAddress() string {
	const process = "g1h3AWEAAAABAAAAAgAAAAM=" // an Erlang process id in RabbitMQ's form
	return fmt.Sprintf("%s.%s.%d-%d", wire.DirectReplyTo, process, c.link.id, c.id)
}
