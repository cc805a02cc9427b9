// Command rpc-client calls a function over RabbitMQ many times, checks every result and
// reports. The settings come from the environment; docs/operations.md lists them.
//
//	rpc-client               call, print a summary; exit 0 if every call was
//	                         answered as expected, 1 if not, 2 on bad settings.
//	                         With RPC_MODE=fleet: list the servers of the queue; exit 1
//	                         if there is none
//	rpc-client check         exit 0 if the settings are good, else 2
//	rpc-client healthcheck   exit 0 if the running client is ready, else 1
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
	"rabbitmq-rpc/services/rpc-client/internal/terminal"
)

const name = "rpc-client"

const usage = `usage: rpc-client [check | healthcheck]
Calls a function over RabbitMQ and checks every answer; with RPC_MODE=fleet it lists
the servers instead. Settings come from the environment only: docs/operations.md
lists them.
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
	if err := config.Load(&settings); err != nil || command == lifecycle.CommandCheck {
		return err
	}
	screen := terminal.OpenScreen(stderr)
	settings.Log = settings.Log.For(stderr)
	logger := logging.New(settings.Log, name, screen)
	defer logging.Sync(logger)
	if settings.Mode == modeFleet {
		return fleet(drain, force, &settings, stdout, logger)
	}
	settings.traces, err = tracing.Start(drain, &settings.Tracing, tracing.Service{
		Name: name, Queue: settings.Queue.Name, Broker: settings.AMQP.URL.Reveal(),
	}, logger)
	if err != nil {
		return err
	}
	defer settings.traces.Stop(force)
	return work(drain, force, &settings, screen, stdout, logger)
}
