package amqpx

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// queueRoom is the number of waiting requests from which no further batch is unpacked.
const queueRoom = publish.MaxBatchMessages

// Server runs handlers for the requests that arrive on a request queue. Several servers, on
// any number of machines, can consume one queue: the broker distributes the requests. Call
// Handle before Serve; the other methods are safe for concurrent use.
type Server struct {
	cfg     *serverConfig
	sup     *transport.Supervisor
	board   statusBoard
	methods map[string]*serverMethod
	waiting *xsync.Queue[task]
	outbox  *publish.Outbox
	workers xsync.IdleTracker // without the stuck workers
	load    load
	stuck   stuckHandlers
	callers *callers // nil without limits of callers
	dedup   *dedupCache
	// claims numbers the requests with claims in the store of WithDedupStore, claimWaits counts those
	// that wait, lateEnds the claims that end in the background.
	claims               atomic.Uint64
	claimWaits, lateEnds atomic.Int64
	user                 brokerUser        // the user of copies of requests
	track                xsync.IdleTracker // consumers, and deliveries in progress
	moves                xsync.IdleTracker // copies with a delivery count whose originals are not acknowledged
	parked               parkedRequests    // requests that wait for moves
	// inFlight counts the requests that are not finished.
	inFlight atomic.Int64
	counts   serverCounts
	self     instance
	selfID   []byte                  // self.id, never changed
	unknown  unknownMethods          // method names without a handler here
	control  atomic.Pointer[control] // of the current session; nil without a control plane
	queries  sync.Map                // open queries of this server: *query by correlation id
	// direct and isolated are side connections for messages which could end the session's
	// connection; see server_side_connection.go.
	direct, isolated *sideConnection
	suspects         *suspects
	delayed          xsync.Delayed
	logs             serverLogs
	nacked           chan nackedToLog   // nacked responses whose reason is not known yet
	previous         *transport.Session // the session of the last call of setup
	// batchesUp, retryUp, deadUp and allUp report which companions of the request queue are usable.
	batchesUp, retryUp, deadUp, allUp atomic.Bool
	returned                          returnedCopies
	deferred                          deferredRequests
	controlResponses                  atomic.Int64 // unpublished responses of the control plane
	// exchangeFault is the fault of the request exchange that was logged last; nil: the exchange
	// is usable.
	exchangeFault atomic.Pointer[FaultKind]
	// unpacking has room for one token, which a consumer of a batch queue takes to unpack a batch.
	unpacking     chan struct{}
	shardRequests [MaxShards]atomic.Uint64
	retiring      retiringShards
	streams       serverStreams
	// adopted holds the names of the queues whose properties differ from the configuration.
	adopted sync.Map

	serving      atomic.Bool
	draining     chan struct{} // closed when the server starts no further request
	shutdown     chan struct{} // closed by Shutdown
	shutdownOnce sync.Once
	stopNow      chan struct{} // closed by Close
	closeOnce    sync.Once
	served       chan struct{} // closed when Serve has returned
	result       error         // of Serve, set before served is closed
}

// NewServer returns a server for the broker at url, which may be a comma-separated list of the
// nodes of a cluster. All invalid arguments are reported in one error. NewServer does no I/O;
// Serve does.
func NewServer(url string, opts ...ServerOption) (*Server, error) {
	cfg, err := newServerConfig(url, opts)
	if err != nil {
		return nil, err
	}
	return makeServer(cfg), nil
}

// makeServer returns a server that does not serve yet.
func makeServer(cfg *serverConfig) *Server {
	s := &Server{
		cfg:      cfg,
		methods:  make(map[string]*serverMethod),
		waiting:  xsync.NewQueue[task](queueRoom),
		outbox:   publish.NewOutbox(),
		load:     newLoad(cfg.workers),
		dedup:    newDedupCache(cfg.replayBytes, cfg.replayAge, cfg.dedupScope != nil),
		draining: make(chan struct{}),
		shutdown: make(chan struct{}),
		stopNow:  make(chan struct{}),
		served:   make(chan struct{}),
		self:     newInstance(),
		suspects: newSuspects(),
		nacked:   make(chan nackedToLog, 1),

		unpacking: make(chan struct{}, 1),
	}
	s.selfID = []byte(s.self.id)
	s.dedup.leaves = s.storeAnswers
	s.streams.init(cfg)
	s.callers = newCallers(cfg.callerLimits, cfg.workers, s.waiting, &s.load)
	sessions := cfg.sessions("server", false, &s.board, s.setup)
	sessions.Limits = cfg.limits()
	s.sup = transport.NewSupervisor(sessions)
	var mux *transport.Mux
	if cfg.shared != nil {
		mux = cfg.shared.direct
	}
	s.direct = newSideConnection(s, "server direct", mux, s.publishDirect)
	s.isolated = newSideConnection(s, "server isolated", nil, s.publishIsolated)
	return s
}

