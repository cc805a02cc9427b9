package amqpx

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Defaults of clients.
const (
	// DefaultTimeout is the deadline of a call whose context has none.
	DefaultTimeout = 30 * time.Second
	// DefaultMaxInFlight bounds the calls waiting for a response.
	DefaultMaxInFlight = 65536
	// DefaultMaxInFlightBytes bounds the memory of their request bodies, 256 MiB.
	DefaultMaxInFlightBytes = 256 << 20
	// DefaultRetryRatio is the number of retries that each call adds to the retry budget.
	DefaultRetryRatio = 0.1
	// DefaultRetryBurst is the number of retries in the full retry budget.
	DefaultRetryBurst = 100
)

// ReplyMode chooses how responses reach a client.
type ReplyMode string

const (
	// ReplyQueue is the default: one durable queue for each client, which expires after five
	// minutes without use. The queue outlives the connection, so responses wait in the queue
	// while the client reconnects.
	ReplyQueue ReplyMode = "queue"
	// ReplyDirect uses RabbitMQ's direct reply-to
	// (https://www.rabbitmq.com/docs/direct-reply-to): no queue, but responses in flight are
	// lost with the connection, and publishing shares the consuming connection.
	ReplyDirect ReplyMode = "direct"
)

type clientConfig struct {
	config

	exchange         string // of requests; "": the default exchange
	replyMode        ReplyMode
	replyQueueType   QueueType
	timeout          time.Duration
	attemptTimeout   time.Duration // of idempotent calls; 0: none
	maxInFlight      int
	maxInFlightBytes int
	retryRatio       float64
	retryBurst       int
	callOptions      []CallOption
	methods          map[string][]CallOption
	ofAll            callConfig             // the result of callOptions
	ofMethod         map[string]*callConfig // the results of callOptions and methods
	observers        []ClientObserver
	responseCheck    func(*Response) error // nil: none
	tracing          Middleware            // outside all other middleware; nil: none
	decideTrace      func(ctx context.Context) (unsampled, skip bool)
	observer         ClientObserver // all observers together; nil: none
}

// newClientConfig returns the settings of a client with its own connections.
func newClientConfig(url string, opts []ClientOption) (*clientConfig, error) {
	return newClientConfigOn(defaultConfig(defaultLinkConfig(url)), opts)
}

func newClientConfigOn(settings config, opts []ClientOption) (*clientConfig, error) {
	c := &clientConfig{
		config:           settings,
		replyMode:        ReplyQueue,
		replyQueueType:   QueueClassic,
		timeout:          DefaultTimeout,
		maxInFlight:      DefaultMaxInFlight,
		maxInFlightBytes: DefaultMaxInFlightBytes,
		retryRatio:       DefaultRetryRatio,
		retryBurst:       DefaultRetryBurst,
		methods:          make(map[string][]CallOption),
		ofMethod:         make(map[string]*callConfig),
	}
	var nilOptions []error
	for i, o := range opts {
		if o == nil {
			nilOptions = append(nilOptions, fmt.Errorf("option %d is nil", i+1))
			continue
		}
		c.option = i + 1
		o.applyClient(c)
	}
	c.observer = guardClientObservers(c.observers, c.logger)
	c.complete(c.limits())
	if err := errors.Join(errors.Join(nilOptions...), c.validate(), c.validateClient()); err != nil {
		return nil, fmt.Errorf("amqpx: client: %w", err)
	}
	c.ofAll = *new(callConfig).with(c.callOptions)
	for method, opts := range c.methods {
		c.ofMethod[method] = c.ofAll.with(opts)
	}
	return c, nil
}

// limits returns the limits of the messages that the client receives.
func (c *clientConfig) limits() transport.ContentLimits {
	return transport.ContentLimits{MaxBody: c.maxMessageSize}
}

// maxRetryBurst keeps the arithmetic of the retry budget far from overflow.
const maxRetryBurst = 1_000_000

