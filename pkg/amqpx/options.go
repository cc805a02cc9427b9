package amqpx

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Defaults shared by clients and servers.
const (
	// DefaultQueue is the request queue's name.
	DefaultQueue = "rpc_queue"
	// DefaultHeartbeat is the requested heartbeat interval; the broker may lower it.
	DefaultHeartbeat = 10 * time.Second
	// DefaultDialTimeout bounds one attempt to dial and set up. A broker reports a wrong
	// password only after about 3 s, so a shorter timeout hides the reason.
	DefaultDialTimeout = 5 * time.Second
	// DefaultWriteTimeout bounds one write to the socket; a longer write ends the connection.
	DefaultWriteTimeout = 10 * time.Second
	// DefaultBackoffMin is the bound of the first wait between attempts to connect.
	DefaultBackoffMin = 100 * time.Millisecond
	// DefaultBackoffMax is the wait between attempts while a fault needs an operator.
	DefaultBackoffMax = 10 * time.Second
	// DefaultReturnHome is the mean time away from the home node; see [WithReturnHome].
	DefaultReturnHome = 5 * time.Minute
	// DefaultMaxMessageSize is RabbitMQ 4's own limit (max_message_size).
	DefaultMaxMessageSize = 16 << 20
)

// Option configures both a [Client] and a [Server].
type Option interface {
	ClientOption
	ServerOption
}

// ConnectionOption configures a [Connection], or the connections of a [Client] or [Server] without
// a Connection. A client or server of a Connection takes only [WithLogger] and [WithSlog]; any
// other ConnectionOption is an error.
type ConnectionOption interface {
	Option

	applyConnection(*linkConfig)
}

// ClientOption configures a [Client].
type ClientOption interface{ applyClient(*clientConfig) }

// ServerOption configures a [Server].
type ServerOption interface{ applyServer(*serverConfig) }

// BatchMode chooses whether calls may travel in batches.
type BatchMode string

const (
	// BatchAuto is the default: calls and responses that would have to wait travel together in
	// one message, while servers unpack such batches. A single call or response travels alone,
	// at once. See [WithBatch].
	BatchAuto BatchMode = "auto"
	// BatchOff sends every call and every response alone; a server with BatchOff accepts no
	// batches.
	BatchOff BatchMode = "off"
)

// linkConfig is the settings of connections. It does not change after construction.
type linkConfig struct {
	urlList      string
	urls         []BrokerURL // parsed from urlList by validate
	name         string
	heartbeat    time.Duration
	dialTimeout  time.Duration
	writeTimeout time.Duration
	backoffMin   time.Duration
	backoffMax   time.Duration
	returnHome   time.Duration
	tls          *tls.Config
	source       *brokerSource // nil: urls and tls do not change
	credentials  func(context.Context) (Credentials, error)
	logger       *zap.Logger
	dialer       transport.Dialer // nil until complete
	netDial      NetDial          // nil: TCP
}

// config is the settings shared by clients and servers. It does not change after construction.
type config struct {
	linkConfig

	shared      *Connection // nil: the client or server has its own connections
	option      int         // the number of the option that is applied
	linkOptions []int       // the numbers of the options that belong to a connection

	queue          Queue
	shards         int
	persistent     bool
	batch          BatchMode
	control        bool
	userID         bool
	version        string
	maxMessageSize int
	middleware     []Middleware
	streams        streamConfig
}

func defaultLinkConfig(url string) linkConfig {
	return linkConfig{
		urlList:      url,
		name:         "amqpx",
		heartbeat:    DefaultHeartbeat,
		dialTimeout:  DefaultDialTimeout,
		writeTimeout: DefaultWriteTimeout,
		backoffMin:   DefaultBackoffMin,
		backoffMax:   DefaultBackoffMax,
		returnHome:   DefaultReturnHome,
		logger:       zap.NewNop(),
	}
}