// Handle registers the handler of a method, before the call of Serve. A name that is empty,
// longer than 255 bytes or already registered, and a nil handler, are errors.
func (s *Server) Handle(name string, h Handler, opts ...HandleOption) error {
	if s == nil || s.cfg == nil {
		return misused(errNoServer)
	}
	return s.register(s.methods, name, h, s.deduplicate, opts)
}

// register adds a method to methods, which are those for calls or for streams. The middleware around
// is outside the limits of the method; it may be nil.
func (s *Server) register(methods map[string]*serverMethod, name string, h Handler, around Middleware, opts []HandleOption) error {
	switch {
	case s == nil || s.cfg == nil:
		return misused(errNoServer)
	case name == "" || len(name) > wire.MaxShortString:
		return fmt.Errorf("amqpx: method name of %d bytes: want 1 to %d", len(name), wire.MaxShortString)
	case h == nil:
		return fmt.Errorf("amqpx: method %q: no handler", name)
	case s.methods[name] != nil || s.streams.methods[name] != nil:
		return fmt.Errorf("amqpx: method %q is registered twice", name)
	case s.serving.Load():
		return fmt.Errorf("amqpx: method %q registered while serving", name)
	}
	m := &serverMethod{name: name, number: len(s.methods)}
	for i, o := range opts {
		if o == nil {
			return fmt.Errorf("amqpx: method %q: option %d is nil", name, i+1)
		}
		o(m)
	}
	if m.fault != nil {
		return fmt.Errorf("amqpx: method %q: %w", name, m.fault)
	}
	if m.slots != nil {
		h = m.slots.limit(h)
	}
	if around != nil {
		h = around(h)
	}
	wrapped, err := chain(h, s.cfg.middleware)
	if err != nil {
		return fmt.Errorf("amqpx: method %q: WithMiddleware: %w", name, err)
	}
	m.handler = Chain(wrapped, Recover(s.cfg.logger))
	methods[name] = m
	return nil
}

// Serve handles requests until ctx ends, and reconnects when the connection is lost. Then the
// server drains: it stops consuming, requeues requests without a worker, lets the handlers
// finish, waits for the confirms of their responses, and closes the connection. Serve returns
// nil after a clean drain, or [ErrDrainTimeout] if the drain timeout or Close cut off
// handlers: their contexts are canceled, and the broker delivers their requests to another
// server. Serve does not wait for stuck handlers ([WithMaxHandlerTime]). A server can serve
// only once, and not after [Server.Shutdown] or [Server.Close]: the error is [ErrClosed] then.
func (s *Server) Serve(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	if !s.serving.CompareAndSwap(false, true) {
		return errors.New("amqpx: Serve was called twice")
	}
	defer s.end()
	if s.isEnded() {
		s.result = serverClosedError{}
	} else {
		s.result = s.serve(ctx)
	}
	return s.result
}