// validateClient reports every fault of the settings that only clients have.
func (c *clientConfig) validateClient() error {
	var faults []error
	if c.replyMode != ReplyQueue && c.replyMode != ReplyDirect {
		faults = append(faults, fmt.Errorf("reply mode %q: want %q or %q", c.replyMode, ReplyQueue, ReplyDirect))
	}
	if c.replyQueueType != QueueClassic && c.replyQueueType != QueueQuorum {
		faults = append(faults, fmt.Errorf("reply queue type %q: want %q or %q", c.replyQueueType, QueueClassic, QueueQuorum))
	}
	if c.timeout <= 0 {
		faults = append(faults, fmt.Errorf("timeout %v: want more than 0", c.timeout))
	}
	if c.attemptTimeout < 0 || c.attemptTimeout > wire.MaxBudget {
		faults = append(faults, fmt.Errorf("attempt timeout %v: want 0 to %v", c.attemptTimeout, wire.MaxBudget))
	}
	if c.maxInFlight < 1 {
		faults = append(faults, fmt.Errorf("max in flight %d: want at least 1", c.maxInFlight))
	}
	if c.maxInFlightBytes < c.maxMessageSize {
		faults = append(faults, fmt.Errorf("max in flight %d bytes: want at least the max message size %d", c.maxInFlightBytes, c.maxMessageSize))
	}
	if !(c.retryRatio >= 0 && c.retryRatio <= 1) { // NaN fails both comparisons
		faults = append(faults, fmt.Errorf("retry ratio %v: want 0 to 1", c.retryRatio))
	}
	if c.retryBurst < 0 || c.retryBurst > maxRetryBurst {
		faults = append(faults, fmt.Errorf("retry burst %d: want 0 to %d", c.retryBurst, maxRetryBurst))
	}
	faults = append(faults, c.validateExchange(), validateShared("WithCallOptions", c.callOptions))
	for method, opts := range c.methods {
		faults = append(faults, validateShared(fmt.Sprintf("WithMethod(%q)", method), opts))
		if method == "" || len(method) > wire.MaxShortString {
			faults = append(faults, fmt.Errorf("method name of %d bytes: want 1 to %d", len(method), wire.MaxShortString))
		}
	}
	return errors.Join(faults...)
}

// validateShared reports call options that cannot apply to several calls; where names their place.
func validateShared(where string, opts []CallOption) error {
	faults := sharedMistakes(opts)
	for i, fault := range faults {
		faults[i] = fmt.Errorf("%s: %w", where, fault)
	}
	return errors.Join(faults...)
}

// sharedMistakes returns what keeps call options from applying to several calls.
func sharedMistakes(opts []CallOption) (faults []error) {
	cfg := &callConfig{}
	for i, o := range opts {
		if o == nil {
			return []error{fmt.Errorf("option %d is nil", i+1)}
		}
		o(cfg)
	}
	if cfg.idempotencyKey != "" {
		faults = append(faults, fmt.Errorf("WithIdempotencyKey(%q): a key is of one call, all others would get its response", cfg.idempotencyKey))
	}
	if cfg.timeoutFault {
		faults = append(faults, fmt.Errorf("CallTimeout(%v): want more than 0", cfg.timeout))
	}
	if mistake := cfg.mistake(); mistake != nil && !cfg.timeoutFault {
		faults = append(faults, mistake)
	}
	if cfg.info != nil {
		faults = append(faults, errors.New("WithCallInfo: a CallInfo is of one call"))
	}
	return faults
}

type clientOption func(*clientConfig)

func (o clientOption) applyClient(c *clientConfig) { o(c) }

// WithReplyMode chooses how responses reach the client; the default is [ReplyQueue].
func WithReplyMode(m ReplyMode) ClientOption {
	return clientOption(func(c *clientConfig) { c.replyMode = m })
}

// WithReplyQueueType sets the type of the reply queue in the mode [ReplyQueue]; the default is
// [QueueClassic]. A classic queue lives on one node of a cluster: when the node goes down, the
// client declares a new queue, and the responses in the old queue are lost, so a call that is
// not idempotent ends with [ErrOutcomeUnknown]. A [QueueQuorum] queue survives the loss of its
// node, and costs the replication of every response.
func WithReplyQueueType(t QueueType) ClientOption {
	return clientOption(func(c *clientConfig) { c.replyQueueType = t })
}

