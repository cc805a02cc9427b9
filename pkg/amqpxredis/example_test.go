package amqpxredis_test

import (
	"fmt"

	"github.com/redis/go-redis/v9"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxredis"
)

// A server that shares its memory of idempotency keys with all servers of the queue, over Redis.
func Example() {
	shared := redis.NewClient(&redis.Options{Addr: "localhost:6379", ContextTimeoutEnabled: true})
	defer func() { _ = shared.Close() }() // after the end of the server
	store, err := amqpxredis.New(shared, amqpxredis.WithPrefix("production:"))
	if err != nil {
		fmt.Println(err)
		return
	}
	server, err := amqpx.NewServer("amqp://guest:guest@localhost/",
		amqpx.WithQueue(amqpx.Queue{Name: "payments"}), amqpx.WithDedupStore(store))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(server.Status().State)
	// Output: connecting
}
