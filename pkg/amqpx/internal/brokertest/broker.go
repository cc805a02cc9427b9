package brokertest

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

// Broker is RabbitMQ in memory, behind the interfaces of package transport: queues, the default
// exchange, competing consumers with prefetch, acknowledgements, confirms, mandatory
// returns, expiration, direct reply-to, alarms; and faults on demand. It does no I/O
// and holds its lock only for a moment, so tests can run under testing/synctest. One goroutine
// for each connection passes the broker's messages to the client, in order, as in amqp091-go.
type Broker struct {
	mu      sync.Mutex
	Queues  map[string]*Queue
	Fanouts map[string][]string // the queues bound to each exchange
	Links   []*Conn
	User    string // the authenticated user of every connection
	alarm   string // why publishing is blocked; "" without an alarm
	linkSeq int

	heartbeats atomic.Uint64
	Mute       atomic.Bool // the broker sends no heartbeats

	Faults  map[string][]Fault // by route, see routeOf
	Holding bool               // the broker delays confirms
	Held    []func()
	OnDial  func(ctx context.Context, url, name string) error
	OnCall  func(op, name string) error
	Nacks   func(link, key string) bool // selects the messages to nack on a connection
	// OnPublish returns the exception that ends the channel, or nil to take the message.
	OnPublish func(key string, msg amqp.Publishing) *amqp.Error
	FrameSize int                                        // 0: no limit
	Fatal     func(key string, msg amqp.Publishing) bool // selects messages that end their connection with an exception
	// Limits returns the limits of what a connection receives; nil: no limits.
	Limits   func(conn string) transport.ContentLimits
	Rejected int // calls of Nack without requeue

	Dials []string // URLs, in the order of dialing
	Sent  []Sent   // every publish that reached the broker
}

// Sent is a message as the broker received it.
type Sent struct {
	Key       string
	Mandatory bool
	Msg       amqp.Publishing
	At        time.Time
}

// Queue is a queue of a Broker.
type Queue struct {
	name       string
	Durable    bool
	Args       amqp.Table
	autoDelete bool
	owner      *Conn // the connection of an exclusive queue
	Messages   []*Message
	Consumers  []*Consumer // in turn, the next first
	MaxLength  int         // With overflow reject-publish; 0: no bound
	Expired    int         // Messages dropped at their expiration
	unused     *time.Timer // x-expires
}

// Message is a message in a queue, or a delivery without an acknowledgement.
type Message struct {
	Msg         amqp.Publishing
	expires     time.Time // zero: never
	Redelivered bool
}

// New returns a broker without queues, without faults and with the user "app".
func New() *Broker {
	return &Broker{User: "app", Queues: make(map[string]*Queue), Fanouts: make(map[string][]string), Faults: make(map[string][]Fault)}
}

// Dial implements dialer.
func (b *Broker) Dial(ctx context.Context, url, name string) (transport.Conn, error) {
	b.mu.Lock()
	b.Dials = append(b.Dials, url)
	hook := b.OnDial
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
	l := newConn(b, name, b.linkSeq)
	b.Links = append(b.Links, l)
	go l.read() // ends with the connection
	return l, nil
}

// Declare creates a queue, or returns an error if the queue exists with other properties. The
// caller holds mu.
func (b *Broker) Declare(name string, durable bool, args amqp.Table) *amqp.Error {
	if q := b.Queues[name]; q != nil {
		if args[amqp.QueueTypeArg] == amqp.QueueTypeClassic { // equal to no type
			args = maps.Clone(args)
			delete(args, amqp.QueueTypeArg)
		}
		if q.Durable != durable || !maps.Equal(q.Args, args) {
			return inequivalent("durable", name)
		}
		return nil
	}
	q := &Queue{name: name, Durable: durable, Args: maps.Clone(args)}
	if limit, ok := args[amqp.QueueMaxLenArg].(int64); ok && args[amqp.QueueOverflowArg] == amqp.QueueOverflowRejectPublish {
		q.MaxLength = int(limit)
	}
	b.Queues[name] = q
	b.startExpiry(q)
	return nil
}

// startExpiry starts the x-expires timer of a queue without consumers. The caller holds mu.
func (b *Broker) startExpiry(q *Queue) {
	ms, ok := q.Args[amqp.QueueTTLArg].(int64)
	if !ok || len(q.Consumers) > 0 {
		return
	}
	q.unused = time.AfterFunc(time.Duration(ms)*time.Millisecond, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.Queues[q.name] == q && len(q.Consumers) == 0 {
			delete(b.Queues, q.name)
		}
	})
}