// defaultConfig returns the default settings with those of the connections.
func defaultConfig(link linkConfig) config {
	return config{
		linkConfig:     link,
		queue:          Queue{Name: DefaultQueue, Type: QueueClassic},
		shards:         DefaultShards,
		batch:          BatchAuto,
		control:        true,
		userID:         true,
		maxMessageSize: DefaultMaxMessageSize,
		streams:        defaultStreamConfig(),
	}
}

// connections returns the settings of the connections for a role.
func (c *linkConfig) connections(role string, shared bool, observer transport.Observer) transport.Config {
	return transport.Config{
		Name: c.name, Role: role, Shared: shared, Targets: c.targets, Dialer: c.dialer,
		Heartbeat: c.heartbeat, DialTimeout: c.dialTimeout, BackoffMin: c.backoffMin, BackoffMax: c.backoffMax,
		Logger: c.logger, Observer: observer, Credentials: c.credentialsSource(),
	}
}

// sessions returns the settings of the sessions of a client or server, on the mux of its
// Connection if it has one.
func (c *config) sessions(role string, shared bool, observer transport.Observer, setup func(context.Context, *transport.Session) error) transport.Config {
	cfg := c.connections(role, shared, observer)
	cfg.Setup = setup
	if c.shared != nil {
		cfg.Mux = c.shared.mux
	}
	return cfg
}

// complete sets the dialer, unless a test has set one. Without a mux the limits are those of its
// connections.
func (c *linkConfig) complete(limits transport.ContentLimits) {
	if c.dialer == nil {
		c.dialer = transport.NetDialer{
			Heartbeat: c.heartbeat, WriteTimeout: c.writeTimeout, TLS: c.tlsConfig, Limits: limits, Net: c.netDial,
		}
	}
}

// targets returns the brokers for the next attempt to connect.
func (c *linkConfig) targets() []transport.Target {
	if c.source != nil {
		return targetsOf(c.source.refresh())
	}
	return targetsOf(c.urls)
}

// tlsConfig returns the TLS configuration for the next attempt to connect, or nil if there is
// none.
func (c *linkConfig) tlsConfig() *tls.Config {
	if newer := c.source.tls(); newer != nil {
		return newer
	}
	return c.tls
}

// option is an Option made of one function on the shared config.
type option func(*config)

func (o option) applyClient(c *clientConfig) { o(&c.config) }
func (o option) applyServer(c *serverConfig) { o(&c.config) }

// linkOption is a ConnectionOption made of one function on the settings of connections.
type linkOption func(*linkConfig)

func (o linkOption) applyConnection(c *linkConfig) { o(c) }
func (o linkOption) applyClient(c *clientConfig)   { o.applyTo(&c.config) }
func (o linkOption) applyServer(c *serverConfig)   { o.applyTo(&c.config) }

func (o linkOption) applyTo(c *config) {
	o(&c.linkConfig)
	c.linkOptions = append(c.linkOptions, c.option)
}

// WithQueue sets the request queue; the default is the durable classic queue [DefaultQueue].
// An existing queue with other properties is used unchanged.
func WithQueue(q Queue) Option { return option(func(c *config) { c.queue = q }) }

// WithName sets the name of the connections in the broker's management UI; the default is
// "amqpx".
func WithName(name string) ConnectionOption { return linkOption(func(c *linkConfig) { c.name = name }) }

// WithPersistent makes the broker write messages to disk (delivery mode 2), so the messages
// survive a restart of the broker. This costs about a third of the sequential speed. The
// default is transient; messages in a quorum queue are always on disk.
func WithPersistent(on bool) Option { return option(func(c *config) { c.persistent = on }) }

// WithBatch chooses whether calls may travel in batches; the default is [BatchAuto]. At most
// two of a client's messages to the servers are unconfirmed, plus one for each server beyond
// the first. When the broker confirms a message, the calls made meanwhile leave together, up
// to 512 calls or 256 KiB, and so do responses to one client. Calls and responses of more than
// 32 KiB travel alone, and a batch is no larger than the sender's [WithMaxMessageSize], if that
// is at least 64 KiB. Each call keeps its own deadline, outcome and code.
//
// A client sends batches while servers consume the queue "<queue>.batch", which is declared by
// servers with BatchAuto. Other servers, in any language, share the request queue with these.
// While such servers are present, twice their share of the calls travels alone, at most three
// calls of four.
func WithBatch(m BatchMode) Option { return option(func(c *config) { c.batch = m }) }

