package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/health"
	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/internal/logging"
	"rabbitmq-rpc/pkg/amqpx"
)

// httpStopTimeout limits the wait, at the end, for health checks in progress.
const httpStopTimeout = time.Second

// errForced is returned if a second signal ended the drain early.
var errForced = errors.New("stopped by a second signal before the drain was done")

// serve runs the server until drain ends and all requests in progress are finished, or until
// force ends.
func serve(drain, force context.Context, settings *Config, logger *zap.Logger) error {
	server, shows, err := newServer(settings, settings.options(logger))
	if err != nil {
		return lifecycle.ConfigError(err)
	}
	defer server.Close()
	if err := register(server); err != nil {
		return fmt.Errorf("register functions: %w", err)
	}
	listener, err := health.Listen(drain, settings.HTTP.Addr)
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	probes, err := health.Start(drain, listener, server, logger, shows...)
	if err != nil {
		return err
	}
	defer func() {
		// Ends early when force ends.
		ctx, cancel := context.WithTimeout(force, httpStopTimeout)
		defer cancel()
		probes.Stop(ctx)
	}()
	defer health.WatchCertificate(force, settings.AMQP.CertificateEnd, logger)()
	logger.With(logging.StartFields(logger, settings.Log, settings)...).Info("server starts", zap.Stringer("broker", settings.AMQP.URL),
		zap.String("queue", settings.Queue.Name), zap.Stringer("http_addr", probes.Addr()))
	return serveUntil(drain, force, server, logger)
}

// check creates a server from the settings, without a connection, to find faults that
// config.Load cannot find.
func check(settings *Config) error {
	server, _, err := newServer(settings, settings.options(zap.NewNop()))
	if err != nil {
		return lifecycle.ConfigError(err)
	}
	server.Close()
	return nil
}

// service is the part of [amqpx.Server] that runs and stops a server.
type service interface {
	Serve(ctx context.Context) error
	Close()
	Stats() amqpx.ServerStats
}

func serveUntil(drain, force context.Context, server service, logger *zap.Logger) error {
	defer context.AfterFunc(force, server.Close)()
	err := server.Serve(drain)
	stats := server.Stats()
	logger.Info("server stopped", zap.Uint64("requests", stats.Requests), zap.Uint64("ok", stats.OK),
		zap.Uint64("failed", stats.Failed), zap.Uint64("refused", stats.Refused), zap.Uint64("expired", stats.Expired),
		zap.Uint64("shed", stats.Shed), zap.Uint64("replayed", stats.Replayed), zap.Uint64("moved", stats.Moved),
		zap.Uint64("dead", stats.Dead), zap.Uint64("returned", stats.Returned), zap.Uint64("in_flight", stats.InFlight), zap.Error(err))
	if force.Err() != nil {
		return errors.Join(errForced, err)
	}
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}
