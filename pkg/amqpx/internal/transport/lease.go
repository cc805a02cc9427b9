package transport

import (
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// netLease implements Conn for one of the users of a netLink.
type netLease struct {
	*netLink

	bodies bodyLimits
	corked bool // guarded by socket.mu
}

// Lease implements Conn.
func (l *netLink) Lease(limits ContentLimits) Conn {
	l.socket.frames.leased.Store(true)
	return &netLease{netLink: l, bodies: bodyLimits{limits: limits}}
}

func (l *netLease) Channel() (Channel, error)       { return l.openChannel(l) }
func (l *netLease) Closed() <-chan *amqp.Error      { return nil }
func (l *netLease) Blockings() <-chan amqp.Blocking { return nil }
func (l *netLease) Cork()                           { l.socket.setCork(&l.corked) }
func (l *netLease) Uncork()                         { l.socket.removeCork(&l.corked) }
func (l *netLease) Claim(n int) int64               { return l.bodies.claim(int64(n)) }
func (l *netLease) Abandon()                        { l.bodies.abandon() }
func (l *netLease) Close()                          {}
func (l *netLease) Cut()                            {}

// muxedConn is the Conn of a session on a mux. The session ends while the connection lives on,
// so muxedConn closes the channels that the session has opened, and makes the calls return that
// wait for the broker.
type muxedConn struct {
	Conn // a lease

	mux *Session

	mu       sync.Mutex
	channels map[*muxedChannel]struct{} // open, or ended since the last was opened
	isCut    bool
	cut      chan struct{} // closed by Cut
}

// share returns a connection of the mux's session for another session.
func (s *Session) share(conn Conn, limits ContentLimits) *muxedConn {
	return &muxedConn{Conn: conn.Lease(limits), mux: s, channels: make(map[*muxedChannel]struct{}), cut: make(chan struct{})}
}

// Channel implements Conn.
func (c *muxedConn) Channel() (Channel, error) {
	result := make(chan response[Channel], 1)
	go func() { // ends with the broker's response, or with the connection
		ch, err := c.Conn.Channel()
		result <- response[Channel]{ch, err}
	}()
	select {
	case opened := <-result:
		if opened.err != nil {
			return nil, opened.err
		}
		ch := &muxedChannel{Channel: opened.value, conn: c, turn: make(chan struct{}, 1)}
		if !c.add(ch) {
			ch.end()
			return nil, amqp.ErrClosed
		}
		return ch, nil
	case <-c.cut:
		go func() { // ends with the broker's response, or with the connection
			if opened := <-result; opened.err == nil {
				_ = opened.value.Close()
			}
		}()
		return nil, amqp.ErrClosed
	}
}

// add records an open channel, and forgets those that have ended. It returns false after Cut.
func (c *muxedConn) add(ch *muxedChannel) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for other := range c.channels {
		if other.IsClosed() {
			delete(c.channels, other)
		}
	}
	if !c.isCut {
		c.channels[ch] = struct{}{}
	}
	return !c.isCut
}

// Cut implements Conn: every call that waits for the broker returns, and no further calls reach
// the broker.
func (c *muxedConn) Cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.isCut {
		c.isCut = true
		close(c.cut)
	}
}

// hasBeenCut reports whether Cut has been called.
func (c *muxedConn) hasBeenCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.isCut
}

// Close implements Conn: it closes the open channels, within CloseTimeout.
func (c *muxedConn) Close() {
	c.Cut()
	c.mu.Lock()
	open := make([]*muxedChannel, 0, len(c.channels))
	for ch := range c.channels {
		open = append(open, ch)
	}
	clear(c.channels)
	c.mu.Unlock()
	var closers sync.WaitGroup
	for _, ch := range open {
		closers.Go(ch.end)
	}
	closers.Wait()
}

// maxUnclosed bounds the channels of a mux that were given up and which the broker has not
// closed. The number of channels of a connection is bounded, so the mux then ends. A broker that
// blocks publishing does not read, so it closes no channel meanwhile.
const maxUnclosed = 64

