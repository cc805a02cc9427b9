package brokertest

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Fault is the failure of one published message.
type Fault uint8

// The faults of a published message.
const (
	FaultNone            Fault = iota
	FaultUnsent                // the channel was closed before the message was written
	FaultCutBefore             // the connection breaks in the write, the message does not arrive
	FaultCutWritten            // the connection breaks in the write, the message arrives
	FaultCutUnconfirmed        // the message arrives, the connection breaks before the confirm
	FaultLostUnconfirmed       // the write succeeds, the connection breaks, the message does not arrive
	FaultCutConfirmed          // the message arrives and is confirmed, then the connection breaks
	FaultNack                  // the broker nacks the message
	FaultNackArrived           // the message arrives in the queue, and the broker nacks the message
	FaultSwallow               // the broker confirms the message and loses the message
	FaultTwice                 // the message arrives twice
	FaultLate                  // the broker confirms the message, and puts the message into its queue later
	faultException             // the broker ends the connection with an exception
)

var (
	// ErrHang, returned by an OnCall hook, hangs the call until the connection ends.
	ErrHang = errors.New("hang")
	// ErrCut is the error of a write to a broken connection.
	ErrCut = errors.New("write tcp 127.0.0.1:5672: broken pipe")
)

// RouteReplies is the route of the messages to all reply queues.
const RouteReplies = "replies"

// routeOf returns the route of a routing key: RouteReplies for a reply queue, or the queue's
// name. Faults are set for a route.
func routeOf(key string) string {
	if strings.Contains(key, ".reply.") || strings.HasPrefix(key, wire.DirectReplyTo) {
		return RouteReplies
	}
	return key
}

// Fail sets the faults of the next messages on a route, in order.
func (b *Broker) Fail(route string, faults ...Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Faults[route] = append(b.Faults[route], faults...)
}

// arrival is a published message on its way to the queues.
type arrival struct {
	ch        *Channel
	exchange  string
	key       string
	mandatory bool
	msg       amqp.Publishing
	confirm   *confirmation
	fault     Fault
	late      time.Duration // with FaultLate
}

// planFault sets the fault of a message: the next fault of its route, or that of Plan. The caller
// holds mu.
func (b *Broker) planFault(m *arrival) {
	if len(b.Faults) > 0 {
		route := routeOf(m.key)
		if planned := b.Faults[route]; len(planned) > 0 {
			b.Faults[route] = planned[1:]
			m.fault = planned[0]
			return
		}
	}
	if b.Plan != nil {
		m.fault, m.late = b.Plan(m.key, &m.msg)
	}
}

// before applies a fault of the client's write. The caller holds the broker's lock.
func (f Fault) before(l *Conn) error {
	switch f {
	case FaultUnsent:
		l.End(BrokenSocket())
		return amqp.ErrClosed
	case FaultCutBefore:
		l.End(BrokenSocket())
		return ErrCut
	default:
		return nil
	}
}

// arrive handles a message that reaches the broker, with its fault. The caller holds the
// broker's lock.
func (b *Broker) arrive(m *arrival) {
	c := m.ch
	if waiting, ok := b.suspended[m.key]; ok {
		b.suspended[m.key] = append(waiting, m)
		return
	}
	if m.fault == FaultLostUnconfirmed {
		c.link.End(BrokenSocket())
		return
	}
	if m.fault == faultException || b.Fatal != nil && b.Fatal(m.key, m.msg) {
		c.link.End(&amqp.Error{Code: amqp.InternalError, Server: true, Reason: "INTERNAL_ERROR"})
		return
	}
	if !b.Forget {
		b.Sent = append(b.Sent, Sent{Exchange: m.exchange, Key: m.key, Mandatory: m.mandatory, Msg: m.msg, At: time.Now()})
	}
	if b.Nacks != nil && b.Nacks(c.link.Name, m.key) {
		m.fault = FaultNack
	}
	acked := b.routeWith(m)
	switch m.fault {
	case FaultCutUnconfirmed, FaultCutWritten:
		c.link.End(BrokenSocket())
		return
	case FaultCutConfirmed:
		c.postConfirm(m.confirm, acked)
		c.link.post(func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			c.link.End(BrokenSocket())
		})
		return
	default:
	}
	c.postConfirm(m.confirm, acked)
}

