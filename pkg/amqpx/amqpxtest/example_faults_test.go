package amqpxtest_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
)

// The connection is lost with a request on its way. Only an idempotent call is sent again.
func ExampleBroker_FailRequests() {
	broker := amqpxtest.NewBroker()
	conn, err := amqpx.Connect(amqpxtest.URL, broker.Option())
	if err != nil {
		fmt.Println(err)
		return
	}
	paid := 0
	server, _ := conn.NewServer(amqpx.WithQueue(amqpx.Queue{Name: "payments"}))
	_ = server.Handle("pay", func(context.Context, *amqpx.Request) ([]byte, error) {
		paid++
		return []byte("paid"), nil
	})
	ctx := context.Background()
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }() // ends with Shutdown
	client, _ := conn.NewClient(amqpx.WithQueue(amqpx.Queue{Name: "payments"}))
	pay := func(name string, opts ...amqpx.CallOption) {
		response, err := client.Call(ctx, "pay", nil, opts...)
		fmt.Printf("%s: %q %v, paid %d\n", name, response, err, paid)
	}

	_ = server.WaitReady(ctx)
	pay("no fault")
	broker.FailRequests("payments", amqpxtest.DisconnectBefore())
	pay("lost request")
	_ = conn.WaitReady(ctx) // connected again
	broker.FailRequests("payments", amqpxtest.DisconnectBefore())
	pay("lost request, idempotent", amqpx.Idempotent())
	fmt.Println(conn.Shutdown(ctx), <-served)
	// Output:
	// no fault: "paid" <nil>, paid 1
	// lost request: "" unavailable: the connection was lost before the outcome was known (may have run), paid 1
	// lost request, idempotent: "paid" <nil>, paid 2
	// <nil> <nil>
}

// The response is lost: the handler has run, and the caller cannot know. Under testing/synctest the
// wait for the deadline takes no time.
func ExampleBroker_FailResponses() {
	broker := amqpxtest.NewBroker()
	server, _ := amqpx.NewServer(amqpxtest.URL, broker.Option())
	_ = server.Handle("pay", func(context.Context, *amqpx.Request) ([]byte, error) {
		fmt.Println("paid")
		return nil, nil
	})
	ctx, drain := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }() // ends with drain
	client, _ := amqpx.NewClient(amqpxtest.URL, broker.Option())

	broker.FailResponses(amqpx.DefaultQueue, amqpxtest.Lose())
	_, err := client.Call(ctx, "pay", nil, amqpx.WaitForServer(), amqpx.CallTimeout(time.Second))
	fmt.Println(amqpx.CodeOf(err), "|", amqpx.OutcomeOf(err))
	_ = client.Close(ctx)
	drain()
	fmt.Println(<-served)
	// Output:
	// paid
	// deadline_exceeded | may have run
	// <nil>
}

// Calls wait while the broker is stopped or blocked. Those that were not sent did not run.
func ExampleBroker_Stop() {
	broker := amqpxtest.NewBroker()
	client, _ := amqpx.NewClient(amqpxtest.URL, broker.Option())
	ctx := context.Background()
	_ = client.WaitReady(ctx)
	call := func() error {
		_, err := client.Call(ctx, "pay", nil, amqpx.WaitForServer(), amqpx.CallTimeout(200*time.Millisecond))
		return err
	}

	broker.Block("low on disk")
	_ = call() // the broker takes the first message of a connection, and then says that it is blocked
	err := call()
	fmt.Println(err, errors.Is(err, amqpx.ErrBlocked))
	broker.Unblock()

	broker.Stop()
	err = call()
	fmt.Println(amqpx.OutcomeOf(err), errors.Is(err, amqpx.ErrNotConnected))
	broker.Start()
	fmt.Println(client.WaitReady(ctx), client.Close(ctx))
	// Output:
	// deadline_exceeded: the broker blocks publishing: low on disk (did not run) true
	// did not run true
	// <nil> <nil>
}

// inStock is the code under test. It depends on what makes calls, not on a client.
func inStock(ctx context.Context, inventory amqpx.Caller, item string) (string, error) {
	left, err := inventory.Call(ctx, "left", []byte(item), amqpx.CallTimeout(time.Second))
	if amqpx.OutcomeOf(err) == amqpx.DidNotRun {
		return "ask again", nil
	}
	return string(left), err
}

// A function answers the calls of the code under test.
func ExampleCaller() {
	inventory := amqpxtest.Caller(func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		if string(req.Body) == "sofa" {
			return nil, amqpxtest.Error(amqpx.CodeUnavailable, amqpx.DidNotRun)
		}
		return []byte("3"), nil
	})
	fmt.Println(inStock(context.Background(), inventory, "tv"))
	fmt.Println(inStock(context.Background(), inventory, "sofa"))
	// Output:
	// 3 <nil>
	// ask again <nil>
}

// fakeInventory is a fake written by hand: it need not see the options of a call.
type fakeInventory map[string]string

func (f fakeInventory) Call(_ context.Context, method string, body []byte, _ ...amqpx.CallOption) ([]byte, error) {
	left, ok := f[method+" "+string(body)]
	if !ok {
		return nil, amqpxtest.Error(amqpx.CodeNotFound, amqpx.Ran, amqpxtest.Remote(), amqpxtest.Message("not sold here"))
	}
	return []byte(left), nil
}

// A type of the test answers the calls of the code under test.
func ExampleCaller_byHand() {
	inventory := fakeInventory{"left tv": "3"}
	fmt.Println(inStock(context.Background(), inventory, "tv"))
	_, err := inStock(context.Background(), inventory, "sofa")
	fmt.Println(err)
	// Output:
	// 3 <nil>
	// not_found: not sold here
}
