package amqpx

import (
	"context"
	"errors"
	"fmt"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Defaults of servers.
const (
	// DefaultWorkers is the number of handlers that run at once.
	DefaultWorkers = 64
	// DefaultDrainTimeout bounds a graceful stop.
	DefaultDrainTimeout = 20 * time.Second
	// DefaultMaxHandlerTime is the longest run time of a handler: ten times the default
	// timeout of calls, and well below the half hour after which RabbitMQ closes the channel
	// of a consumer that does not acknowledge (https://www.rabbitmq.com/docs/consumers).
	DefaultMaxHandlerTime = 5 * time.Minute
	// DefaultDeliveryLimit is how often a request may be delivered.
	DefaultDeliveryLimit = 5
	// DefaultDedupBytes and DefaultDedupAge bound the stored responses.
	DefaultDedupBytes = 8 << 20
	DefaultDedupAge   = time.Minute
	// DefaultMaxBytesInHand bounds the bodies of a server's unacknowledged requests, in bytes.
	DefaultMaxBytesInHand = 64 << 20
)

type serverConfig struct {
	config

	workers      int
	prefetch     int
	drainTimeout time.Duration

	maxHandlerTime time.Duration // 0: no limit

	deliveryLimit int
	replayBytes   int
	replayAge     time.Duration
	dedupScope    func(ctx context.Context, req *Request) string // nil: the user
	dedupStore    DedupStore                                     // nil: none
	dedupLease    time.Duration
	ackPause      time.Duration

	maxBytesInHand int
	callerLimits   CallerLimits
	inHand         *transport.BytesInHand

	defaultMethod string // for requests without a method; "": such requests are refused
	methodOf      func(req *Request) string

	trustedUsers   []string // beside the server's own user
	replyTemplates []string
	replyPrefixes  []replyPrefix // parsed from replyTemplates; none: every reply_to is allowed

	maxStreams, maxClientStreams int
	maxStreamTime                time.Duration // 0: no limit
	streamMiddleware             []StreamMiddleware

	observers []ServerObserver
	observer  ServerObserver // all observers together; nil: none
}

// newServerConfig returns the settings of a server with its own connections.
func newServerConfig(url string, opts []ServerOption) (*serverConfig, error) {
	return newServerConfigOn(defaultConfig(defaultLinkConfig(url)), opts)
}

func newServerConfigOn(settings config, opts []ServerOption) (*serverConfig, error) {
	c := &serverConfig{
		config:       settings,
		workers:      DefaultWorkers,
		drainTimeout: DefaultDrainTimeout,

		maxHandlerTime: DefaultMaxHandlerTime,

		deliveryLimit: DefaultDeliveryLimit,
		replayBytes:   DefaultDedupBytes,
		replayAge:     DefaultDedupAge,
		dedupLease:    DefaultDedupLease,
		ackPause:      ackPause,

		maxStreams:       DefaultMaxStreams,
		maxClientStreams: DefaultMaxClientStreams,
	}
	var nilOptions []error
	for i, o := range opts {
		if o == nil {
			nilOptions = append(nilOptions, fmt.Errorf("option %d is nil", i+1))
			continue
		}
		c.option = i + 1
		o.applyServer(c)
	}
	if c.prefetch == 0 {
		c.prefetch = min(2*c.workers, maxPrefetch)
	}
	c.observer = guardServerObservers(c.observers, c.logger)
	if c.maxBytesInHand == 0 {
		c.maxBytesInHand = max(DefaultMaxBytesInHand, c.maxMessageSize)
	}
	c.inHand = &transport.BytesInHand{Limit: int64(c.maxBytesInHand)}
	c.complete(c.limits())
	faults := []error{errors.Join(nilOptions...), c.validate(), handlerTimeFault(c.maxHandlerTime), c.callerLimits.fault(), c.parseReplyPrefixes(), c.trustedUsersFault(), c.streamFaults(), c.dedupStoreFault()}
	if c.workers < 1 {
		faults = append(faults, fmt.Errorf("workers %d: want at least 1", c.workers))
	}
	if c.prefetch < 0 || c.prefetch > maxPrefetch {
		faults = append(faults, fmt.Errorf("prefetch %d: want 1 to %d, or 0 for twice the workers", c.prefetch, maxPrefetch))
	}
	if c.drainTimeout <= 0 {
		faults = append(faults, fmt.Errorf("drain timeout %v: want more than 0", c.drainTimeout))
	}
	if c.deliveryLimit < 0 {
		faults = append(faults, fmt.Errorf("delivery limit %d: want at least 1, or 0 for none", c.deliveryLimit))
	}
	if len(c.defaultMethod) > wire.MaxShortString {
		faults = append(faults, fmt.Errorf("default method name of %d bytes: want at most %d", len(c.defaultMethod), wire.MaxShortString))
	}
	if c.maxBytesInHand < c.maxMessageSize {
		faults = append(faults, fmt.Errorf("max bytes in hand %d: want at least the max message size, %d", c.maxBytesInHand, c.maxMessageSize))
	}
	if c.replayBytes < 0 || c.replayAge < 0 {
		faults = append(faults, fmt.Errorf("stored responses of %d bytes for %v: want 0 or more", c.replayBytes, c.replayAge))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("amqpx: server: %w", err)
	}
	return c, nil
}

// handlerTimeFault returns an error for an invalid time limit.
func handlerTimeFault(d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("max handler time %v: want more than 0, or 0 for no limit", d)
	}
	return nil
}

