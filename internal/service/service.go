// Package service runs a service: command line, settings, signals, log, traces, the HTTP server
// and the garbage collector, which are the same in every service.
package service

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"go.uber.org/zap"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/internal/health"
	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/internal/logging"
	"rabbitmq-rpc/internal/tracing"
)

// Program is a service.
type Program struct {
	// Name is the name of the command, in the log and in traces.
	Name string
	// Usage is the output of the command help.
	Usage string
	// Settings is read from the environment before Check and Serve run.
	Settings Settings
	// Check finds faults of the settings that reading them does not find, for the command
	// check; nil: there are none.
	Check func() error
	// Serve runs the service until its work is done, until drain ends and the work in progress
	// is finished, or until force ends.
	Serve func(drain, force context.Context, logger *zap.Logger) error
}

// Run executes the command that args, the arguments without the program's name, ask for. The
// log of the service is written to log, which writes to stderr.
func Run(parent context.Context, args []string, stdout, stderr, log io.Writer, p Program) error {
	command, err := lifecycle.ParseArgs(args)
	if err != nil {
		return err
	}
	drain, force, stop := lifecycle.Signals(parent)
	defer stop()
	switch command {
	case lifecycle.CommandHelp:
		_, err = fmt.Fprint(stdout, p.Usage)
		return err
	case lifecycle.CommandHealthcheck:
		return health.CheckSelf(drain)
	case lifecycle.CommandServe, lifecycle.CommandCheck:
	}
	if err := config.Load(p.Settings); err != nil {
		return err
	}
	if command == lifecycle.CommandCheck {
		if p.Check == nil {
			return nil
		}
		return p.Check()
	}
	c := p.Settings.shared()
	c.Log = c.Log.For(stderr)
	logger := logging.New(c.Log, p.Name, log)
	defer logging.Sync(logger)
	tuneCollector(memlimit.FromCgroup, logger)
	return p.Serve(drain, force, logger)
}

// StartTraces starts the tracing of calls, if the settings ask for traces. stop exports the
// spans that wait, until force ends.
func (c *Config) StartTraces(drain, force context.Context, name string, logger *zap.Logger) (stop func(), err error) {
	c.Traces, err = tracing.Start(drain, &c.Tracing, tracing.Service{
		Name: name, Queue: c.Queue.Name, Broker: c.AMQP.URL.Reveal(),
	}, logger)
	if err != nil {
		return nil, err
	}
	return func() { c.Traces.Stop(force) }, nil
}

// StartHTTP reports the state of source on listener, and logs warnings before a client
// certificate expires. stop waits for health checks in progress, for at most timeout and until
// force ends.
func (c *Config) StartHTTP(drain, force context.Context, listener net.Listener, source health.Source, timeout time.Duration, logger *zap.Logger, shows ...health.Option) (stop func(), err error) {
	probes, err := health.Start(drain, listener, source, logger, shows...)
	if err != nil {
		return nil, err
	}
	unwatch := health.WatchCertificate(force, c.AMQP.CertificateEnd, logger)
	return func() {
		unwatch()
		ctx, cancel := context.WithTimeout(force, timeout)
		defer cancel()
		probes.Stop(ctx)
	}, nil
}

// StartFields returns the fields of a service's first log line: version, settings, broker,
// queue and the address of the HTTP server.
func StartFields(logger *zap.Logger, settings Settings, addr net.Addr) []zap.Field {
	c := settings.shared()
	return append(logging.StartFields(logger, c.Log, settings),
		zap.Stringer("broker", c.AMQP.URL), zap.String("queue", c.Queue.Name), zap.Stringer("http_addr", addr))
}