// WithControl switches the control plane on or off; the default is true. Every server then has
// a queue at the fanout exchange "<queue>.control", where it receives queries about the
// servers ([Client.Servers], [Client.Ping], [Server.Ping]) and cancellations, which clients send
// for canceled calls. Without queries and cancellations nothing is sent. A server without the
// permission to declare the exchange or the queue logs a warning, serves without the control
// plane, and tries again every 15 s.
func WithControl(on bool) Option { return option(func(c *config) { c.control = on }) }

// WithVersion sets the version of the program, which [Client.Servers] shows for servers; the
// default is none.
func WithVersion(v string) Option { return option(func(c *config) { c.version = v }) }

// WithMaxMessageSize bounds the body of a request or a response in bytes, sent or received;
// the default is [DefaultMaxMessageSize]. A larger body is discarded while it arrives and
// takes no memory: a server refuses such a request with [CodeInvalidArgument]; a call with
// such a response fails with [CodeResourceExhausted] and [ErrTooLarge]. A broker closes the
// channel of a sender that exceeds the broker's own limit, so keep this limit at or below the
// broker's.
func WithMaxMessageSize(n int) Option { return option(func(c *config) { c.maxMessageSize = n }) }

// WithHeartbeat sets the heartbeat interval, at least 1 s; the default is
// [DefaultHeartbeat] (https://www.rabbitmq.com/docs/heartbeats).
func WithHeartbeat(d time.Duration) ConnectionOption {
	return linkOption(func(c *linkConfig) { c.heartbeat = d })
}

// WithDialTimeout bounds one attempt to connect: TCP, TLS, handshake and set-up together. The
// default is [DefaultDialTimeout].
func WithDialTimeout(d time.Duration) ConnectionOption {
	return linkOption(func(c *linkConfig) { c.dialTimeout = d })
}

// WithWriteTimeout bounds one write to the socket; the default is
// [DefaultWriteTimeout].
func WithWriteTimeout(d time.Duration) ConnectionOption {
	return linkOption(func(c *linkConfig) { c.writeTimeout = d })
}

// WithBackoff sets the bounds of the wait between attempts to connect. After a fault that may
// pass without an operator, such as a refused connection, the wait is random between zero and
// a bound that doubles from first up to most, at most 1 s ("full jitter"). While a fault needs
// an operator, such as a wrong password, the wait is most. The defaults are
// [DefaultBackoffMin] and [DefaultBackoffMax]. Attempts never end.
func WithBackoff(first, most time.Duration) ConnectionOption {
	return linkOption(func(c *linkConfig) { c.backoffMin, c.backoffMax = first, most })
}

// WithReturnHome sets how long a client or server of several nodes stays away from its home node,
// the node that was tried first, at random. After the loss or the restart of the home node the
// client or server returns after a random time between 0.5 and 1.5 times after, so that processes
// return one by one, if the home node serves the queue then; otherwise the next try follows after
// as long. A return fails no call: a client first waits for the confirms of its requests, and gets
// the responses at the home node; a server first ends its requests, if another server consumes the
// queue meanwhile, and otherwise waits for a moment without requests. If the wait exceeds the
// drain timeout ([WithDrainTimeout]), or no other server consumes any more, the server consumes
// again and stays for as long. A client with [ReplyDirect] does not return, because responses
// would be lost, and a [Connection] does not, because all its clients and servers would have to be
// ready at the same moment. The default is [DefaultReturnHome]; 0 means never.
func WithReturnHome(after time.Duration) ConnectionOption {
	return linkOption(func(c *linkConfig) { c.returnHome = after })
}