// limits returns the limits of the messages that the server receives.
func (c *serverConfig) limits() transport.ContentLimits {
	return transport.ContentLimits{MaxBody: c.maxMessageSize, InHand: c.inHand}
}

// maxPrefetch is the largest prefetch count in the 16 bits of basic.qos.
const maxPrefetch = 1<<16 - 1

type serverOption func(*serverConfig)

func (o serverOption) applyServer(c *serverConfig) { o(c) }

// WithWorkers sets the number of handlers that run at once; the default is [DefaultWorkers].
func WithWorkers(n int) ServerOption {
	return serverOption(func(c *serverConfig) { c.workers = n })
}

// WithPrefetch sets the number of unacknowledged requests delivered to this server
// (https://www.rabbitmq.com/docs/consumer-prefetch). The prefetch bounds the server's memory. The
// default, 0, is twice the workers: each worker runs a request, and the next request is on its
// way while a response waits for the confirm.
func WithPrefetch(n int) ServerOption {
	return serverOption(func(c *serverConfig) { c.prefetch = n })
}

// WithDrainTimeout bounds a graceful stop; afterwards the contexts of handlers that still run
// are canceled. The default is [DefaultDrainTimeout].
func WithDrainTimeout(d time.Duration) ServerOption {
	return serverOption(func(c *serverConfig) { c.drainTimeout = d })
}

// WithMaxHandlerTime bounds the run time of a handler; the default is [DefaultMaxHandlerTime].
// At the bound, or at the caller's deadline if earlier, the handler's context ends with
// [context.DeadlineExceeded]. The bound is therefore also the deadline of requests without a
// deadline. 0 means no bound.
//
// A handler that has not returned a second later is stuck. The caller gets
// [CodeDeadlineExceeded] with [MayHaveRun], the request is acknowledged and not run again, the
// handler's later result is dropped, and another worker takes the stuck worker's place. At
// most as many workers as [WithWorkers] allows are replaced at a time; beyond this number a
// stuck handler keeps its worker until it returns. [ServerStats] counts stuck handlers.
func WithMaxHandlerTime(d time.Duration) ServerOption {
	return serverOption(func(c *serverConfig) { c.maxHandlerTime = d })
}

// WithDeliveryLimit sets how often a request may be delivered before it is dead-lettered:
// republished to the queue named after the request queue with the suffix ".dead". The caller
// gets [CodeInternal] with [MayHaveRun]. The limit stops a request that kills every server
// running it. A request lost once runs again like any other request; after further losses it
// runs from the queue with the suffix ".retry", one such request at a time for each server.
// The default is [DefaultDeliveryLimit]. 0 means no limit, and no such queues are declared.
func WithDeliveryLimit(n int) ServerOption {
	return serverOption(func(c *serverConfig) { c.deliveryLimit = n })
}

// WithDedup bounds the memory and the age of the stored responses. A duplicate of a request
// gets the stored response and is not run. The defaults are [DefaultDedupBytes] and
// [DefaultDedupAge]. With 0 bytes there is no deduplication: duplicates run like other
// requests.
//
// A request is a duplicate of an earlier request with the same method, the same body, and the
// same idempotency key of the same user ([Request.User]). Without a key or a user, the key or
// correlation id and the reply_to must be the same. A request with another body under the same
// key is refused with [CodeFailedPrecondition]. While the first request runs, its duplicates
// wait, and occupy no worker. Only final results are stored: results, and errors with a code
// other than [CodeUnavailable], [CodeResourceExhausted], [CodeAborted],
// [CodeDeadlineExceeded], [CodeCanceled], [CodeUnauthenticated], [CodePermissionDenied] and
// [CodeInternal]. Middleware runs for every request, duplicate or not, and must not change a
// response in place.
//
// The memory belongs to one process: when a request reaches two servers of one queue, at once
// or later, both run the request, unless they share a store ([WithDedupStore]). Work that must
// not happen twice whatever fails needs a key in the handler's own database.
func WithDedup(maxBytes int, maxAge time.Duration) ServerOption {
	return serverOption(func(c *serverConfig) { c.replayBytes, c.replayAge = maxBytes, maxAge })
}

