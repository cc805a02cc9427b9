package amqpx

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// closeTimeout bounds a polite close; after it the socket is cut.
const closeTimeout = time.Second

// netDialer dials real brokers.
type netDialer struct {
	heartbeat    time.Duration
	writeTimeout time.Duration
	tls          *tls.Config
}

func (d netDialer) dial(ctx context.Context, url, name string) (link, error) {
	conns := &openSocket{}
	stop := context.AfterFunc(ctx, conns.cut)
	defer stop()

	// Everything in amqp.Config that the library writes to is made afresh.
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(name)
	var tlsConfig *tls.Config
	if d.tls != nil {
		tlsConfig = d.tls.Clone()
	}
	conn, err := amqp.DialConfig(url, amqp.Config{
		Heartbeat:       d.heartbeat,
		Properties:      properties,
		TLSClientConfig: tlsConfig,
		Dial: func(network, addr string) (net.Conn, error) {
			raw, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			s := newSocket(raw, d.writeTimeout)
			if strings.HasPrefix(url, "amqp:") {
				s.frames = newFrameReader(raw) // under TLS there are no frames to see here
			}
			return conns.set(s), nil
		},
	})
	if err != nil {
		conns.cut()
		if ctx.Err() != nil {
			// The library calls a socket cut during login a wrong password.
			err = ctx.Err()
		}
		return nil, err
	}
	l := &netLink{
		conn:   conn,
		socket: conns.get(),
		ended:  conn.NotifyClose(make(chan *amqp.Error, 1)),
		blocks: conn.NotifyBlocked(make(chan amqp.Blocking, 16)),
	}
	if !stop() {
		l.cut()
		return nil, errors.Join(ctx.Err(), net.ErrClosed)
	}
	return l, nil
}

// openSocket holds the socket of a dial under way, so that the end of the context
// can cut it at any moment.
type openSocket struct {
	mu     sync.Mutex
	socket *socket
	isCut  bool
}

func (o *openSocket) set(s *socket) *socket {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.socket = s
	if o.isCut {
		_ = s.Close()
	}
	return s
}

func (o *openSocket) get() *socket {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.socket
}

func (o *openSocket) cut() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.isCut = true
	if o.socket != nil {
		_ = o.socket.Close()
	}
}

// netLink is a link over amqp091-go.
type netLink struct {
	conn   *amqp.Connection
	socket *socket
	ended  <-chan *amqp.Error
	blocks <-chan amqp.Blocking
}

func (l *netLink) channel() (channel, error) {
	ch, err := l.conn.Channel()
	if err != nil {
		return nil, err
	}
	return &netChannel{Channel: ch, turn: make(chan struct{}, 1)}, nil
}

func (l *netLink) closed() <-chan *amqp.Error      { return l.ended }
func (l *netLink) blockings() <-chan amqp.Blocking { return l.blocks }
func (l *netLink) hold()                           { l.socket.hold() }
func (l *netLink) release()                        { l.socket.release() }
func (l *netLink) cut()                            { _ = l.socket.Close() }

func (l *netLink) close() {
	timer := time.AfterFunc(closeTimeout, l.cut)
	defer timer.Stop()
	_ = l.conn.Close()
}

// netChannel adapts a channel to the seam. The calls that wait for the broker's reply
// take turns: the library would mix up the replies to two at the same time.
type netChannel struct {
	*amqp.Channel

	turn chan struct{}
}

// sync implements channel by a method that the broker answers in its turn, and that
// changes nothing: the prefetch is that of consumers to come, of which there are none.
func (c *netChannel) sync() error {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	return c.Channel.Qos(1, 0, false)
}

// Cancel implements channel.
func (c *netChannel) Cancel(consumer string, noWait bool) error {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	return c.Channel.Cancel(consumer, noWait)
}

func (c *netChannel) publish(key string, mandatory bool, msg amqp.Publishing) (confirmation, error) {
	confirm, err := c.PublishWithDeferredConfirm("", key, mandatory, false, msg)
	if err != nil {
		return nil, err
	}
	return confirm, nil
}

func (c *netChannel) publishToAll(exchange string, msg amqp.Publishing) error {
	return c.Publish(exchange, "", true, false, msg)
}
