// Command server is a server with badly behaved handlers. Its settings are the library's
// defaults, except for the maximum run time of a handler.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx"
)

// longest is the maximum run time of a handler.
const longest = 500 * time.Millisecond

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	url := flag.String("url", "", "AMQP URL")
	queue := flag.String("queue", "", "request queue")
	flag.Parse()
	logger, err := zap.NewProduction()
	if err != nil {
		return err
	}
	server, err := amqpx.NewServer(*url, amqpx.WithLogger(logger), amqpx.WithMaxHandlerTime(longest),
		amqpx.WithQueue(amqpx.Queue{Name: *queue, Type: amqpx.QueueClassic}))
	if err != nil {
		return err
	}
	for method, handler := range map[string]amqpx.Handler{
		"b": ordinary, "typed-nil": typedNil, "wrapped-nil": wrappedNil, "forever": forever, "deaf": deaf,
	} {
		if err := server.Handle(method, handler); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return server.Serve(ctx)
}

func ordinary(context.Context, *amqpx.Request) ([]byte, error) { return []byte("b"), nil }

// check finds no fault, and returns a nil pointer.
func check() *amqpx.Error { return nil }

func typedNil(context.Context, *amqpx.Request) ([]byte, error) { return nil, check() }

func wrappedNil(context.Context, *amqpx.Request) ([]byte, error) {
	return nil, fmt.Errorf("checked: %w", check())
}

// forever ends only with its context.
func forever(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// deaf ignores its context and takes ten times as long as permitted.
func deaf(context.Context, *amqpx.Request) ([]byte, error) {
	<-time.After(10 * longest)
	return []byte("late"), nil
}
