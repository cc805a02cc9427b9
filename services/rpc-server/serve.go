package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/health"
	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/internal/service"
	"rabbitmq-rpc/pkg/amqpx"
)

// httpStopTimeout limits the wait, at the end, for health checks in progress.
const httpStopTimeout = time.Second

// errForced is returned if a second signal ended the drain early.
var errForced = errors.New("stopped by a second signal before the drain was done")

// serve runs the server until drain ends and all requests in progress are finished, or until
// force ends.
func serve(drain, force context.Context, settings *Config, logger *zap.Logger) error {
	stopTraces, err := settings.StartTraces(drain, force, name, logger)
	if err != nil {
		return err
	}
	defer stopTraces()
	rules, err := newAuthorization(settings, logger)
	if err != nil { // the file has changed since the settings were read
		return lifecycle.ConfigError(fmt.Errorf("%s: %w", authorizationVariable, err))
	}
	server, shows, err := newServer(settings, settings.options(rules, logger))
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
	stopHTTP, err := settings.StartHTTP(drain, force, listener, server, httpStopTimeout, logger, shows...)
	if err != nil {
		return err
	}
	defer stopHTTP()
	watched, unwatch := context.WithCancel(force)
	defer rules.watch(watched)()
	defer unwatch()
	logger.Info("server starts", service.StartFields(logger, settings, listener.Addr())...)
	return serveUntil(drain, force, server, logger)
}

// check creates a server from the settings, without a connection, to find faults that
// config.Load cannot find.
func check(settings *Config) error {
	server, _, err := newServer(settings, settings.options(nil, zap.NewNop()))
	if err != nil {
		return lifecycle.ConfigError(err)
	}
	server.Close()
	return nil
}

// runnable is the part of [amqpx.Server] that runs and stops a server.
type runnable interface {
	Serve(ctx context.Context) error
	Close()
	Stats() amqpx.ServerStats
}

func serveUntil(drain, force context.Context, server runnable, logger *zap.Logger) error {
	defer context.AfterFunc(force, server.Close)()
	err := server.Serve(drain)
	stats := server.Stats()
	logger.Info("server stopped", zap.Uint64("requests", stats.Requests), zap.Uint64("ok", stats.OK),
		zap.Uint64("failed", stats.Failed), zap.Uint64("refused", stats.Refused), zap.Uint64("expired", stats.Expired),
		zap.Uint64("shed", stats.Shed), zap.Uint64("replayed", stats.Replayed), zap.Uint64("republished", stats.Republished),
		zap.Uint64("dead", stats.Dead), zap.Uint64("requeued", stats.Requeued), zap.Uint64("in_flight", stats.InFlight), zap.Error(err))
	if force.Err() != nil {
		return errors.Join(errForced, err)
	}
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}