// serve is Serve, once.
func (s *Server) serve(ctx context.Context) error {
	handlers, cancelHandlers := context.WithCancelCause(context.WithoutCancel(ctx))
	// The connection outlives ctx: if it is lost during the drain, the server dials again to
	// publish the responses.
	linked, unlink := context.WithCancel(context.WithoutCancel(ctx))
	var link sync.WaitGroup
	s.streams.base = handlers //nolint:fatcontext // the parent of the contexts of all handlers of streams.
	if len(s.methods)+len(s.streams.methods) == 0 {
		s.cfg.logger.Warn("server has no methods: it refuses every request", zap.String("queue", s.cfg.queue.Name))
	}
	for place := range s.cfg.workers {
		s.startWorker(handlers, place)
	}
	var watchdog sync.WaitGroup
	drained := make(chan struct{})
	if s.limitsHandlers() {
		s.startWatchdog(&watchdog, drained) //nolint:contextcheck // the contexts are those of the requests that run.
	}
	link.Go(func() { s.sup.Run(linked) }) // these goroutines end when unlink is called
	link.Go(func() { s.direct.run(linked) })
	link.Go(func() { s.isolated.run(linked) })
	defer s.delayed.Close()

	select {
	case <-ctx.Done():
	case <-s.shutdown:
	case <-s.stopNow:
	}
	close(s.draining) // before the status changes: a server with the status draining starts no request
	s.board.update(func(st *Status) { st.State = StateDraining })
	s.delayed.Flush()
	s.unpark(nil)
	if s.callers != nil {
		s.callers.openAll()
	}
	s.startWorker(handlers, s.cfg.workers) // requeues the waiting requests while every worker is busy
	err := s.drain(cancelHandlers)
	cancelHandlers(errServerStopped)
	s.endStreams()
	unlink()
	link.Wait()
	close(drained)
	watchdog.Wait()
	s.waiting.Close()
	if err == nil || s.track.Count() == 0 { // otherwise a handler ignores the end of its context
		<-s.workers.WhenIdle()
	}
	return err
}

// Close ends Serve without waiting for handlers: their contexts are canceled and their
// requests are delivered to another server. Close does not block; Serve returns soon after.
func (s *Server) Close() {
	if s != nil && s.stopNow != nil {
		s.closeOnce.Do(func() { close(s.stopNow) })
		s.endUnserved()
	}
}

// Status returns the status of the server's connection.
func (s *Server) Status() Status {
	if s == nil || s.sup == nil {
		return Status{State: StateClosed, Err: errNoServer}
	}
	return s.board.get()
}

// Watch returns a channel that receives the current status at once and then each change, until
// ctx ends or the status is [StateClosed]; then the channel is closed. A slow reader receives the
// newest status and misses the earlier changes.
func (s *Server) Watch(ctx context.Context) <-chan Status {
	if s == nil || s.sup == nil {
		return closedBoard(errNoServer).watchUntil(ctx)
	}
	return s.board.watchUntil(ctx)
}

// WaitReady waits until the server consumes. A fault that lasts until an operator acts, such as a
// missing permission, is returned at once ([Status.NeedsOperator], [FaultOf]); the server goes on
// trying to connect. If ctx ends first, the error wraps the error of ctx and the last fault of the
// connection.
func (s *Server) WaitReady(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	err := s.board.waitReady(ctx)
	if errors.Is(err, ErrClosed) {
		return serverClosedError{}
	}
	return err
}

// setup prepares a new session: queues, publisher, consumer. The consumer starts last, so no
// request arrives before the server can publish a response.
func (s *Server) setup(ctx context.Context, sess *transport.Session) error {
	if s.previous != nil {
		s.suspects.sessionEnded(s.previous.Cause)
	}
	s.previous = sess
	if s.cfg.userID {
		if err := s.user.verify(sess, s.cfg.logger); err != nil {
			return transport.AtStep(transport.StepVerifyUser, "", err)
		}
	}
	var difference string
	found, err := s.cfg.queue.declareOrAdopt(sess.Sub, func(reason string) { difference = reason })
	if err != nil {
		return err
	}
	if difference != "" {
		s.warnAdopted(s.cfg.queue, difference, againstBatches(found, s.cfg.queue))
	}
	companions := &companionSet{all: s.companions(found)}
	publish.Start(sess, s.outbox, 0, func(r amqp.Return) { s.returnedMessage(sess, companions, &r) })
	if err := s.startControl(sess); err != nil {
		return err
	}
	// A drain that begins now waits until it can end the subscriptions.
	s.track.Add(1)
	defer s.track.Done()
	sess.Run(func() { s.explainNacked(sess) })
	if s.isDraining() {
		return nil
	}
	main := newConsumer(s, sess)
	bindings := &requestBindings{}
	bound := s.startExchange(sess, bindings)
	s.startCompanions(ctx, main, companions.all, bindings)
	bound()
	s.retiring.reset()
	sess.Run(func() { s.findRetiring(main, companions, bindings) })
	sess.Run(func() { s.returnHome(main) }) //nolint:contextcheck // a session outlives the context of its set-up.
	s.startStreams(ctx, main)
	return main.start(s.cfg.queue.Name)
}

