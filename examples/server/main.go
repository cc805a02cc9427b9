// Command server has a single method, greet.
package main

import (
	"cmp"
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"

	"rabbitmq-rpc/pkg/amqpx"
)

func main() {
	url := cmp.Or(os.Getenv("AMQP_URL"), "amqp://guest:guest@localhost:5672")
	server, err := amqpx.NewServer(url, amqpx.WithQueue(amqpx.Queue{Name: "greetings"}))
	if err != nil {
		log.Fatal(err)
	}
	err = server.Handle("greet", func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		if len(req.Body) == 0 {
			return nil, amqpx.Errorf(amqpx.CodeInvalidArgument, "a name is required")
		}
		return append([]byte("hello "), req.Body...), nil
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = server.Serve(ctx) // until a signal, which makes the server drain
	stop()
	if err != nil {
		log.Fatal(err)
	}
}
