// Command rpc-server serves the functions a and b from a RabbitMQ queue. The settings come
// from the environment; docs/operations.md lists them.
//
//	rpc-server               serve until SIGTERM, SIGINT or SIGHUP, then drain and exit 0
//	rpc-server check         exit 0 if the settings are good, else 2
//	rpc-server healthcheck   exit 0 if the running server is ready, else 1
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/internal/health"
	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/internal/logging"
	"rabbitmq-rpc/internal/tracing"
)

const name = "rpc-server"

const usage = `usage: rpc-server [check | healthcheck]
Serves functions from a RabbitMQ queue. Settings come from the environment only:
docs/operations.md lists them.
`

func main() {
	os.Exit(lifecycle.Finish(os.Stderr, name, run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)))
}

func run(parent context.Context, args []string, stdout, stderr io.Writer) error {
	command, err := lifecycle.ParseArgs(args)
	if err != nil {
		return err
	}
	drain, force, stop := lifecycle.Signals(parent)
	defer stop()
	switch command {
	case lifecycle.CommandHelp:
		_, err = fmt.Fprint(stdout, usage)
		return err
	case lifecycle.CommandHealthcheck:
		return health.CheckSelf(drain)
	case lifecycle.CommandServe, lifecycle.CommandCheck:
	}
	var settings Config
	if err := config.Load(&settings); err != nil {
		return err
	}
	if command == lifecycle.CommandCheck {
		return check(&settings)
	}
	settings.Log = settings.Log.For(stderr)
	logger := logging.New(settings.Log, name, stderr)
	defer logging.Sync(logger)
	settings.traces, err = tracing.Start(drain, &settings.Tracing, tracing.Service{
		Name: name, Queue: settings.Queue.Name, Broker: settings.AMQP.URL.Reveal(),
	}, logger)
	if err != nil {
		return err
	}
	defer settings.traces.Stop(force)
	return serve(drain, force, &settings, logger)
}
