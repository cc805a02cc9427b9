package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/internal/health"
	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/internal/loadgen"
	"rabbitmq-rpc/internal/placement"
	"rabbitmq-rpc/internal/service"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/services/rpc-client/internal/report"
	"rabbitmq-rpc/services/rpc-client/internal/terminal"
)

// closeTimeout limits everything after the last call: closing the connection, and health
// checks in progress.
const closeTimeout = 5 * time.Second

// connectTimeout limits the wait for the first connection, before the first call.
const connectTimeout = 5 * time.Second

// client is the part of [amqpx.Client] that this service uses.
type client interface {
	loadgen.Client
	report.Watcher
	health.Source
	WaitReady(ctx context.Context) error
	Stats() amqpx.ClientStats
	Close(ctx context.Context) error
}

// work connects, makes the calls and reports.
func work(drain, force context.Context, settings *Config, screen *terminal.Screen, stdout io.Writer, logger *zap.Logger) error {
	stopTraces, err := settings.StartTraces(drain, force, name, logger)
	if err != nil {
		return err
	}
	defer stopTraces()
	listener, err := health.Listen(drain, settings.HTTP.Addr)
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	logger.Info("client starts", service.StartFields(logger, settings, listener.Addr())...)
	c, shows, err := newClient(settings, settings.options(logger)) //nolint:contextcheck // it lives until Close
	if err != nil {
		return lifecycle.ConfigError(err)
	}
	stopHTTP, err := settings.StartHTTP(drain, force, listener, c, closeTimeout, logger, shows...)
	if err != nil {
		return errors.Join(err, closeBy(force, c))
	}
	defer stopHTTP()
	return callAll(drain, force, c, settings, terminal.NewProgress(screen, settings.workload(), logger), stdout, logger)
}

// callAll makes the calls with c, closes c and reports. The error is nil if every call made
// got the expected result.
func callAll(drain, force context.Context, c client, settings *Config, p loadgen.Progress, stdout io.Writer, logger *zap.Logger) error {
	waitForConnection(drain, c, min(connectTimeout, settings.Timeout), logger)
	connection := report.WatchConnection(c) //nolint:contextcheck // it watches until End
	results := loadgen.NewRunner(settings.calls(), c, p, logger).Run(drain, force)
	connection.End()
	status := c.Status()
	where := placementOf(force, settings, logger) // before the client closes, which deletes its reply queue
	closeErr := closeBy(force, c)
	if closeErr != nil {
		logger.Warn("client did not close cleanly", zap.Error(closeErr))
	}
	return publish(report.Build(report.Run{
		Results: results, Workload: settings.workload(), Stats: c.Stats(), Settings: config.Describe(settings),
		Connection: connection, Broker: brokerOf(c.Status(), settings.AMQP.URL), Node: status.Node, Placement: where,
	}), settings, stdout, logger)
}

// publish writes the report, prints the summary and logs the end of the run. The exit code
// does not depend on whether the summary is read.
func publish(r *report.Report, settings *Config, stdout io.Writer, logger *zap.Logger) error {
	err := r.Err()
	var paths []string
	if settings.ReportDir != "" {
		var writeErr error
		paths, writeErr = r.Write(settings.ReportDir)
		err = errors.Join(err, writeErr)
	}
	title := fmt.Sprintf("%q on queue %q, %s", settings.Method, settings.Queue.Name, settings.workload())
	if printErr := r.WriteSummary(stdout, title); printErr != nil {
		logger.Error("summary was not printed", zap.Error(printErr))
	}
	logFinished(r, logger)
	for _, path := range paths {
		logger.Info("report written", zap.String("path", path))
	}
	return err
}

// logFinished logs the end of the run.
func logFinished(r *report.Report, logger *zap.Logger) {
	logger.Info("client finished", zap.Int64("calls", r.Calls), zap.Int64("ok", r.OK),
		zap.Bool("interrupted", r.Interrupted), zap.Uint64("resent", r.Resent),
		zap.Uint64("late", r.Late), zap.Uint64("unknown", r.Unknown))
	if r.Rate != nil && !r.Rate.KeptUp {
		logger.Warn("the rate was not kept", zap.Float64("asked", r.Rate.Asked), zap.Float64("achieved", r.Rate.Achieved),
			zap.Int64("not_begun", r.Rate.NotBegun))
	}
}

// waitForConnection keeps the time of connecting out of the first call's latency. Without a
// connection the calls start nevertheless: each waits until its own deadline.
func waitForConnection(drain context.Context, c client, limit time.Duration, logger *zap.Logger) {
	ctx, cancel := context.WithTimeout(drain, limit)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil && drain.Err() == nil {
		logger.Warn("no connection to the broker yet, calling all the same", zap.Error(err))
	}
}

// closeBy closes c within closeTimeout, or at once when force has ended.
func closeBy(force context.Context, c client) error {
	ctx, cancel := context.WithTimeout(force, closeTimeout)
	defer cancel()
	return c.Close(ctx)
}

// placementTimeout limits the questions to the management API.
const placementTimeout = 5 * time.Second

// placementOf asks the management API which node holds what; nil: unknown.
func placementOf(ctx context.Context, settings *Config, logger *zap.Logger) *placement.Placement {
	if settings.ManagementURL == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, placementTimeout)
	defer cancel()
	where, err := placement.Ask(ctx, settings.ManagementURL.Reveal(), vhostOf(settings.AMQP.URL), settings.Queue.Name)
	if err != nil {
		logger.Warn("the nodes of the queues are unknown", zap.Error(err))
	}
	return where
}

// vhostOf returns the virtual host of the broker's URLs.
func vhostOf(urls config.Secret) string {
	first, _, _ := strings.Cut(urls.Reveal(), ",")
	u, err := url.Parse(strings.TrimSpace(first))
	if err != nil || len(u.Path) < 2 { // "" and "/" are the default
		return "/"
	}
	return u.Path[1:]
}

// brokerOf returns the address of the broker: the address of the connection, or, if no
// connection was ever made, the address in the URL.
func brokerOf(status amqpx.Status, urls config.Secret) string {
	if status.Broker != "" {
		return status.Broker
	}
	list, err := amqpx.ParseURLs(urls.Reveal())
	if err != nil {
		return ""
	}
	return list[0].Address()
}