// WithTimeout sets the deadline of calls whose context has none; the default is
// [DefaultTimeout].
func WithTimeout(d time.Duration) ClientOption {
	return clientOption(func(c *clientConfig) { c.timeout = d })
}

// WithMaxInFlight bounds the calls in flight; the default is [DefaultMaxInFlight]. A call
// beyond the bound fails at once with [ErrTooManyCalls], code [CodeResourceExhausted] and a
// RetryAfter hint, and has not run: waiting would only hide the overload and use up the
// deadline.
func WithMaxInFlight(n int) ClientOption {
	return clientOption(func(c *clientConfig) { c.maxInFlight = n })
}

// WithMaxInFlightBytes bounds the bytes of the request bodies in flight, of which the client
// keeps copies; the default is [DefaultMaxInFlightBytes]. The bound must be at least the
// maximum message size. A call beyond the bound fails like a call beyond [WithMaxInFlight].
func WithMaxInFlightBytes(n int) ClientOption {
	return clientOption(func(c *clientConfig) { c.maxInFlightBytes = n })
}

// WithRetryBudget bounds the retries of calls that were refused with [CodeResourceExhausted]
// and did not run: by the broker, whose queue is full, or by an overloaded server. A call is
// retried after a random wait that grows and is at least the server's hint, while the call's
// deadline and the budget allow. The budget starts with burst retries and never holds more;
// each call adds ratio retries, 0 to 1. When the budget is empty, a refused call fails at once
// with a RetryAfter hint. A burst of 0 means no retries. The defaults are [DefaultRetryRatio]
// and [DefaultRetryBurst].
//
// The retries of [WithRetry] and the second requests of [WithHedge] use the same budget. Calls that
// wait for a server ([WaitForServer]) and calls sent again after a lost connection
// do not use the budget.
func WithRetryBudget(ratio float64, burst int) ClientOption {
	return clientOption(func(c *clientConfig) { c.retryRatio, c.retryBurst = ratio, burst })
}

// WithMethod sets options for every call of one method, such as [Idempotent], which apply after
// the options of [WithCallOptions] and before the options of a call. Options given several times
// for one method add up.
func WithMethod(method string, opts ...CallOption) ClientOption {
	return clientOption(func(c *clientConfig) { c.methods[method] = append(c.methods[method], opts...) })
}

// WithTracing adds tracing middleware, outside the middleware of [WithMiddleware]. Nearly all calls
// of a busy client are not traced, so decide is called before the tracing middleware, with the
// context of the caller, and must be quick. If unsampled is true, [Request.Unsampled] is set. If
// skip is true as well, the request does not pass the tracing middleware; a request with headers
// passes the middleware in any case, which may have to remove trace context. If decide is nil, every
// request passes. The default is no tracing; the last of several such options counts. Package
// amqpxotel has such an option.
func WithTracing(m Middleware, decide func(ctx context.Context) (unsampled, skip bool)) ClientOption {
	if m == nil {
		m = func(Handler) Handler { return nil } // NewClient returns the error
	}
	return clientOption(func(c *clientConfig) { c.tracing, c.decideTrace = m, decide })
}

// WithCallOptions sets options for every call; the options of [WithMethod] and a call's own
// options apply after them. Options of both kinds are read once, by [NewClient].
func WithCallOptions(opts ...CallOption) ClientOption {
	return clientOption(func(c *clientConfig) { c.callOptions = append(c.callOptions, opts...) })
}

// CallOption configures one call.
type CallOption func(*callConfig)