// WithTLS sets the TLS configuration for amqps URLs; the default verifies the
// server's name against the system's certificates. Versions before TLS 1.2 are never used,
// whatever the configuration allows.
func WithTLS(t *tls.Config) ConnectionOption { return linkOption(func(c *linkConfig) { c.tls = t }) }

// WithMiddleware adds middleware around every call, the first listed outermost. If the option
// is given several times, later middleware is inner.
func WithMiddleware(m ...Middleware) Option {
	return option(func(c *config) { c.middleware = slices.Concat(c.middleware, m) })
}

// WithLogger sets the logger; the default, and nil, logs nothing. Passwords never
// appear.
func WithLogger(l *zap.Logger) ConnectionOption {
	if l == nil {
		l = zap.NewNop()
	}
	return loggerOption{l.Named("amqpx")}
}

// loggerOption sets the logger of a connection, or of a single client or server.
type loggerOption struct{ logger *zap.Logger }

func (o loggerOption) applyConnection(c *linkConfig) { c.logger = o.logger }
func (o loggerOption) applyClient(c *clientConfig)   { c.logger = o.logger }
func (o loggerOption) applyServer(c *serverConfig)   { c.logger = o.logger }

// validate reports every fault at once.
func (c *config) validate() error {
	faults := []error{c.queue.validate(), c.queue.validateName(), c.validateShards(), c.validateMiddleware(), c.streams.validate()}
	if c.shared == nil {
		faults = append(faults, c.linkConfig.validate())
	} else {
		for _, number := range c.linkOptions {
			faults = append(faults, fmt.Errorf("option %d belongs to the connection: pass it to Connect", number))
		}
	}
	if c.batch != BatchAuto && c.batch != BatchOff {
		faults = append(faults, fmt.Errorf("batch mode %q: want %q or %q", c.batch, BatchAuto, BatchOff))
	}
	if c.maxMessageSize < 1 {
		faults = append(faults, fmt.Errorf("max message size %d: want at least 1 byte", c.maxMessageSize))
	}
	return errors.Join(faults...)
}

// validate reports every fault of the settings of connections.
func (c *linkConfig) validate() error {
	faults := []error{c.validateName()}
	var err error
	if c.urls, err = ParseURLs(c.urlList); err != nil {
		faults = append(faults, fmt.Errorf("broker URLs: %w", err))
	}
	if c.source != nil {
		c.source.start(c.urlList, c.urls, c.logger)
	}
	if c.heartbeat < time.Second {
		faults = append(faults, fmt.Errorf("heartbeat %v: want at least 1s", c.heartbeat))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"dial timeout", c.dialTimeout},
		{"write timeout", c.writeTimeout},
		{"first backoff", c.backoffMin},
	} {
		if d.value <= 0 {
			faults = append(faults, fmt.Errorf("%s %v: want more than 0", d.name, d.value))
		}
	}
	if c.returnHome < 0 {
		faults = append(faults, fmt.Errorf("return home after %v: want 0 or more", c.returnHome))
	}
	if c.backoffMax < c.backoffMin {
		faults = append(faults, fmt.Errorf("backoff from %v to %v: the second must not be less", c.backoffMin, c.backoffMax))
	}
	return errors.Join(faults...)
}

// A mistake in the use of this package is reported as an error that names the mistake, at the
// moment of the mistake, and not as a panic. Only [Chain], which returns no error, reports the
// mistake with each call.

var (
	errNoClient   = errors.New("this Client was not made by NewClient")
	errNoServer   = errors.New("this Server was not made by NewServer")
	errNoFuture   = errors.New("this Future was not made by Client.Go")
	errNilContext = errors.New("the context is nil: pass context.Background() if there is no other")
	errNilOption  = errors.New("a CallOption is nil")

	errCallTimeout = errors.New("CallTimeout: want more than 0")
)

// serverClosedError is ErrClosed with the text for a server.
type serverClosedError struct{}

func (serverClosedError) Error() string        { return "server closed" }
func (serverClosedError) Is(target error) bool { return target == ErrClosed }

