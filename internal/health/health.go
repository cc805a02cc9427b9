// Package health tells over HTTP whether a service lives, can work and gets through, and
// what it counts.
package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/pkg/amqpx"
)

// Source tells the state of the link to the broker; [amqpx.Client] and
// [amqpx.Server] are sources.
type Source interface {
	Status() amqpx.Status
}

// Handlers tells of the handlers of a server; [amqpx.Server] does.
type Handlers interface {
	Stats() amqpx.ServerStats
}

// service is what a [Server] answers for.
type service struct {
	source   Source
	handlers Handlers            // nil: there are none
	pinger   Pinger              // nil: no /pingz
	metrics  prometheus.Gatherer // nil: no /metrics
}

// Option adds something to what a [Server] answers.
type Option func(*service)

// WithMetrics adds /metrics, which shows what metrics has; [NewRegistry] makes some. Nil
// adds nothing.
func WithMetrics(metrics prometheus.Gatherer) Option {
	return func(s *service) { s.metrics = metrics }
}

// WithHandlers has /readyz tell of stuck handlers, and say that a server is not ready while
// they hold workers: every worker that may be started in their place was started. Nil adds
// nothing.
func WithHandlers(handlers Handlers) Option {
	return func(s *service) { s.handlers = handlers }
}

// WithPinger adds /pingz, for which pinger makes round trips. Nil adds nothing.
func WithPinger(pinger Pinger) Option { return func(s *service) { s.pinger = pinger } }

const (
	// readLimit bounds how long a request may take to arrive.
	readLimit = 5 * time.Second
	// writeLimit bounds everything after that; a scraper waits no longer by default, and
	// a ping takes less.
	writeLimit = 10 * time.Second
	// idleLimit lets a scraper that comes once a minute keep its connection.
	idleLimit = 75 * time.Second
)

// Server answers GET /livez and /readyz, and /pingz and /metrics if it is told to. Make
// one with [Start].
type Server struct {
	http   http.Server
	addr   net.Addr
	stop   context.CancelFunc // of what goes on beside requests
	serves sync.WaitGroup
}

// Listen listens on addr, for Start. An address that cannot be listened on is an error of
// the configuration.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, lifecycle.ConfigError(fmt.Errorf("HTTP_ADDR: %w", err))
	}
	return listener, nil
}

// Start answers for source on listener until Stop.
func Start(ctx context.Context, listener net.Listener, source Source, logger *zap.Logger, opts ...Option) (*Server, error) {
	answered := service{source: source}
	for _, o := range opts {
		o(&answered)
	}
	// What clients of the HTTP server do wrong is no concern of the service.
	errorLog, err := zap.NewStdLogAt(logger, zap.DebugLevel)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("health server's log: %w", err), listener.Close())
	}
	// A service that drains still answers, so this outlives ctx and ends with Stop.
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Server{addr: listener.Addr(), stop: stop}
	var pings *pings
	if answered.pinger != nil {
		pings = newPings(answered.pinger)
		s.serves.Go(func() { pings.run(ctx) }) // ends with ctx, which Stop ends and awaits
	}
	s.http = http.Server{
		Handler:           routes(answered, pings, logger),
		ReadHeaderTimeout: readLimit,
		ReadTimeout:       readLimit,
		WriteTimeout:      writeLimit,
		IdleTimeout:       idleLimit,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          errorLog,
		ConnState:         newConnections(maxConnections).note,
	}
	// Ends when Stop shuts the server down.
	s.serves.Go(func() {
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			logger.Error("health server ended", zap.Error(err))
		}
	})
	return s, nil
}

// Addr is the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.addr }

// Stop ends a ping that is under way, waits for running answers until ctx ends, then
// cuts them off.
func (s *Server) Stop(ctx context.Context) {
	s.stop()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	s.serves.Wait()
}
