// Command drain is a server that ends without the loss of a request. At SIGTERM or Ctrl-C the
// server takes no more requests, finishes the requests in progress, and exits with code 0. A
// second signal ends the program at once, and its requests go to another server.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// report is a handler that works for a second.
func report(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
	fmt.Println("report begun")
	select {
	case <-time.After(time.Second):
		return []byte("report"), nil
	case <-ctx.Done(): // the deadline of the caller, a cancellation, or the end of the drain's time
		return nil, ctx.Err()
	}
}

func main() {
	url := cmp.Or(os.Getenv("AMQP_URL"), "amqp://guest:guest@localhost:5672")
	server, err := amqpx.NewServer(url,
		amqpx.WithQueue(amqpx.Queue{Name: "reports"}),
		amqpx.WithDrainTimeout(20*time.Second)) // less than the grace period of a container
	if err != nil {
		log.Fatal(err)
	}
	if err := server.Handle("report", report); err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal has its usual effect
	if err := server.Serve(ctx); err != nil {
		log.Fatal(err) // amqpx.ErrDrainTimeout: some handlers did not end in time
	}
	fmt.Println("drained")
}
