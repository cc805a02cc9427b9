package amqpx

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// fakeBroker is RabbitMQ in memory, behind the interfaces of transport.go: queues, the default
// exchange, competing consumers with prefetch, acknowledgements, confirms, mandatory
// returns, expiration, direct reply-to, alarms; and faults on demand. It does no I/O
// and holds its lock only for a moment, so tests can run under testing/synctest. One goroutine
// for each connection passes the broker's messages to the client, in order, as in amqp091-go.
type fakeBroker struct {
	mu      sync.Mutex
	queues  map[string]*fakeQueue
	fanouts map[string][]string // the queues bound to each exchange
	links   []*fakeLink
	user    string // the authenticated user of every connection
	alarm   string // why publishing is blocked; "" without an alarm
	linkSeq int

	heartbeats atomic.Uint64
	mute       atomic.Bool // the broker sends no heartbeats

	faults  map[string][]fault // by route, see routeOf
	holding bool               // the broker delays confirms
	held    []func()
	onDial  func(ctx context.Context, url, name string) error
	onCall  func(op, name string) error
	nacks   func(link, key string) bool // selects the messages to nack on a connection
	// onPublish returns the exception that ends the channel, or nil to take the message.
	onPublish func(key string, msg amqp.Publishing) *amqp.Error
	frameSize int                                        // 0: no limit
	fatal     func(key string, msg amqp.Publishing) bool // selects messages that end their connection with an exception
	bounded   *serverConfig                              // the limits of a server of startBounded
	once      string                                     // the method that startServer registers with AtMostOnce
	rejected  int                                        // calls of Nack without requeue

	dials []string      // URLs, in the order of dialing
	sent  []sentMessage // every publish that reached the broker
}

// sentMessage is a message as the broker received it.
type sentMessage struct {
	key       string
	mandatory bool
	msg       amqp.Publishing
	at        time.Time
}

type fakeQueue struct {
	name      string
	durable   bool
	args      amqp.Table
	owner     *fakeLink // the connection of an exclusive queue
	messages  []*fakeMessage
	consumers []*fakeConsumer // in turn, the next first
	maxLength int             // with overflow reject-publish; 0: no bound
	expired   int             // messages dropped at their expiration
	unused    *time.Timer     // x-expires
}

type fakeMessage struct {
	msg         amqp.Publishing
	expires     time.Time // zero: never
	redelivered bool
}

func newFakeBroker() *fakeBroker {
	return &fakeBroker{user: "app", queues: make(map[string]*fakeQueue), fanouts: make(map[string][]string), faults: make(map[string][]fault)}
}

// option makes clients and servers use this broker, without batches and without a control
// plane unless a later option turns them on. Servers acknowledge at once.
func (b *fakeBroker) option() Option { return onFake{b} }

type onFake struct{ broker *fakeBroker }

func (o onFake) applyClient(c *clientConfig) {
	c.dialer, c.batch, c.control = o.broker, BatchOff, false
}

func (o onFake) applyServer(c *serverConfig) {
	c.dialer, c.batch, c.control, c.ackPause = o.broker, BatchOff, false, 0
}

// Dial implements dialer.
func (b *fakeBroker) Dial(ctx context.Context, url, name string) (transport.Conn, error) {
	b.mu.Lock()
	b.dials = append(b.dials, url)
	hook := b.onDial
	b.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, url, name); err != nil {
			return nil, err
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.linkSeq++
	l := newFakeLink(b, name, b.linkSeq)
	b.links = append(b.links, l)
	go l.read() // ends with the connection
	return l, nil
}

// declare creates a queue, or returns an error if the queue exists with other properties. The
// caller holds mu.
func (b *fakeBroker) declare(name string, durable bool, args amqp.Table) *amqp.Error {
	if q := b.queues[name]; q != nil {
		if args[amqp.QueueTypeArg] == string(QueueClassic) { // equal to no type
			args = maps.Clone(args)
			delete(args, amqp.QueueTypeArg)
		}
		if q.durable != durable || !maps.Equal(q.args, args) {
			return &amqp.Error{Code: amqp.PreconditionFailed, Server: true, Reason: fmt.Sprintf(
				"PRECONDITION_FAILED - inequivalent arg 'durable' for queue '%s' in vhost '/'", name)}
		}
		return nil
	}
	q := &fakeQueue{name: name, durable: durable, args: maps.Clone(args)}
	b.queues[name] = q
	b.startExpiry(q)
	return nil
}

// startExpiry starts the x-expires timer of a queue without consumers. The caller holds mu.
func (b *fakeBroker) startExpiry(q *fakeQueue) {
	ms, ok := q.args[amqp.QueueTTLArg].(int64)
	if !ok || len(q.consumers) > 0 {
		return
	}
	q.unused = time.AfterFunc(time.Duration(ms)*time.Millisecond, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.queues[q.name] == q && len(q.consumers) == 0 {
			delete(b.queues, q.name)
		}
	})
}