// misused returns the error of a call for a mistake in the use of this package.
func misused(mistake error) error {
	return localError(CodeInvalidArgument, DidNotRun, nil, mistake.Error(), mistake)
}

// check returns an error if the client was not made by NewClient or the context is nil.
func (c *Client) check(ctx context.Context) error {
	switch {
	case c == nil || c.cfg == nil:
		return misused(errNoClient)
	case ctx == nil:
		return misused(errNilContext)
	default:
		return nil
	}
}

// checkCall is check for a call; it also reports a nil option.
func (c *Client) checkCall(ctx context.Context, opts []CallOption) error {
	for _, o := range opts {
		if o == nil {
			return misused(errNilOption)
		}
	}
	return c.check(ctx)
}

// check returns an error if the server was not made by NewServer or the context is nil.
func (s *Server) check(ctx context.Context) error {
	switch {
	case s == nil || s.cfg == nil:
		return misused(errNoServer)
	case ctx == nil:
		return misused(errNilContext)
	default:
		return nil
	}
}

// closedBoard returns the status of a client or server that was not made by its constructor.
func closedBoard(err error) *statusBoard {
	return &statusBoard{current: Status{State: StateClosed, Err: err}}
}

// chain is Chain with an error for a nil handler or middleware.
func chain(h Handler, middleware []Middleware) (Handler, error) {
	if h == nil {
		return nil, errors.New("the handler is nil")
	}
	for i, m := range slices.Backward(middleware) {
		if m == nil {
			return nil, fmt.Errorf("middleware %d is nil", i+1)
		}
		if h = m(h); h == nil {
			return nil, fmt.Errorf("middleware %d returned a nil handler", i+1)
		}
	}
	return h, nil
}

// validateName reports a connection name that the broker would refuse.
func (c *linkConfig) validateName() error {
	if len(c.name) > wire.MaxShortString || !utf8.ValidString(c.name) {
		return fmt.Errorf("WithName: name of %d bytes: want at most %d, of valid UTF-8", len(c.name), wire.MaxShortString)
	}
	return nil
}

// validateMiddleware reports nil middleware.
func (c *config) validateMiddleware() error {
	var faults []error
	for i, m := range c.middleware {
		if m == nil {
			faults = append(faults, fmt.Errorf("WithMiddleware: middleware %d is nil", i+1))
		}
	}
	return errors.Join(faults...)
}

// validateName reports a queue name that the broker would refuse, or the name of another
// queue's companion.
func (q Queue) validateName() error {
	var faults []error
	if strings.HasPrefix(q.Name, "amq.") {
		faults = append(faults, fmt.Errorf(`WithQueue: queue name %q: names that begin with "amq." are the broker's`, q.Name))
	}
	if !utf8.ValidString(q.Name) {
		faults = append(faults, fmt.Errorf("WithQueue: queue name %q: want valid UTF-8", q.Name))
	}
	for _, suffix := range []string{batchSuffix, retrySuffix, deadSuffix, ".control"} {
		if strings.HasSuffix(q.Name, suffix) {
			faults = append(faults, fmt.Errorf("WithQueue: queue name %q: names that end with %q are those of another queue's companions", q.Name, suffix))
		}
	}
	return errors.Join(faults...)
}

// QueueType is RabbitMQ's x-queue-type.
type QueueType string

const (
	// QueueClassic lives on one node (https://www.rabbitmq.com/docs/classic-queues). It is
	// declared without arguments and is therefore equivalent to a queue that a client in any
	// language declares without arguments.
	QueueClassic QueueType = "classic"
	// QueueQuorum is replicated and always on disk
	// (https://www.rabbitmq.com/docs/quorum-queues).
	QueueQuorum QueueType = "quorum"
)

