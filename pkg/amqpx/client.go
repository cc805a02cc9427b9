package amqpx

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// Client calls methods of the servers on a request queue. All methods are safe for concurrent
// use. One client for each process and queue is enough. A client holds two connections
// ([ReplyDirect]: one).
type Client struct {
	cfg     *clientConfig
	sup     *transport.Supervisor
	board   statusBoard
	inner   Handler // the round trip
	handler Handler // inner inside the middleware; nil without middleware
	traced  Handler // handler inside the tracing middleware; nil without it
	route   route
	pending *pending
	watch   *queueWatch
	nowhere nowhere
	budget  *retryBudget
	streams clientStreams
	counts  clientCounts
	cancels *cancels // nil without a control plane
	// unanswered counts the calls without a response, to decide when the client looks for
	// another node.
	unanswered unanswered

	// Only setup uses the fields up to abandoned.
	linked        int32 // how many session set-ups were started
	responsesLost bool  // the reply queue was replaced, and the calls were not notified yet
	// replyQueueAway is the reason to replace the reply queue; nil while the queue is usable.
	replyQueueAway error
	abandoned      []abandonedQueue // reply queues to delete
	// replyUser is the user in the name of the reply queue; nil before the first session. Only
	// setup changes it.
	replyUser atomic.Pointer[string]

	calls   xsync.Gate     // calls under way, until Shutdown
	futures sync.WaitGroup // goroutines of calls made with Go

	closing   chan struct{} // closed by Close: pending calls settle
	closeOnce sync.Once
	stop      context.CancelFunc
	stopped   chan struct{} // closed when the supervisor has ended
}

// replyConsumer is the tag of the only consumer on the session's channel.
const replyConsumer = "responses"

// NewClient returns a client of the broker at url, which may be a comma-separated list of the
// nodes of a cluster. It reports every fault of its arguments at once and does not wait for
// the broker: the client connects in the background and reconnects until Close, and calls wait
// for the connection within their deadlines.
func NewClient(url string, opts ...ClientOption) (*Client, error) {
	cfg, err := newClientConfig(url, opts)
	if err != nil {
		return nil, err
	}
	return makeClient(cfg, nil)
}

// makeClient returns a client that connects. When the client has ended, it calls ended, if that
// is not nil.
func makeClient(cfg *clientConfig, ended func(*Client)) (*Client, error) {
	c := &Client{
		cfg:     cfg,
		route:   route{check: cfg.responseCheck, queue: cfg.queue.Name, replyTo: wire.DirectReplyTo, persistent: cfg.persistent, outbox: publish.NewOutbox()},
		pending: newPending(cfg.maxInFlight, cfg.maxInFlightBytes),
		budget:  newRetryBudget(cfg.retryRatio, cfg.retryBurst),
		closing: make(chan struct{}),
		stopped: make(chan struct{}),
	}
	c.route.user.strict = cfg.exchange != ""
	c.unanswered.wait = unansweredFirst
	c.watch = newQueueWatch()
	c.streams.init(&cfg.streams)
	c.route.watch, c.route.queueGate, c.route.nackProves = c.watch, newQueueGate(), cfg.queue.Type == QueueQuorum
	c.route.timed = cfg.attemptTimeout > 0
	if cfg.batch == BatchAuto {
		c.route.outbox.Spaced = true
		c.route.batch = newBatchTarget(cfg.queue.batchQueue().Name, publish.BatchLimit(cfg.maxMessageSize), c.recordBatchSent, c.route.outbox.Notify)
	}
	c.openShards()
	if cfg.control {
		c.cancels = newCancels()
	}
	if err := c.buildHandlers(); err != nil {
		return nil, err
	}
	sessions := cfg.sessions("client", cfg.replyMode == ReplyDirect, &c.board, c.setup)
	sessions.Limits = cfg.limits()
	c.sup = transport.NewSupervisor(sessions)
	ctx, stop := context.WithCancel(context.Background()) //nolint:forbidigo // a client lives until Close, beyond any caller's context.
	c.stop = stop
	go func() { // ends when stop is called; Close waits for it
		defer close(c.stopped)
		c.sup.Run(ctx)
		c.futures.Wait() // their calls have been notified
		if ended != nil {
			ended(c)
		}
	}()
	return c, nil
}