// remove deletes a queue and cancels its consumers. The caller holds mu.
func (b *fakeBroker) remove(q *fakeQueue) {
	delete(b.queues, q.name)
	for _, c := range q.consumers {
		delete(c.ch.consumers, c.tag)
		c.ch.link.post(func() {
			for _, n := range c.ch.cancels {
				n <- c.tag
			}
			close(c.out)
		})
	}
	q.consumers = nil
}

func missing(name string) *amqp.Error {
	return &amqp.Error{Code: amqp.NotFound, Server: true, Reason: fmt.Sprintf("NOT_FOUND - no queue '%s' in vhost '/'", name)}
}

// route puts a message into its queue and reports false for a nack. The caller holds mu.
func (b *fakeBroker) route(c *fakeChannel, key string, mandatory bool, msg amqp.Publishing) bool {
	if strings.HasPrefix(key, wire.DirectReplyTo+".") {
		b.routeDirect(key, msg)
		return true
	}
	q := b.queues[key]
	if q == nil {
		if mandatory {
			c.postReturn(key, msg)
		}
		return true
	}
	if q.maxLength > 0 && len(q.messages) >= q.maxLength {
		return false
	}
	m := &fakeMessage{msg: msg}
	if ms, err := strconv.ParseInt(msg.Expiration, 10, 64); err == nil {
		m.expires = time.Now().Add(time.Duration(ms) * time.Millisecond)
	}
	q.messages = append(q.messages, m)
	b.dispatch(q)
	return true
}

// routeDirect delivers to the consumer of a direct reply-to address, if the consumer still
// exists. The caller holds mu.
func (b *fakeBroker) routeDirect(key string, msg amqp.Publishing) {
	for _, l := range b.links {
		for _, c := range l.channels {
			if c.replyAddress() != key || c.closed {
				continue
			}
			for _, consumer := range c.consumers {
				if consumer.queue == nil {
					c.deliver(consumer, &fakeMessage{msg: msg})
				}
			}
		}
	}
}

// dispatch delivers messages to the queue's consumers in turn, up to their prefetch. The
// caller holds mu.
func (b *fakeBroker) dispatch(q *fakeQueue) {
	for len(q.messages) > 0 {
		m := q.messages[0]
		if !m.expires.IsZero() && !time.Now().Before(m.expires) {
			q.messages = q.messages[1:]
			q.expired++
			continue
		}
		i := q.nextConsumer()
		if i < 0 {
			return
		}
		q.messages = q.messages[1:]
		c := q.consumers[i]
		q.consumers = append(slices.Delete(q.consumers, i, i+1), c)
		c.ch.deliver(c, m)
	}
}

// nextConsumer returns the index of the next consumer with room, of the highest priority, or
// -1 if every consumer is at its prefetch.
func (q *fakeQueue) nextConsumer() int {
	next := -1
	for i, c := range q.consumers {
		if c.hasRoom() && (next < 0 || c.priority > q.consumers[next].priority) {
			next = i
		}
	}
	return next
}

// requeue puts a message back at the head of its queue. The caller holds mu.
func (b *fakeBroker) requeue(q *fakeQueue, m *fakeMessage) {
	m.redelivered = true
	q.messages = slices.Insert(q.messages, 0, m)
}

// setAlarm blocks publishing for a reason, or ends the block for "". Like RabbitMQ, the broker
// notifies only connections with earlier publishes, and stops reading from these.
func (b *fakeBroker) setAlarm(reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.alarm = reason
	for _, l := range slices.Clone(b.links) {
		if !l.published {
			continue
		}
		l.postBlocking(amqp.Blocking{Active: reason != "", Reason: reason})
		if reason == "" {
			backlog := l.backlog
			l.backlog = nil
			for _, f := range backlog {
				f()
			}
		}
	}
}

// kick ends every connection with the broker's exception, or with nil as for a socket that
// breaks without an exception.
func (b *fakeBroker) kick(reason *amqp.Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range slices.Clone(b.links) {
		l.end(reason)
	}
}

// restart ends every connection and, like a real restart, loses queues that are not durable
// and transient messages outside quorum queues.
func (b *fakeBroker) restart() {
	b.kick(&amqp.Error{Code: amqp.ConnectionForced, Server: true, Reason: "CONNECTION_FORCED - broker forced connection closure"})
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, q := range b.queues {
		if !q.durable {
			delete(b.queues, name)
		} else if q.args[amqp.QueueTypeArg] != string(QueueQuorum) {
			q.messages = slices.DeleteFunc(q.messages, func(m *fakeMessage) bool {
				return m.msg.DeliveryMode != amqp.Persistent
			})
		}
	}
}