// routeWith puts a message into its queues, as its fault says, and reports false for a nack. The
// caller holds mu.
func (b *Broker) routeWith(m *arrival) bool {
	route := func() bool { return b.routeOver(m.exchange, m.ch, m.key, m.mandatory, m.msg) }
	switch m.fault {
	case FaultNack:
		return false
	case FaultSwallow:
		return true
	case FaultNackArrived:
		route()
		return false
	case FaultTwice:
		acked := route()
		route()
		return acked
	case FaultLate:
		time.AfterFunc(m.late, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			if left, expires := m.expiration(); left > 0 || !expires { // its channel may have ended: there is no return
				b.routeOver(m.exchange, m.ch, m.key, false, m.msg)
			}
		})
		return true
	default:
		return route()
	}
}

// expiration returns the time that a message with FaultLate has left when it reaches its queue. A
// message that does not expire has none.
func (m *arrival) expiration() (left time.Duration, expires bool) {
	ms, err := strconv.ParseInt(m.msg.Expiration, 10, 64)
	return time.Duration(ms)*time.Millisecond - m.late, err == nil
}

// EndChannels ends the channels of a queue's consumers with an exception.
func (b *Broker) EndChannels(queue string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, consumer := range slices.Clone(b.Queues[queue].Consumers) {
		consumer.ch.Except(&amqp.Error{Code: amqp.InternalError, Server: true, Reason: "INTERNAL_ERROR"})
	}
}

// HoldConfirms delays confirms and nacks until ReleaseConfirms.
func (b *Broker) HoldConfirms() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Holding = true
}

// ReleaseConfirms sends the delayed confirms and nacks.
func (b *Broker) ReleaseConfirms() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Holding = false
	for _, send := range b.Held {
		send()
	}
	b.Held = nil
}

// Suspend makes a queue stand still, as the suspended process of a queue: it neither takes nor confirms
// messages until Resume. Passive declarations of the queue are answered all the same.
func (b *Broker) Suspend(queue string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.suspended == nil {
		b.suspended = make(map[string][]*arrival)
	}
	b.suspended[queue] = nil
}

// Resume ends Suspend.
func (b *Broker) Resume(queue string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	waiting := b.suspended[queue]
	delete(b.suspended, queue)
	for _, m := range waiting {
		b.arrive(m)
	}
}

// The methods below read the broker's state, or change it, from a test.

// MessagesTo returns the messages that reached the broker on a route, in order.
func (b *Broker) MessagesTo(route string) []Sent {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(b.Sent), func(m Sent) bool { return routeOf(m.Key) != route })
}

// QueueNames returns the names of all queues, sorted.
func (b *Broker) QueueNames() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	for name := range b.Queues {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Ready counts the messages in a queue that are not delivered; Unacked counts deliveries
// without an acknowledgement.
func (b *Broker) Ready(queue string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q := b.Queues[queue]; q != nil {
		return len(q.Messages)
	}
	return 0
}

// Unacked counts the deliveries of a queue without an acknowledgement.
func (b *Broker) Unacked(queue string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, l := range b.Links {
		for _, c := range l.channels {
			for _, u := range c.unacked {
				if u.consumer.queue.name == queue {
					n++
				}
			}
		}
	}
	return n
}

// OpenLinks counts the open connections.
func (b *Broker) OpenLinks() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.Links)
}

// With calls f under the broker's lock.
func (b *Broker) With(f func(*Broker)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b)
}

// PutIn puts a message into a queue.
func (b *Broker) PutIn(queue string, msg amqp.Publishing) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.Queues[queue]
	q.insert(&Message{Msg: msg, key: queue})
	b.Dispatch(q)
}
