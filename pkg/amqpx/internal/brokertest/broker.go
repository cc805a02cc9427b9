package brokertest

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Broker is RabbitMQ in memory, behind the interfaces of package transport: queues, the default
// exchange, fanout and direct exchanges, competing consumers with prefetch, acknowledgements, confirms, mandatory
// returns, expiration, direct reply-to, alarms; and faults on demand. It does no I/O
// and holds its lock only for a moment, so tests can run under testing/synctest. One goroutine
// for each connection passes the broker's messages to the client, in order, as in amqp091-go.
type Broker struct {
	mu      sync.Mutex
	Queues  map[string]*Queue
	Fanouts map[string][]string // the queues bound to each fanout exchange
	Directs map[string]Bindings // the queues bound to each direct exchange
	Links   []*Conn
	Node    string // the name of the node; it does not change
	User    string // the authenticated user of every connection
	alarm   string // why publishing is blocked; "" without an alarm
	linkSeq int

	heartbeats atomic.Uint64
	Mute       atomic.Bool // the broker sends no heartbeats

	Faults  map[string][]Fault // by route, see routeOf
	Holding bool               // the broker delays confirms
	// suspended holds the messages to suspended queues, see Suspend.
	suspended map[string][]*arrival
	Held      []func()
	OnDial    func(ctx context.Context, url, name string) error
	OnCall    func(op, name string) error
	Nacks     func(link, key string) bool // selects the messages to nack on a connection
	// Plan returns the fault of a message for which Faults has none, and the delay of FaultLate;
	// nil: no faults.
	Plan func(key string, msg *amqp.Publishing) (Fault, time.Duration)
	// OnPublish returns the exception that ends the channel, or nil to take the message.
	OnPublish func(key string, msg amqp.Publishing) *amqp.Error
	FrameSize int                                        // 0: no limit
	Fatal     func(key string, msg amqp.Publishing) bool // selects messages that end their connection with an exception
	// Limits returns the limits of what a connection receives; nil: no limits.
	Limits   func(conn string) transport.ContentLimits
	Rejected int // calls of Nack without requeue

	Dials  []string // URLs, in the order of dialing
	Sent   []Sent   // every publish that reached the broker
	Forget bool     // the broker keeps neither Dials nor Sent
	// BrokerCertificateEnd and OwnCertificateEnd are the ends of the certificates of new
	// connections.
	BrokerCertificateEnd, OwnCertificateEnd time.Time
	// Secrets are the passwords of UpdateSecret.
	Secrets []Secret
}

// Bindings are the queues bound to a direct exchange, by the key of the binding.
type Bindings map[string][]string

// Secret is a new password for the user of a connection.
type Secret struct {
	Conn     string // the name of the connection
	Password string
	At       time.Time
}

// Sent is a message as the broker received it.
type Sent struct {
	Exchange  string // "" for the default exchange
	Key       string
	Mandatory bool
	Msg       amqp.Publishing
	At        time.Time
}

// New returns a broker without queues, without faults and with the user "app".
func New() *Broker {
	return &Broker{User: "app", Queues: make(map[string]*Queue), Fanouts: make(map[string][]string), Directs: make(map[string]Bindings), Faults: make(map[string][]Fault)}
}

// Dial implements dialer.
func (b *Broker) Dial(ctx context.Context, url, name string) (transport.Conn, error) {
	b.mu.Lock()
	if !b.Forget {
		b.Dials = append(b.Dials, url)
	}
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

// routeOver puts a message into the queues which a direct exchange has for the key, and reports
// false for a nack. The caller holds mu.
func (b *Broker) routeOver(exchange string, c *Channel, key string, mandatory bool, msg amqp.Publishing) bool {
	if exchange == "" {
		return b.Route(c, key, mandatory, msg)
	}
	accepted, routed := true, false
	for _, queue := range b.Directs[exchange][key] {
		if q := b.Queues[queue]; q != nil {
			routed = true
			accepted = b.enqueue(q, &Message{Msg: msg, exchange: exchange, key: key}) && accepted
		}
	}
	if !routed && mandatory {
		c.postReturn(key, msg)
	}
	return accepted
}

// Route puts a message to the default exchange into its queue and reports false for a nack. The
// caller holds mu.
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
	return b.enqueue(q, &Message{Msg: msg, key: key})
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
			for _, m := range backlog {
				b.arrive(m)
			}
		}
	}
}

// Kick ends every connection with the broker's exception, or with nil as for a socket that
// breaks without an exception.
func (b *Broker) Kick(reason *amqp.Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kick(reason)
}

func (b *Broker) kick(reason *amqp.Error) {
	for _, l := range slices.Clone(b.Links) {
		l.End(reason)
	}
}

// Restart ends every connection and, like a real restart, loses queues that are not durable
// and transient messages outside quorum queues.
func (b *Broker) Restart() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kick(&amqp.Error{Code: amqp.ConnectionForced, Server: true, Reason: "CONNECTION_FORCED - broker forced connection closure"})
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
