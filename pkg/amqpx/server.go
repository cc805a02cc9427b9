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
)

// Server answers the calls that arrive on a request queue. Several servers, on any
// number of machines, share one queue: the broker spreads the requests. Handle is
// called before Serve; the other methods are safe for any number of goroutines.
type Server struct {
	cfg     *serverConfig
	sup     *supervisor
	methods map[string]*serverMethod
	jobs    *jobQueue
	outbox  *outbox
	workers idleTracker // but for those that are stuck
	load    load
	stuck   stuckHandlers
	dedup   dedupStore
	user    brokerUser  // of copies of requests
	track   idleTracker // consumers and unsettled requests
	moves   idleTracker // counted copies whose originals are not acknowledged
	// consumers and parcels are how many of track's are no requests.
	consumers, parcels atomic.Int64
	counts             serverCounts
	self               instance
	unknown            unknownMethods // to this server
	pings              selfPings
	// direct and isolated are the connections for messages that must not harm the
	// session's; see server_side_connection.go.
	direct, isolated *sideConnection
	suspects         *suspects
	delayed          delayed
	logs             serverLogs
	nacked           chan nackedToLog // nacked responses of which the reason is to be found
	previous         *session         // the one before, of setup
	// batchesUp, retryUp and deadUp say which companions of the request queue are there.
	batchesUp, retryUp, deadUp atomic.Bool
	returned                   returnedCopies
	deferred                   deferredRequests
	controlAnswers             atomic.Int64 // on their way
	// adopted names the queues that were used with other properties.
	adopted sync.Map

	serving   atomic.Bool
	draining  chan struct{} // closed when no further request is started
	stopNow   chan struct{} // closed by Close
	closeOnce sync.Once
}

// NewServer returns a server for the broker at url, which may be a comma-separated
// list of the nodes of a cluster. It reports every fault of its arguments at once
// and does no I/O; Serve does.
func NewServer(url string, opts ...ServerOption) (*Server, error) {
	cfg, err := newServerConfig(url, opts)
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg:      cfg,
		methods:  make(map[string]*serverMethod),
		jobs:     newJobQueue(),
		outbox:   newOutbox(),
		load:     newLoad(cfg.workers),
		dedup:    newDedupCache(cfg.replayBytes, cfg.replayAge, cfg.dedupScope != nil),
		draining: make(chan struct{}),
		stopNow:  make(chan struct{}),
		self:     newInstance(),
		suspects: newSuspects(),
		nacked:   make(chan nackedToLog, 1),
	}
	s.sup = newSupervisor(&cfg.config, "server", false, s.setup)
	s.direct = newSideConnection(s, "server direct", s.publishDirect)
	s.isolated = newSideConnection(s, "server isolated", s.publishIsolated)
	return s, nil
}

// Handle registers the handler of a method, before Serve is called. A name that is
// empty, longer than 255 bytes or taken, and a nil handler, are errors.
func (s *Server) Handle(name string, h Handler, opts ...HandleOption) error {
	switch {
	case s == nil || s.cfg == nil:
		return misused(errNoServer)
	case name == "" || len(name) > maxShortString:
		return fmt.Errorf("amqpx: method name of %d bytes: want 1 to %d", len(name), maxShortString)
	case h == nil:
		return fmt.Errorf("amqpx: method %q: no handler", name)
	case s.methods[name] != nil:
		return fmt.Errorf("amqpx: method %q is registered twice", name)
	case s.serving.Load():
		return fmt.Errorf("amqpx: method %q registered while serving", name)
	}
	wrapped, err := chain(s.deduplicate(h), s.cfg.middleware)
	if err != nil {
		return fmt.Errorf("amqpx: method %q: WithMiddleware: %w", name, err)
	}
	m := &serverMethod{name: name, known: make(executionTable), handler: Chain(wrapped, Recover(s.cfg.logger))}
	for i, o := range opts {
		if o == nil {
			return fmt.Errorf("amqpx: method %q: option %d is nil", name, i+1)
		}
		o(m)
	}
	s.methods[name] = m
	return nil
}

