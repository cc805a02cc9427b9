package amqpx

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

// Server answers the calls that arrive on a request queue. Several servers, on any
// number of machines, share one queue: the broker spreads the requests. Handle is
// called before Serve; the other methods are safe for any number of goroutines.
type Server struct {
	cfg     *serverConfig
	sup     *supervisor
	methods map[string]Handler
	jobs    chan *job
	outbox  chan outgoing
	track   tracker // consumers and unsettled requests
	// consumers is how many of track's are consumers.
	consumers atomic.Int64
	counts    serverCounts
	adopted   sync.Once // warns once of a queue with other properties

	serving   atomic.Bool
	draining  chan struct{} // closed when no further request is started
	stopNow   chan struct{} // closed by Close
	closeOnce sync.Once
	quit      chan struct{} // closed when the workers are to end
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
		methods:  make(map[string]Handler),
		jobs:     make(chan *job, cfg.prefetch),
		outbox:   make(chan outgoing, outboxSize),
		draining: make(chan struct{}),
		stopNow:  make(chan struct{}),
		quit:     make(chan struct{}),
	}
	s.sup = newSupervisor(&cfg.config, "server", false, s.setup)
	return s, nil
}

// Handle registers the handler of a method, before Serve is called. A name that is
// empty, longer than 255 bytes or taken, and a nil handler, are errors.
func (s *Server) Handle(method string, h Handler) error {
	switch {
	case method == "" || len(method) > maxShortString:
		return fmt.Errorf("amqpx: method name of %d bytes: want 1 to %d", len(method), maxShortString)
	case h == nil:
		return fmt.Errorf("amqpx: method %q: no handler", method)
	case s.methods[method] != nil:
		return fmt.Errorf("amqpx: method %q is registered twice", method)
	case s.serving.Load():
		return fmt.Errorf("amqpx: method %q registered while serving", method)
	}
	recovered := Recover(s.cfg.logger)
	s.methods[method] = Chain(h, append([]Middleware{recovered}, s.cfg.middleware...)...)
	return nil
}

// Serve answers calls until ctx ends, over every loss of the link. Then it drains:
// it stops consuming, gives back what no worker has started, lets the handlers
// finish, waits until the broker has their answers, and closes the link. It returns
// nil after a clean drain and [ErrDrainTimeout] when the time limit, or Close, cut
// off handlers: their contexts were cancelled, and the broker hands their requests
// to another server. A server serves once.
func (s *Server) Serve(ctx context.Context) error {
	if !s.serving.CompareAndSwap(false, true) {
		return errors.New("amqpx: Serve was called twice")
	}
	handlers, cancelHandlers := context.WithCancelCause(context.WithoutCancel(ctx))
	// The link outlives ctx: lost during the drain, it is dialed again for the answers.
	linked, unlink := context.WithCancel(context.WithoutCancel(ctx))
	var workers, link sync.WaitGroup
	for range s.cfg.workers {
		workers.Go(func() { s.work(handlers) }) // ends when quit is closed
	}
	link.Go(func() { s.sup.run(linked) }) // ends when unlink is called

	select {
	case <-ctx.Done():
	case <-s.stopNow:
	}
	s.sup.board.update(func(st *Status) { st.State = StateDraining })
	close(s.draining)
	workers.Go(func() { s.work(handlers) }) // gives back what waits while every worker is busy
	err := s.drain(cancelHandlers)
	cancelHandlers(errServerStopped)
	unlink()
	link.Wait()
	close(s.quit)
	if err == nil {
		workers.Wait()
	}
	return err
}

// Close ends Serve without waiting for handlers: their contexts are cancelled and
// their requests go to another server. It does not wait; Serve returns soon.
func (s *Server) Close() { s.closeOnce.Do(func() { close(s.stopNow) }) }

// Status returns where the link stands.
func (s *Server) Status() Status { return s.sup.board.get() }

// Watch returns a channel that at once receives the status and then each change.
// A reader that is slow sees the newest and misses what was between. The channel
// is never closed; stop ends the watch.
func (s *Server) Watch() (updates <-chan Status, stop func()) { return s.sup.board.watch() }

// WaitReady waits until the server consumes. When ctx ends first, the error holds
// ctx's and the link's last fault.
func (s *Server) WaitReady(ctx context.Context) error { return s.sup.waitReady(ctx) }

// setup makes a new session serve: queue, publisher, consumer. Consuming comes
// last, so no request arrives before its answer can leave.
func (s *Server) setup(_ context.Context, sess *session) error {
	warn := func(reason string) {
		s.adopted.Do(func() {
			s.cfg.logger.Warn("queue exists with other properties and is used as it is",
				zap.String("queue", s.cfg.queue.Name), zap.String("wanted_type", string(s.cfg.queue.Type)),
				zap.Bool("wanted_durable", s.cfg.queue.Durable), zap.String("difference", reason))
		})
	}
	if err := s.cfg.queue.declareOrAdopt(sess.sub, warn); err != nil {
		return err
	}
	if err := sess.subCh.Qos(s.cfg.prefetch, 0, false); err != nil {
		return err
	}
	startPublisher(sess, s.outbox, func(amqp.Return) {}) // answers are not mandatory
	if s.isDraining() {
		return nil
	}
	return newConsumer(s, sess).start()
}