// buildHandlers puts the round trip into the middleware.
func (c *Client) buildHandlers() (err error) {
	c.inner = c.roundTrip
	inner, middleware := c.inner, c.cfg.middleware
	if len(middleware) > 0 {
		if c.handler, err = chain(inner, middleware); err != nil {
			return fmt.Errorf("amqpx: client: WithMiddleware: %w", err)
		}
		inner = c.handler
	}
	if tracing := c.cfg.tracing; tracing != nil {
		if c.traced, err = chain(inner, []Middleware{tracing}); err != nil {
			return fmt.Errorf("amqpx: client: WithTracing: %w", err)
		}
	}
	return nil
}

// handlerOf decides whether a call is traced, and returns the handler with the middleware for the
// request; nil: no middleware. A request that middleware sees gets a correlation id.
func (c *Client) handlerOf(ctx context.Context, req *Request) Handler {
	h := c.handler
	if c.traced != nil {
		skip := false
		if c.cfg.decideTrace != nil {
			req.Unsampled, skip = c.cfg.decideTrace(ctx)
		}
		if !skip || !req.Unsampled || len(req.Header) > 0 {
			h = c.traced
		}
	}
	if h == nil && req.makesTries() {
		h = c.inner
	}
	if req.sent.ours = h == nil; !req.sent.ours { // otherwise the call makes its id
		req.identify()
	}
	return h
}

// identify gives a request its correlation id, which is the key of an idempotent call without a key.
func (req *Request) identify() {
	req.CorrelationID = newID()
	if req.IdempotencyKey == "" && req.Idempotent {
		req.IdempotencyKey = req.CorrelationID
	}
}

// Call calls a method and returns the body of the response. It settles by ctx's deadline, or
// by the client's default when ctx has no deadline. An error matches [*Error]: its Code
// classifies the error, its Outcome states whether a server may have run the call. When ctx is
// canceled, the context of the call's handler is canceled too ([WithControl]). The body must
// not be changed until Call returns.
func (c *Client) Call(ctx context.Context, method string, body []byte, opts ...CallOption) ([]byte, error) {
	return c.call(ctx, method, body, opts, false)
}

