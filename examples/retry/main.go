// Command retry places an order, with retries that never place the order twice.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// shop stores orders by their idempotency key. Here the store is a map. Several servers need a
// store in common, such as a table of a database with a unique column for the key.
type shop struct {
	mu     sync.Mutex
	orders map[string]string
	runs   int
}

// place is the handler. The first run fails, as if a warehouse were restarting.
func (s *shop) place(_ context.Context, req *amqpx.Request) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runs++; s.runs == 1 {
		err := amqpx.Errorf(amqpx.CodeUnavailable, "the warehouse restarts")
		fmt.Println(err)
		return nil, err
	}
	s.orders[req.IdempotencyKey] = string(req.Body)
	return []byte("placed"), nil
}

// order places an order. The key makes the call idempotent, and every request of the call carries
// it. So the client may make the call again after a failure that can pass, and the shop recognises
// an order that it has. Without a policy the client only sends again what is lost with a connection
// or refused by a server.
func order(ctx context.Context, client *amqpx.Client, key, body string) (string, error) {
	response, err := client.Call(ctx, "place", []byte(body), amqpx.WithIdempotencyKey(key), amqpx.WaitForServer(),
		amqpx.WithRetry(amqpx.RetryPolicy{MaxRetries: 10, MinBackoff: 100 * time.Millisecond}))
	return string(response), err
}

func main() {
	url := cmp.Or(os.Getenv("AMQP_URL"), "amqp://guest:guest@localhost:5672")
	queue := amqpx.WithQueue(amqpx.Queue{Name: "shop"})
	server, err := amqpx.NewServer(url, queue)
	if err != nil {
		log.Fatal(err)
	}
	s := &shop{orders: make(map[string]string)}
	if err := server.Handle("place", s.place); err != nil {
		log.Fatal(err)
	}
	ctx, drain := context.WithTimeout(context.Background(), time.Minute)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }() // ends with drain
	client, err := amqpx.NewClient(url, queue)
	if err != nil {
		log.Fatal(err)
	}
	for range 2 { // the second time as if the program had not seen the first response
		fmt.Println(order(ctx, client, "order-7", "1 tv"))
	}
	_ = client.Close(ctx)
	drain()
	fmt.Println(<-served, len(s.orders), "order,", s.runs, "runs")
}
