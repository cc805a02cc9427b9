package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// CloseTimeout bounds the closing handshake; then the socket is cut.
const CloseTimeout = time.Second

// NetDialer dials real brokers.
type NetDialer struct {
	Heartbeat    time.Duration
	WriteTimeout time.Duration
	// TLS returns the configuration for amqps URLs, or nil for the files of the URL. A nil tls
	// is for the files of the URL too.
	TLS    func() *tls.Config
	Limits ContentLimits
	// Net opens the network connections; nil: a net.Dialer.
	Net func(ctx context.Context, network, address string) (net.Conn, error)
}

// Dial implements Dialer.
func (d NetDialer) Dial(ctx context.Context, url, name string) (Conn, error) {
	conns := &dialedSocket{}
	stop := context.AfterFunc(ctx, conns.cut)
	defer stop()

	// All fields of amqp.Config that the library writes to are created for each call.
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(name)
	uri, err := amqp.ParseURI(url)
	if err != nil {
		return nil, err
	}
	login := loginOf(url, uri, conns)
	var opening error // the reason why there is no socket
	conn, err := amqp.DialConfig(plainURL(url, uri), amqp.Config{
		Heartbeat:  d.Heartbeat,
		Properties: properties,
		SASL:       login.mechanisms(),
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
			// The library reports ErrCredentials for a socket that was cut during login.
			err = ctx.Err()
		}
		if opening != nil {
			return nil, AtStep(stepConnect, "", opening)
		}
		err = login.explain(conns.get().explainDial(err))
		if at, ok := errors.AsType[*stepError](err); ok && at.step == stepAMQP && errors.Is(err, context.DeadlineExceeded) && d.speaksHTTP(ctx, uri) {
			err = AtStep(stepAMQP, "", &KindError{Kind: FaultPortHTTP, Cause: at.cause})
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
		l.Cut()
		return nil, errors.Join(ctx.Err(), net.ErrClosed)
	}
	return l, nil
}

// openSocket connects to the node in uri. The TLS handshake takes place here and not in
// amqp091-go, so that the frame reader and the coalescing of writes also work on AMQP frames
// under TLS.
func (d NetDialer) openSocket(ctx context.Context, network string, uri amqp.URI) (*socket, error) {
	dial := d.Net
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	raw, err := dial(ctx, network, net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)))
	if err != nil {
		return nil, err
	}
	s := newSocket(raw, d.WriteTimeout)
	if uri.Scheme == SchemeTLS {
		secure, err := d.handshake(ctx, raw, uri, &s.certificate)
		if err != nil {
			_ = raw.Close()
			return nil, AtStep(stepTLS, "", errors.Join(ctx.Err(), err))
		}
		s.Conn = secure
	}
	s.frames = newFrameReader(s.Conn, d.Limits)
	return s, nil
}

// dialedSocket holds the socket of a dial in progress, so that the end of the context can cut
// the socket at any moment.
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

// netLink implements Conn with amqp091-go. For the frames that bypass that library see netChannel.
type netLink struct {
	conn   *amqp.Connection
	socket *socket
	ended  <-chan *amqp.Error
	blocks <-chan amqp.Blocking

	opening sync.Mutex // held while a channel opens
}

func (l *netLink) Closed() <-chan *amqp.Error      { return l.ended }
func (l *netLink) Blockings() <-chan amqp.Blocking { return l.blocks }
func (l *netLink) Received() uint64 {
	return l.socket.received.Load() + l.socket.frames.intake.frames.Load()
}
func (l *netLink) FrameSize() int { return l.conn.Config.FrameSize }
func (l *netLink) Cork()          { l.socket.cork() }
func (l *netLink) Uncork()        { l.socket.uncork() }
func (l *netLink) Cut()           { _ = l.socket.Close() }

func (l *netLink) Certificates() (broker, own time.Time) { return l.socket.certificateEnds() }

func (l *netLink) Node() string {
	name, _ := l.conn.Properties["node"].(string)
	return wire.Truncate(name, wire.MaxShortString)
}