// WithPriority sets the priority of a call or a one-way request, 0 to 255; the default is 0, the
// lowest. A request with a higher priority starts earlier at two places:
//
//   - In the broker, if the request queue has priorities: a classic queue with [Queue].MaxPriority,
//     which is the highest priority that counts (https://www.rabbitmq.com/docs/priority), or a quorum
//     queue of RabbitMQ 4 (https://www.rabbitmq.com/docs/quorum-queues#priorities). There a priority
//     must be 5 or more: 1 to 4 may be delivered even after calls without a priority.
//   - In each server, among the requests that wait for a worker. Every third worker that becomes free
//     takes the request that has waited longest. With [CallerLimits].Fair a priority changes only the
//     order of one caller's requests.
//
// A running handler is not interrupted. A request with a priority travels alone: it does not wait
// behind the batches ([WithBatch]) of other calls, and costs as much as a call without batches, so
// give a priority to few calls. Any caller may set any priority, and in a queue with priorities keep
// other callers waiting, unless [CallerLimits].MaxCalls bounds its calls. The option has no effect on
// streams.
func WithPriority(p uint8) CallOption { return func(c *callConfig) { c.priority = p } }

type callConfig struct {
	idempotent     bool
	idempotencyKey string
	waitForServer  bool
	header         map[string]any
	info           *CallInfo
	shardHash      uint64 // of the key of WithShardKey
	keyed          bool   // the call has such a key
	// The limits of a stream's window; 0: the defaults.
	windowItems, windowBytes int

	contentType, contentEncoding string

	priority       uint8
	timeout        time.Duration    // of CallTimeout; 0: none
	timeoutFault   bool             // CallTimeout was given no time
	expiration     time.Duration    // of WithExpiration; 0: none, less: it was given no time
	retry          *retryPolicy     // of WithRetry; nil: none
	hedge          time.Duration    // of WithHedge; 0: none, less: it was given no time
	acceptEncoding string           // the content encodings that the response may have
	content        *receivedContent // set when the call ends; nil if nobody wants it
}

// receivedContent describes the body of a response.
type receivedContent struct {
	contentType, contentEncoding string
	limit                        int // of the client, for the body
}

// mistake returns an error for an invalid option.
func (c *callConfig) mistake() error {
	switch {
	case c.timeoutFault:
		return errCallTimeout
	case c.expiration < 0:
		return errExpiration
	case c.hedge < 0:
		return errHedge
	case c.retry != nil:
		return c.retry.fault
	default:
		return nil
	}
}

// with returns a copy with further options. Options do not change what c refers to.
func (c *callConfig) with(opts []CallOption) *callConfig {
	own := *c
	own.apply(opts)
	return &own
}

// apply applies options, which do not keep c.
func (c *callConfig) apply(opts []CallOption) {
	for _, o := range opts {
		o(c)
	}
}

// callConfigOf returns the options of the client for the calls of a method, which do not change.
func (c *clientConfig) callConfigOf(method string) *callConfig {
	if cfg := c.ofMethod[method]; cfg != nil {
		return cfg
	}
	return &c.ofAll
}

// callConfigs has idle memory for the options of calls.
//
//nolint:gochecknoglobals // every caller may use every element.
var callConfigs = sync.Pool{New: func() any { return new(callConfig) }}

// sentWith is the part of a call's options that its request keeps.
type sentWith struct {
	info           *CallInfo
	waitForServer  bool
	ours           bool          // no middleware sees the request
	keyed          bool          // the call uses the shard, and no other
	shard          uint8         // with keyed
	stream         *streamStart  // of a stream; nil for a call
	all            *gathering    // of a call to all servers; else nil
	oneWay         bool          // of Client.Send
	expiration     time.Duration // of WithExpiration
	expires        time.Time     // with oneWay; the zero time: never
	retry          *retryPolicy  // of WithRetry; nil: none
	hedge          time.Duration // of WithHedge; 0: none
	resent         bool          // an earlier try of the call may have run
	acceptEncoding string
	content        *receivedContent
}

// CallInfo describes a finished call. Pass a CallInfo with [WithCallInfo]; its fields are set
// when the call returns and must not be read before.
type CallInfo struct {
	// Attempts counts how often the request was sent: 1 unless it was re-sent, 0 when it was
	// never sent.
	Attempts int
	// QueueTime is how long the request waited inside the server for a worker; zero when the
	// server did not report the time.
	QueueTime time.Duration
	// HandlerTime is how long the handler ran; zero when the server did not report the time.
	HandlerTime time.Duration
	// CorrelationID identified the call, for example in a server's log.
	CorrelationID string
	// Server is the id of the server that responded, as in [ServerInfo]; "" when no response
	// arrived, or when the server did not name itself.
	Server string
	// Response is the response that settled the call; nil when no response arrived.
	Response *Response
}