// Serve answers calls until ctx ends, over every loss of the link. Then it drains:
// it stops consuming, gives back what no worker has started, lets the handlers
// finish, waits until the broker has their answers, and closes the link. It returns
// nil after a clean drain and [ErrDrainTimeout] when the time limit, or Close, cut
// off handlers: their contexts were cancelled, and the broker hands their requests
// to another server. Handlers that are stuck ([WithMaxHandlerTime]) are not waited for. A
// server serves once.
func (s *Server) Serve(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	if !s.serving.CompareAndSwap(false, true) {
		return errors.New("amqpx: Serve was called twice")
	}
	handlers, cancelHandlers := context.WithCancelCause(context.WithoutCancel(ctx))
	// The link outlives ctx: lost during the drain, it is dialed again for the answers.
	linked, unlink := context.WithCancel(context.WithoutCancel(ctx))
	var link sync.WaitGroup
	if len(s.methods) == 0 {
		s.cfg.logger.Warn("server has no methods: it refuses every request", zap.String("queue", s.cfg.queue.Name))
	}
	for place := range s.cfg.workers {
		s.startWorker(handlers, place)
	}
	var watchdog sync.WaitGroup
	drained := make(chan struct{})
	if s.cfg.maxHandlerTime > 0 {
		s.startWatchdog(&watchdog, drained) //nolint:contextcheck // the contexts are those of the requests that run.
	}
	link.Go(func() { s.sup.run(linked) }) // these end when unlink is called
	link.Go(func() { s.direct.run(linked) })
	link.Go(func() { s.isolated.run(linked) })
	defer s.delayed.close()

	select {
	case <-ctx.Done():
	case <-s.stopNow:
	}
	close(s.draining) // before it is shown: a server that says so starts nothing more
	s.sup.board.update(func(st *Status) { st.State = StateDraining })
	s.delayed.flush()
	s.startWorker(handlers, s.cfg.workers) // gives back what waits while every worker is busy
	err := s.drain(cancelHandlers)
	cancelHandlers(errServerStopped)
	unlink()
	link.Wait()
	close(drained)
	watchdog.Wait()
	s.jobs.close()
	if err == nil {
		<-s.workers.whenIdle()
	}
	return err
}

// Close ends Serve without waiting for handlers: their contexts are cancelled and
// their requests go to another server. It does not wait; Serve returns soon.
func (s *Server) Close() {
	if s != nil && s.stopNow != nil {
		s.closeOnce.Do(func() { close(s.stopNow) })
	}
}

// Status returns where the link stands.
func (s *Server) Status() Status {
	if s == nil || s.sup == nil {
		return Status{State: StateClosed, Err: errNoServer}
	}
	return s.sup.board.get()
}

// Watch returns a channel that at once receives the status and then each change.
// A reader that is slow sees the newest and misses what was between. The channel
// is never closed; stop ends the watch.
func (s *Server) Watch() (updates <-chan Status, stop func()) {
	if s == nil || s.sup == nil {
		return closedBoard(errNoServer).watch()
	}
	return s.sup.board.watch()
}

// WaitReady waits until the server consumes. When ctx ends first, the error holds
// ctx's and the link's last fault.
func (s *Server) WaitReady(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	err := s.sup.waitReady(ctx)
	if errors.Is(err, ErrClosed) {
		return serverClosedError{}
	}
	return err
}

// setup makes a new session serve: queues, publisher, consumer. Consuming comes
// last, so no request arrives before its answer can leave.
func (s *Server) setup(ctx context.Context, sess *session) error {
	if s.previous != nil {
		s.suspects.sessionEnded(s.previous.cause)
	}
	s.previous = sess
	if s.cfg.userID {
		if err := s.user.verify(sess, s.cfg.logger); err != nil {
			return atStep(stepVerifyUser, "", err)
		}
	}
	var difference string
	found, err := s.cfg.queue.declareOrAdopt(sess.sub, func(reason string) { difference = reason })
	if err != nil {
		return err
	}
	if difference != "" {
		s.warnAdopted(s.cfg.queue, difference, found.againstBatches(s.cfg.queue))
	}
	companions := s.companions(found)
	startPublisher(sess, s.outbox, func(r amqp.Return) { s.returnedMessage(sess, companions, &r) })
	if err := s.startControl(sess); err != nil {
		return err
	}
	// A drain that begins now waits until it can end the subscriptions.
	s.consumers.Add(1)
	s.track.add(1)
	defer s.consumers.Add(-1)
	defer s.track.done()
	sess.run(func() { s.explainNacked(sess) })
	if s.isDraining() {
		return nil
	}
	main := newConsumer(s, sess)
	s.startCompanions(ctx, main, companions)
	return main.start(s.cfg.queue.Name)
}

