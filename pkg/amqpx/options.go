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

	"go.uber.org/zap"
)

// Defaults shared by clients and servers.
const (
	// DefaultQueue is the request queue's name.
	DefaultQueue = "rpc_queue"
	// DefaultHeartbeat is the heartbeat interval asked for; the broker may lower it.
	DefaultHeartbeat = 10 * time.Second
	// DefaultDialTimeout bounds one attempt to dial and set up. A broker tells of a
	// wrong password only after about 3 s, so less than that hides the reason.
	DefaultDialTimeout = 5 * time.Second
	// DefaultWriteTimeout bounds one write to the socket; a write that takes longer
	// ends the link.
	DefaultWriteTimeout = 10 * time.Second
	// DefaultBackoffMin is the bound of the first wait between attempts.
	DefaultBackoffMin = 100 * time.Millisecond
	// DefaultBackoffMax is the wait while a fault needs an operator.
	DefaultBackoffMax = 10 * time.Second
	// DefaultMaxMessageSize is RabbitMQ 4's own limit (max_message_size).
	DefaultMaxMessageSize = 16 << 20
)

// Option configures both a [Client] and a [Server].
type Option interface {
	ClientOption
	ServerOption
}

// ClientOption configures a [Client].
type ClientOption interface{ applyClient(*clientConfig) }

// ServerOption configures a [Server].
type ServerOption interface{ applyServer(*serverConfig) }

// BatchMode chooses whether calls may travel together.
type BatchMode string

const (
	// BatchAuto is the default: calls, and answers, that would have to wait travel
	// together in one message while servers unpack such batches; a lone one travels
	// alone, at once. See [WithBatch].
	BatchAuto BatchMode = "auto"
	// BatchOff has every call and every answer travel alone, and a server take
	// batches from nobody.
	BatchOff BatchMode = "off"
)

// config is what both sides share. It is frozen at construction.
type config struct {
	urlList        string
	urls           []BrokerURL // of urlList, once it was validated
	name           string
	queue          Queue
	persistent     bool
	batch          BatchMode
	control        bool
	userID         bool
	version        string
	maxMessageSize int
	heartbeat      time.Duration
	dialTimeout    time.Duration
	writeTimeout   time.Duration
	backoffMin     time.Duration
	backoffMax     time.Duration
	tls            *tls.Config
	source         *brokerSource // nil: urls and tls stay as they are
	middleware     []Middleware
	logger         *zap.Logger
	dialer         dialer
}

func defaultConfig() config {
	return config{
		name:           "amqpx",
		queue:          Queue{Name: DefaultQueue, Type: QueueClassic, Durable: true},
		batch:          BatchAuto,
		control:        true,
		userID:         true,
		maxMessageSize: DefaultMaxMessageSize,
		heartbeat:      DefaultHeartbeat,
		dialTimeout:    DefaultDialTimeout,
		writeTimeout:   DefaultWriteTimeout,
		backoffMin:     DefaultBackoffMin,
		backoffMax:     DefaultBackoffMax,
		logger:         zap.NewNop(),
	}
}

// option is an Option made of one function on the shared config.
type option func(*config)

func (o option) applyClient(c *clientConfig) { o(&c.config) }
func (o option) applyServer(c *serverConfig) { o(&c.config) }

// WithQueue sets the request queue; the default is the durable classic queue
// [DefaultQueue]. A queue that exists with other properties is adopted as it is.
func WithQueue(q Queue) Option { return option(func(c *config) { c.queue = q }) }

// WithName sets the name that the broker's management UI shows for the
// connections; the default is "amqpx".
func WithName(name string) Option { return option(func(c *config) { c.name = name }) }

// WithPersistent makes the broker write messages to disk (delivery mode 2), so
// that they survive its restart. It costs about a third of the sequential speed.
// The default is transient; messages in a quorum queue are always on disk.
func WithPersistent(on bool) Option { return option(func(c *config) { c.persistent = on }) }

// WithBatch chooses whether calls may travel together; the default is [BatchAuto].
// At most two messages of a client to the servers are unconfirmed, and one more for each
// server beyond the first; calls made meanwhile
// leave together when the broker confirms one, up to 512 of them or 64 KiB, and so do
// answers to one client. Each keeps its own deadline, outcome and code. A client uses
// batches while servers take them from the queue "<queue>.batch", which servers with
// BatchAuto declare; others, in whatever language, share the request queue with them, and
// while they do twice their share of the calls travels alone, at most three of four.
func WithBatch(m BatchMode) Option { return option(func(c *config) { c.batch = m }) }

// WithControl chooses whether there is a control plane; the default is true. Servers then
// listen to questions about them ([Client.Fleet], [Client.Ping], [Server.Ping]) and to
// calls that were given up, on a queue of their own at the fanout exchange
// "<queue>.control", and clients tell of such calls. While nobody asks or gives up, nothing
// is sent. A server that may not declare these says so once and does without them.
func WithControl(on bool) Option { return option(func(c *config) { c.control = on }) }

// WithVersion sets the version of the program, which [Client.Fleet] shows of servers; the
// default is none.
func WithVersion(v string) Option { return option(func(c *config) { c.version = v }) }

// WithMaxMessageSize bounds the body of a request or an answer in bytes, sent or received;
// the default is [DefaultMaxMessageSize]. A body beyond it is discarded while it arrives,
// so it takes no memory: a server refuses the request with [CodeInvalidArgument], a call
// whose answer it was fails with [CodeResourceExhausted] and [ErrTooLarge]. A broker closes
// the channel of whoever sends more than its own limit, so keep this at or below it.
func WithMaxMessageSize(n int) Option { return option(func(c *config) { c.maxMessageSize = n }) }