// Idempotent declares that running the call twice does no harm. Only an idempotent call is
// re-sent, under the same idempotency key, when the connection is lost at a moment that leaves
// the outcome open, and when the request waits in a queue that disappears, does not answer for a
// while, or has no consumer for a while. In the last two cases servers may get both requests.
// [WithMethod] makes the declaration for every call of a method.
func Idempotent() CallOption { return func(c *callConfig) { c.idempotent = true } }

// WithIdempotencyKey sets the key (the message_id property, at most 255 bytes) carried by
// every re-send; the default is the call's correlation id. The option also declares the call
// idempotent.
//
// Within a minute by default ([WithDedup]), a server runs one of the requests with the same method,
// key and user of the broker ([Request.User]; [WithDedupScope] adds other identities), and sends the
// response to all. A key names one request: with another body the call fails with
// [CodeFailedPrecondition] and [DidNotRun]. Only final results are stored, so a call that failed with
// a code such as [CodeUnavailable] runs again. Servers of one queue share keys only through a common
// store ([WithDedupStore]); work that must not happen twice whatever fails needs the key in a
// database of the handlers. A caller with the same user who knows a key can obtain its response.
func WithIdempotencyKey(key string) CallOption {
	return func(c *callConfig) { c.idempotencyKey, c.idempotent = key, true }
}

// CallTimeout bounds the duration of the call, more than 0: the call ends at the earlier of this
// time and the deadline of its context, and [WithTimeout] does not apply. Given several times, the
// last counts. With [WithMethod] it bounds every call of a method.
func CallTimeout(d time.Duration) CallOption {
	return func(c *callConfig) { c.timeout, c.timeoutFault = d, d <= 0 }
}

// WaitForServer makes a call, or a stream, wait when no request queue exists, with backoff and until
// its deadline, for a server to declare the queue; also while the queue's only node is away, if the
// client knows that before it sends the request. The default is to fail at once with
// [ErrUnroutable] or [ErrQueueUnavailable].
func WaitForServer() CallOption { return func(c *callConfig) { c.waitForServer = true } }

// WithHeader adds application headers. Names beginning with "rpc-", and "CC" and "BCC", which
// a broker uses for routing, are reserved and make the call fail with [CodeInvalidArgument].
// So does a value that cannot be sent: a pointer, a struct other than [time.Time], a function,
// a channel, a complex number, a whole number above 2^63 - 1, and a [time.Duration], which
// would lose its unit. Strings, numbers, booleans, bytes, slices, arrays, and maps with string
// keys are sent, also of named types, at most 16 levels deep; a time.Time is sent in whole
// seconds. All headers together may take 64 KiB.
func WithHeader(header map[string]any) CallOption {
	return func(c *callConfig) {
		merged := maps.Clone(c.header)
		if merged == nil {
			merged = make(map[string]any, len(header))
		}
		maps.Copy(merged, header)
		c.header = merged
	}
}

// WithContentType sets the content type and the content encoding of the request's body, such
// as "application/json" and "gzip"; "" is none, the default. Each is at most 255 bytes long.
// Servers of this package pass both to the handler and do not interpret the body.
func WithContentType(contentType, contentEncoding string) CallOption {
	return func(c *callConfig) { c.contentType, c.contentEncoding = contentType, contentEncoding }
}

// WithCallInfo sets the fields of info when the call returns. The call asks the server for its
// times, which takes headers in the request and the response: calls that travel alone lose an
// eighth of their throughput. It is an error with [CodeInvalidArgument] on a stream, which has methods
// ([ClientStream]), on [Client.CallAll], whose responses have these fields ([ServerResponse]), and as
// an option of all calls ([WithCallOptions], [WithMethod], [NewMethod]).
func WithCallInfo(info *CallInfo) CallOption { return func(c *callConfig) { c.info = info } }