// end closes the channel. If the broker does not respond in time, the channel is abandoned.
func (c *muxedChannel) end() {
	closed := make(chan struct{})
	go func() { // ends with the broker's response, or with the connection
		c.turn <- struct{}{}
		_ = c.Channel.Close()
		<-c.turn
		close(closed)
	}()
	limit := time.NewTimer(CloseTimeout)
	defer limit.Stop()
	select {
	case <-closed:
		return
	case <-limit.C:
	}
	c.Channel.Abandon()
	mux := c.conn.mux
	if mux.unclosed.Add(1) > maxUnclosed && mux.Flow.Unblocked() == nil {
		mux.Fail(errUnresponsive)
	}
	go func() { // as above
		<-closed
		mux.unclosed.Add(-1)
	}()
}

// muxedChannel is a channel of a muxedConn. Its methods that wait for the broker return at the
// latest when the muxedConn is cut; messages and acknowledgements pass it by.
type muxedChannel struct {
	Channel

	conn *muxedConn
	turn chan struct{} // held by the method that waits for the broker's response
}

// response is the result of a method that waits for the broker.
type response[T any] struct {
	value T
	err   error
}

// await runs a method that waits for the broker, in its turn.
func await[T any](c *muxedChannel, method func() (T, error)) (T, error) {
	done := make(chan response[T], 1)
	go func() { // ends with the broker's response, or with the connection
		c.turn <- struct{}{}
		defer func() { <-c.turn }()
		r := response[T]{err: amqp.ErrClosed}
		if !c.conn.hasBeenCut() {
			r.value, r.err = method()
		}
		done <- r
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-c.conn.cut:
		var none T
		return none, amqp.ErrClosed
	}
}

// do is await for a method without a value.
func (c *muxedChannel) do(method func() error) error {
	_, err := await(c, func() (struct{}, error) { return struct{}{}, method() })
	return err
}

func (c *muxedChannel) Confirm(noWait bool) error {
	return c.do(func() error { return c.Channel.Confirm(noWait) })
}

func (c *muxedChannel) Qos(count, size int, global bool) error {
	return c.do(func() error { return c.Channel.Qos(count, size, global) })
}

func (c *muxedChannel) Consume(queue, consumer string, autoAck, exclusive, noLocal, noWait bool, args amqp.Table) (<-chan amqp.Delivery, error) {
	return await(c, func() (<-chan amqp.Delivery, error) {
		return c.Channel.Consume(queue, consumer, autoAck, exclusive, noLocal, noWait, args)
	})
}

func (c *muxedChannel) Cancel(consumer string, noWait bool) error {
	return c.do(func() error { return c.Channel.Cancel(consumer, noWait) })
}

func (c *muxedChannel) QueueDeclare(name string, durable, autoDelete, exclusive, noWait bool, args amqp.Table) (amqp.Queue, error) {
	return await(c, func() (amqp.Queue, error) {
		return c.Channel.QueueDeclare(name, durable, autoDelete, exclusive, noWait, args)
	})
}

func (c *muxedChannel) QueueDeclarePassive(name string, durable, autoDelete, exclusive, noWait bool, args amqp.Table) (amqp.Queue, error) {
	return await(c, func() (amqp.Queue, error) {
		return c.Channel.QueueDeclarePassive(name, durable, autoDelete, exclusive, noWait, args)
	})
}

func (c *muxedChannel) QueueBind(name, key, exchange string, noWait bool, args amqp.Table) error {
	return c.do(func() error { return c.Channel.QueueBind(name, key, exchange, noWait, args) })
}

func (c *muxedChannel) ExchangeDeclare(name, kind string, durable, autoDelete, internal, noWait bool, args amqp.Table) error {
	return c.do(func() error {
		return c.Channel.ExchangeDeclare(name, kind, durable, autoDelete, internal, noWait, args)
	})
}

func (c *muxedChannel) ExchangeDeclarePassive(name, kind string, durable, autoDelete, internal, noWait bool, args amqp.Table) error {
	return c.do(func() error {
		return c.Channel.ExchangeDeclarePassive(name, kind, durable, autoDelete, internal, noWait, args)
	})
}

func (c *muxedChannel) QueueDelete(name string, ifUnused, ifEmpty, noWait bool) (int, error) {
	return await(c, func() (int, error) { return c.Channel.QueueDelete(name, ifUnused, ifEmpty, noWait) })
}

func (c *muxedChannel) Barrier() error { return c.do(c.Channel.Barrier) }

func (c *muxedChannel) Close() error { return c.do(c.Channel.Close) }
