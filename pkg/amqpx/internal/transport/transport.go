package transport

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The interface between this package and the AMQP library: the operations the package needs
// from a connection and a channel. dial.go implements the interface with amqp091-go; unit
// tests use a broker in memory.

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
	// Received counts the reads of data from the broker, heartbeats included.
	Received() uint64
	// FrameSize is the negotiated size of a frame in bytes; 0 is no limit.
	FrameSize() int
	// Cork buffers writes until uncork sends the buffer in one write.
	Cork()
	Uncork()
	// Claim transfers the accounting of a delivered body of n bytes to the caller. It returns
	// the number of counted bytes, which the caller has to release (see BytesInHand).
	Claim(n int) int64
	// Abandon releases the bytes of all counted and unclaimed bodies. It is called after the
	// connection has ended and the last delivery was received.
	Abandon()
	// Close closes the connection with AMQP's handshake, within a short bound.
	Close()
	// Cut closes the socket at once.
	Cut()
}

// Channel is one AMQP channel, with the calls named as in amqp091-go.
type Channel interface {
	PublishTo(key string, mandatory bool, msg amqp.Publishing) (Confirmation, error)
	// PublishFanout publishes to a fanout exchange, mandatory, and asks for no confirm.
	PublishFanout(exchange string, msg amqp.Publishing) error
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
	// Barrier returns after the broker has processed all earlier methods of the channel. The
	// method could come between the frames of a message, so barrier must not be used on a
	// channel for publishing.
	Barrier() error
	NotifyClose(c chan *amqp.Error) chan *amqp.Error
	NotifyReturn(c chan amqp.Return) chan amqp.Return
	NotifyCancel(c chan string) chan string
	IsClosed() bool
	Close() error
}

// Confirmation is the pending confirm of one published message.
type Confirmation interface {
	// Done is closed when the broker confirmed or nacked the message, or the channel ended.
	Done() <-chan struct{}
	// Acked reports, after Done, whether the broker confirmed the message.
	Acked() bool
}

// maxCorkedBytes is the size of the buffer at which a corked socket writes all the same.
const maxCorkedBytes = 64 << 10

// socket is the net.Conn under amqp091-go. It adds a deadline for every write, so that a
// broker that stops reading cannot block a publisher for ever, and coalescing, so that many
// small frames leave in one system call.
//
// An idle socket writes through. While the socket is corked, or while another goroutine
// writes, writes are buffered and leave together; a buffered write reports the error of an
// earlier write. A failed write closes the connection, which also ends the reader. Safe for
// concurrent use.
type socket struct {
	net.Conn

	raw     net.Conn // the connection below Conn: Conn itself, or the TCP connection below TLS
	timeout time.Duration
	frames  *frameReader // the source of Read; nil: Conn

	received    atomic.Uint64     // reads of data
	certificate clientCertificate // for TLS

	mu      sync.Mutex
	room    sync.Cond // signaled when a write has ended
	buf     []byte    // buffered, not yet written
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

// Read reads data from the broker.
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

// Close closes the connection below TLS at once. tls.Conn's own Close would first write an
// alert, and wait up to 5 s if the broker does not read.
func (s *socket) Close() error { return s.raw.Close() }

// Write buffers p, or writes it through when the socket is idle.
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
		s.flushGathered() // p, and the bytes that were buffered meanwhile
	}
	return len(p), s.err
}

// cork makes the socket buffer writes until uncork.
func (s *socket) cork() {
	s.mu.Lock()
	s.corked = true
	s.mu.Unlock()
}

// uncork writes the buffered bytes.
func (s *socket) uncork() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.corked = false
	if !s.writing {
		s.flushGathered()
	}
}

// flushGathered writes the buffered bytes, and the bytes buffered meanwhile. The caller holds
// mu and has checked that writing is false.
func (s *socket) flushGathered() {
	for len(s.buf) > 0 && s.err == nil {
		p := s.buf
		s.buf = s.spare[:0]
		s.flush(p)
		s.spare = p
	}
}

// flush writes p; it releases mu during the write. The caller holds mu and has checked that
// writing is false.
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
