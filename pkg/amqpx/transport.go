package amqpx

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The seam between this package and the protocol library: what the rest of the
// package asks of a connection and a channel. dial.go fills it with amqp091-go;
// unit tests fill it with a broker in memory.

// dialer opens links.
type dialer interface {
	// dial opens a link to the broker at url and names it in the broker's list of
	// connections. It ends, with the socket cut, when ctx does.
	dial(ctx context.Context, url, name string) (brokerConn, error)
}

// brokerConn is one connection to a broker. Its calls block on the broker and take no
// context; cut makes them return.
type brokerConn interface {
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
	// cork gathers writes until release sends them in one piece.
	cork()
	uncork()
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
	// publishFanout publishes to a fanout exchange, mandatory, and asks for no confirm.
	publishFanout(exchange string, msg amqp.Publishing) error
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
	// barrier returns when the broker has processed what was sent on the channel before. It
	// is not for a channel that publishes: it would come between a message's frames.
	barrier() error
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

// maxCorkedBytes is how much a held socket gathers before it writes all the same.
const maxCorkedBytes = 64 << 10

// socket is the net.Conn under amqp091-go. It adds the two things that library
// leaves out: a deadline for every write, so that a broker that stops reading
// cannot freeze a publisher for ever, and coalescing, so that many small frames
// leave in one system call.
//
// An idle socket writes through. While it is held, or while another goroutine is
// in the middle of a write, writes gather and leave together; they report the
// error of an earlier write. A failed write closes the connection, which ends its
// reader too. Safe for concurrent use.
type socket struct {
	net.Conn

	raw     net.Conn // the connection below Conn: Conn itself, or the one below TLS
	timeout time.Duration
	frames  *frameReader // what Read reads, or nil for the connection itself

	received    atomic.Uint64     // reads in which something came
	certificate clientCertificate // under TLS

	mu      sync.Mutex
	room    sync.Cond // signalled when a write ended
	buf     []byte    // gathered, not yet written
	spare   []byte    // the buffer of the last write, for reuse
	writing bool
	corked  bool
	err     error
}

func newSocket(conn net.Conn, writeTimeout time.Duration) *socket {
	s := &socket{Conn: conn, raw: conn, timeout: writeTimeout}
	s.room.L = &s.mu
	return s
}

// Read reads what the broker sent.
func (s *socket) Read(p []byte) (n int, err error) {
	if s.frames == nil {
		n, err = s.Conn.Read(p)
	} else {
		n, err = s.frames.Read(p)
	}
	if n > 0 {
		s.received.Add(1)
	}
	return n, err
}

// Close closes the connection below TLS at once. tls.Conn's own Close would write an
// alert first, for which it waits up to 5 s when the broker does not read.
func (s *socket) Close() error { return s.raw.Close() }

// Write gathers p, or writes it through when the socket is idle.
func (s *socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.writing && len(s.buf) >= maxCorkedBytes && s.err == nil {
		s.room.Wait()
	}
	if s.err != nil {
		return 0, s.err
	}
	if !s.writing && len(s.buf) == 0 && (!s.corked || len(p) >= maxCorkedBytes) {
		s.flush(p)
	} else {
		s.buf = append(s.buf, p...)
	}
	if !s.writing && (!s.corked || len(s.buf) >= maxCorkedBytes) {
		s.flushGathered() // what is here, and what others gathered meanwhile
	}
	return len(p), s.err
}

// cork makes writes gather until release.
func (s *socket) cork() {
	s.mu.Lock()
	s.corked = true
	s.mu.Unlock()
}

// uncork writes what was gathered.
func (s *socket) uncork() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.corked = false
	if !s.writing {
		s.flushGathered()
	}
}

// flushGathered writes the gathered bytes and whatever gathers meanwhile. The
// caller holds mu and found writing false.
func (s *socket) flushGathered() {
	for len(s.buf) > 0 && s.err == nil {
		p := s.buf
		s.buf = s.spare[:0]
		s.flush(p)
		s.spare = p
	}
}

// flush writes p with mu released meanwhile. The caller holds mu and found
// writing false.
func (s *socket) flush(p []byte) {
	s.writing = true
	s.mu.Unlock()
	err := s.Conn.SetWriteDeadline(time.Now().Add(s.timeout))
	if err == nil {
		_, err = s.Conn.Write(p)
	}
	if err != nil {
		if s.frames != nil {
			s.frames.awaitReason()
		}
		_ = s.Close()
	}
	s.mu.Lock()
	s.writing = false
	if err != nil && s.err == nil {
		s.err = err
	}
	s.room.Broadcast()
}