// returnHome ends a session away from the server's home node, after a while, if the home node
// serves the queue. The server first ends the requests that it has; meanwhile another server must
// consume the queue, or there are none.
func (s *Server) returnHome(main *consumer) {
	sess := main.sess
	for sess.AwaitReturn(s.cfg.returnHome) {
		if s.isDraining() {
			return
		}
		others, ok := s.consumersAt(sess)
		if !ok || others == 0 && s.inFlight.Load() > 0 || s.streams.count() > 0 {
			continue
		}
		leaving := main.departure.begin()
		if s.awaitLeave(sess) {
			return
		}
		main.departure.revoke(leaving)
	}
}

// leaveCheck is how often a server that leaves its node looks for another server.
const leaveCheck = time.Second

// awaitLeave ends the session for the home node once the server, which has ended its subscriptions,
// has no requests in hand. It returns false if the server must stay: its handlers need longer than a
// drain may take, or it has requests and no other server consumes the queue, because all of them leave
// at the same moment.
func (s *Server) awaitLeave(sess *transport.Session) (over bool) {
	limit, check := time.NewTimer(s.cfg.drainTimeout), time.NewTicker(leaveCheck)
	defer limit.Stop()
	defer check.Stop()
	idle := s.track.WhenIdle()
	for {
		select {
		case <-idle:
			if !s.isDraining() { // else the drain ends the session
				sess.Fail(transport.ErrReturnHome)
			}
			return true
		case <-sess.Done:
			return true
		case <-s.draining:
			return true
		case <-check.C:
			if s.isConsumed(sess) {
				continue
			}
			s.cfg.logger.Info("stays away from the home node: no other server consumes", zap.String("queue", s.cfg.queue.Name))
			return false
		case <-limit.C:
			s.cfg.logger.Info("stays away from the home node: the requests in hand take too long",
				zap.Int64("requests", s.inFlight.Load()), zap.Duration("limit", s.cfg.drainTimeout))
			return false
		}
	}
}

// isConsumed reports whether any server consumes the request queue; also true if the broker does not
// answer.
func (s *Server) isConsumed(sess *transport.Session) bool {
	consumers := 0
	answered := sess.InGoroutine(func() error {
		return transport.WithTempChannel(sess.Sub, func(ch transport.Channel) error {
			q, err := ch.QueueDeclarePassive(s.cfg.queue.Name, true, false, false, false, nil)
			consumers = q.Consumers
			return err
		})
	})
	timer := time.NewTimer(leaveCheck)
	defer timer.Stop()
	select {
	case err := <-answered:
		return err != nil || consumers > 0
	case <-timer.C:
	case <-sess.Done:
	}
	return true
}

// consumersAt asks the home node for the consumers of the request queue besides this server, on a
// new connection. A node that does not know this server's consumer is not of the same cluster, or
// on the other side of a partition.
func (s *Server) consumersAt(sess *transport.Session) (others int, ok bool) {
	ctx, cancel := withinSession(sess, s.cfg.dialTimeout)
	defer cancel()
	home, _, err := s.sup.Authorize(ctx, sess.Home)
	if err != nil {
		return 0, false
	}
	l, err := s.cfg.dialer.Dial(ctx, home.URL, s.cfg.name+" server check")
	if err != nil {
		return 0, false
	}
	defer l.Close()
	defer context.AfterFunc(ctx, l.Cut)()
	err = transport.WithTempChannel(l, func(ch transport.Channel) error {
		q, err := ch.QueueDeclarePassive(s.cfg.queue.Name, true, false, false, false, nil)
		others = q.Consumers - 1
		return err
	})
	return others, err == nil && others >= 0
}

// firstTime records a queue's name and reports whether it is new.
func (s *Server) firstTime(name string) bool {
	_, again := s.adopted.LoadOrStore(name, true)
	return !again
}

// errQueueMissing: the broker returned a copy of a request because a queue is missing. For the
// request queue the session ends; a companion is declared again.
var errQueueMissing error = &transport.KindError{Kind: FaultQueueDeleted, Cause: errors.New("a request could not be moved to it")}

