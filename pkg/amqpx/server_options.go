package amqpx

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Defaults of servers.
const (
	// DefaultWorkers is how many handlers run at once.
	DefaultWorkers = 64
	// DefaultDrainTimeout bounds a graceful stop.
	DefaultDrainTimeout = 20 * time.Second
	// DefaultMaxHandlerTime is the longest time of a handler: ten times the default deadline
	// of calls, and well below the half hour after which RabbitMQ closes the channel of a
	// consumer that does not acknowledge (https://www.rabbitmq.com/docs/consumers).
	DefaultMaxHandlerTime = 5 * time.Minute
	// DefaultDeliveryLimit is how often a request may be handed out.
	DefaultDeliveryLimit = 5
	// DefaultReplayBytes and DefaultReplayAge bound the stored answers.
	DefaultReplayBytes = 8 << 20
	DefaultReplayAge   = time.Minute
	// DefaultMaxBytesInHand bounds the bodies of the requests that a server has in hand.
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
	ackPause      time.Duration

	maxBytesInHand int
	inHand         *bytesInHand

	defaultMethod string // of requests that name none; "": they are refused

	observers []ServerObserver
	observer  ServerObserver // all of them together; nil: none
}

func newServerConfig(url string, opts []ServerOption) (*serverConfig, error) {
	c := &serverConfig{
		config:       defaultConfig(),
		workers:      DefaultWorkers,
		drainTimeout: DefaultDrainTimeout,

		maxHandlerTime: DefaultMaxHandlerTime,

		deliveryLimit: DefaultDeliveryLimit,
		replayBytes:   DefaultReplayBytes,
		replayAge:     DefaultReplayAge,
		ackPause:      ackPause,
	}
	c.urlList = url
	var nilOptions []error
	for i, o := range opts {
		if o == nil {
			nilOptions = append(nilOptions, fmt.Errorf("option %d is nil", i+1))
			continue
		}
		o.applyServer(c)
	}
	if c.prefetch == 0 {
		c.prefetch = min(2*c.workers, maxPrefetch)
	}
	c.observer = guardServerObservers(c.observers, c.logger)
	if c.maxBytesInHand == 0 {
		c.maxBytesInHand = max(DefaultMaxBytesInHand, c.maxMessageSize)
	}
	c.inHand = &bytesInHand{limit: int64(c.maxBytesInHand)}
	if c.dialer == nil {
		limits := contentLimits{maxBody: c.maxMessageSize, inHand: c.inHand}
		c.dialer = netDialer{heartbeat: c.heartbeat, writeTimeout: c.writeTimeout, tls: c.tls, source: c.source, limits: limits}
	}
	faults := []error{errors.Join(nilOptions...), c.validate(), handlerTimeFault(c.maxHandlerTime)}
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
	if len(c.defaultMethod) > maxShortString {
		faults = append(faults, fmt.Errorf("default method name of %d bytes: want at most %d", len(c.defaultMethod), maxShortString))
	}
	if c.maxBytesInHand < c.maxMessageSize {
		faults = append(faults, fmt.Errorf("max bytes in hand %d: want at least the max message size, %d", c.maxBytesInHand, c.maxMessageSize))
	}
	if c.replayBytes < 0 || c.replayAge < 0 {
		faults = append(faults, fmt.Errorf("stored answers of %d bytes for %v: want 0 or more", c.replayBytes, c.replayAge))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("amqpx: server: %w", err)
	}
	return c, nil
}

// maxPrefetch is what fits basic.qos's 16 bits.
const maxPrefetch = 1<<16 - 1

type serverOption func(*serverConfig)

func (o serverOption) applyServer(c *serverConfig) { o(c) }

// WithWorkers sets how many handlers run at once; the default is [DefaultWorkers].
func WithWorkers(n int) ServerOption {
	return serverOption(func(c *serverConfig) { c.workers = n })
}

// WithPrefetch sets how many unacknowledged requests the broker hands to this
// server (https://www.rabbitmq.com/docs/consumer-prefetch), and so bounds its
// memory. The default, 0, is twice the workers: one for each worker, and one that
// is on its way while an answer waits for its confirm.
func WithPrefetch(n int) ServerOption {
	return serverOption(func(c *serverConfig) { c.prefetch = n })
}

// WithDrainTimeout bounds a graceful stop; after it the contexts of handlers that
// still run are cancelled. The default is [DefaultDrainTimeout].
func WithDrainTimeout(d time.Duration) ServerOption {
	return serverOption(func(c *serverConfig) { c.drainTimeout = d })
}

// WithMaxHandlerTime bounds how long a handler may run; the default is
// [DefaultMaxHandlerTime]. The handler's context ends then with
// [context.DeadlineExceeded], or at its caller's deadline if that is earlier, so it is also
// the deadline of requests that set none. 0 sets no limit.
//
// A handler that has not returned a second later is stuck. Its caller gets
// [CodeDeadlineExceeded] with [MayHaveRun], its request is acknowledged and not run again,
// what it returns at last is dropped, and another worker takes its place. At most as many as
// there are workers are replaced at a time; beyond that a stuck handler keeps its worker
// until it returns. [ServerStats] counts them.
func WithMaxHandlerTime(d time.Duration) ServerOption {
	return serverOption(func(c *serverConfig) { c.maxHandlerTime = d })
}

