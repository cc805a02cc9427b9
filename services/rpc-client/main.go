// Command rpc-client calls a function over RabbitMQ many times, checks every result and
// reports. The settings come from the environment; docs/operations.md lists them.
//
//	rpc-client               call, print a summary; exit 0 if every call was
//	                         answered as expected, 1 if not, 2 on bad settings.
//	                         With RPC_MODE=call: make one call and print its response;
//	                         exit 1 if it fails. With RPC_MODE=fleet: list the servers
//	                         of the queue; exit 1 if there is none
//	rpc-client check         exit 0 if the settings are good, else 2
//	rpc-client healthcheck   exit 0 if the running client is ready, else 1
package main

import (
	"context"
	"io"
	"os"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/internal/service"
	"rabbitmq-rpc/services/rpc-client/internal/terminal"
)

const name = "rpc-client"

const usage = `usage: rpc-client [check | healthcheck]
Calls a function over RabbitMQ and checks every response. With RPC_MODE=call it makes one
call and prints the response; with RPC_MODE=fleet it lists the servers. Settings come
from the environment only: docs/operations.md lists them.
`

func main() {
	os.Exit(lifecycle.Finish(os.Stderr, name, run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)))
}

func run(parent context.Context, args []string, stdout, stderr io.Writer) error {
	var settings Config
	screen := terminal.OpenScreen(stderr)
	return service.Run(parent, args, stdout, stderr, screen, service.Program{
		Name: name, Usage: usage, Settings: &settings,
		Serve: func(drain, force context.Context, logger *zap.Logger) error {
			switch settings.Mode {
			case modeCall:
				return call(drain, force, &settings, stdout, logger)
			case modeFleet:
				return fleet(drain, force, &settings, stdout, logger)
			default:
				return work(drain, force, &settings, screen, stdout, logger)
			}
		},
	})
}
