// Command deadline calls a service that calls another service. The deadline of the first call
// holds for both calls, because the first handler hands its context on.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// serve starts a server with a single method, and returns a client of the server.
func serve(queueName, method string, h amqpx.Handler) *amqpx.Client {
	url := cmp.Or(os.Getenv("AMQP_URL"), "amqp://guest:guest@localhost:5672")
	queue := amqpx.WithQueue(amqpx.Queue{Name: queueName})
	server, err := amqpx.NewServer(url, queue)
	if err != nil {
		log.Fatal(err)
	}
	if err := server.Handle(method, h); err != nil {
		log.Fatal(err)
	}
	go func() { // ends with the program; example drain shows how a server ends
		log.Fatal(server.Serve(context.Background()))
	}()
	client, err := amqpx.NewClient(url, queue, amqpx.WithCallOptions(amqpx.WaitForServer()))
	if err != nil {
		log.Fatal(err)
	}
	return client
}

// left returns the time until the deadline of ctx.
func left(ctx context.Context) time.Duration {
	deadline, _ := ctx.Deadline()
	return time.Until(deadline).Round(time.Second)
}

// check is the handler of the second service.
func check(ctx context.Context, req *amqpx.Request) ([]byte, error) {
	if string(req.Body) == "slowly" {
		<-ctx.Done() // at the deadline of the first caller
		return nil, ctx.Err()
	}
	return fmt.Appendf(nil, "inventory has %v", left(ctx)), nil
}

// order calls the first service, which calls the second service.
func order(gateway *amqpx.Client, how string, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	response, err := gateway.Call(ctx, "order", []byte(how))
	if err != nil {
		fmt.Printf("%s: %v\n", how, amqpx.CodeOf(err))
		return
	}
	fmt.Printf("%s: %s\n", how, response)
}

func main() {
	inventory := serve("inventory", "check", check)
	gateway := serve("gateway", "order", func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		response, err := inventory.Call(ctx, "check", req.Body)
		if err != nil {
			return nil, err
		}
		return fmt.Appendf(nil, "gateway has %v, %s", left(ctx), response), nil
	})
	order(gateway, "quickly", time.Minute)
	order(gateway, "slowly", 2*time.Second)
	_ = gateway.Close(context.Background())
	_ = inventory.Close(context.Background())
}
