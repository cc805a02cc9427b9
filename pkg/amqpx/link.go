package amqpx

import (
	"context"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The seam between this package and the protocol library: what the rest of the
// package asks of a connection and a channel. dial.go fills it with amqp091-go;
// unit tests fill it with a broker in memory.

// dialer opens links.
type dialer interface {
	// dial opens a link to the broker at url and names it in the broker's list of
	// connections. It ends, with the socket cut, when ctx does.
	dial(ctx context.Context, url, name string) (link, error)
}

// link is one connection to a broker. Its calls block on the broker and take no
// context; cut makes them return.
type link interface {
	channel() (channel, error)
	// closed receives the reason when the link ends; it is closed without one when
	// the reason is not known.
	closed() <-chan *amqp.Error
	// blockings receives the broker's connection.blocked and unblocked.
	blockings() <-chan amqp.Blocking
	// received counts the reads in which something came from the broker, be it a heartbeat.
	received() uint64
	// frameSize is the negotiated size of a frame in bytes; 0 is no limit.
	frameSize() int
	// hold gathers writes until release sends them in one piece.
	hold()
	release()
	// claim takes over the count of a delivered body of n bytes, which the caller has to
	// release: it returns the bytes that were counted (see bytesInHand).
	claim(n int) int64
	// abandon releases the bodies that were counted and not claimed. It is called when the
	// link has ended and no delivery is received any more.
	abandon()
	// close ends the link politely within a short bound.
	close()
	// cut closes the socket at once.
	cut()
}

// channel is one AMQP channel, with the calls named as in amqp091-go.
type channel interface {
	publish(key string, mandatory bool, msg amqp.Publishing) (confirmation, error)
	// publishToAll publishes to a fanout exchange, mandatory, and asks for no confirm.
	publishToAll(exchange string, msg amqp.Publishing) error
	Confirm(noWait bool) error
	Qos(prefetchCount, prefetchSize int, global bool) error
	Consume(queue, consumer string, autoAck, exclusive, noLocal, noWait bool, args amqp.Table) (<-chan amqp.Delivery, error)
	Cancel(consumer string, noWait bool) error
	QueueDeclare(name string, durable, autoDelete, exclusive, noWait bool, args amqp.Table) (amqp.Queue, error)
	QueueDeclarePassive(name string, durable, autoDelete, exclusive, noWait bool, args amqp.Table) (amqp.Queue, error)
	QueueBind(name, key, exchange string, noWait bool, args amqp.Table) error
	ExchangeDeclare(name, kind string, durable, autoDelete, internal, noWait bool, args amqp.Table) error
	ExchangeDeclarePassive(name, kind string, durable, autoDelete, internal, noWait bool, args amqp.Table) error
	QueueDelete(name string, ifUnused, ifEmpty, noWait bool) (int, error)
	Ack(tag uint64, multiple bool) error
	// sync returns when the broker has processed what was sent on the channel before. It
	// is not for a channel that publishes: it would come between a message's frames.
	sync() error
	NotifyClose(c chan *amqp.Error) chan *amqp.Error
	NotifyReturn(c chan amqp.Return) chan amqp.Return
	NotifyCancel(c chan string) chan string
	IsClosed() bool
	Close() error
}

// confirmation is the broker's pending word on one published message.
type confirmation interface {
	// Done is closed when the broker confirmed, refused, or the channel ended.
	Done() <-chan struct{}
	// Acked reports, after Done, whether the broker took the message.
	Acked() bool
}