func (l *netLink) UpdateSecret(password string) error {
	return l.conn.UpdateSecret(password, "the credentials were refreshed")
}

func (l *netLink) Claim(n int) int64 { return l.socket.frames.claim(int64(n)) }
func (l *netLink) Abandon()          { l.socket.frames.abandon() }
func (l *netLink) IsClosed() bool    { return l.conn.IsClosed() }

func (l *netLink) Close() {
	timer := time.AfterFunc(CloseTimeout, l.Cut)
	defer timer.Stop()
	_ = l.conn.Close()
}

// The schemes of broker URLs as amqp091-go's parser returns them: in lower case, whatever the
// case in the URL.
const (
	SchemePlain = "amqp"
	SchemeTLS   = "amqps"
)

// plainURL returns url with the scheme amqp. amqp091-go then uses all of the URL except the
// transport: the user, the virtual host, the SASL mechanisms and the query.
func plainURL(url string, uri amqp.URI) string { return SchemePlain + url[len(uri.Scheme):] }

// handshake performs the TLS handshake on raw and records in own the use of the client
// certificate. It ends with ctx.
func (d NetDialer) handshake(ctx context.Context, raw net.Conn, uri amqp.URI, own *clientCertificate) (net.Conn, error) {
	config, err := d.tlsConfig(uri)
	if err != nil {
		return nil, &KindError{Kind: FaultTLSFiles, Cause: err}
	}
	own.watch(config)
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, own.handshakeFault(err)
	}
	return conn, nil
}

// tlsConfig returns the TLS configuration for one connection: from WithBrokers, else from
// WithTLS, else from the URL's query parameters cacertfile, certfile and keyfile. The name
// expected in the broker's certificate is the configuration's ServerName, else the query
// parameter server_name_indication, else the URL's host. The version is TLS 1.2 or later.
func (d NetDialer) tlsConfig(uri amqp.URI) (config *tls.Config, err error) {
	if d.TLS != nil {
		config = d.TLS().Clone() // nil stays nil
	}
	if config == nil {
		if config, err = tlsConfigOf(uri); err != nil {
			return nil, err
		}
	}
	config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	if config.ServerName == "" {
		config.ServerName = uri.ServerName
	}
	if config.ServerName == "" {
		config.ServerName = uri.Host
	}
	return config, nil
}

// tlsConfigOf reads the TLS files given in the URL's query
// (https://www.rabbitmq.com/docs/uri-query-parameters).
func tlsConfigOf(uri amqp.URI) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if uri.CACertFile != "" {
		pem, err := os.ReadFile(uri.CACertFile)
		if err != nil {
			return nil, fmt.Errorf("cacertfile of the broker URL: %w", withoutPath(err))
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("cacertfile of the broker URL holds no PEM certificate")
		}
	}
	if uri.CertFile != "" && uri.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(uri.CertFile, uri.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("certfile and keyfile of the broker URL: %w", withoutPath(err))
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// withoutPath removes the file's name from the error of a file operation. The name came from a
// URL and may contain any text of the URL.
func withoutPath(err error) error {
	if failed, ok := errors.AsType[*fs.PathError](err); ok {
		return failed.Err
	}
	return err
}

// httpWait bounds the time for a peer's answer to the test for HTTP.
const httpWait = 500 * time.Millisecond

// speaksHTTP reports whether a peer that did not answer AMQP's protocol header answers HTTP.
// An HTTP server waits for the end of a line, which AMQP never sends.
func (d NetDialer) speaksHTTP(ctx context.Context, uri amqp.URI) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), httpWait)
	defer cancel()
	s, err := d.openSocket(ctx, "tcp", uri)
	if err != nil {
		return false
	}
	defer s.Close() //nolint:errcheck // nothing is lost with it.
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if _, err := s.Write([]byte("\r\nHEAD / HTTP/1.0\r\n\r\n")); err != nil {
		return false
	}
	start := make([]byte, len("HTTP"))
	_, err = io.ReadFull(s, start)
	return err == nil && string(start) == "HTTP"
}
