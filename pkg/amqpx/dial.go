package amqpx

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strconv"
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
	source       *brokerSource // whose configuration comes before tls; may be nil
	limits       contentLimits
}

func (d netDialer) dial(ctx context.Context, url, name string) (link, error) {
	conns := &dialedSocket{}
	stop := context.AfterFunc(ctx, conns.cut)
	defer stop()

	// Everything in amqp.Config that the library writes to is made afresh.
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(name)
	uri, err := amqp.ParseURI(url)
	if err != nil {
		return nil, err
	}
	var opening error // why there is no socket
	conn, err := amqp.DialConfig(plainURL(url, uri), amqp.Config{
		Heartbeat:  d.heartbeat,
		Properties: properties,
		Dial: func(network, _ string) (net.Conn, error) {
			s, err := d.openSocket(ctx, network, uri)
			if err != nil {
				opening = err
				return nil, err
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
		if opening != nil {
			return nil, atStep(stepConnect, "", opening)
		}
		err = conns.get().explainDial(err)
		if at, ok := errors.AsType[*stepError](err); ok && at.step == stepAMQP && errors.Is(err, context.DeadlineExceeded) && d.speaksHTTP(ctx, uri) {
			err = atStep(stepAMQP, "", &kindError{FaultPortHTTP, at.cause})
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

// openSocket connects to the node that uri names. The TLS handshake takes place here and
// not in amqp091-go, so that the frame reader and the gathering of writes work on AMQP
// frames under TLS as well.
func (d netDialer) openSocket(ctx context.Context, network string, uri amqp.URI) (*socket, error) {
	raw, err := new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)))
	if err != nil {
		return nil, err
	}
	s := newSocket(raw, d.writeTimeout)
	if uri.Scheme == schemeTLS {
		secure, err := d.handshake(ctx, raw, uri, &s.certificate)
		if err != nil {
			_ = raw.Close()
			return nil, atStep(stepTLS, "", errors.Join(ctx.Err(), err))
		}
		s.Conn = secure
	}
	s.frames = newFrameReader(s.Conn, d.limits)
	return s, nil
}

// dialedSocket holds the socket of a dial under way, so that the end of the context
// can cut it at any moment.
type dialedSocket struct {
	mu     sync.Mutex
	socket *socket
	isCut  bool
}

func (o *dialedSocket) set(s *socket) *socket {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.socket = s
	if o.isCut {
		_ = s.Close()
	}
	return s
}

func (o *dialedSocket) get() *socket {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.socket
}

func (o *dialedSocket) cut() {
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
func (l *netLink) received() uint64                { return l.socket.received.Load() }
func (l *netLink) frameSize() int                  { return l.conn.Config.FrameSize }
func (l *netLink) hold()                           { l.socket.hold() }
func (l *netLink) release()                        { l.socket.release() }
func (l *netLink) cut()                            { _ = l.socket.Close() }

func (l *netLink) claim(n int) int64 {
	if l.socket.frames.limits.inHand == nil {
		return 0
	}
	l.socket.frames.unclaimed.bytes.Add(-int64(n))
	return int64(n)
}

func (l *netLink) abandon() {
	if frames := l.socket.frames; frames.limits.inHand != nil {
		frames.unclaimed.close(frames.limits.inHand)
	}
}

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