// Remove deletes a queue and cancels its consumers. The caller holds mu.
func (b *Broker) Remove(q *Queue) {
	delete(b.Queues, q.name)
	for _, c := range q.Consumers {
		delete(c.ch.consumers, c.tag)
		c.ch.link.post(func() {
			for _, n := range c.ch.cancels {
				n <- c.tag
			}
			close(c.out)
		})
	}
	q.Consumers = nil
}

// inequivalent returns the exception for a declaration with another value of a property.
func inequivalent(property, name string) *amqp.Error {
	return &amqp.Error{Code: amqp.PreconditionFailed, Server: true, Reason: fmt.Sprintf(
		"PRECONDITION_FAILED - inequivalent arg '%s' for queue '%s' in vhost '/'", property, name)}
}

// Missing returns the exception for a queue that does not exist.
func Missing(name string) *amqp.Error {
	return &amqp.Error{Code: amqp.NotFound, Server: true, Reason: fmt.Sprintf("NOT_FOUND - no queue '%s' in vhost '/'", name)}
}

// Route puts a message into its queue and reports false for a nack. The caller holds mu.
func (b *Broker) Route(c *Channel, key string, mandatory bool, msg amqp.Publishing) bool {
	if strings.HasPrefix(key, wire.DirectReplyTo+".") {
		b.routeDirect(key, msg)
		return true
	}
	q := b.Queues[key]
	if q == nil {
		if mandatory {
			c.postReturn(key, msg)
		}
		return true
	}
	if q.MaxLength > 0 && len(q.Messages) >= q.MaxLength {
		return false
	}
	m := &Message{Msg: msg}
	if ms, err := strconv.ParseInt(msg.Expiration, 10, 64); err == nil {
		m.expires = time.Now().Add(time.Duration(ms) * time.Millisecond)
	}
	q.Messages = append(q.Messages, m)
	b.Dispatch(q)
	return true
}

// routeDirect delivers to the consumer of a direct reply-to address, if the consumer still
// exists. The caller holds mu.
func (b *Broker) routeDirect(key string, msg amqp.Publishing) {
	for _, l := range b.Links {
		for _, c := range l.channels {
			if c.replyAddress() != key || c.closed {
				continue
			}
			for _, consumer := range c.consumers {
				if consumer.queue == nil {
					c.deliver(consumer, &Message{Msg: msg})
				}
			}
		}
	}
}

// Dispatch delivers messages to the queue's consumers in turn, up to their prefetch. The
// caller holds mu.
func (b *Broker) Dispatch(q *Queue) {
	for len(q.Messages) > 0 {
		m := q.Messages[0]
		if !m.expires.IsZero() && !time.Now().Before(m.expires) {
			q.Messages = q.Messages[1:]
			q.Expired++
			continue
		}
		i := q.nextConsumer()
		if i < 0 {
			return
		}
		q.Messages = q.Messages[1:]
		c := q.Consumers[i]
		q.Consumers = append(slices.Delete(q.Consumers, i, i+1), c)
		c.ch.deliver(c, m)
	}
}

// nextConsumer returns the index of the next consumer with room, of the highest priority, or
// -1 if every consumer is at its prefetch.
func (q *Queue) nextConsumer() int {
	next := -1
	for i, c := range q.Consumers {
		if c.hasRoom() && (next < 0 || c.priority > q.Consumers[next].priority) {
			next = i
		}
	}
	return next
}

// Requeue puts a message back at the head of its queue. The caller holds mu.
func (b *Broker) Requeue(q *Queue, m *Message) {
	m.Redelivered = true
	q.Messages = slices.Insert(q.Messages, 0, m)
}

// SetAlarm blocks publishing for a reason, or ends the block for "". Like RabbitMQ, the broker
// notifies only connections with earlier publishes, and stops reading from these.
func (b *Broker) SetAlarm(reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.alarm = reason
	for _, l := range slices.Clone(b.Links) {
		if !l.Published {
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

// Kick ends every connection with the broker's exception, or with nil as for a socket that
// breaks without an exception.
func (b *Broker) Kick(reason *amqp.Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range slices.Clone(b.Links) {
		l.End(reason)
	}
}

// Restart ends every connection and, like a real restart, loses queues that are not durable
// and transient messages outside quorum queues.
func (b *Broker) Restart() {
	b.Kick(&amqp.Error{Code: amqp.ConnectionForced, Server: true, Reason: "CONNECTION_FORCED - broker forced connection closure"})
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, q := range b.Queues {
		if !q.Durable {
			delete(b.Queues, name)
		} else if q.Args[amqp.QueueTypeArg] != amqp.QueueTypeQuorum {
			q.Messages = slices.DeleteFunc(q.Messages, func(m *Message) bool {
				return m.Msg.DeliveryMode != amqp.Persistent
			})
		}
	}
}
