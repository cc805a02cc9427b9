package amqpxtest_test

import (
	"context"
	"fmt"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
)

// Two services of a program call each other over one connection. With a broker, Connect gets its
// URL and no option of this package.
func Example_connection() {
	ctx := context.Background()
	broker := amqpxtest.NewBroker()
	conn, err := amqpx.Connect(amqpxtest.URL, broker.Option())
	if err != nil {
		fmt.Println(err)
		return
	}
	names, _ := conn.NewServer(amqpx.WithQueue(amqpx.Queue{Name: "names"}))
	greetings, _ := conn.NewServer(amqpx.WithQueue(amqpx.Queue{Name: "greetings"}))
	lookUp, _ := conn.NewClient(amqpx.WithQueue(amqpx.Queue{Name: "names"}), amqpx.WithCallOptions(amqpx.WaitForServer()))
	greet, _ := conn.NewClient(amqpx.WithQueue(amqpx.Queue{Name: "greetings"}), amqpx.WithCallOptions(amqpx.WaitForServer()))

	_ = names.Handle("of", func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		return map[string][]byte{"1": []byte("Ada")}[string(req.Body)], nil
	})
	_ = greetings.Handle("greet", func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		name, err := lookUp.Call(ctx, "of", req.Body)
		return append([]byte("hello "), name...), err
	})
	served := make(chan error, 2)
	go func() { served <- names.Serve(ctx) }() // both end with Shutdown
	go func() { served <- greetings.Serve(ctx) }()

	response, err := greet.Call(ctx, "greet", []byte("1"))
	fmt.Println(string(response), err)
	fmt.Println("shut down:", conn.Shutdown(ctx)) // servers drain, clients wait for their calls
	fmt.Println(<-served, <-served)

	_, err = greet.Call(ctx, "greet", []byte("1"))
	fmt.Println(err)
	// Output:
	// hello Ada <nil>
	// shut down: <nil>
	// <nil> <nil>
	// unavailable: client closed (did not run)
}