// WithHeartbeat sets the heartbeat interval, at least 1 s; the default is
// [DefaultHeartbeat] (https://www.rabbitmq.com/docs/heartbeats).
func WithHeartbeat(d time.Duration) Option { return option(func(c *config) { c.heartbeat = d }) }

// WithDialTimeout bounds one attempt: TCP, TLS, handshake and set-up together. The
// default is [DefaultDialTimeout].
func WithDialTimeout(d time.Duration) Option { return option(func(c *config) { c.dialTimeout = d }) }

// WithWriteTimeout bounds one write to the socket; the default is
// [DefaultWriteTimeout].
func WithWriteTimeout(d time.Duration) Option {
	return option(func(c *config) { c.writeTimeout = d })
}

// WithBackoff sets the bounds of the wait between attempts to connect. After a
// fault that may pass by itself, such as a refused connection, it is random between
// zero and a bound that doubles from first up to most, at most 1 s ("full jitter").
// While a fault needs an operator, such as a wrong password, it is most. The defaults
// are [DefaultBackoffMin] and [DefaultBackoffMax]. Attempts never end.
func WithBackoff(first, most time.Duration) Option {
	return option(func(c *config) { c.backoffMin, c.backoffMax = first, most })
}

// WithTLS sets the TLS configuration for amqps URLs; the default verifies the
// server's name against the system's certificates.
func WithTLS(t *tls.Config) Option { return option(func(c *config) { c.tls = t }) }

// WithMiddleware adds middleware around every call, the first listed outermost.
// Given several times, later ones are inner.
func WithMiddleware(m ...Middleware) Option {
	return option(func(c *config) { c.middleware = slices.Concat(c.middleware, m) })
}

// WithLogger sets the logger; the default, and nil, logs nothing. Passwords never
// appear.
func WithLogger(l *zap.Logger) Option {
	if l == nil {
		l = zap.NewNop()
	}
	return option(func(c *config) { c.logger = l.Named("amqpx") })
}

// validate reports every fault at once.
func (c *config) validate() error {
	faults := []error{c.queue.validate(), c.queue.validateName(), c.validateNames()}
	var err error
	if c.urls, err = ParseURLs(c.urlList); err != nil {
		faults = append(faults, fmt.Errorf("broker URLs: %w", err))
	}
	if c.source != nil {
		c.source.start(c.urlList, c.urls, c.logger)
	}
	if c.batch != BatchAuto && c.batch != BatchOff {
		faults = append(faults, fmt.Errorf("batch mode %q: want %q or %q", c.batch, BatchAuto, BatchOff))
	}
	if c.maxMessageSize < 1 {
		faults = append(faults, fmt.Errorf("max message size %d: want at least 1 byte", c.maxMessageSize))
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
	if c.backoffMax < c.backoffMin {
		faults = append(faults, fmt.Errorf("backoff from %v to %v: the second must not be less", c.backoffMin, c.backoffMax))
	}
	return errors.Join(faults...)
}

// Mistakes in the use of this package are errors that name the mistake, at the moment that it
// is made, and no panics. Only [Chain], which has no error to return, tells with each call.

var (
	errNoClient   = errors.New("this Client was not made by NewClient")
	errNoServer   = errors.New("this Server was not made by NewServer")
	errNoFuture   = errors.New("this Future was not made by Client.Go")
	errNilContext = errors.New("the context is nil: pass context.Background() if there is no other")
	errNilOption  = errors.New("a CallOption is nil")
)

// serverClosedError is ErrClosed in the words of a server.
type serverClosedError struct{}

func (serverClosedError) Error() string        { return "server closed" }
func (serverClosedError) Is(target error) bool { return target == ErrClosed }

// misused makes the error of a mistake, for what a caller made.
func misused(mistake error) error {
	return localError(CodeInvalidArgument, DidNotRun, nil, mistake.Error(), mistake)
}

// check returns the error of a client that was not made by NewClient, and of a nil context.
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

// checkCall is check for a call.
func (c *Client) checkCall(ctx context.Context, opts []CallOption) error {
	for _, o := range opts {
		if o == nil {
			return misused(errNilOption)
		}
	}
	return c.check(ctx)
}

// check returns the error of a server that was not made by NewServer, and of a nil context.
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

// closedBoard is the status of what was never made.
func closedBoard(err error) *statusBoard {
	return &statusBoard{current: Status{State: StateClosed, Err: err}}
}

// chain is Chain with an error for a handler that is nil.
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

// validateNames reports every fault of the names that the broker gets.
func (c *config) validateNames() error {
	var faults []error
	if len(c.name) > maxShortString || !utf8.ValidString(c.name) {
		faults = append(faults, fmt.Errorf("WithName: name of %d bytes: want at most %d, of valid UTF-8", len(c.name), maxShortString))
	}
	for i, m := range c.middleware {
		if m == nil {
			faults = append(faults, fmt.Errorf("WithMiddleware: middleware %d is nil", i+1))
		}
	}
	return errors.Join(faults...)
}

// validateName reports a queue name that the broker would refuse, or that is the name of
// another queue's companion.
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

// validateShared reports the options of calls that cannot hold for several calls.
func validateShared(where string, opts []CallOption) error {
	cfg := &callConfig{}
	for i, o := range opts {
		if o == nil {
			return fmt.Errorf("%s: option %d is nil", where, i+1)
		}
		o(cfg)
	}
	var faults []error
	if cfg.idempotencyKey != "" {
		faults = append(faults, fmt.Errorf("%s: WithIdempotencyKey(%q): a key is of one call, all others would get its answer", where, cfg.idempotencyKey))
	}
	if cfg.info != nil {
		faults = append(faults, fmt.Errorf("%s: WithCallInfo: a CallInfo is of one call", where))
	}
	return errors.Join(faults...)
}