// WithDefaultMethod sets the method of requests that name no method, neither in the property
// app_id nor in the header rpc-method. Programs that use one queue for each function can then
// call one of this server's methods. The default, "", refuses such requests with
// [CodeInvalidArgument]. A name of more than 255 bytes is an error of [NewServer]; requests
// for a name without a handler are refused like requests for any unknown method.
func WithDefaultMethod(name string) ServerOption {
	return serverOption(func(c *serverConfig) { c.defaultMethod = name })
}

// WithMethodOf sets a function that chooses the method of requests from programs that do not follow
// docs/protocol.md and name no method of this server in the property app_id: old programs that put
// the name into a header or into the body, or their own name into app_id. The function gets the
// received request, with app_id as the Method, and returns the method's name; "" leaves the method
// unchanged: for a request without a name, the method of [WithDefaultMethod]. Requests of this
// package's clients are not affected. The function must not change or keep the request. The server
// calls the function for one request of a connection after another, before the request waits for a
// worker, so the function must be quick. After a panic of the function the request is refused with
// [CodeInternal], and the panic is logged. The default is nil.
func WithMethodOf(choose func(req *Request) string) ServerOption {
	return serverOption(func(c *serverConfig) { c.methodOf = choose })
}

// WithDedupScope sets the owner of an idempotency key: equal keys of different scopes are
// different keys. The default, nil, is the user validated by the broker ([Request.User]), and
// for an anonymous request its reply_to. Set a scope where callers share one user of the
// broker, as behind a gateway, and prove their identities in another way. The function is
// called inside the middleware, so ctx has the middleware's values, for each request with an
// idempotency key, concurrently. If the function returns "", the default applies to the
// request.
func WithDedupScope(scope func(ctx context.Context, req *Request) string) ServerOption {
	return serverOption(func(c *serverConfig) { c.dedupScope = scope })
}

// WithMaxBytesInHand bounds the memory of request bodies, in bytes: the bodies of requests
// delivered to this server and not acknowledged. The default, 0, is [DefaultMaxBytesInHand], or
// the limit of [WithMaxMessageSize] if larger; n must be at least that limit. The prefetch bounds
// the number of requests, this option their size. A request beyond the bound is discarded while
// it arrives, and delivered again when there is room; for a method with [AtMostOnce] the request
// is refused with [CodeResourceExhausted] instead. One eighth is reserved for requests and
// batches of at most 64 KiB, and one request of the retry queue is always accepted in addition.
func WithMaxBytesInHand(n int) ServerOption {
	return serverOption(func(c *serverConfig) { c.maxBytesInHand = n })
}

// serverMethod is one registered method.
type serverMethod struct {
	name       string
	number     int // of the methods before it
	handler    Handler
	atMostOnce bool
	everywhere bool          // of OnEveryServer
	maxStreams int           // 0: no limit
	maxTime    time.Duration // of HandlerTimeout; 0: the server's
	slots      *handlerSlots // of MaxConcurrent; nil: no limit
	fault      error         // of the options
	times      handlerTimes
}

// HandleOption configures one method of a [Server].
type HandleOption func(*serverMethod)

// AtMostOnce makes the method run at most once for each request. The default is at least once:
// a server that dies, or loses its connection, leaves its unacknowledged requests to run
// again. With AtMostOnce a request that was delivered before, or sent by its caller before,
// runs only if it certainly has not run. If this same process ran the request and still stores
// the response ([WithDedup]), or if the request has an idempotency key whose response is in the
// store of [WithDedupStore], the stored response is sent again; otherwise the caller gets
// [CodeUnavailable] with [MayHaveRun].
//
// The guarantee depends on the broker's redelivered flag (AMQP 0-9-1 section 1.8.3.13).
// RabbitMQ keeps the flag when a connection or a server is lost; when a node is killed,
// RabbitMQ keeps the flag for quorum queues and for messages that are not persistent.
func AtMostOnce() HandleOption { return func(m *serverMethod) { m.atMostOnce = true } }
