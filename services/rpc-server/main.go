// Command rpc-server serves the functions a and b from a RabbitMQ queue. The settings come
// from the environment; docs/operations.md lists them.
//
//	rpc-server               serve until SIGTERM, SIGINT or SIGHUP, then drain and exit 0
//	rpc-server check         exit 0 if the settings are good, else 2
//	rpc-server healthcheck   exit 0 if the running server is ready, else 1
package main

import (
	"context"
	"io"
	"os"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/internal/service"
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
	var settings Config
	return service.Run(parent, args, stdout, stderr, stderr, service.Program{
		Name: name, Usage: usage, Settings: &settings,
		Check: func() error { return check(&settings) },
		Serve: func(drain, force context.Context, logger *zap.Logger) error {
			return serve(drain, force, &settings, logger)
		},
	})
}