// warnAdopted logs, once for each queue, the use of a queue with other properties. noBatches
// is the queue argument because of which the server takes no batches, or "".
func (s *Server) warnAdopted(q Queue, difference, noBatches string) {
	if !s.firstTime(q.Name) {
		return
	}
	fields := []zap.Field{
		zap.String("queue", q.Name), zap.String("wanted_type", string(q.Type)),
		zap.Bool("wanted_durable", !q.Transient), zap.String("difference", difference),
	}
	if noBatches != "" {
		fields = append(fields, zap.String("no_batches", "requests in batches would escape "+noBatches))
	}
	s.cfg.logger.Warn("queue exists with other properties and is used as it is", fields...)
}

// hardStopGrace is how long handlers have to return once their contexts are canceled. Serve
// does not wait longer for a handler.
const hardStopGrace = time.Second

// errServerStopped is the cause of a handler's context that a hard stop canceled.
var errServerStopped = errors.New("the server was stopped")

// drain finishes the work in progress within the drain timeout: consumers end, requests
// without a worker are requeued, handlers finish, their responses are confirmed and their
// requests acknowledged.
func (s *Server) drain(cancelHandlers context.CancelCauseFunc) error {
	begun := time.Now()
	timer := time.NewTimer(s.cfg.drainTimeout)
	defer timer.Stop()
	if s.awaitIdle(timer.C) {
		s.cfg.logger.Info("drained", zap.Duration("took", time.Since(begun)))
		return nil
	}
	cut := s.Stats().InFlight + uint64(s.streams.count()) //nolint:gosec // a count is never negative.
	sess := s.sup.Current()
	s.cfg.logger.Warn("drain cut short", zap.Uint64("unfinished", cut), zap.Duration("took", time.Since(begun)),
		zap.Int("not_published", s.outbox.Len()+s.direct.outbox.Len()+s.isolated.outbox.Len()),
		zap.Bool("blocked", sess != nil && sess.Flow.Unblocked() != nil))
	cancelHandlers(errServerStopped)
	grace := time.NewTimer(hardStopGrace)
	defer grace.Stop()
	select {
	case <-s.track.WhenIdle():
	case <-grace.C:
	}
	if cut == 0 {
		return nil
	}
	return fmt.Errorf("amqpx: %w: %d unfinished", ErrDrainTimeout, cut)
}

// awaitIdle waits until no work is in progress, and returns false if timeout fires first, or
// if Close is called.
func (s *Server) awaitIdle(timeout <-chan time.Time) bool {
	updates, stop := s.board.watch() // receives the status at once, and when the broker blocks publishing
	defer stop()
	idle := s.track.WhenIdle()
	for {
		select {
		case <-idle:
			return true
		case _, ok := <-updates:
			if !ok {
				updates = nil
			}
			s.cancelRepublishing()
		case <-timeout:
			return false
		case <-s.stopNow:
			return false
		}
	}
}

// requeueCopy publishes a copy of an unstarted request to the request's queue and then
// acknowledges the original: the broker would mark a requeued original as redelivered,
// although no handler got the request. A request with the redelivered mark is requeued itself.
// requeueCopy first waits until the consumer is canceled: before, the broker could deliver the
// copy to this server.
func (s *Server) requeueCopy(req *inboundRequest) {
	consumers := []*consumer{req.delivery.consumer}
	if req.delivery.batched { // the copy goes to the request queue
		if requests := req.delivery.consumer.requests(); requests != nil {
			consumers = append(consumers, requests)
		}
	}
	own := req.delivery.consumer
	for _, c := range consumers {
		select {
		case <-c.silence():
		case <-c.canceled: // the broker has ended the subscription
		case <-c.done: // the channel of another consumer has ended, and the subscription with it
			if c == own {
				req.leaveUnacked() // the broker delivers the request again
				return
			}
		case <-own.done:
			req.leaveUnacked()
			return
		}
	}
	s.counts.requeued.Add(1)
	msg, err := clonePublishing(req)
	if err == nil {
		err = transport.FitFrame(&msg, req.delivery.consumer.sess.Pub.FrameSize())
	}
	if err != nil || req.delivery.message.Redelivered {
		req.requeue()
		return
	}
	s.republish(req, req.delivery.queue, msg, req.ack)
}

// isDraining reports whether the server must not start further requests. This holds from the
// moment Close is called, before Serve has noticed.
func (s *Server) isDraining() bool {
	select {
	case <-s.draining:
		return true
	case <-s.stopNow:
		return true
	default:
		return false
	}
}
