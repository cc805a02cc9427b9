package amqpxtest_test

import (
	"context"
	"fmt"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
)

// A client and a server call each other without a network, and the broker fails on demand.
func Example() {
	broker := amqpxtest.NewBroker()
	server, err := amqpx.NewServer(amqpxtest.URL, broker.Option())
	if err != nil {
		fmt.Println(err)
		return
	}
	err = server.Handle("greet", func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		if len(req.Body) == 0 {
			return nil, amqpx.Errorf(amqpx.CodeInvalidArgument, "whom?")
		}
		return []byte("hello " + string(req.Body)), nil
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	client, err := amqpx.NewClient(amqpxtest.URL, broker.Option())
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, drain := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }()

	response, err := client.Call(ctx, "greet", []byte("Ada"), amqpx.WaitForServer())
	fmt.Println(string(response), err)

	broker.Disconnect() // a call that begins now waits for the new connections
	_, err = client.Call(ctx, "greet", nil, amqpx.WaitForServer())
	fmt.Println(err, "|", amqpx.OutcomeOf(err))

	fmt.Println("client closed:", client.Close(ctx))
	drain()
	fmt.Println("server drained:", <-served)
	// Output:
	// hello Ada <nil>
	// invalid_argument: whom? | ran
	// client closed: <nil>
	// server drained: <nil>
}