// call is Call, or Send if the request is oneWay.
func (c *Client) call(ctx context.Context, method string, body []byte, opts []CallOption, oneWay bool) ([]byte, error) {
	if err := c.checkCall(ctx, opts); err != nil {
		return nil, err
	}
	if !c.calls.Enter() {
		return nil, c.refused(method)
	}
	defer c.calls.Leave()
	watched := c.observe(method)
	req, timeout, mistake := c.newRequest(method, body, opts)
	if mistake != nil {
		err := misused(mistake)
		c.recordCall(watched, err)
		return nil, err
	}
	if oneWay {
		timeout = c.makeOneWay(ctx, &req, watched.now(), timeout)
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	response, err := c.send(ctx, watched, req)
	c.recordCall(watched, err)
	return response, err
}

// send sends a request through the middleware. Without middleware the request stays on the
// stack, and roundTrip sets the deadline.
func (c *Client) send(ctx context.Context, watched observation, req Request) ([]byte, error) {
	h := c.handlerOf(ctx, &req)
	if h == nil {
		return c.roundTripOfCall(ctx, &req, watched)
	}
	if _, ok := ctx.Deadline(); ok {
		shared := req // middleware may keep it
		return h(ctx, &shared)
	}
	own := &callContext{client: c, req: req}
	own.Init(ctx, watched.now().Add(c.cfg.timeout))
	defer own.Cancel()
	return h(own, &own.req) //nolint:contextcheck // own is ctx's child.
}

// newRequest returns the request of a call, with the options of the client, the method and the
// call, and the time of CallTimeout, 0 if there is none. mistake is that of an invalid option.
func (c *Client) newRequest(method string, body []byte, opts []CallOption) (req Request, timeout time.Duration, mistake error) {
	req = Request{Method: method, Body: body}
	cfg := c.cfg.callConfigOf(method)
	if len(opts) > 0 {
		own, _ := callConfigs.Get().(*callConfig)
		*own = *cfg
		own.apply(opts)
		timeout, mistake = c.configure(&req, own)
		*own = callConfig{} // it must not keep what the options refer to
		callConfigs.Put(own)
		return req, timeout, mistake
	}
	timeout, mistake = c.configure(&req, cfg)
	return req, timeout, mistake
}

// configure sets the fields of a request that options determine, and returns the time of
// CallTimeout and the mistake as newRequest does.
func (c *Client) configure(req *Request, cfg *callConfig) (timeout time.Duration, mistake error) {
	req.Header, req.Idempotent, req.IdempotencyKey = maps.Clone(cfg.header), cfg.idempotent, cfg.idempotencyKey
	req.ContentType, req.ContentEncoding = cfg.contentType, cfg.contentEncoding
	req.sent.info, req.sent.waitForServer = cfg.info, cfg.waitForServer
	req.sent.acceptEncoding, req.sent.content, req.sent.expiration = cfg.acceptEncoding, cfg.content, cfg.expiration
	if cfg.keyed && c.cfg.shards > 1 {
		req.sent.keyed, req.sent.shard = true, uint8(jump(cfg.shardHash, c.cfg.shards)) //nolint:gosec // below MaxShards.
	}
	req.Priority, req.sent.retry, req.sent.hedge = cfg.priority, cfg.retry, cfg.hedge
	return cfg.timeout, cfg.mistake()
}

// callContext is the context of a call in the middleware of a client, if the caller's context has
// no deadline. A callContext has the client's default deadline, and ends when the call returns.
// roundTrip recognizes the callContext that middleware passes on, and needs no timer then.
type callContext struct {
	xsync.LazyContext

	client *Client
	req    Request // the request of the call, here to save its allocation
	// running is the call that waits for a response without watching this context, or nil. Cancel
	// and the goroutine of the call both try to take the call from here; only one succeeds.
	running atomic.Pointer[call]
}

// Cancel ends the context when the call has returned. Middleware that sends a request twice may
// have started a round trip that outlives the call; Cancel ends this round trip too.
func (c *callContext) Cancel() {
	c.LazyContext.Cancel()
	if k := c.running.Swap(nil); k != nil {
		k.notify(eventCanceled)
	}
}

// attach makes Cancel end the call. attach returns false if the context has ended, or if Cancel
// already ends another round trip; the call must then watch the context.
func (c *callContext) attach(k *call) bool {
	if !c.running.CompareAndSwap(nil, k) {
		return false
	}
	return !c.Canceled() || !c.running.CompareAndSwap(k, nil)
}

// detach reverts attach. detach returns false if Cancel has taken the call: Cancel may still use
// the call, which must not be used again.
func (c *callContext) detach(k *call) bool { return c.running.CompareAndSwap(k, nil) }

// Status returns the state of the connection.
func (c *Client) Status() Status {
	if c == nil || c.sup == nil {
		return Status{State: StateClosed, Err: errNoClient}
	}
	return c.board.get()
}

// Watch returns a channel that receives the current status at once and then each change, until
// ctx ends or the status is [StateClosed]; then the channel is closed. A slow reader receives the
// newest status and misses the earlier changes.
func (c *Client) Watch(ctx context.Context) <-chan Status {
	if c == nil || c.sup == nil {
		return closedBoard(errNoClient).watchUntil(ctx)
	}
	return c.board.watchUntil(ctx)
}

// WaitReady waits until the connection is ready. A fault that lasts until an operator acts, such as
// a wrong password, is returned at once ([Status.NeedsOperator], [FaultOf]); the client goes on
// trying to connect. When ctx ends first, the error holds ctx's error and the last fault of the
// connection. Calls wait for the connection without WaitReady;
// it is meant for start-up.
func (c *Client) WaitReady(ctx context.Context) error {
	if err := c.check(ctx); err != nil {
		return err
	}
	return c.board.waitReady(ctx)
}

// Close settles every pending call with [ErrClosed], deletes the reply queue, and returns when
// every goroutine of the client has ended. When ctx ends first, Close returns ctx's error; if
// the deletion is still under way then, Close cuts the connections. Further calls of Close
// only wait.
func (c *Client) Close(ctx context.Context) error {
	if err := c.check(ctx); err != nil {
		return err
	}
	c.closeOnce.Do(func() {
		c.pending.close()
		close(c.closing)
		c.closeStreams(ctx)
		c.deleteReplyQueue(ctx)
		c.stop()
	})
	select {
	case <-c.stopped:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// setup prepares a new session: exchange, user, reply queue, response consumer, publisher. Then it notifies
// the calls whose requests were confirmed in the previous session.
func (c *Client) setup(_ context.Context, s *transport.Session) error {
	if err := c.chooseExchange(s); err != nil {
		return err
	}
	if err := c.verifyUser(s); err != nil {
		return err
	}
	direct := c.cfg.replyMode == ReplyDirect
	if direct {
		c.responsesLost = true
	} else {
		c.nameReplyQueue(s)
		lost, err := c.openReplyQueue(s)
		// responsesLost is kept if this attempt fails later: the next attempt finds the new
		// queue.
		if c.responsesLost = c.responsesLost || lost; err != nil {
			return err
		}
		s.ReplyTo = c.route.replyTo
	}
	deliveries, err := c.consumeResponses(s, direct)
	if err != nil {
		return err
	}
	if queues := c.abandoned; len(queues) > 0 {
		c.abandoned = nil
		s.Run(func() { c.deleteAbandoned(s, queues) })
	}
	if err := c.startChecks(s); err != nil {
		return err
	}
	r := &responseReader{client: c}
	s.Run(func() { r.read(s, deliveries, direct) })
	for _, a := range c.pending.attempts() {
		a.sessionReplaced(s.Generation, c.responsesLost)
	}
	c.responsesLost = false
	s.Run(func() { c.keepStreams(s) })
	if c.cancels != nil {
		s.Run(func() { c.publishCancels(s) })
	}
	if c.route.timed {
		s.Run(func() { c.checkAttempts(s) })
	}
	if len(c.otherNodes(s)) > 0 {
		s.Run(func() { c.checkAnswered(s) }) //nolint:contextcheck // a session outlives the context of its set-up.
		if !direct {                         // responses by direct reply-to would be lost
			s.Run(func() { c.returnHome(s) }) //nolint:contextcheck // as above.
		}
	}
	// No request is sent before the session is ready: a caller with a response then finds the
	// connection ready, and Close finds the session for deleting the reply queue.
	s.OnReady = func() { c.startPublishing(s) }
	return nil
}

// returned records a request returned by the broker.
func (c *Client) returned(r amqp.Return) {
	if r.ContentType == wire.ContentTypeFrames {
		c.returnedFrames(&r)
		return
	}
	batch := c.route.batch
	s := c.route.shardNamed(r.RoutingKey)
	if s != nil {
		batch = s.batch
	}
	if r.ContentType == wire.ContentTypeRequests && batch != nil {
		batch.returned(r.CorrelationId)
		return
	}
	if s != nil {
		s.isMissing()
	}
	c.pending.returned(r)
}
