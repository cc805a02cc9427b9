package amqpx

import (
	"errors"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// fault is the failure of one published message.
type fault uint8

const (
	faultNone            fault = iota
	faultUnsent                // the channel was closed before the message was written
	faultCutBefore             // the connection breaks in the write, the message does not arrive
	faultCutWritten            // the connection breaks in the write, the message arrives
	faultCutUnconfirmed        // the message arrives, the connection breaks before the confirm
	faultLostUnconfirmed       // the write succeeds, the connection breaks, the message does not arrive
	faultCutConfirmed          // the message arrives and is confirmed, then the connection breaks
	faultNack                  // the broker nacks the message
	faultNackArrived           // the message arrives in the queue, and the broker nacks the message
	faultSwallow               // the broker confirms the message and loses the message
	faultTwice                 // the message arrives twice
	faultException             // the broker ends the connection with an exception
)

var (
	// errHang, returned by an onCall hook, hangs the call until the connection ends.
	errHang = errors.New("hang")
	errCut  = errors.New("write tcp 127.0.0.1:5672: broken pipe")
)

// routeReplies is the route of the messages to all reply queues.
const routeReplies = "replies"

// routeOf returns the route of a routing key: routeReplies for a reply queue, or the queue's
// name. Faults are set for a route.
func routeOf(key string) string {
	if strings.Contains(key, ".reply.") || strings.HasPrefix(key, wire.DirectReplyTo) {
		return routeReplies
	}
	return key
}

// fail sets the faults of the next messages on a route, in order.
func (b *fakeBroker) fail(route string, faults ...fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults[route] = append(b.faults[route], faults...)
}

// nextFault removes and returns the next fault of a route. The caller holds mu.
func (b *fakeBroker) nextFault(key string) fault {
	route := routeOf(key)
	planned := b.faults[route]
	if len(planned) == 0 {
		return faultNone
	}
	b.faults[route] = planned[1:]
	return planned[0]
}

// before applies a fault of the client's write. The caller holds the broker's lock.
func (f fault) before(l *fakeLink) error {
	switch f {
	case faultUnsent:
		l.end(brokenSocket())
		return amqp.ErrClosed
	case faultCutBefore:
		l.end(brokenSocket())
		return errCut
	default:
		return nil
	}
}

// arrive handles a message that reaches the broker, with its fault. The caller holds the
// broker's lock.
func (f fault) arrive(c *fakeChannel, key string, mandatory bool, msg amqp.Publishing, word *fakeConfirm) {
	b := c.link.broker
	if f == faultLostUnconfirmed {
		c.link.end(brokenSocket())
		return
	}
	if f == faultException || b.fatal != nil && b.fatal(key, msg) {
		c.link.end(&amqp.Error{Code: amqp.InternalError, Server: true, Reason: "INTERNAL_ERROR"})
		return
	}
	b.sent = append(b.sent, sentMessage{key: key, mandatory: mandatory, msg: msg, at: time.Now()})
	if b.nacks != nil && b.nacks(c.link.name, key) {
		f = faultNack
	}
	acked := f != faultNack
	if f != faultNack && f != faultSwallow {
		acked = b.route(c, key, mandatory, msg) && f != faultNackArrived
	}
	switch f {
	case faultTwice:
		b.route(c, key, mandatory, msg)
	case faultCutUnconfirmed, faultCutWritten:
		c.link.end(brokenSocket())
		return
	case faultCutConfirmed:
		c.postConfirm(word, acked)
		c.link.post(func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			c.link.end(brokenSocket())
		})
		return
	default:
	}
	c.postConfirm(word, acked)
}

// holdConfirms delays confirms and nacks until releaseConfirms.
func (b *fakeBroker) holdConfirms() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holding = true
}

func (b *fakeBroker) releaseConfirms() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holding = false
	for _, send := range b.held {
		send()
	}
	b.held = nil
}

// The methods below read the broker's state, or change it, from a test.

// messagesTo returns the messages that reached the broker on a route, in order.
func (b *fakeBroker) messagesTo(route string) []sentMessage {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(b.sent), func(m sentMessage) bool { return routeOf(m.key) != route })
}

// queueNames returns the names of all queues, sorted.
func (b *fakeBroker) queueNames() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	for name := range b.queues {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// ready counts the messages in a queue that are not delivered; unacked counts deliveries
// without an acknowledgement.
func (b *fakeBroker) ready(queue string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q := b.queues[queue]; q != nil {
		return len(q.messages)
	}
	return 0
}

func (b *fakeBroker) unacked(queue string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, l := range b.links {
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

// openLinks counts the open connections.
func (b *fakeBroker) openLinks() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.links)
}

// with calls f under the broker's lock.
func (b *fakeBroker) with(f func(*fakeBroker)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b)
}

// put puts a message into the request queue.
func (b *fakeBroker) put(msg amqp.Publishing) { b.putIn(DefaultQueue, msg) }

// putIn puts a message into a queue.
func (b *fakeBroker) putIn(queue string, msg amqp.Publishing) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queues[queue]
	q.messages = append(q.messages, &fakeMessage{msg: msg})
	b.dispatch(q)
}

// take removes and returns the responses to raw requests.
func (b *fakeBroker) take() []amqp.Publishing {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []amqp.Publishing
	for _, m := range b.queues[rawQueue].messages {
		all = append(all, m.msg)
	}
	b.queues[rawQueue].messages = nil
	return all
}
