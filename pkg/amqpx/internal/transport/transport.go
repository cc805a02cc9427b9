package transport

import (
	"context"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The interface to a broker: the operations that the package needs from a connection and a
// channel. dial.go and channel.go implement the interface, with amqp091-go except for messages,
// deliveries, acknowledgements and confirms (docs/adr/0019); unit tests use a broker in memory.

// Dialer opens connections.
type Dialer interface {
	// Dial opens a connection to the broker at url and shows name in the broker's list of
	// connections. When ctx ends, dial closes the socket and returns.
	Dial(ctx context.Context, url, name string) (Conn, error)
}

// Conn is one connection to a broker. Its calls block on the broker and take no context;
// cut makes them return.
type Conn interface {
	Channel() (Channel, error)
	// Closed receives the reason when the connection ends. If the reason is not known, the
	// channel is closed without a value.
	Closed() <-chan *amqp.Error
	// Blockings receives the broker's connection.blocked and unblocked.
	Blockings() <-chan amqp.Blocking
	// Received counts the reads of data from the broker, heartbeats included, and the frames of
	// deliveries and confirms. An unchanged count means that the broker was silent.
	Received() uint64
	// FrameSize is the negotiated size of a frame in bytes; 0 is no limit.
	FrameSize() int
	// Cork buffers writes until uncork sends the buffer in one write.
	Cork()
	Uncork()
	// Claim transfers the accounting of a delivered body of n bytes to the caller. It returns
	// the number of counted bytes, which the caller has to release (see BytesInHand); after
	// Abandon it returns 0.
	Claim(n int) int64
	// Abandon releases the bytes of all counted and unclaimed bodies. It is called after the
	// connection has ended.
	Abandon()
	// Certificates returns the ends of the certificates in the TLS handshake: the earliest end
	// among the broker's certificates, and the end of this process's certificate. Zero: there
	// was no certificate.
	Certificates() (broker, own time.Time)
	// Node returns the name of the node, from the property node of connection.start, which an
	// operator can set (server_properties); "" without it.
	Node() string
	// UpdateSecret gives the broker a new password for the user of the connection. UpdateSecret
	// returns with the broker's response or the end of the connection.
	UpdateSecret(password string) error
	// IsClosed reports whether the connection has ended; Closed may not have received the reason
	// yet.
	IsClosed() bool
	// Lease returns the connection as one of several users sees it: with the limits, the count
	// of bodies and the cork of this user. Closed and Blockings of a lease receive nothing, and
	// its Close and Cut do nothing.
	Lease(limits ContentLimits) Conn
	// Close closes the connection with AMQP's handshake, within a short bound.
	Close()
	// Cut closes the socket at once.
	Cut()
}

// Channel is one AMQP channel, with the calls named as in amqp091-go.
type Channel interface {
	// PublishTo publishes to an exchange, "" for the default exchange, on a channel with
	// confirms. The error is amqp.ErrClosed if the channel had ended before, or if the
	// connection ended before the message was written in full: the broker has no message then.
	// A message that cannot be encoded returns an error and leaves the channel usable. Any other
	// error is the end of the connection.
	PublishTo(exchange, key string, mandatory bool, msg amqp.Publishing) (Confirmation, error)
	// PublishFanout publishes to an exchange with an empty key, mandatory, and reports no confirm.
	PublishFanout(exchange string, msg amqp.Publishing) error
	Confirm(noWait bool) error
	Qos(prefetchCount, prefetchSize int, global bool) error
	// Consume starts a consumer. The deliveries that have arrived when the consumer is canceled
	// still reach the caller; when the channel ends, some may not.
	Consume(queue, consumer string, autoAck, exclusive, noLocal, noWait bool, args amqp.Table) (<-chan amqp.Delivery, error)
	Cancel(consumer string, noWait bool) error
	QueueDeclare(name string, durable, autoDelete, exclusive, noWait bool, args amqp.Table) (amqp.Queue, error)
	QueueDeclarePassive(name string, durable, autoDelete, exclusive, noWait bool, args amqp.Table) (amqp.Queue, error)
	QueueBind(name, key, exchange string, noWait bool, args amqp.Table) error
	ExchangeDeclare(name, kind string, durable, autoDelete, internal, noWait bool, args amqp.Table) error
	ExchangeDeclarePassive(name, kind string, durable, autoDelete, internal, noWait bool, args amqp.Table) error
	QueueDelete(name string, ifUnused, ifEmpty, noWait bool) (int, error)
	Ack(tag uint64, multiple bool) error
	// Barrier returns after the broker has processed all earlier methods of the channel. The
	// method could come between the frames of a message, so barrier must not be used on a
	// channel for publishing.
	Barrier() error
	NotifyClose(c chan *amqp.Error) chan *amqp.Error
	NotifyReturn(c chan amqp.Return) chan amqp.Return
	NotifyCancel(c chan string) chan string
	IsClosed() bool
	Close() error
	// Abandon ends the channel for this process, without the broker: the unconfirmed messages
	// complete unconfirmed, IsClosed reports true, and nothing more is written. The broker's
	// half ends with Close or with the connection.
	Abandon()
}

// Confirmation is the pending confirm of one published message.
type Confirmation interface {
	// Done is closed when the broker confirmed or nacked the message, or the channel ended.
	Done() <-chan struct{}
	// Acked reports, after Done, whether the broker confirmed the message.
	Acked() bool
}