// firstTime reports whether a name was not told of yet.
func (s *Server) firstTime(name string) bool {
	_, again := s.adopted.LoadOrStore(name, true)
	return !again
}

// errQueueMissing ends a session that could not move a request.
var errQueueMissing error = &kindError{FaultQueueDeleted, errors.New("a request could not be moved to it")}

// warnAdopted logs, once, that a queue is used as it is. noBatches is the argument because
// of which the server takes no batches, or "".
func (s *Server) warnAdopted(q Queue, difference, noBatches string) {
	if !s.firstTime(q.Name) {
		return
	}
	fields := []zap.Field{
		zap.String("queue", q.Name), zap.String("wanted_type", string(q.Type)),
		zap.Bool("wanted_durable", q.Durable), zap.String("difference", difference),
	}
	if noBatches != "" {
		fields = append(fields, zap.String("no_batches", "requests in batches would escape "+noBatches))
	}
	s.cfg.logger.Warn("queue exists with other properties and is used as it is", fields...)
}

// hardStopGrace is how long handlers have to return once their contexts are
// cancelled. A handler that takes longer is left behind.
const hardStopGrace = time.Second

// errServerStopped is the cause of a handler's context that a hard stop cancelled.
var errServerStopped = errors.New("the server was stopped")

// drain finishes what was begun, within the time limit: consumers end, requests
// that no worker started go back to the queue, handlers finish, their answers are
// confirmed, their requests acknowledged.
func (s *Server) drain(cancelHandlers context.CancelCauseFunc) error {
	begun := time.Now()
	timer := time.NewTimer(s.cfg.drainTimeout)
	defer timer.Stop()
	if s.awaitIdle(timer.C) {
		s.cfg.logger.Info("drained", zap.Duration("took", time.Since(begun)))
		return nil
	}
	cut := s.Stats().InFlight
	sess := s.sup.current()
	s.cfg.logger.Warn("drain cut short", zap.Uint64("unfinished", cut), zap.Duration("took", time.Since(begun)),
		zap.Int("not_published", s.outbox.len()+s.direct.outbox.len()+s.isolated.outbox.len()),
		zap.Bool("blocked", sess != nil && sess.flow.unblocked() != nil))
	cancelHandlers(errServerStopped)
	grace := time.NewTimer(hardStopGrace)
	defer grace.Stop()
	select {
	case <-s.track.whenIdle():
	case <-grace.C:
	}
	if cut == 0 {
		return nil
	}
	return fmt.Errorf("amqpx: %w: %d unfinished", ErrDrainTimeout, cut)
}

// awaitIdle waits until nothing is under way; false means that the time is over, or that Close
// was called.
func (s *Server) awaitIdle(timeout <-chan time.Time) bool {
	updates, stop := s.sup.board.watch() // the status at once, and when the broker blocks publishing
	defer stop()
	idle := s.track.whenIdle()
	for {
		select {
		case <-idle:
			return true
		case <-updates:
			s.cancelRepublishing()
		case <-timeout:
			return false
		case <-s.stopNow:
			return false
		}
	}
}

// requeueCopy returns a request that was not started to its queue, as a copy: the
// original would be marked as handed out, which it was not to any handler. One that
// has that mark already keeps it. It waits until the consumer has ended: before that
// the broker may hand it right back.
func (s *Server) requeueCopy(j *job) {
	consumers := []*consumer{j.from}
	if j.parcel != nil { // its copy goes to the request queue
		consumers = append(consumers, j.from.main)
	}
	for _, c := range consumers {
		select {
		case <-c.silent:
		case <-j.from.done:
			j.finish() // the broker hands it out again
			return
		}
	}
	s.counts.returned.Add(1)
	msg, err := clonePublishing(j)
	if err == nil {
		err = fitFrame(&msg, j.from.sess.pub.frameSize())
	}
	if err != nil || j.delivery.Redelivered {
		j.requeue()
		return
	}
	s.republish(j, j.queue, msg, j.ack)
}

// isDraining reports whether no further request may be started. That holds from the moment
// Close is called, before Serve has noticed.
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
