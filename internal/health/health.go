// Package health reports over HTTP whether a service is alive, is ready and can reach the
// broker, and serves its metrics.
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

// Source reports the state of the connection to the broker; [amqpx.Client] and [amqpx.Server]
// implement it.
type Source interface {
	Status() amqpx.Status
}

// Handlers reports the statistics of a server's handlers; [amqpx.Server] implements it.
type Handlers interface {
	Stats() amqpx.ServerStats
}

// service is the service that a [Server] reports on.
type service struct {
	source   Source
	handlers Handlers            // nil: no handlers
	pinger   Pinger              // nil: no /pingz
	metrics  prometheus.Gatherer // nil: no /metrics
}

// Option extends the responses of a [Server].
type Option func(*service)

// WithMetrics adds /metrics, which serves the given metrics; [NewRegistry] returns a suitable
// registry. Nil adds nothing.
func WithMetrics(metrics prometheus.Gatherer) Option {
	return func(s *service) { s.metrics = metrics }
}

// WithHandlers adds the number of stuck handlers to /readyz. A server is not ready while stuck
// handlers occupy workers, that is, after every possible replacement worker was started. Nil
// adds nothing.
func WithHandlers(handlers Handlers) Option {
	return func(s *service) { s.handlers = handlers }
}

// WithPinger adds /pingz, which makes round trips with pinger. Nil adds nothing.
func WithPinger(pinger Pinger) Option { return func(s *service) { s.pinger = pinger } }

const (
	// readLimit limits the time in which a request must arrive.
	readLimit = 5 * time.Second
	// writeLimit limits the time for the rest of the request. It equals the default timeout of
	// a scraper, and a ping takes less.
	writeLimit = 10 * time.Second
	// idleLimit lets a scraper with an interval of a minute keep its connection.
	idleLimit = 75 * time.Second
)

// Server responds to GET /livez and /readyz, and, if enabled, to /pingz and /metrics. Create
// it with [Start].
type Server struct {
	http   http.Server
	addr   net.Addr
	stop   context.CancelFunc // ends the goroutines beside requests
	serves sync.WaitGroup
}

// Listen listens on addr, for Start. A failure is an error of the configuration.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, lifecycle.ConfigError(fmt.Errorf("HTTP_ADDR: %w", err))
	}
	return listener, nil
}

// Start serves the state of source on listener until Stop.
func Start(ctx context.Context, listener net.Listener, source Source, logger *zap.Logger, opts ...Option) (*Server, error) {
	answered := service{source: source}
	for _, o := range opts {
		o(&answered)
	}
	// Errors of HTTP clients are of no concern to the service.
	errorLog, err := zap.NewStdLogAt(logger, zap.DebugLevel)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("health server's log: %w", err), listener.Close())
	}
	// A service responds also while it drains, so this context ends with Stop and not with
	// ctx.
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Server{addr: listener.Addr(), stop: stop}
	var pings *pings
	if answered.pinger != nil {
		pings = newPings(answered.pinger)
		s.serves.Go(func() { pings.run(ctx) }) // ends with ctx, which Stop ends; Stop waits
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

// Addr returns the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.addr }

// Stop cancels a ping in progress, waits for other responses in progress until ctx ends, and
// then closes all connections.
func (s *Server) Stop(ctx context.Context) {
	s.stop()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	s.serves.Wait()
}