// Queue describes the request queue. Only servers declare it.
type Queue struct {
	// Name is at most 212 bytes long. Names with the prefix "amq." are reserved for the
	// broker.
	Name string
	// Type defaults to [QueueClassic] when empty.
	Type QueueType
	// Transient loses the queue when the broker restarts. The default false is a durable
	// queue; a quorum queue must be durable. RabbitMQ 4 can forbid transient queues
	// (https://www.rabbitmq.com/docs/queues#durability).
	Transient bool
	// MaxLength and MaxBytes bound the messages that wait in the queue, by number and by bytes
	// of their bodies (https://www.rabbitmq.com/docs/maxlength). The broker refuses a request
	// beyond a bound, and the call ends with [CodeResourceExhausted]. The default 0 is no
	// bound.
	MaxLength, MaxBytes int
	// MaxPriority is the highest priority of a classic queue that the broker tells apart, for
	// [WithPriority]. Each priority takes memory and processor time in the broker, which recommends 2 to
	// 4 (https://www.rabbitmq.com/docs/priority). The default 0 is a queue without priorities. A
	// quorum queue must have 0: RabbitMQ 4 has priorities in all quorum queues. An existing queue
	// stays as it is.
	MaxPriority uint8

	dropHead bool // beyond a bound the broker drops the oldest message, instead of refusing the newest
}

// argMaxPriority is the queue argument of Queue.MaxPriority.
const argMaxPriority = "x-max-priority"

// maxQueueName leaves room for the suffixes of companion queues, such as reply queues.
const maxQueueName = wire.MaxShortString - len(".reply.") - len("00000000-0000-0000-0000-000000000000")

// batchQueue returns the queue for batches of requests.
func (q Queue) batchQueue() Queue {
	q.Name, q.MaxPriority = q.Name+batchSuffix, 0
	return q
}

// controlExchange returns the name of the control plane's exchange.
func (q Queue) controlExchange() string { return q.Name + ".control" }

func (q Queue) validate() error {
	var faults []error
	if q.Name == "" || len(q.Name) > maxQueueName {
		faults = append(faults, fmt.Errorf("queue name of %d bytes: want 1 to %d", len(q.Name), maxQueueName))
	}
	switch q.Type {
	case "", QueueClassic:
	case QueueQuorum:
		if q.Transient {
			faults = append(faults, errors.New("a quorum queue must be durable"))
		}
		if q.MaxPriority > 0 {
			faults = append(faults, fmt.Errorf("max priority %d: want 0 for a quorum queue", q.MaxPriority))
		}
	default:
		faults = append(faults, fmt.Errorf("queue type %q: want %q or %q", q.Type, QueueClassic, QueueQuorum))
	}
	if q.MaxLength < 0 || q.MaxBytes < 0 {
		faults = append(faults, fmt.Errorf("queue bounds of %d messages and %d bytes: want 0 or more", q.MaxLength, q.MaxBytes))
	}
	return errors.Join(faults...)
}

// arguments returns the arguments of the declaration, or nil if there are none.
func (q Queue) arguments() amqp.Table {
	args := amqp.Table{}
	if q.Type == QueueQuorum {
		args[amqp.QueueTypeArg] = string(QueueQuorum)
	}
	if q.MaxPriority > 0 {
		args[argMaxPriority] = int64(q.MaxPriority)
	}
	if q.MaxLength > 0 {
		args[amqp.QueueMaxLenArg] = int64(q.MaxLength)
	}
	if q.MaxBytes > 0 {
		args[amqp.QueueMaxLenBytesArg] = int64(q.MaxBytes)
	}
	if (q.MaxLength > 0 || q.MaxBytes > 0) && !q.dropHead {
		args[amqp.QueueOverflowArg] = amqp.QueueOverflowRejectPublish
	}
	if len(args) == 0 {
		return nil
	}
	return args
}

// transport.DeclareOrAdopt declares the queue, or adopts an existing queue with other properties, which
// are passed to warn.
func (q Queue) declareOrAdopt(l transport.Conn, warn func(difference string)) (transport.FoundQueue, error) {
	return transport.DeclareOrAdopt(l, transport.QueueDeclaration{Name: q.Name, Durable: !q.Transient, Arguments: q.arguments()}, warn)
}
