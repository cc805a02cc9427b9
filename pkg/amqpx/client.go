package amqpx

import (
	"context"
	"fmt"
	"maps"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Client calls methods that servers answer on a request queue. All its methods are
// safe for any number of goroutines. One client for each process and queue is
// enough; it holds two connections ([ReplyDirect]: one).
type Client struct {
	cfg     *clientConfig
	sup     *supervisor
	handler Handler // the round trip inside the middleware
	route   route
	pending *pending
	watch   *queueWatch
	nowhere nowhere
	budget  *retryBudget
	counts  clientCounts
	cancels *cancels // nil without a control plane
	// unanswered decides when the client looks for another node.
	unanswered unanswered

	// Only setup uses these.
	linked      int32 // how many sessions it has set up, or tried to
	answersLost bool  // the reply queue was made anew and no call told yet
	// replyQueueAway is why the reply queue is to be replaced; nil while it is not.
	replyQueueAway error
	abandoned      []string // reply queues that were replaced and are to be deleted

	futures sync.WaitGroup // goroutines of calls made with Go

	closing   chan struct{} // closed by Close: pending calls settle
	closeOnce sync.Once
	stop      context.CancelFunc
	stopped   chan struct{} // closed when the supervisor has ended
}

// directReplyTo is the pseudo-queue of https://www.rabbitmq.com/docs/direct-reply-to.
const directReplyTo = "amq.rabbitmq.reply-to"

// replyConsumer is the tag of the one consumer on the session's channel.
const replyConsumer = "answers"

// NewClient returns a client of the broker at url, which may be a comma-separated
// list of the nodes of a cluster. It reports every fault of its arguments at once
// and does not wait for the broker: it connects in the background, keeps
// connecting until Close, and calls wait for it within their deadlines.
func NewClient(url string, opts ...ClientOption) (*Client, error) {
	cfg, err := newClientConfig(url, opts)
	if err != nil {
		return nil, err
	}
	c := &Client{
		cfg:     cfg,
		route:   route{check: cfg.responseCheck, queue: cfg.queue.Name, replyTo: directReplyTo, persistent: cfg.persistent, outbox: newOutbox()},
		pending: newPending(cfg.maxInFlight, cfg.maxInFlightBytes),
		budget:  newRetryBudget(cfg.retryRatio, cfg.retryBurst),
		closing: make(chan struct{}),
		stopped: make(chan struct{}),
	}
	c.unanswered.wait = unansweredFirst
	c.watch = newQueueWatch()
	c.route.watch, c.route.queueGate, c.route.nackProves = c.watch, newQueueGate(), cfg.queue.Type == QueueQuorum
	c.route.timed = cfg.attemptTimeout > 0
	if cfg.replyMode == ReplyQueue {
		c.route.replyTo = newReplyQueueName(cfg.queue)
	}
	if cfg.batch == BatchAuto {
		c.route.batch = newBatchTarget(cfg.queue.batchQueue().Name, c.recordBatchSent, c.route.outbox.notify)
	}
	if cfg.control {
		c.cancels = newCancels()
	}
	if c.handler, err = chain(c.roundTrip, cfg.middleware); err != nil {
		return nil, fmt.Errorf("amqpx: client: WithMiddleware: %w", err)
	}
	c.sup = newSupervisor(&cfg.config, "client", cfg.replyMode == ReplyDirect, c.setup)
	ctx, stop := context.WithCancel(context.Background()) //nolint:forbidigo // a client lives until Close, beyond any caller's context.
	c.stop = stop
	go func() { // ends when stop is called; Close waits for it
		defer close(c.stopped)
		c.sup.run(ctx)
		c.futures.Wait() // their calls have been told
	}()
	return c, nil
}

// Call calls a method and returns its answer. It settles by ctx's deadline, or by
// the client's default when ctx has none, with the answer or an error that matches
// [*Error]: its Code classifies it, its Outcome tells whether a server may have
// run the call. When ctx is cancelled, so is the context of the call's handler
// ([WithControl]). The body must not be changed until Call returns, and is the caller's
// again then.
func (c *Client) Call(ctx context.Context, method string, body []byte, opts ...CallOption) ([]byte, error) { //nolint:contextcheck // a lazyContext is its parent's child.
	if err := c.checkCall(ctx, opts); err != nil {
		return nil, err
	}
	watched := c.observe(method)
	if _, ok := ctx.Deadline(); !ok && len(c.cfg.middleware) > 0 { // roundTrip sees to it otherwise
		bounded := withDeadline(ctx, watched.now().Add(c.cfg.timeout))
		defer bounded.cancel()
		ctx = bounded
	}
	req := c.newRequest(method, body, opts)
	answer, err := c.handler(ctx, req)
	c.recordCall(watched, err)
	return answer, err
}

// newRequest makes the request of a call.
func (c *Client) newRequest(method string, body []byte, opts []CallOption) *Request {
	req := &Request{Method: method, Body: body, CorrelationID: newID()}
	req.sent.ours = len(c.cfg.middleware) == 0
	lists := [...][]CallOption{c.cfg.callOptions, c.cfg.methods[method], opts}
	if len(lists[0])+len(lists[1])+len(lists[2]) == 0 {
		return req
	}
	cfg := &callConfig{}
	for _, list := range lists {
		for _, o := range list {
			o(cfg)
		}
	}
	req.Header, req.Idempotent, req.IdempotencyKey = maps.Clone(cfg.header), cfg.idempotent, cfg.idempotencyKey
	req.ContentType, req.ContentEncoding = cfg.contentType, cfg.contentEncoding
	req.sent.info, req.sent.waitForServer = cfg.info, cfg.waitForServer
	if req.IdempotencyKey == "" && req.Idempotent {
		req.IdempotencyKey = req.CorrelationID
	}
	return req
}

// Status returns where the link stands.
func (c *Client) Status() Status {
	if c == nil || c.sup == nil {
		return Status{State: StateClosed, Err: errNoClient}
	}
	return c.sup.board.get()
}

// Watch returns a channel that at once receives the status and then each change.
// A reader that is slow sees the newest and misses what was between. The channel
// is never closed; stop ends the watch.
func (c *Client) Watch() (updates <-chan Status, stop func()) {
	if c == nil || c.sup == nil {
		return closedBoard(errNoClient).watch()
	}
	return c.sup.board.watch()
}

// WaitReady waits until the link is ready. When ctx ends first, the error holds
// ctx's and the link's last fault. Calls wait by themselves; this is for start-up.
func (c *Client) WaitReady(ctx context.Context) error {
	if err := c.check(ctx); err != nil {
		return err
	}
	return c.sup.waitReady(ctx)
}

// Close settles every pending call with [ErrClosed], deletes the reply queue, and
// returns when every goroutine of the client has ended; when ctx ends first, the
// connections are cut and Close returns its error. Further calls of Close do the
// same.
func (c *Client) Close(ctx context.Context) error {
	if err := c.check(ctx); err != nil {
		return err
	}
	c.closeOnce.Do(func() {
		c.pending.close()
		close(c.closing)
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

// setup makes a new session serve: reply route, answers, publisher. Then it tells
// the calls that the session before had confirmed.
func (c *Client) setup(_ context.Context, s *session) error {
	if c.cfg.userID {
		if err := c.route.user.verify(s, c.cfg.logger); err != nil {
			return atStep(stepVerifyUser, "", err)
		}
	}
	direct := c.cfg.replyMode == ReplyDirect
	if direct {
		c.answersLost = true
	} else {
		lost, err := c.openReplyQueue(s)
		// Kept, should this attempt fail further on: the next one finds the new queue.
		if c.answersLost = c.answersLost || lost; err != nil {
			return err
		}
		s.replyTo = c.route.replyTo
	}
	deliveries, err := c.consumeResponses(s, direct)
	if err != nil {
		return err
	}
	if names := c.abandoned; len(names) > 0 {
		c.abandoned = nil
		s.run(func() { c.deleteAbandoned(s, names) })
	}
	if err := c.startLooks(s); err != nil {
		return err
	}
	r := &responseReader{client: c}
	s.run(func() { r.read(s, deliveries, direct) })
	for _, k := range c.pending.snapshot() {
		k.sessionReplaced(s.generation, c.answersLost)
	}
	c.answersLost = false
	if c.cancels != nil {
		s.run(func() { c.publishCancels(s) })
	}
	if c.route.timed {
		s.run(func() { c.checkAttempts(s) })
	}
	if len(c.otherNodes(s)) > 0 {
		s.run(func() { c.checkAnswered(s) }) //nolint:contextcheck // a session outlives the context of its set-up.
	}
	// No call leaves earlier: whoever has an answer finds the link ready, and Close the
	// session over which to delete the reply queue.
	s.onReady = func() { startPublisher(s, c.route.outbox, c.returned) }
	return nil
}

// returned notes a request that the broker gave back.
func (c *Client) returned(r amqp.Return) {
	if r.ContentType == contentTypeCalls && c.route.batch != nil {
		c.route.batch.returned(r.CorrelationId)
	} else {
		c.pending.returned(r)
	}
}