// WithDeliveryLimit sets how often a request may be handed out before it goes to the
// dead letters, a queue named after the request queue with ".dead" behind it, and its
// caller gets [CodeInternal] with [MayHaveRun]: what kills every server that runs it
// must end somewhere. Requests that were lost once run again like any other, after
// that one at a time for each server, from the queue ".retry". The default is
// [DefaultDeliveryLimit]. 0 sets no limit, and makes no queues.
func WithDeliveryLimit(n int) ServerOption {
	return serverOption(func(c *serverConfig) { c.deliveryLimit = n })
}

// WithReplay bounds the memory and the age of the stored responses, from which a request
// that repeats another is answered without being run. The defaults are
// [DefaultReplayBytes] and [DefaultReplayAge]. With 0 bytes there is no deduplication: a
// request that repeats another is run like any other.
//
// A request repeats another if it has the same method, the same body, and the same
// idempotency key of the same user ([Request.User]); where either is missing, the same key
// or correlation id and the same reply_to. A request with another body under the same key
// is refused with [CodeFailedPrecondition]. While the first one runs, the others wait for
// it, and occupy no worker. Only final results are stored: results, and errors whose codes
// are none of [CodeUnavailable], [CodeResourceExhausted], [CodeAborted],
// [CodeDeadlineExceeded], [CodeCanceled], [CodeUnauthenticated], [CodePermissionDenied] and
// [CodeInternal]. Middleware runs for every request, whether it repeats another or not,
// and must not change a response in place.
//
// The store is this process's own: of two servers on one queue each runs a request that
// reaches both, also one that comes again later. What must not happen twice needs a key
// in the handler's own database.
func WithReplay(maxBytes int, maxAge time.Duration) ServerOption {
	return serverOption(func(c *serverConfig) { c.replayBytes, c.replayAge = maxBytes, maxAge })
}

// WithDefaultMethod sets the method of requests that name none, by neither the property
// app_id nor the header rpc-method: programs that know only a queue for each function can
// call one of this server's. The default, "", refuses such requests with
// [CodeInvalidArgument]. A name of more than 255 bytes is an error of [NewServer]; one
// without a handler is refused like any unknown method.
func WithDefaultMethod(name string) ServerOption {
	return serverOption(func(c *serverConfig) { c.defaultMethod = name })
}

// WithDedupScope sets who an idempotency key belongs to: keys of different scopes are
// different keys. The default, nil, is the user that the broker has validated
// ([Request.User]), and for an anonymous request its reply_to. Set it where callers share
// one user of the broker, as behind a gateway, and prove who they are in another way. It
// is called inside the middleware, so ctx has what that put there, for each request with an
// idempotency key, concurrently. With "" the default holds for the request.
func WithDedupScope(scope func(ctx context.Context, req *Request) string) ServerOption {
	return serverOption(func(c *serverConfig) { c.dedupScope = scope })
}

// WithMaxBytesInHand bounds the memory that the bodies of requests take: those that were
// delivered to this server and are not acknowledged, in bytes. The default, 0, is
// [DefaultMaxBytesInHand], or the limit of [WithMaxMessageSize] if that is larger; it must
// not be smaller. The prefetch bounds the number of requests, this their size: a request
// beyond it is discarded while it arrives, and delivered again when there is room; one of
// a method that runs at most once is refused with [CodeResourceExhausted] instead. One
// eighth is kept for requests and batches of at most 64 KiB, and one request of the retry
// queue is always taken beside it.
func WithMaxBytesInHand(n int) ServerOption {
	return serverOption(func(c *serverConfig) { c.maxBytesInHand = n })
}

// serverMethod is one registered function.
type serverMethod struct {
	name       string
	handler    Handler
	atMostOnce bool
	known      executionTable // of executions
	times      handlerTimes
}

// HandleOption configures one method of a [Server].
type HandleOption func(*serverMethod)

// AtMostOnce makes the method run at most once for each request. The default is at
// least once: what a server had in hand when it died, or lost its link, runs again.
// With AtMostOnce a request that was handed out before, or that its caller has sent
// before, is run only if it certainly has not been: if this very process ran it, and still
// has its response ([WithReplay]), that is sent again; else the caller gets [CodeUnavailable] with [MayHaveRun].
//
// The guarantee is as good as the broker's redelivered flag (AMQP 0-9-1 section
// 1.8.3.13). RabbitMQ keeps it over every loss of a link or a server; over the kill
// of a node, for quorum queues and for messages that are not persistent.
func AtMostOnce() HandleOption { return func(m *serverMethod) { m.atMostOnce = true } }
