// Package health tells over HTTP whether a service lives and can work.
package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/pkg/amqpx"
)

// Source tells the state of the link to the broker; [amqpx.Client] and
// [amqpx.Server] are sources.
type Source interface {
	Status() amqpx.Status
}

// limit bounds every part of one exchange over HTTP.
const limit = 5 * time.Second

// Server answers GET /livez and GET /readyz. Make one with [Start].
type Server struct {
	http   http.Server
	addr   net.Addr
	serves sync.WaitGroup
}

// Start listens on addr and answers for source until Stop. An address that cannot
// be listened on is an error of the configuration.
func Start(ctx context.Context, addr string, source Source, logger *zap.Logger) (*Server, error) {
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, lifecycle.ConfigError(fmt.Errorf("HTTP_ADDR: %w", err))
	}
	// What clients of the HTTP server do wrong is no concern of the service.
	errorLog, err := zap.NewStdLogAt(logger, zap.DebugLevel)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("health server's log: %w", err), listener.Close())
	}
	s := &Server{addr: listener.Addr()}
	s.http = http.Server{
		Handler:           routes(source),
		ReadHeaderTimeout: limit,
		ReadTimeout:       limit,
		WriteTimeout:      limit,
		IdleTimeout:       limit,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          errorLog,
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

// Stop waits for running answers until ctx ends, then cuts them off.
func (s *Server) Stop(ctx context.Context) {
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	s.serves.Wait()
}

func routes(source Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, map[string]string{"state": "alive"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		status := source.Status()
		code := http.StatusServiceUnavailable
		if status.Ready() {
			code = http.StatusOK
		}
		write(w, code, report(status))
	})
	return mux
}

func write(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false) // people read it, browsers do not
	// An error here means that whoever asked has gone.
	_ = encoder.Encode(body)
}
